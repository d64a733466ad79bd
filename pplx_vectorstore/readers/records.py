"""Records → text: one block each, every value with the name of its column, so that no chunk lacks the header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.content import MOST_CHARACTERS_OF_METADATA, ReaderOptions

_NUMBER = re.compile(r"[-+]?[\d.,]+%?$")


Row = tuple[int, Mapping[int, str]]
"""A row that is not empty: its number, from 1, and column, from 0 → what the cell holds, without empty ones."""

SAMPLE_ROWS = 20
"""Rows among which a header is looked for."""

# Characters that records may have beyond what is in the file: names of columns, which each of them repeats.
_SLACK = 1 << 24
_MOST_REPEATED = 16


def find_header(rows: Sequence[Row], *, least: int = 1) -> int | None:
    """Return which row names columns, or None.

    It is the first that reaches as far to the right as most of those below. What stands above it, such as a title, has
    one cell a row, or an empty row after it. Where there is no such row, it is the first one, if that looks like a
    header.

    Args:
        rows: The first ones of a table.
        least: Cells of a header.
    """
    widest = 0
    for index, (number, row) in enumerate(rows):
        ends = [max(below) for _, below in rows[index + 1 :]]
        usual = max(ends, key=ends.count, default=0)
        if len(row) > 1 and is_header(list(row.values())) and ends and max(row) >= usual:
            is_apart = index > 0 and number > rows[index - 1][0] + 1 and 2 * widest <= len(row)
            if index == 0 or (2 * usual >= max(row) and (widest == 1 or is_apart)):
                return index
            break
        widest = max(widest, len(row))
    return 0 if rows and len(rows[0][1]) >= least and is_header(list(rows[0][1].values())) else None


def is_header(row: Sequence[str]) -> bool:
    """Tell whether a row names columns: it has names, all different, and neither numbers nor whole paragraphs."""
    named = [cell.strip() for cell in row if cell.strip()]
    if any(len(name) > MOST_CHARACTERS_OF_METADATA for name in named):
        return False
    return bool(named) and len(set(named)) == len(named) and not any(_NUMBER.match(name) for name in named)


def column_name(index: int) -> str:
    """Return what a spreadsheet calls a column that has no other name, counted from 0.

    >>> column_name(0), column_name(26), column_name(16383)
    ('A', 'AA', 'XFD')
    """
    name = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        name = chr(ord("A") + letter) + name
    return name


def name_column(header: str, index: int) -> str:
    """Return a column's name: what its header says, on one line, or else its letters."""
    return " ".join(header.split()) or column_name(index)


def require_own_values(n_characters: int, n_bytes: int) -> None:
    """Refuse records that say far more than their file, unpacked, holds: one text for all cells, a name without end.

    Raises:
        UnreadableFileError: Says so.
    """
    if n_characters > _SLACK + _MOST_REPEATED * n_bytes:
        raise UnreadableFileError(
            f"has records of more than {n_characters:,} characters in {n_bytes:,} bytes: it repeats the same "
            "without end"
        )


def write_record(record: Iterable[tuple[str, str]], options: ReaderOptions) -> str:
    """Write a record: each value in a line with its name, or the values alone of the columns that are asked for."""
    if options.text_columns:
        return "\n".join(_block(value) for name, value in record if name in options.text_columns and value.strip())
    return "\n".join(f"{name}: {' '.join(value.split())}" for name, value in record if value.strip())


def require_columns(names: Mapping[str, object] | Iterable[str], options: ReaderOptions) -> None:
    """Refuse a table that has none of the columns that are asked for.

    Raises:
        UnreadableFileError: Names those that it has.
    """
    there = list(names)
    if options.text_columns and not set(options.text_columns) & set(there):
        shown = ", ".join(there[:20]) + (" …" if len(there) > 20 else "")
        raise UnreadableFileError(
            f"has no column {' or '.join(options.text_columns)} to take the text from; it has: {shown or 'none'}"
        )


def _block(value: str) -> str:
    """Return a value with its lines, but without empty ones, which would end the record."""
    return "\n".join(line for line in value.splitlines() if line.strip())
