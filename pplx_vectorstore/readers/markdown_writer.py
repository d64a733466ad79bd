"""Elements of a page, one after another → Markdown.

In time that grows as the page does, whatever the page is like: what may be nested without end (lists, quotes, tables,
marks of words) is written down to a depth that no reader would follow, and its text alone from there on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from pplx_vectorstore.readers.content import shorten
from pplx_vectorstore.readers.markdown_tables import Cell, Table

_MOST_CONTAINERS = 8
_MOST_TABLES = 4
_MOST_LINK = 500
_MARKS = {"b": "**", "strong": "**", "i": "*", "em": "*", "code": "`", "kbd": "`", "samp": "`", "tt": "`"}
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_LISTS = frozenset(("ul", "ol", "menu", "dir"))
_CONTAINERS = _LISTS | {"li", "blockquote"}
_OF_BLOCKS = (
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol p pre section summary table tbody "
    "td tfoot th thead title tr ul"
)
_OF_NO_TEXT = (
    "applet audio base canvas datalist embed iframe link meta noscript object param rp script style svg template track "
    "video"
)
_BLOCKS, _DROPPED = (frozenset(names.split()) for names in (_OF_BLOCKS, _OF_NO_TEXT))
_WHITE = re.compile(r"[ \t\n\r\f\xa0]+")
# What would open a block of Markdown at the beginning of a line, and is text here.
_OPENING = re.compile(r"^(?=#{1,6}(?:\s|$)|>|```|~~~|=+\s*$|-{2,}\s*$|[-+*]\s)", re.MULTILINE)
_BACKTICKS = re.compile(r"`+")


class _Open(NamedTuple):
    """A mark that is open: its element, where in the line it began, and a link's address."""

    name: str
    start: int
    address: str = ""


class _Block(NamedTuple):
    """A finished block: whether it begins an item of a list, and may follow another such without an empty line."""

    text: str
    is_item: bool
    is_tight: bool


@dataclass(slots=True)
class _Container:
    """A list, an item of one, or a quote: what its lines begin with."""

    name: str
    first: str = ""
    rest: str = ""
    number: int | None = None
    is_begun: bool = False


@dataclass(slots=True)
class _Sink:
    """Where blocks go: the page, or a cell of a table."""

    blocks: list[_Block] = field(default_factory=list)
    containers: list[_Container] = field(default_factory=list)


class MarkdownWriter:
    """Target of a parser: told of tags and text, it writes Markdown.

    Attributes:
        title: What the page calls itself.
    """

    def __init__(self) -> None:
        self.title = ""
        self._sinks = [_Sink()]
        self._tables: list[Table] = []
        self._tables_not_written = 0
        self._containers_not_written: list[str] = []
        self._line: list[str] = []
        self._marks: list[_Open] = []
        self._heading = 0
        self._code: list[str] | None = None
        self._title: list[str] | None = None
        self._dropped = ""
        self._n_dropped = 0

    def start(self, tag: object, attributes: dict[str, str]) -> None:
        """Begin an element."""
        name = tag if isinstance(tag, str) else ""
        if self._dropped:
            self._n_dropped += name == self._dropped
        elif name in _DROPPED:
            self._dropped, self._n_dropped = name, 1
        elif name == "title" and not self.title:
            self._title = []
        elif self._code is not None:
            if name == "br":
                self._code.append("\n")
        elif name in _BLOCKS:
            self._flush()
            self._begin_block(name, attributes)
        elif name == "br":
            self._line.append(" " if self._heading else "\n")
        elif name == "img":
            self._write_image(attributes)
        elif (name in _MARKS or name == "a") and not any(mark.name == name for mark in self._marks):
            self._marks.append(_Open(name, len(self._line), attributes.get("href", "")))

    def end(self, tag: object) -> None:
        """End an element."""
        name = tag if isinstance(tag, str) else ""
        if self._dropped:
            self._n_dropped -= name == self._dropped
            if not self._n_dropped:
                self._dropped = ""
        elif name == "title" and self._title is not None:
            self.title, self._title = shorten(" ".join("".join(self._title).split())), None
        elif name == "pre":
            self._end_code()
        elif self._code is not None:
            return
        elif name in _BLOCKS:
            self._flush()
            self._end_block(name)
        else:
            self._end_mark(name)

    def data(self, text: str) -> None:
        """Take text."""
        if self._dropped:
            return
        if self._title is not None:
            self._title.append(text)
        elif self._code is not None:
            self._code.append(text)
        else:
            self._line.append(_WHITE.sub(" ", text))

    def comment(self, text: str) -> None:
        """Leave a comment out."""

    def close(self) -> str:
        """Return all that was written."""
        self._end_code()
        self._flush()
        while self._tables:
            self._end_table()
        return _join(self._sinks[0].blocks)

    def _begin_block(self, name: str, attributes: dict[str, str]) -> None:
        containers = self._sinks[-1].containers
        if name == "pre":
            self._code = []
        elif name in _HEADINGS:
            self._heading = int(name[1])
        elif name in _CONTAINERS:
            if len(containers) >= 2 * _MOST_CONTAINERS:
                self._containers_not_written.append(name)
                return
            container = _Container(name)
            if name == "blockquote":
                container.first = container.rest = "> "
            elif name == "ol":
                start = attributes.get("start", "1")
                container.number = int(start) if start.isascii() and start.isdigit() and len(start) < 7 else 1
            elif name == "li":
                above = containers[-1] if containers else None
                container.first, container.rest = "- ", "  "
                if above is not None and above.number is not None:
                    container.first = f"{above.number}. "
                    container.rest = " " * len(container.first)
                    above.number += 1
            containers.append(container)
        elif name == "table":
            if len(self._tables) >= _MOST_TABLES:
                self._tables_not_written += 1
            else:
                self._tables.append(Table())
        elif self._tables and not self._tables_not_written:
            if name == "tr":
                self._end_cell()
                self._tables[-1].begin_row()
            elif name in ("td", "th"):
                self._end_cell()
                self._tables[-1].begin_cell(Cell.of(attributes))
                self._sinks.append(_Sink())

    def _end_block(self, name: str) -> None:
        if name in _HEADINGS:
            self._heading = 0
        elif name in _CONTAINERS:
            if self._containers_not_written and self._containers_not_written[-1] == name:
                self._containers_not_written.pop()
                return
            containers = self._sinks[-1].containers
            if any(container.name == name for container in containers):
                while containers.pop().name != name:
                    pass
        elif name == "table":
            if self._tables_not_written:
                self._tables_not_written -= 1
            elif self._tables:
                self._end_table()
        elif name in ("td", "th") and not self._tables_not_written:
            self._end_cell()

    def _end_cell(self) -> None:
        if self._tables and self._tables[-1].is_in_cell:
            sink = self._sinks.pop()
            self._tables[-1].end_cell([block.text for block in sink.blocks])

    def _end_table(self) -> None:
        self._end_cell()
        for text in self._tables.pop().write():
            self._emit(text)

    def _end_code(self) -> None:
        if self._code is None:
            return
        code, self._code = "".join(self._code).strip("\r\n"), None
        if code.strip():
            fence = "`" * max(3, 1 + max((len(run) for run in _BACKTICKS.findall(code)), default=0))
            self._emit(f"{fence}\n{code}\n{fence}")

    def _end_mark(self, name: str) -> None:
        at = next((i for i, mark in enumerate(self._marks) if mark.name == name), None)
        if at is None:
            return
        opened = self._marks.pop(at)
        inner = "".join(self._line[opened.start :])
        bare = inner.strip()
        if not bare:
            written = inner
        else:
            before, after = inner[: len(inner) - len(inner.lstrip())], inner[len(inner.rstrip()) :]
            if name == "a":
                written = f"{before}{_link(bare, opened.address)}{after}"
            else:
                sign = "" if "\n" in bare or self._heading else _MARKS[name]
                written = f"{before}{sign}{bare}{sign}{after}"
        self._line[opened.start :] = [written]
        # What was opened within and is still open has lost its place.
        self._marks = [mark for mark in self._marks if mark.start <= opened.start]

    def _write_image(self, attributes: dict[str, str]) -> None:
        described = " ".join(attributes.get("alt", "").split())
        if described:
            address = attributes.get("src", "")
            self._line.append(f"!{_link(described, address)}" if _is_address(address) else described)

    def _flush(self) -> None:
        """End the block of text that is being written."""
        self._marks.clear()
        if not self._line:
            return
        lines = (_WHITE.sub(" ", line).strip() for line in "".join(self._line).split("\n"))
        self._line.clear()
        text = "\n".join(line for line in lines if line)
        if not text:
            return
        if self._heading:
            self._emit(f"{'#' * self._heading} {text.replace(chr(10), ' ')}")
        else:
            self._emit(escape_openings(text))

    def _emit(self, text: str) -> None:
        """Add a block to where it belongs, its lines with what they begin with there."""
        sink = self._sinks[-1]
        written = [container for container in sink.containers if container.first]
        first = "".join(container.rest if container.is_begun else container.first for container in written)
        is_item = bool(written) and written[-1].name == "li" and not written[-1].is_begun
        lists = [container for container in sink.containers if container.name in _LISTS]
        is_tight = is_item and (len(lists) > 1 or any(container.is_begun for container in lists))
        for container in sink.containers:
            container.is_begun = container.name != "blockquote"
        if written:
            rest = "".join(container.rest for container in written)
            text = first + text.replace("\n", "\n" + rest)
        sink.blocks.append(_Block(text, is_item, is_tight))


def escape_openings(text: str) -> str:
    """Return text of which no line opens a block of Markdown, such as a heading."""
    return _OPENING.sub(r"\\", text)


def _link(text: str, address: str) -> str:
    address = "%20".join(address.split())
    if not _is_address(address) or "\n" in text:
        return text
    return f"[{text}]({address})"


def _is_address(address: str) -> bool:
    """Tell whether an address says more than its text: it is neither within the page, nor data, nor a program."""
    scheme = address.partition(":")[0].lower()
    return (
        0 < len(address) <= _MOST_LINK and not address.startswith("#") and scheme not in ("data", "javascript", "blob")
    )


def _join(blocks: list[_Block]) -> str:
    parts: list[str] = []
    was_item = False
    for block in blocks:
        if parts:
            parts.append("\n" if block.is_tight and was_item else "\n\n")
        parts.append(block.text)
        was_item = block.is_item
    return "".join(parts)
