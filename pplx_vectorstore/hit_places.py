"""Where in its file a chunk is: lines, pages, slides, rows or cells, as they were when it was indexed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pplx_vectorstore.file_ids import locate_file
from pplx_vectorstore.readers import LINE_KEY

if TYPE_CHECKING:
    from pplx_vectorstore.documents import StoredChunk

# What chunks know of where in the file they are.
_NUMBERED = ("page", "slide", "row", "cell")


def line_range(chunk: StoredChunk) -> tuple[int, int] | None:
    """Return the first and last line that a chunk had in its file when that was indexed, from 1; None without lines."""
    first = chunk.metadata.get(LINE_KEY)
    if locate_file(chunk.document_id, chunk.metadata) is None or type(first) is not int:
        return None
    return first, first + chunk.text.count("\n")


def describe_place(chunk: StoredChunk) -> str:
    """Say where a chunk is: lines, or what else its file is numbered by; else characters, else its own number."""
    lines = line_range(chunk)
    return say_range("line", *lines) if lines is not None else describe_part(chunk) or _position(chunk)


def describe_part(chunk: StoredChunk) -> str | None:
    """Say on which page, slide or row, or in which cell of its file a chunk is; None where that has none."""
    if locate_file(chunk.document_id, chunk.metadata) is None:
        return None
    sheet = chunk.metadata.get("sheet")
    for key in _NUMBERED:
        first, last = chunk.metadata.get(key), chunk.metadata.get(f"{key}_end")
        if type(first) is int and type(last) is int:
            numbers = say_range(key, first, last)
            return f"{sheet}, {numbers}" if isinstance(sheet, str) else numbers
    return None


def say_range(what: str, first: int, last: int) -> str:
    """Say a range of numbers.

    >>> say_range("page", 3, 3), say_range("page", 3, 4)
    ('page 3', 'pages 3-4')
    """
    return f"{what}s {first}-{last}" if first != last else f"{what} {first}"


def _position(chunk: StoredChunk) -> str:
    if chunk.start is not None:
        return f"characters {chunk.start}-{chunk.end}"
    return f"chunk {chunk.chunk_index + 1} of {chunk.chunk_count}"
