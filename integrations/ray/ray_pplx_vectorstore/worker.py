"""What a worker does with a batch of documents: it syncs them, whatever became of the worker before it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import ray

from pplx_vectorstore import Document, SyncReport, VectorStore
from pplx_vectorstore.errors import (
    EncodingError,
    InvalidInputError,
    PplxVectorStoreError,
    ServerError,
)
from ray_pplx_vectorstore.ledger import Attempt
from ray_pplx_vectorstore.patience import insist
from ray_pplx_vectorstore.place import MeteredEncoder, Place
from ray_pplx_vectorstore.reports import FailedDocument, IngestionReport, add_counts, go_on_from
from ray_pplx_vectorstore.rows import read_documents
from ray_pplx_vectorstore.sink import RESULT, make_result

OnError = Literal["raise", "report"]

WHOLE_ATTEMPTS = 2
"""Attempts at a batch as a whole. Where each has ended with the worker's death, its documents go one by one."""
MOST_DEATHS = 2
"""Workers that may die at one document by itself before it is taken to be the reason."""

# Of a server's refusals, those that are of what was sent: a bad request, too large, not to be processed.
_OF_WHAT_WAS_SENT = (400, 413, 422)


@dataclass(slots=True)
class _Outcome:
    """What became of the documents of a batch."""

    report: SyncReport = field(default_factory=SyncReport)
    stored: list[str] = field(default_factory=list)
    failed: list[FailedDocument] = field(default_factory=list)


class SyncWorker:
    """An actor's part of a job: batches of documents in, ids of what is stored and counts out.

    The model is loaded and the store opened by the first batch: an error in the constructor would be the actor's death.

    Args:
        place: The store.
        ledger: The actor that keeps the `Ledger`.
        on_error: What becomes of a document that cannot be stored.
        patience: Seconds for which a server that is away is waited for.
    """

    def __init__(self, place: Place, ledger: Any, on_error: OnError, patience: float) -> None:
        self._place = place
        self._ledger = ledger
        self._on_error = on_error
        self._patience = patience
        self._encoder: MeteredEncoder | None = None
        self._store: VectorStore | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Sync a batch.

        Args:
            batch: Rows of documents; without columns where a checkpoint has left none of them.

        Returns:
            Rows of `RESULT`.
        """
        if not batch.num_rows:
            return RESULT.empty_table()
        name = _name_of(batch)
        attempt: Attempt = ray.get(self._ledger.begin.remote(name))
        try:
            stored, report = self._sync(batch, name, attempt)
        except PplxVectorStoreError as error:
            # What Ray hands on is an error of its own, without the type and the report of this one.
            ray.get(self._ledger.fail.remote(pickle.dumps(error)))
            raise
        ray.get(self._ledger.end.remote(name, report))
        return make_result(name, stored, report)

    def _sync(self, batch: pa.Table, name: str, attempt: Attempt) -> tuple[list[str], IngestionReport]:
        encoder, store = self._open()
        tokens, seconds = encoder.tokens, encoder.seconds
        outcome = _Outcome()
        documents = []
        for document_id, read in read_documents(batch):
            if isinstance(read, Document):
                documents.append(read)
            else:
                self._refuse(document_id, read, outcome)
        if attempt.number > WHOLE_ATTEMPTS:
            self._sync_each(store, documents, outcome, name, attempt)
        else:
            self._sync_all(store, documents, outcome, name, attempt)
        report = IngestionReport(
            **{name: getattr(outcome.report, name) for name in SyncReport.__dataclass_fields__},
            failed=tuple(outcome.failed),
            tokens=encoder.tokens - tokens,
            model_seconds=encoder.seconds - seconds,
        )
        return outcome.stored, report

    def _open(self) -> tuple[MeteredEncoder, VectorStore]:
        if self._encoder is None:
            self._encoder = self._place.model.load()
        if self._store is None:
            self._store = insist(partial(self._place.open, self._encoder), self._patience)
        return self._encoder, self._store

    def _sync_all(
        self, store: VectorStore, documents: Sequence[Document], outcome: _Outcome, name: str, attempt: Attempt
    ) -> None:
        """Sync documents together, and one by one only where one of them cannot be stored."""
        try:
            outcome.report = self._insist_on_sync(store, documents)
        except PplxVectorStoreError as error:
            if self._on_error == "raise" or not _is_of_a_document(error):
                raise
            before = error.report
        else:
            outcome.stored += [one.id for one in documents]
            return
        self._sync_each(store, documents, outcome, name, attempt)
        if isinstance(before, SyncReport):
            outcome.report = go_on_from(before, outcome.report)

    def _sync_each(
        self, store: VectorStore, documents: Sequence[Document], outcome: _Outcome, name: str, attempt: Attempt
    ) -> None:
        """Sync documents one by one, so that what goes wrong has the name of one of them."""
        for document in documents:
            deaths = attempt.deaths.get(document.id, 0)
            if deaths >= MOST_DEATHS:
                error = EncodingError(
                    f"document {document.id!r} ended the process that embedded it, {deaths} times when it was embedded "
                    "by itself: it may take more memory than there is"
                )
                self._refuse(document.id, error, outcome)
                continue
            ray.get(self._ledger.begin_alone.remote(name, document.id))
            try:
                report = self._insist_on_sync(store, [document])
            except PplxVectorStoreError as error:
                if not _is_of_a_document(error):
                    raise
                self._refuse(document.id, error, outcome)
            else:
                outcome.report = add_counts(outcome.report, report)
                outcome.stored.append(document.id)

    def _refuse(self, document_id: str | None, error: PplxVectorStoreError, outcome: _Outcome) -> None:
        if self._on_error == "raise":
            raise error
        outcome.failed.append(FailedDocument(id=document_id, reason=str(error)))

    def _insist_on_sync(self, store: VectorStore, documents: Sequence[Document]) -> SyncReport:
        """Sync documents, and again while the server is away; what was written before that is counted once."""
        before = SyncReport()

        def sync() -> SyncReport:
            nonlocal before
            try:
                return go_on_from(before, store.sync(documents))
            except PplxVectorStoreError as error:
                if isinstance(error.report, SyncReport):
                    error.report = before = go_on_from(before, error.report)
                raise

        return insist(sync, self._patience)


def _name_of(batch: pa.Table) -> str:
    """Name a batch, alike for each attempt at it: by its rows, since Ray's own names change when it tries again."""
    return hashlib.sha256(repr(batch.to_pydict()).encode("utf-8")).hexdigest()


def _is_of_a_document(error: PplxVectorStoreError) -> bool:
    """Tell whether an error is of what was to be stored, so that other documents may fare better."""
    if isinstance(error, ServerError):
        return error.status in _OF_WHAT_WAS_SENT
    return isinstance(error, (InvalidInputError, EncodingError))
