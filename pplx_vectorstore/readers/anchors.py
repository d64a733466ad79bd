"""Chunks of a text → chunks that know where in the file they are: line, page, slide, row, and under which headings."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pplx_vectorstore.documents import Chunk
from pplx_vectorstore.file_ids import LINE_KEY
from pplx_vectorstore.readers.content import Content

HEADING_KEY = "heading"

_END = "_end"
_MOST_HEADING = 200
_LINE_END = re.compile(r"\r\n?|\n")  # those of Markdown, which are fewer than those of Unicode
_MAY_BE_HEADING = re.compile(r"^ {0,3}(?:#{1,6}(?:[ \t]|$)|=+[ \t]*$|-+[ \t]*$)", re.MULTILINE)


def label_chunks(content: Content, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Note in each chunk's metadata where it is.

    What is numbered (page, slide, row, cell) has the number of the chunk's beginning under its name, and that of its
    end with ``_end`` after it; a sheet has its name. ``heading`` is the list of the headings above, the highest first.
    ``line`` is the first line in the file, where the text's lines are the file's.

    Args:
        content: What was read.
        chunks: Of its text, in order, with offsets.
    """
    places = _Places(content)
    headings = list(_headings(content.text)) if content.format == "markdown" else []
    starts = [at for at, _ in headings]
    labelled = []
    line = content.first_line or 0
    counted = 0
    for chunk in chunks:
        start, stop = chunk.start or 0, chunk.end or 0
        values = places.of(start, stop)
        above = bisect.bisect_right(starts, start)
        if above:
            values[HEADING_KEY] = list(headings[above - 1][1])
        if content.first_line is not None:
            line += content.text.count("\n", counted, start)
            counted = start
            values[LINE_KEY] = line
        labelled.append(replace(chunk, metadata={**values, **chunk.metadata}))
    return labelled


class _Places:
    """Where anchors hold."""

    def __init__(self, content: Content) -> None:
        self._anchors = content.anchors
        self._starts = [at for at, _ in content.anchors]

    def of(self, start: int, stop: int) -> dict[str, Any]:
        """Return what holds at the first and at the last character of a range."""
        first, last = self._at(start), self._at(max(start, stop - 1))
        values: dict[str, Any] = {}
        for key, value in first.items():
            values[key] = value
            if isinstance(value, int):
                # Numbers of another sheet do not follow on these.
                values[key + _END] = last.get(key, value) if _is_same_part(first, last) else value
        return values

    def _at(self, character: int) -> Mapping[str, Any]:
        index = bisect.bisect_right(self._starts, character) - 1
        return self._anchors[index][1] if index >= 0 else {}


def _is_same_part(first: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    return first.keys() == last.keys() and all(
        value == last[key] for key, value in first.items() if not isinstance(value, int)
    )


def _headings(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield where each heading of a Markdown text begins, with those above it; only what is a heading to a parser."""
    if not _MAY_BE_HEADING.search(text):
        return
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    inline = MarkdownIt("commonmark")
    parser.core.ruler.enableOnly(["normalize", "block"])  # what is within a block matters of headings alone
    line_starts = [0, *(end.end() for end in _LINE_END.finditer(text))]
    above: list[tuple[int, str]] = []
    tokens = parser.parse(text)
    for token, content in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            level = int(token.tag[1])
            above = [heading for heading in above if heading[0] < level]
            above.append((level, _plain(inline, content.content)))
            yield line_starts[token.map[0]], tuple(name for _, name in above)


def _plain(inline: Any, written: str) -> str:
    """Return a heading's text without its marks."""
    (token,) = inline.parseInline(written[: 4 * _MOST_HEADING])
    parts = (child.content if child.type != "softbreak" else " " for child in token.children or [])
    return " ".join("".join(parts).split())[:_MOST_HEADING]
