"""What a reader is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Anchor = tuple[int, Mapping[str, Any]]
"""A character of the text, and what holds from there on until the next anchor, such as ``{"page": 3}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderOptions:
    """What a user says about files that do not say it themselves.

    Attributes:
        encoding: Of text without a byte order mark; None for UTF-8, or else the one that is guessed.
        password: Of PDF files.
        text_columns: Names of the columns, or keys, whose values are the text of a table's records; none for all.
    """

    encoding: str | None = None
    password: str | None = field(default=None, repr=False)
    text_columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file says.

    Attributes:
        text: All of it.
        format: How the text is cut, as in `Document`.
        anchors: Where which page, slide, sheet, row or cell begins, in order. A ``heading`` of theirs takes the place
            of those in the text; an empty one says that there is none.
        cuts: Characters at which a part begins, such as a sheet: no chunk goes over one.
        metadata: What the file says about itself, such as its title.
        first_line: Number of the text's first line in the file, where its lines are the file's; else None.
        notes: What was done that the user may want to know, such as an encoding that was guessed.
        losses: Parts that could not be read, such as a page, each with the reason.
    """

    text: str
    format: str = "text"
    anchors: Sequence[Anchor] = ()
    cuts: Sequence[int] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    first_line: int | None = None
    notes: Sequence[str] = ()
    losses: Sequence[str] = ()


MOST_CHARACTERS_OF_METADATA = 300
"""Of a title, or a name: every chunk has a copy of it."""

Reader = Callable[[bytes, ReaderOptions], Content]


class Blocks:
    """Joins blocks of text by empty lines, and knows where each began.

    Attributes:
        anchors: Those of the blocks that came with one.
        cuts: Where the blocks begin that begin a part, but for the text's beginning.
        length: Characters so far.
    """

    def __init__(self) -> None:
        self.anchors: list[Anchor] = []
        self.cuts: list[int] = []
        self.length = 0
        self._parts: list[str] = []

    def add(self, text: str, anchor: Mapping[str, Any] | None = None, *, is_part: bool = False) -> None:
        """Append a block; a blank one leaves no trace.

        Args:
            text: The block.
            anchor: What holds from its beginning on.
            is_part: Whether a part of the file begins with it.
        """
        if not text.strip():
            return
        if self._parts:
            self._append("\n\n")
            if is_part:
                self.cuts.append(self.length)
        if anchor is not None:
            self.anchors.append((self.length, dict(anchor)))
        self._append(text)

    @property
    def text(self) -> str:
        """All blocks."""
        return "".join(self._parts)

    def _append(self, part: str) -> None:
        self._parts.append(part)
        self.length += len(part)


def shorten(text: str) -> str:
    """Return what metadata keeps of a text: all, unless it is too long for a title."""
    if len(text) <= MOST_CHARACTERS_OF_METADATA:
        return text
    return text[: MOST_CHARACTERS_OF_METADATA - 1] + "…"
