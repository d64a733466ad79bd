"""Which id a file has as a document, and which file a document was read from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What is recorded of a file: the document's id again, and the folder that it is relative to.
SOURCE_KEY = "source"
ROOT_KEY = "root"
LINE_KEY = "line"
"""Of a chunk of text: the first of its lines in the file, from 1."""


def root_of(path: Path, root: Path | None) -> Path:
    """Return the folder that a file's id is relative to: `root` if it holds the file, else the file system's."""
    resolved = path.resolve()
    holder = None if root is None else root.resolve()
    return holder if holder is not None and resolved.is_relative_to(holder) else Path(resolved.anchor)


def name_file(path: Path, root: Path | None = None) -> str:
    """Return the document id of a file: its path relative to a root, or absolute where that does not hold it.

    However the path is spelled, and whatever the current folder is: links are resolved, and slashes are forward.
    """
    resolved, holder = path.resolve(), root_of(path, root)
    return as_text(resolved if holder == Path(resolved.anchor) else resolved.relative_to(holder))


def possible_names(path: Path) -> list[str]:
    """Return every id that `name_file` may have given a file, whichever the root was; the absolute one first."""
    resolved = path.resolve()
    parts = resolved.relative_to(resolved.anchor).parts
    return [as_text(resolved), *(as_text(Path(*parts[first:])) for first in range(1, len(parts)))]


def locate_file(document_id: str, metadata: Mapping[str, Any]) -> Path | None:
    """Return the path of the file that a document was read from, or None where it does not say that it was.

    It is as it was recorded, by whoever wrote the store: show it, but do not open it.
    """
    root = metadata.get(ROOT_KEY)
    if metadata.get(SOURCE_KEY) != document_id or not isinstance(root, str):
        return None
    return Path(root, document_id)


def as_text(path: Path) -> str:
    """Return a path with forward slashes, as valid Unicode: a file's name may hold bytes that are no UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
