"""How the command line tells what was done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pplx_vectorstore.progress import duration
from pplx_vectorstore.terminal import Messages, note, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pplx_vectorstore.dry_run import Estimate
    from pplx_vectorstore.file_reading import Reading
    from pplx_vectorstore.file_records import Changes
    from pplx_vectorstore.files import Names
    from pplx_vectorstore.reports import SyncReport
    from pplx_vectorstore.walking import Walk

_SHOWN = 10


def print_skipped(messages: Messages, walk: Walk, reading: Reading | None, *, verbose: bool) -> None:
    """Tell what was not indexed, by reason: what was left out on purpose, and what could not be read.

    Args:
        messages: Standard error.
        walk: What was found.
        reading: What became of it; None where nothing was read.
        verbose: Whether all files are named.
    """
    if walk.left_out:
        counts = sorted(((len(paths), reason) for reason, paths in walk.left_out.items()), reverse=True)
        names = "" if verbose else " (--verbose names them)"
        note(messages, f"left out: {', '.join(f'{count:,} {reason}' for count, reason in counts)}{names}")
        if verbose:
            for reason, paths in walk.left_out.items():
                for path in paths:
                    note(messages, f"left out {path}: {reason}")
    if reading is not None:
        _print_by_reason(messages, "note", reading.notes, verbose=verbose)
        _print_by_reason(messages, "read in part", reading.losses, verbose=verbose)
    _print_by_reason(messages, "skipped", walk.skipped, verbose=verbose)


def _print_by_reason(messages: Messages, what: str, said: Sequence[tuple[Path, str]], *, verbose: bool) -> None:
    by_reason: dict[str, list[Path]] = {}
    for path, reason in said:
        by_reason.setdefault(reason, []).append(path)
    for n_shown, (reason, paths) in enumerate(by_reason.items()):
        if n_shown == _SHOWN and not verbose:
            rest = sum(len(others) for others in list(by_reason.values())[_SHOWN:])
            note(messages, f"{what}: {number(rest, 'more file')}, for other reasons (--verbose names them)", "yellow")
            return
        if verbose or len(paths) == 1:
            for path in paths:
                note(messages, f"{what} {path}: {reason}", "yellow")
        else:
            note(messages, f"{what} {_and_more(paths)}: {reason}", "yellow")


def print_notes(messages: Messages, names: Names) -> None:
    """Tell of documents that may be the files about to be indexed under other ids, or that these will replace."""
    if names.without_root:
        note(
            messages,
            f"note: the index also holds {_and_more(names.without_root)}, relative to a folder it does not record. "
            "If these are the same files, indexed by an older version, delete them, or give that folder as --root",
            "yellow",
        )
    if names.replaced:
        note(
            messages,
            f"note: this replaces what was indexed from {_and_more(names.replaced)}, by files of the same ids. To have "
            "both, give another --root, such as a folder that holds both, or another --collection",
            "yellow",
        )


def _and_more(items: Sequence[object]) -> str:
    return f"{items[0]} and {len(items) - 1} more" if len(items) > 1 else str(items[0])


def print_changes(messages: Messages, changes: Changes) -> None:
    """Tell of files that are not as they were when they were indexed."""
    parts = []
    for ids, verbs in ((changes.changed, ("has changed", "have changed")), (changes.gone, ("is gone", "are gone"))):
        if ids:
            parts.append(f"{number(len(ids), 'file')} {verbs[len(ids) > 1]} ({_and_more(ids)})")
    if parts:
        prune = " with --prune" if changes.gone else ""
        note(messages, f"note: since they were indexed, {', and '.join(parts)}; run index again{prune}", "yellow")


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
        where, cost = ("hosted model", f", ${report.usage.cost:.6f}") if report.usage.cost else ("server", "")
        say(
            f"the {where} took {number(report.usage.requests, 'request')}, {number(report.usage.tokens, 'token')}{cost}"
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


def bytes_on_disk(file: Path) -> int:
    """Return what a file takes on disk, which for the engine's sparse files is less than their size."""
    status = file.lstat()
    return int(status.st_blocks * 512) if hasattr(status, "st_blocks") else status.st_size


def number(count: int, noun: str) -> str:
    """Say how many there are of something."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
