"""CSV, TSV and JSON lines → records."""

from __future__ import annotations

import collections
import csv
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

from pplx_vectorstore.errors import UnreadableFileError
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions, shorten
from pplx_vectorstore.readers.plain import decode
from pplx_vectorstore.readers.records import (
    SAMPLE_ROWS,
    Row,
    find_header,
    name_column,
    require_columns,
    require_own_values,
    write_record,
)

_DELIMITERS = ",;\t|"
_SAMPLE_LINES = 20
_MOST_CHARACTERS_OF_A_CELL = 1 << 24


def read_csv(data: bytes, options: ReaderOptions) -> Content:
    """Read a table whose cells are separated by commas, semicolons, tabs or bars; chunks know their rows.

    A row has the number that a spreadsheet shows: from 1, the header's too.

    Raises:
        UnreadableFileError: It is no text, or lacks the columns that are asked for.
    """
    text, note = decode(data, options)
    blocks = Blocks()
    rows = _numbered(text)
    first = list(itertools.islice(rows, SAMPLE_ROWS))
    at = find_header(first)
    header = first[at][1] if at is not None else {}
    if first:
        widest = max(first[at or 0][1]) + 1
        require_columns((name_column(header.get(column, ""), column) for column in range(widest)), options)
    if at is not None:
        for number, cells in first[:at]:  # what stands above the table
            if not options.text_columns:
                blocks.add(" ".join(" ".join(cells.values()).split()), {"row": number})
        if at == len(first) - 1:
            blocks.add(", ".join(" ".join(name.split()) for name in header.values()), {"row": first[at][0]})
        first = first[at + 1 :]
    for number, cells in itertools.chain(first, rows):
        record = ((name_column(header.get(column, ""), column), cell) for column, cell in cells.items())
        blocks.add(write_record(record, options), {"row": number})
        require_own_values(blocks.length, len(data))
    return Content(text=blocks.text, anchors=blocks.anchors, notes=[] if note is None else [note])


def read_json_lines(data: bytes, options: ReaderOptions) -> Content:
    """Read a file with a JSON value in each line; chunks know their rows, which are lines.

    Raises:
        UnreadableFileError: It is no text, or not JSON, or lacks the keys that are asked for.
    """
    text, note = decode(data, options)
    blocks = Blocks()
    broken: list[int] = []
    names: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = list(_flatten(json.loads(line), ""))
        except (ValueError, RecursionError):
            broken.append(number)
            continue
        names.update((name, None) for name, _ in record)
        blocks.add(write_record(record, options), {"row": number})
        require_own_values(blocks.length, len(data))
    if not blocks.text and broken:
        raise UnreadableFileError(f"holds no JSON: line {broken[0]} is none")
    require_columns(names, options)
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return Content(
        text=blocks.text,
        anchors=blocks.anchors,
        notes=[] if note is None else [note],
        losses=[f"line {broken[0]}{more} is no JSON"] if broken else [],
    )


def _numbered(text: str) -> Iterator[Row]:
    """Yield each row that holds something."""
    for number, row in enumerate(_rows(text), 1):
        cells = {column: cell for column, cell in enumerate(row) if cell.strip()}
        if cells:
            yield number, cells


def _rows(text: str) -> Iterator[list[str]]:
    """Yield the rows of a table, whatever they are separated by."""
    limit = csv.field_size_limit(_MOST_CHARACTERS_OF_A_CELL)
    try:
        delimiter = _delimiter(text)
        opened = io.StringIO(text, newline="")
        if delimiter == "\t" and not _is_quoted(text):
            yield from csv.reader(opened, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            yield from csv.reader(opened, delimiter=delimiter)
    except csv.Error as error:
        raise UnreadableFileError(
            f"is a table that cannot be read ({error}): does a quote lack its other half?"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _is_quoted(text: str) -> bool:
    """Tell whether quotes in a table separated by tabs are around cells; else they are text, such as an inch's mark."""
    try:
        collections.deque(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True), maxlen=0)
    except csv.Error:
        return False
    return True


def _delimiter(text: str) -> str:
    """Choose what splits the first lines into cells as evenly as possible, and into most of them."""
    lines = [line for line in itertools.islice(io.StringIO(text, newline=None), _SAMPLE_LINES) if line.strip()]

    def evenness(delimiter: str) -> tuple[float, int]:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        usual = max(set(widths), key=widths.count, default=1)
        return (widths.count(usual) / len(widths) if usual > 1 else 0.0, usual)

    return max(_DELIMITERS, key=evenness) if lines else ","


def _flatten(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the values within a JSON value as text, each with its path: ``author.name``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, shorten(f"{name}.{key}" if name else str(key)))
    elif isinstance(value, list):
        if all(not isinstance(item, (dict, list)) for item in value):
            yield name or "value", ", ".join(_scalar(item) for item in value)
        else:
            for item in value:
                yield from _flatten(item, name)
    else:
        yield name or "value", _scalar(value)


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
