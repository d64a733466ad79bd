"""What a job tells of its work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pplx_vectorstore import SyncReport


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDocument:
    """A document that is not stored as it came.

    Attributes:
        id: Its id; None where that is what it lacks.
        reason: What is wrong with it.
    """

    id: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestionReport(SyncReport):
    """What a job did. Each row of the dataset is counted once, as written, unchanged, relabelled or failed.

    What a worker had written before it was killed, its successor finds, and counts as unchanged.

    Attributes:
        failed: Documents that are not stored, with the reasons.
        tokens: What went through the model, in all workers together. A window's overlap with the next counts in both.
        model_seconds: Time that the workers spent in the model, added up.
        seconds: How long the job took, without the indexing at the end of a bulk load.
    """

    failed: tuple[FailedDocument, ...] = ()
    tokens: int = 0
    model_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Rows of the dataset that are accounted for."""
        return self.documents + self.unchanged_documents + self.relabelled_documents + len(self.failed)


def add_counts(one: SyncReport, other: SyncReport) -> SyncReport:
    """Add up what two syncs of different documents did."""
    return SyncReport(**{name: getattr(one, name) + getattr(other, name) for name in SyncReport.__dataclass_fields__})


def sum_reports(reports: Iterable[IngestionReport]) -> IngestionReport:
    """Add up what the parts of a job did."""
    names = IngestionReport.__dataclass_fields__
    counts = IngestionReport()
    # Beside the counts: there may be very many of these, and tuples are copied as they grow.
    empty_documents: list[str] = []
    failed: list[FailedDocument] = []
    for one in reports:
        empty_documents += one.empty_documents
        failed += one.failed
        one = replace(one, empty_documents=(), failed=())
        counts = IngestionReport(**{name: getattr(counts, name) + getattr(one, name) for name in names})
    return replace(counts, empty_documents=tuple(empty_documents), failed=tuple(failed))


def go_on_from(before: SyncReport, after: SyncReport) -> SyncReport:
    """Add up a sync that failed on the way and the same again, which finds unchanged what the first has written."""
    both = add_counts(before, after)
    found_again = before.documents + before.relabelled_documents
    return replace(
        both,
        unchanged_documents=after.unchanged_documents - found_again,
        empty_documents=tuple(dict.fromkeys(both.empty_documents)),
    )
