"""Indexing files that an agent names, below one folder and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pplx_vectorstore.agents.answers import Answer
from pplx_vectorstore.agents.index import LazyIndex
from pplx_vectorstore.agents.tools import Arguments, Progress, Tool
from pplx_vectorstore.display import number
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.file_ids import as_text

if TYPE_CHECKING:
    from pplx_vectorstore.file_reading import Reading
    from pplx_vectorstore.reports import SyncReport
    from pplx_vectorstore.walking import Walk

# An agent that names a file has it found from the root as any other.
_HAVE_IT_NAMED = "a person can have it indexed, by naming it to pplx-vectorstore index"
_MOST_NAMED = 10
_MOST_LISTED = 200  # in the answer for programs


class FolderArguments(Arguments):
    """Of `index_folder`."""

    path: str = Field(".", description="Folder or file to index, below the folder that the server was given.")
    prune: bool = Field(False, description="Also delete from the index what was indexed below it and is gone.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderTool:
    """The tool that indexes.

    Attributes:
        index: What it writes to.
        root: The folder that it stays in, resolved.
    """

    index: LazyIndex
    root: Path

    def tools(self) -> list[Tool]:
        """Return it."""
        return [
            Tool(
                name="index_folder",
                description=f"Index the documents in {as_text(self.root)}, or in a folder or file below it, so that "
                "they can be searched. What has not changed is skipped, so call it again after edits. Ignore files are "
                "heeded.",
                arguments=FolderArguments,
                run=self.index_folder,
                writes=True,
            )
        ]

    def index_folder(self, arguments: FolderArguments, progress: Progress) -> Answer:
        """Index what is at or below a path; what has not changed is skipped."""
        from pplx_vectorstore.chunking import Chunker
        from pplx_vectorstore.file_records import FileRecords
        from pplx_vectorstore.file_settings import FileSettings, absolute_root
        from pplx_vectorstore.file_updates import FileUpdate
        from pplx_vectorstore.walking import EMPTY

        target = require_within(self.root, arguments.path)
        found = self._walk(target)
        found.leave_out_empty()
        # Of a file that was emptied, what it said is forgotten; there may be no other.
        if not found.files and not (found.left_out.get(EMPTY) and self.index.exists()):
            raise InvalidInputError(f"there is no document to index in {target}{_why(found)}")
        place = self.index.place
        with self.index.writing() as index:
            recorded = index.file_settings
            settings = recorded or FileSettings()
            index.record_file_settings(settings, read=recorded)
            root = records = None
            if place.folder is not None:  # on a server, ids are absolute, and nothing is remembered
                root = absolute_root(settings.root, place.folder)
                records = FileRecords(place.folder, place.collection, place.tenant)
            update = FileUpdate(found, settings, root=root, records=records)
            update.leave_out_unchanged(index.store)
            reading = progress.size = update.read(Chunker(index.tokenizer, settings.chunk_tokens))
            report = update.write(index.store)
            index.require_file_settings(settings)
            gone, emptied = update.find_gone(index.store, [target]), update.find_emptied(index.store)
            forgotten = [*gone, *emptied] if arguments.prune else emptied
            if forgotten:
                index.store.delete(document_ids=forgotten)
            update.remember(forgotten)
            outcome = _Outcome(gone=gone, emptied=emptied, is_pruned=arguments.prune)
            return _answer(
                index.store.count(), replace(report, deleted_documents=len(forgotten)), found, reading, outcome
            )

    def _walk(self, target: Path) -> Walk:
        """Find the documents below a path as they are found from the root, whatever is hidden or ignored above them."""
        from pplx_vectorstore.walking import NAME_IT, Walk, WalkOptions, walk

        everything = walk([self.root], WalkOptions(links=False), skip=self.index.place.folder)
        found = Walk(files=[file for file in everything.files if file.path.is_relative_to(target)])
        for reason, paths in everything.left_out.items():
            for path in paths:
                if path.is_relative_to(target) or target.is_relative_to(path):
                    found.leave_out(path, reason)
        found.skipped += [
            (path, reason.replace(NAME_IT, _HAVE_IT_NAMED))
            for path, reason in everything.skipped
            if path.is_relative_to(target)
        ]
        return found


def require_within(root: Path, path: str) -> Path:
    """Return the place below a folder that a path means.

    Args:
        root: The folder, resolved.
        path: Relative to it, or absolute.

    Raises:
        InvalidInputError: It leads out of the folder, over a link, or nowhere.
    """
    outside = f"{path!r} is not below {root}, and nothing else may be indexed; give a path within it"
    target = Path(os.path.normpath(root / path))
    if "\0" in path or not target.is_relative_to(root):
        raise InvalidInputError(outside)
    place = root
    for part in target.relative_to(root).parts:
        place = place / part
        if place.is_symlink():
            raise InvalidInputError(f"{place} is a link, and links are not followed; name what it leads to")
    if not os.path.lexists(target):
        raise InvalidInputError(
            f"there is no file or folder {target}; if it was deleted, index the folder that it was in, with prune"
        )
    # Whatever the steps above have overlooked.
    if not target.resolve().is_relative_to(root):
        raise InvalidInputError(outside)
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What the index held of files that say nothing any more.

    Attributes:
        gone: Ids of the documents of files that are not there.
        emptied: Ids of those whose files are empty; deleted.
        is_pruned: Whether those that are gone were deleted, too.
    """

    gone: Sequence[str]
    emptied: Sequence[str]
    is_pruned: bool


def _answer(chunks: int, report: SyncReport, found: Walk, reading: Reading, outcome: _Outcome) -> Answer:
    gone, emptied = outcome.gone, outcome.emptied
    counts = {
        "embedded": report.documents,
        "new": report.new_documents,
        "unchanged": report.unchanged_documents,
        "relabelled": report.relabelled_documents,
        "deleted": report.deleted_documents,
    }
    said = [
        f"embedded {number(report.documents, 'document')} ({report.new_documents:,} new), "
        f"{number(report.chunks, 'chunk')}",
        f"{report.unchanged_documents:,} unchanged",
    ]
    if gone:
        said.append(
            f"{len(gone):,} deleted, whose files are gone"
            if outcome.is_pruned
            else f"{number(len(gone), 'indexed file')} gone (prune=true deletes what is indexed of them)"
        )
    if emptied:
        said.append(f"{len(emptied):,} deleted, whose files are empty now")
    lines = [f"{'; '.join(said)}; the index now holds {number(chunks, 'chunk')}"]
    problems = [
        *((as_text(path), f"skipped: {reason}") for path, reason in found.skipped),
        *((as_text(path), f"read in part: {loss}") for path, loss in reading.losses),
    ]
    lines += [f"{path}: {problem}" for path, problem in problems[:_MOST_NAMED]]
    if len(problems) > _MOST_NAMED:
        lines.append(f"and {number(len(problems) - _MOST_NAMED, 'more file')}, skipped or read in part")
    left_out = _why(found)
    if left_out:
        lines.append(left_out.removeprefix("; "))
    data = {
        **counts,
        "chunks": chunks,
        "gone": list(gone[:_MOST_LISTED]),
        "gone_count": len(gone),
        "emptied": list(emptied[:_MOST_LISTED]),
        "problems": [{"file": path, "reason": reason} for path, reason in problems[:_MOST_LISTED]],
        "problem_count": len(problems),
        "left_out": {reason: len(paths) for reason, paths in found.left_out.items()},
        "usage": asdict(report.usage),
    }
    return Answer(texts=("\n".join(lines),), data=data)


def _why(found: Walk) -> str:
    """Say what was left out, by reason, and what could not be read."""
    counts = [f"{len(paths):,} {reason}" for reason, paths in sorted(found.left_out.items())]
    said = f"; left out: {', '.join(counts)}" if counts else ""
    if found.skipped and not found.files:
        said += f"; skipped {found.skipped[0][0]}: {found.skipped[0][1]}"
    return said
