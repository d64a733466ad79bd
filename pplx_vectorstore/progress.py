"""A progress bar for long work, on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Advance:
    """Where the work reports how far it is.

    Attributes:
        documents: Called with (documents written, chunks written) so far.
        tokens: Called with (tokens done, tokens in all) of the documents being embedded.
    """

    documents: Callable[[int, int], None]
    tokens: Callable[[int, int], None]


@contextlib.contextmanager
def show_progress(total: int | None) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        total: Number of documents, or None where it is not known.
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
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("indexing", total=total, status="")
        written = (0, 0)

        def show(share: float = 0.0) -> None:
            documents, chunks = written
            of = "" if total is None else f"/{total}"
            embedding = f", embedding {share:.0%}" if share else ""
            progress.update(task, completed=documents, status=f"{documents}{of} documents, {chunks} chunks{embedding}")

        def documents(done: int, chunks: int) -> None:
            nonlocal written
            written = (done, chunks)
            show()

        yield Advance(documents=documents, tokens=lambda done, all_of_them: show(done / max(all_of_them, 1)))
