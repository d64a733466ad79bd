"""What a job tells of its work."""

from __future__ import annotations

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
        seconds: How long the job took.
    """

    failed: tuple[FailedDocument, ...] = ()
    tokens: int = 0
    model_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Rows of the dataset that are accounted for."""
        return self.documents + self.unchanged_documents + self.relabelled_documents + len(self.failed)


def add_reports(one: IngestionReport, other: IngestionReport) -> IngestionReport:
    """Add up what two parts of a job did."""
    names = IngestionReport.__dataclass_fields__
    return IngestionReport(**{name: getattr(one, name) + getattr(other, name) for name in names})


def go_on_from(before: SyncReport, after: SyncReport) -> SyncReport:
    """Add up a sync that failed on the way and the same again, which finds unchanged what the first has written."""
    names = SyncReport.__dataclass_fields__
    both = SyncReport(**{name: getattr(before, name) + getattr(after, name) for name in names})
    found_again = before.documents + before.relabelled_documents
    return replace(
        both,
        unchanged_documents=after.unchanged_documents - found_again,
        empty_documents=tuple(dict.fromkeys(both.empty_documents)),
    )
