"""Excel workbooks → records, sheet after sheet."""

from __future__ import annotations

import datetime
import io
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from pplx_vectorstore.errors import MissingExtraError, UnreadableFileError
from pplx_vectorstore.readers.archives import open_archive
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions, shorten
from pplx_vectorstore.readers.markdown_writer import escape_openings
from pplx_vectorstore.readers.plain import EXTRA
from pplx_vectorstore.readers.records import (
    SAMPLE_ROWS,
    Row,
    find_header,
    name_column,
    require_columns,
    require_own_values,
    write_record,
)

_KIND = "an Excel workbook"
_MOST_BYTES = 1 << 27  # sheets are read row by row
# A row is as long as its last cell is far to the right: a file of a few megabytes can have more cells than that.
_MOST_CELLS = 20_000_000
_PARTS = ("xl/workbook.xml", "xl/sharedStrings.xml", "xl/styles.xml")
_RELATIONS = ("officeDocument", "worksheet", "sharedStrings", "styles")


def read_sheets(data: bytes, options: ReaderOptions) -> Content:
    """Read an .xlsx file: the values that cells show, of formulas too; chunks know their sheet and rows.

    No chunk goes over two sheets.

    Raises:
        UnreadableFileError: It is broken, hostile, lacks the columns that are asked for, or the extra is missing.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise UnreadableFileError(str(MissingExtraError("reading Excel workbooks", EXTRA))) from error
    with open_archive(data, _KIND, _MOST_BYTES) as parts:
        checked = parts.copy_of(_RELATIONS, _PARTS)
    sheets = _Sheets(options, parts.n_bytes)
    hidden = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions, which are not text
            workbook = openpyxl.load_workbook(io.BytesIO(checked), read_only=True, data_only=True, keep_links=False)
            read = set()
            for sheet in workbook.worksheets:
                part = sheet._worksheet_path
                if part in read:  # each once, however many sheets say that they are it
                    continue
                read.add(part)
                if sheet.sheet_state != "visible":
                    hidden.append(shorten(sheet.title))
                sheets.read(sheet)
            workbook.close()
    except (UnreadableFileError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableFileError(f"is {_KIND} that cannot be read ({type(error).__name__}: {error})") from error
    require_columns(sheets.columns, options)
    blocks = sheets.blocks
    return Content(
        text=blocks.text,
        format="markdown",
        anchors=blocks.anchors,
        cuts=blocks.cuts,
        notes=[f"has hidden sheets, which are read too: {', '.join(hidden)}"] if hidden else [],
    )


class _Sheets:
    """Reads sheets one after another, within bounds of all of them together.

    Attributes:
        blocks: What they say.
        columns: Names of all that have values.
    """

    def __init__(self, options: ReaderOptions, n_bytes: int) -> None:
        self.blocks = Blocks()
        self.columns: dict[str, None] = {}
        self._options = options
        self._n_bytes = n_bytes
        self._n_cells = 0
        self._title = ""
        self._is_titled = False

    def read(self, sheet: Any) -> None:
        """Read a sheet."""
        self._title = shorten(" ".join(sheet.title.split()))
        self._is_titled = False
        rows = self._rows(sheet)
        first = list(itertools.islice(rows, SAMPLE_ROWS))
        at = find_header(first, least=2)
        header: Mapping[int, str] = {}
        if at is not None:
            for number, cells in first[:at]:  # what stands above a table
                if not self._options.text_columns:
                    self._add(" ".join(" ".join(cells.values()).split()), number)
            number, header = first[at]
            if at == len(first) - 1 and not self._options.text_columns:
                self._add(", ".join(" ".join(name.split()) for name in header.values()), number)
            first = first[at + 1 :]
        for number, cells in itertools.chain(first, rows):
            record = [(name_column(header.get(column, ""), column), shown) for column, shown in cells.items()]
            self.columns.update((name, None) for name, _ in record)
            self._add(write_record(record, self._options), number)
            require_own_values(self.blocks.length, self._n_bytes)

    def _rows(self, sheet: Any) -> Iterator[Row]:
        # What the file says about how far it goes need not be so, and a cell far away would make every row as long.
        sheet.reset_dimensions()
        for row in sheet.iter_rows():
            self._n_cells += len(row)
            if self._n_cells > _MOST_CELLS:
                raise UnreadableFileError(f"is {_KIND} with more than {_MOST_CELLS:,} cells, empty ones included")
            cells = {cell.column - 1: _shown(cell.value) for cell in row if cell.value is not None}
            cells = {column: shown for column, shown in cells.items() if shown.strip()}
            if cells:
                yield next(cell.row for cell in row if cell.value is not None), cells

    def _add(self, text: str, row: int) -> None:
        if not text.strip():
            return
        anchor = {"sheet": self._title, "row": row}
        if not self._is_titled:
            self.blocks.add(f"# {self._title}", anchor, is_part=True)
            self._is_titled = True
        self.blocks.add(escape_openings(text), anchor)


def _shown(value: object) -> str:
    """Return a cell's value as text, without what a date or a whole number has not."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
