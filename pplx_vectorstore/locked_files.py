"""Files that are locked while something beside them is in use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


def is_in_place(file: IO[bytes], path: Path) -> bool:
    """Tell whether an open file is still what has its name; until it was locked, it may have gone with its folder.

    A lock on a file without a name keeps nobody out.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
