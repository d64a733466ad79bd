"""What the workers of a job tell one another and the driver: attempts at batches, and what was done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ray_pplx_vectorstore.reports import IngestionReport, sum_reports


@dataclass(frozen=True, slots=True)
class Attempt:
    """A worker's attempt at a batch.

    Attributes:
        number: 1 for the first; every one before has ended with the death of its worker.
        deaths: How many workers died at a document by itself, by its id.
    """

    number: int
    deaths: dict[str, int]


@dataclass(slots=True)
class _Open:
    """A batch that was begun and is not done."""

    attempts: int = 0
    at: str | None = None
    deaths: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Kept in an actor of its own, so that it outlives the workers.

    Batches are named by whoever works at them: the same name for each attempt at the same rows.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._done: set[str] = set()
        self._reports: list[IngestionReport] = []
        self._error: bytes | None = None

    def begin(self, batch: str) -> Attempt:
        """Note that a worker begins with a batch, or begins again after the last one has died."""
        one = self._open.setdefault(batch, _Open())
        one.attempts += 1
        if one.at is not None:
            one.deaths[one.at] += 1
            one.at = None
        return Attempt(one.attempts, dict(one.deaths))

    def begin_alone(self, batch: str, document_id: str) -> None:
        """Note that from now on the worker is at this document alone."""
        # It may be noted as done: where the same rows came twice, by another worker.
        self._open.setdefault(batch, _Open()).at = document_id

    def end(self, batch: str, report: IngestionReport) -> None:
        """Note what was done with a batch; again only where its outcome was lost on the way, which changes nothing."""
        self._open.pop(batch, None)
        if batch not in self._done:
            self._done.add(batch)
            self._reports.append(report)

    def fail(self, error: bytes) -> None:
        """Keep the error that ends the job, pickled: the first of them, if there are several."""
        if self._error is None:
            self._error = error

    def report(self) -> IngestionReport:
        """Return what was done so far, as far as workers have told; what two batches of the same rows did, once."""
        self._reports = [sum_reports(self._reports)]
        return self._reports[0]

    def error(self) -> bytes | None:
        """Return the error that ends the job, pickled, or None."""
        return self._error
