"""How far long work is, on standard error: a bar in a terminal, and else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

SECONDS_BETWEEN_LINES = 10.0
"""Where standard error is no terminal."""

_LEAST_SHARE = 0.01


@dataclass(slots=True)
class Advance:
    """Where the work reports how far it is.

    Attributes:
        documents: Called with (documents written, chunks written) so far.
        tokens: Called with (tokens done, tokens in all) of the documents being embedded.
    """

    documents: Callable[[int, int], None]
    tokens: Callable[[int, int], None]


@runtime_checkable
class CountsBytes(Protocol):
    """Documents that know how much of them was read, which tells more than their number: sizes differ."""

    bytes_read: int
    bytes: int


def duration(seconds: float) -> str:
    """Say how long something takes.

    >>> duration(7.2), duration(125), duration(7300)
    ('7 s', '2:05 min', '2:01 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    unit, minor = (60, 1) if seconds < 3600 else (3600, 60)
    return f"{int(seconds // unit)}:{int(seconds % unit // minor):02} {'min' if unit == 60 else 'h'}"


class _State:
    """How far the work is, in words.

    Args:
        total: Documents in all, or None.
        size: What knows how many bytes were read, or None.
    """

    def __init__(self, total: int | None, size: CountsBytes | None) -> None:
        self.documents = self.chunks = 0
        self.embedded = 0.0  # share of the documents being embedded
        self._bytes_written = self._bytes_embedding = 0
        self._total = total
        self._size = size
        self._started = time.monotonic()

    def write(self, documents: int, chunks: int) -> None:
        """Note what is written; what was read by now is what is being embedded."""
        self.documents, self.chunks, self.embedded = documents, chunks, 0.0
        self._bytes_written = self._bytes_embedding
        if self._size is not None:
            self._bytes_embedding = self._size.bytes_read

    def embed(self, share: float) -> None:
        """Note how much of what was read is embedded."""
        self.embedded = share
        if self._size is not None:
            self._bytes_embedding = self._size.bytes_read

    @property
    def share(self) -> float | None:
        """How much of all is done, where that is known."""
        if self._size is not None and self._size.bytes:
            done = self._bytes_written + self.embedded * (self._bytes_embedding - self._bytes_written)
            return min(1.0, done / self._size.bytes)
        return self.documents / self._total if self._total else None

    def __str__(self) -> str:
        of = "" if self._total is None else f"/{self._total}"
        told = [f"{self.documents}{of} documents, {self.chunks} chunks"]
        if self._size is not None and self._size.bytes:
            told.append(f"{self._size.bytes_read / self._size.bytes:.0%} read")
        if self.embedded:
            told.append(f"embedding {self.embedded:.0%}")
        share = self.share
        if share is not None and share >= _LEAST_SHARE:
            told.append(f"{duration((time.monotonic() - self._started) * (1 - share) / share)} left")
        return ", ".join(told)


@contextlib.contextmanager
def show_progress(total: int | None, size: CountsBytes | None = None) -> Iterator[Advance]:
    """Show how far the work of the block is.

    Args:
        total: Number of documents, or None where it is not known.
        size: What knows how many bytes were read, or None.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
    )
    state = _State(total, size)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("indexing", total=1.0, status="")
        last_line = time.monotonic()

        def show() -> None:
            nonlocal last_line
            progress.update(task, completed=state.share or 0.0, status=str(state))
            now = time.monotonic()
            if not console.is_terminal and now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                console.print(f"indexing: {state}", soft_wrap=True, highlight=False)

        def documents(done: int, chunks: int) -> None:
            state.write(done, chunks)
            show()

        def tokens(done: int, all_of_them: int) -> None:
            state.embed(done / max(all_of_them, 1))
            show()

        yield Advance(documents=documents, tokens=tokens)
