"""Records → text: one block each, every value with the name of its column, so that no chunk lacks the header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.content import ReaderOptions

_NUMBER = re.compile(r"[-+]?[\d.,]+%?$")


def is_header(row: Sequence[str]) -> bool:
    """Tell whether a row names columns: it has names, all different, and no numbers."""
    named = [cell.strip() for cell in row if cell.strip()]
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
