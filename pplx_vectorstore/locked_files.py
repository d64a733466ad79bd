"""Files that are locked while something beside them is in use."""

from __future__ import annotations

import os
import sys
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


def path_of(file: int) -> Path:
    """Return where a file is now that was opened under this number, without links.

    Raises:
        OSError: It has no name, or the system does not tell.
    """
    if sys.platform == "darwin":
        import fcntl

        return Path(os.fsdecode(fcntl.fcntl(file, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return Path(os.readlink(f"/dev/fd/{file}"))
