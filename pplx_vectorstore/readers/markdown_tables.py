"""Cells of a table → a table in Markdown, or what the cells hold, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_MOST_SPANNED_COLUMNS = 100
_MOST_SPANNED_ROWS = 1000
# Characters that spans may add to a table, for each that is in its cells; borders are three a cell.
_MOST_SPANNED = 8
_BORDERS = 3


@dataclass(slots=True)
class Cell:
    """A cell: the blocks in it, and over how many columns and rows it goes."""

    columns: int = 1
    rows: int = 1
    blocks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> Cell:
        """Make a cell of an element's attributes."""
        return cls(
            columns=_span(attributes.get("colspan", ""), _MOST_SPANNED_COLUMNS),
            rows=_span(attributes.get("rowspan", ""), _MOST_SPANNED_ROWS),
        )

    @property
    def is_simple(self) -> bool:
        """Whether it fits into a line of a table."""
        return len(self.blocks) <= 1 and not any(block.startswith(("#", "```", "|")) for block in self.blocks)

    @property
    def line(self) -> str:
        """What it holds, in one line of a table."""
        return " ".join(" ".join(self.blocks).split()).replace("|", "\\|")


class Table:
    """The rows of a table, as they come."""

    def __init__(self) -> None:
        self._rows: list[list[Cell]] = []
        self.is_in_cell = False

    def begin_row(self) -> None:
        """Begin a row."""
        self._rows.append([])

    def begin_cell(self, cell: Cell) -> None:
        """Begin a cell; without a row, in a new one."""
        if not self._rows:
            self.begin_row()
        self._rows[-1].append(cell)
        self.is_in_cell = True

    def end_cell(self, blocks: list[str]) -> None:
        """Give the cell that was begun what it holds."""
        self._rows[-1][-1].blocks = blocks
        self.is_in_cell = False

    def write(self) -> Iterator[str]:
        """Yield blocks: one with the whole table, or, of a table that arranges a page, what it arranges."""
        rows = [row for row in self._rows if any(cell.blocks for cell in row)]
        if all(cell.is_simple for row in rows for cell in row) and any(len(row) > 1 for row in rows):
            written = list(_written(rows))
            width = max(map(len, written))
            written[0] += [""] * (width - len(written[0]))
            lines = [f"| {' | '.join(cells)} |" for cells in written]
            yield "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])
            return
        for row in rows:
            for cell in row:
                yield from cell.blocks


def _written(rows: list[list[Cell]]) -> Iterator[list[str]]:
    """Yield what the cells of each row hold; those that one spans are filled, as long as that does not outgrow them."""
    left = _MOST_SPANNED * sum(_BORDERS + len(cell.line) for row in rows for cell in row)
    below: dict[int, tuple[int, str]] = {}  # column → how many more rows a cell above goes down, and what it holds
    for row in rows:
        written: list[str] = []
        cells = iter(row)
        while True:
            n_rows, text = below.pop(len(written), (0, ""))
            if n_rows and left > 0:
                if n_rows > 1:
                    below[len(written)] = (n_rows - 1, text)
                written.append(text)
                left -= _BORDERS + len(text)
                continue
            cell = next(cells, None)
            if cell is None:
                break
            text = cell.line
            for column in range(cell.columns):
                if column and left <= 0:
                    break
                if cell.rows > 1:
                    below[len(written)] = (cell.rows - 1, text)
                written.append("" if column else text)
                left -= _BORDERS
        yield written


def _span(written: str, most: int) -> int:
    return min(int(written), most) if written.isascii() and written.isdigit() and 0 < len(written) < 6 else 1
