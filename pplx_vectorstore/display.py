"""How the command line looks: hits and reports in a terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.documents import Hit
from pplx_vectorstore.file_ids import locate_file
from pplx_vectorstore.hit_places import describe_place, line_range
from pplx_vectorstore.progress import duration
from pplx_vectorstore.terminal import complain, printable, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pplx_vectorstore.dry_run import Estimate
    from pplx_vectorstore.file_reading import Reading
    from pplx_vectorstore.files import Names
    from pplx_vectorstore.reports import SyncReport
    from pplx_vectorstore.walking import Walk

_SHOWN = 10
_EXCERPT = 240


def print_skipped(console: Console, walk: Walk, reading: Reading | None, *, verbose: bool) -> None:
    """Tell what was not indexed, by reason: what was left out on purpose, and what could not be read.

    Args:
        console: Standard error.
        walk: What was found.
        reading: What became of it; None where nothing was read.
        verbose: Whether all files are named.
    """
    if walk.left_out:
        counts = sorted(((len(paths), reason) for reason, paths in walk.left_out.items()), reverse=True)
        names = "" if verbose else " (--verbose names them)"
        complain(console, f"left out: {', '.join(f'{count:,} {reason}' for count, reason in counts)}{names}")
        if verbose:
            for reason, paths in walk.left_out.items():
                for path in paths:
                    complain(console, f"left out {path}: {reason}")
    if reading is not None:
        _print_by_reason(console, "note", reading.notes, verbose=verbose)
        _print_by_reason(console, "read in part", reading.losses, verbose=verbose)
    _print_by_reason(console, "skipped", walk.skipped, verbose=verbose)


def _print_by_reason(console: Console, what: str, said: Sequence[tuple[Path, str]], *, verbose: bool) -> None:
    by_reason: dict[str, list[Path]] = {}
    for path, reason in said:
        by_reason.setdefault(reason, []).append(path)
    for n_shown, (reason, paths) in enumerate(by_reason.items()):
        if n_shown == _SHOWN and not verbose:
            rest = sum(len(others) for others in list(by_reason.values())[_SHOWN:])
            complain(
                console, f"{what}: {number(rest, 'more file')}, for other reasons (--verbose names them)", "yellow"
            )
            return
        if verbose or len(paths) == 1:
            for path in paths:
                complain(console, f"{what} {path}: {reason}", "yellow")
        else:
            complain(console, f"{what} {_and_more(paths)}: {reason}", "yellow")


def print_notes(console: Console, names: Names) -> None:
    """Tell of documents that may be the files about to be indexed under other ids, or that these will replace."""
    if names.without_root:
        complain(
            console,
            f"note: the index also holds {_and_more(names.without_root)}, relative to a folder it does not record. "
            "If these are the same files, indexed by an older version, delete them, or give that folder as --root",
            "yellow",
        )
    if names.replaced:
        complain(
            console,
            f"note: this replaces what was indexed from {_and_more(names.replaced)}, by files of the same ids. To have "
            "both, give another --root, such as a folder that holds both, or another --collection",
            "yellow",
        )


def _and_more(items: Sequence[object]) -> str:
    return f"{items[0]} and {len(items) - 1} more" if len(items) > 1 else str(items[0])


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
    say("; ".join(done))
    if report.usage.requests:
        say(
            f"the hosted model took {number(report.usage.requests, 'request')}, "
            f"{number(report.usage.tokens, 'token')}, ${report.usage.cost:.6f}"
        )
    if report.bent_chunks:
        say(
            f"of {number(report.bent_chunks, 'chunk')} the stored codes lost more than 0.001 of cosine "
            "(see outliers, on the documentation's page on storage)"
        )
    say(f"{store} now holds {number(chunks, 'chunk')}")


def print_estimate(estimate: Estimate, *, verbose: bool) -> None:
    """Tell what indexing would do."""
    documents = number(len(estimate.documents), "document")
    say(f"would embed {documents}, {number(estimate.chunks, 'chunk')}, {number(estimate.tokens, 'token')}")
    if estimate.seconds is not None:
        say(f"that takes about {duration(estimate.seconds)} on this machine")
    if estimate.tokens:
        costs = ", ".join(f"${cost:.4f} with {model}" for model, cost in estimate.costs.items())
        say(f"by the hosted service: {costs}")
    if verbose:
        for document_id in estimate.documents:
            say(f"would embed {document_id}")


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
        text = printable(shown, multiline=True) if full else _excerpt(shown)
        where = f"{printable(_name(hit))}\n{printable(describe_place(hit))}"
        table.add_row(f"{hit.score:.3f}", Text(where), Text(text + "\n"))
    Console().print(table)


def _name(hit: Hit) -> str:
    """Return the path of a hit's file, the shorter of absolute and relative to the current folder; else its id."""
    file = locate_file(hit.document_id, hit.metadata)
    if file is None:
        return hit.document_id
    names = [file.as_posix()]
    if file.anchor == Path.cwd().anchor:
        names.append(Path(os.path.relpath(file)).as_posix())
    return min(names, key=len)


def _excerpt(text: str) -> str:
    words = printable(" ".join(text.split()))
    return words if len(words) <= _EXCERPT else words[:_EXCERPT].rsplit(" ", 1)[0] + " …"


def hit_as_json(hit: Hit) -> dict[str, Any]:
    """Return a hit for ``--json``."""
    values = {name: getattr(hit, name) for name in ("id", "score", "document_id", "chunk_index", "chunk_count")}
    file = locate_file(hit.document_id, hit.metadata)
    return {
        **values,
        "file": None if file is None else file.as_posix(),
        "start": hit.start,
        "end": hit.end,
        "lines": line_range(hit),
        "metadata": hit.metadata,
        "text": hit.text,
        **({} if hit.context is None else {"context": hit.context}),
    }


def bytes_on_disk(file: Path) -> int:
    """Return what a file takes on disk, which for the engine's sparse files is less than their size."""
    status = file.lstat()
    return int(status.st_blocks * 512) if hasattr(status, "st_blocks") else status.st_size


def number(count: int, noun: str) -> str:
    """Say how many there are of something."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
