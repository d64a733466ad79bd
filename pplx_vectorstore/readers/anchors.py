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
PLACE_KEYS = frozenset(
    f"{key}{end}" for key in (LINE_KEY, HEADING_KEY, "page", "slide", "sheet", "row", "cell") for end in ("", _END)
)
"""Keys of metadata that tell where in a file a chunk is."""

_MOST_HEADING = 200
_LINE_END = re.compile(r"\r\n?|\n")  # those of Markdown, which are fewer than those of Unicode
# Within what quotes and items of lists begin with.
_MAY_BE_HEADING = re.compile(r"^[ \t>*+.)\d-]{0,80}(?:#{1,6}(?:[ \t]|$)|=+[ \t]*$|-+[ \t]*$)", re.MULTILINE)
_CONTAINERS = ("blockquote_open", "list_item_open")


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
    headings = list(_headings(content)) if content.format == "markdown" else []
    starts = [at for at, _ in headings]
    labelled = []
    line = content.first_line or 0
    counted = 0
    for chunk in chunks:
        start, stop = chunk.start or 0, chunk.end or 0
        values = places.of(start, stop)
        above = bisect.bisect_right(starts, start)
        if above:
            values.setdefault(HEADING_KEY, list(headings[above - 1][1]))
        if not values.get(HEADING_KEY, True):
            del values[HEADING_KEY]
        if content.first_line is not None:
            line += sum(1 for _ in _LINE_END.finditer(content.text, counted, start))
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


def _headings(content: Content) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield where each heading of a Markdown text begins or ends to hold, with those that are above from there on.

    What an anchor or a cut begins, such as a cell or a page, is parsed by itself: what is left open in one does not
    reach into the next.
    """
    from markdown_it import MarkdownIt

    text = content.text
    parser = MarkdownIt("commonmark")
    inline = MarkdownIt("commonmark")
    parser.core.ruler.enableOnly(["normalize", "block"])  # what is within a block matters of headings alone
    above: list[tuple[int, int, str]] = []  # level, how deep in quotes and lists, and what it says
    bounds = sorted({0, *(at for at, _ in content.anchors), *content.cuts, len(text)})
    for start, stop in itertools.pairwise(bounds):
        if not _MAY_BE_HEADING.search(text, start, stop):
            continue
        part = text[start:stop]
        line_starts = [start, *(start + end.end() for end in _LINE_END.finditer(part)), stop]
        containers: list[
            tuple[int, list[tuple[int, int, str]]]
        ] = []  # those that are open: line after, headings before
        tokens = parser.parse(part)
        for index, token in enumerate(tokens):
            if token.type in _CONTAINERS and token.map:
                containers.append((token.map[1], above))
            elif token.type.removesuffix("_close") + "_open" in _CONTAINERS:
                end, before = containers.pop()
                if above is not before:
                    above = before
                    yield line_starts[end], tuple(name for *_, name in above)
            elif token.type == "heading_open" and token.map:
                level = int(token.tag[1])
                depth = len(containers)
                kept = [heading for heading in above if heading[0] < level or heading[1] < depth]
                above = [*kept, (level, depth, _plain(inline, tokens[index + 1].content))]
                yield line_starts[token.map[0]], tuple(name for *_, name in above)


def _plain(inline: Any, written: str) -> str:
    """Return a heading's text without its marks."""
    (token,) = inline.parseInline(written[: 4 * _MOST_HEADING])
    parts = (child.content if child.type != "softbreak" else " " for child in token.children or [])
    return " ".join("".join(parts).split())[:_MOST_HEADING]
