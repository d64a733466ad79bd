"""Which id a file has as a document, and which file a document was read from."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What is recorded of a file: the document's id again, and the folder that it is relative to.
SOURCE_KEY = "source"
ROOT_KEY = "root"
LINE_KEY = "line"
"""Of a chunk of text: the first of its lines in the file, from 1."""

# How `as_text` writes a byte that is no UTF-8.
_ESCAPE = re.compile(r"\\x([89a-f][0-9a-f])")
_MOST_SPELLINGS = 64


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

    It is as it was recorded, by whoever wrote the store: show it, but do not open it. A name that is no UTF-8 stands in
    it with escapes; `find_file` finds the file.
    """
    root = metadata.get(ROOT_KEY)
    if metadata.get(SOURCE_KEY) != document_id or not isinstance(root, str):
        return None
    return Path(root, document_id)


def find_file(path: Path) -> Path:
    """Return the path, of those that read like this one as text, at which something is; this one where nothing is."""
    if "\\" not in path.as_posix():
        return path
    return next((file for file in possible_files(path) if os.path.lexists(file)), path)


def possible_files(path: Path) -> Iterator[Path]:
    r"""Yield the paths that `as_text` gives this text for, this one first.

    >>> [os.fsencode(path) for path in possible_files(Path("/docs/caf\\xe9.md"))]
    [b'/docs/caf\\xe9.md', b'/docs/caf\xe9.md']
    """
    yield path
    parts = [dict.fromkeys((_unescape(part), part)) for part in path.parts]
    for spelled in itertools.islice(itertools.product(*parts), _MOST_SPELLINGS):
        file = Path(*spelled)
        if file != path and as_text(file) == path.as_posix():
            yield file


def _unescape(part: str) -> str:
    return _ESCAPE.sub(lambda escape: os.fsdecode(bytes.fromhex(escape[1])), part) if "\\" in part else part


def as_text(path: Path) -> str:
    """Return a path with forward slashes, as valid Unicode: a file's name may hold bytes that are no UTF-8."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
