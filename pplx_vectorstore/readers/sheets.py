"""Excel workbooks → records, sheet after sheet."""

from __future__ import annotations

import datetime
import io
import warnings
from typing import Any

from pplx_vectorstore.errors import MissingExtraError, UnreadableFileError
from pplx_vectorstore.readers.archives import open_archive, require_plain_xml
from pplx_vectorstore.readers.content import Blocks, Content, ReaderOptions
from pplx_vectorstore.readers.plain import EXTRA
from pplx_vectorstore.readers.records import column_name, is_header, require_columns, write_record

_KIND = "an Excel workbook"
# A row is as long as its last cell is far to the right: a file of a few megabytes can have more cells than that.
_MOST_CELLS = 20_000_000


def read_sheets(data: bytes, options: ReaderOptions) -> Content:
    """Read an .xlsx file: the values that cells show, of formulas too; chunks know their sheet and rows.

    Raises:
        UnreadableFileError: It is broken, hostile, lacks the columns that are asked for, or the extra is missing.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise UnreadableFileError(str(MissingExtraError("reading Excel workbooks", EXTRA))) from error
    with open_archive(data, _KIND) as archive:
        require_plain_xml(archive, _KIND)
    blocks = Blocks()
    hidden = []
    names: dict[str, None] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions, which are not text
            workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
            for sheet in workbook.worksheets:
                if sheet.sheet_state != "visible":
                    hidden.append(sheet.title)
                _read_sheet(sheet, blocks, names, options)
            workbook.close()
    except UnreadableFileError:
        raise
    except Exception as error:
        raise UnreadableFileError(f"is {_KIND} that cannot be read ({type(error).__name__}: {error})") from error
    require_columns(names, options)
    notes = [f"has hidden sheets, which are read too: {', '.join(hidden)}"] if hidden else []
    return Content(text=blocks.text, format="markdown", anchors=blocks.anchors, notes=notes)


def _read_sheet(sheet: Any, blocks: Blocks, names: dict[str, None], options: ReaderOptions) -> None:
    # What the file says about how far it goes need not be so, and a cell far away would make every row as long.
    sheet.reset_dimensions()
    header: dict[int, str] | None = None
    is_titled = False
    n_cells = 0
    for row in sheet.iter_rows():
        n_cells += len(row)
        if n_cells > _MOST_CELLS:
            raise UnreadableFileError(f"is {_KIND} with more than {_MOST_CELLS:,} cells, empty ones included")
        cells = {cell.column - 1: _shown(cell.value) for cell in row if cell.value is not None}
        cells = {column: shown for column, shown in cells.items() if shown.strip()}
        if not cells:
            continue
        number = next(cell.row for cell in row if cell.value is not None)
        if header is None:
            header = cells if is_header(list(cells.values())) and len(cells) > 1 else {}
            if header:
                continue
        record = [(" ".join(header.get(c, "").split()) or column_name(c), shown) for c, shown in cells.items()]
        names.update((name, None) for name, _ in record)
        text = write_record(record, options)
        if text and not is_titled:
            blocks.add(f"# {' '.join(sheet.title.split())}", {"sheet": sheet.title, "row": number})
            is_titled = True
        blocks.add(text, {"sheet": sheet.title, "row": number})
    if header and not is_titled and not options.text_columns:
        blocks.add(f"# {sheet.title}\n\n{', '.join(header.values())}", {"sheet": sheet.title, "row": 1})


def _shown(value: object) -> str:
    """Return a cell's value as text, without what a date or a whole number has not."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
