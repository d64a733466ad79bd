"""How the command line looks: hits, reports and errors in a terminal."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pplx_vectorstore.documents import Hit
from pplx_vectorstore.errors import PplxVectorStoreError
from pplx_vectorstore.readers import locate_lines

if TYPE_CHECKING:
    from rich.console import Console

    from pplx_vectorstore.reports import SyncReport

_SHOWN_SKIPS = 10
_EXCERPT = 240
# What a terminal would obey instead of showing; line ends and tabs are harmless.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Set to see where an unexpected error comes from.
_DEBUG = "PPLX_VECTORSTORE_DEBUG"


def print_skipped(console: Console, skipped: list[tuple[Path, str]]) -> None:
    """Name files that were not indexed, and why."""
    for file, reason in skipped[:_SHOWN_SKIPS]:
        console.print(
            f"skipped {printable(str(file))}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
    if len(skipped) > _SHOWN_SKIPS:
        console.print(f"and {len(skipped) - _SHOWN_SKIPS} more files skipped", style="yellow")


def print_report(report: SyncReport, chunks: int, store: str) -> None:
    """Tell in two or three lines what was done, and what the index holds now."""
    if report.documents:
        new = f" ({report.new_documents:,} new)" if report.new_documents != report.documents else ""
        done = [f"indexed {number(report.documents, 'document')}{new}, {number(report.chunks, 'chunk')}"]
    else:
        done = ["nothing to embed"]
    done += [
        f"{count:,} {what}"
        for count, what in (
            (report.unchanged_documents, "unchanged"),
            (report.relabelled_documents, "with new metadata"),
            (report.deleted_documents, "deleted"),
        )
        if count
    ]
    typer.echo("; ".join(done))
    if report.usage.requests:
        typer.echo(
            f"the hosted model took {number(report.usage.requests, 'request')}, "
            f"{number(report.usage.tokens, 'token')}, ${report.usage.cost:.6f}"
        )
    if report.bent_chunks:
        typer.echo(
            f"of {number(report.bent_chunks, 'chunk')} the stored codes lost more than 0.001 of cosine "
            "(see outliers, on the documentation's page on storage)"
        )
    typer.echo(f"{store} now holds {number(chunks, 'chunk')}")


def print_hits(hits: list[Hit], *, full: bool) -> None:
    """Print hits as a table, whole or their beginnings."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=False, padding=(0, 1))
    table.add_column("score", no_wrap=True)
    table.add_column("where", overflow="fold", max_width=28)
    table.add_column("text", overflow="fold", ratio=1)
    for hit in hits:
        shown = hit.text if hit.context is None else hit.context
        text = printable(shown) if full else _excerpt(shown)
        table.add_row(f"{hit.score:.3f}", Text(f"{printable(hit.document_id)}\n{_place(hit)}"), Text(text + "\n"))
    Console().print(table)


def _place(hit: Hit) -> str:
    lines = locate_lines(hit.document_id, hit.start, hit.end, hit.text)
    if lines is not None:
        return f"lines {lines[0]}-{lines[1]}" if lines[0] != lines[1] else f"line {lines[0]}"
    if hit.start is not None:
        return f"characters {hit.start}-{hit.end}"
    return f"chunk {hit.chunk_index + 1} of {hit.chunk_count}"


def _excerpt(text: str) -> str:
    words = printable(" ".join(text.split()))
    return words if len(words) <= _EXCERPT else words[:_EXCERPT].rsplit(" ", 1)[0] + " …"


def hit_as_json(hit: Hit) -> dict[str, Any]:
    """Return a hit for ``--json``."""
    values = {name: getattr(hit, name) for name in ("id", "score", "document_id", "chunk_index", "chunk_count")}
    lines = locate_lines(hit.document_id, hit.start, hit.end, hit.text)
    return {
        **values,
        "start": hit.start,
        "end": hit.end,
        "lines": lines,
        "metadata": hit.metadata,
        "text": hit.text,
        **({} if hit.context is None else {"context": hit.context}),
    }


def bytes_on_disk(file: Path) -> int:
    """Return what a file takes on disk, which for the engine's sparse files is less than their size."""
    status = file.lstat()
    return int(status.st_blocks * 512) if hasattr(status, "st_blocks") else status.st_size


def printable(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return _CONTROL.sub("\ufffd", text)


def number(count: int, noun: str) -> str:
    """Say how many there are of something."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@contextlib.contextmanager
def reported_errors() -> Iterator[Console]:
    """Turn errors into one line on standard error and exit code 1, and Ctrl-C into 130."""
    from rich.console import Console

    console = Console(stderr=True)
    try:
        yield console
    except BrokenPipeError as error:  # whoever read the output has what they wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(0) from error
    except (PplxVectorStoreError, OSError) as error:
        notes = getattr(error, "__notes__", [])
        message = " ".join(" ".join([str(error), *notes]).split())
        console.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print(
            "interrupted: what was written stays usable; run the same command again to complete it", soft_wrap=True
        )
        raise typer.Exit(130) from error
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"error: unexpected {reason} (set {_DEBUG}=1 to see where)"
        console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
