"""Reading documents whole, each once, also where a write was interrupted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from qdrant_client import models

from pplx_vectorstore.operations.access import field_any
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import is_of_piece
from pplx_vectorstore.reports import StoredDocument

# Engines take the square of the time for a condition of many values.
_CONDITION_SIZE = 200
_FIRST = models.Filter(must=[models.FieldCondition(key="chunk_index", match=models.MatchValue(value=0))])


async def document_pages(session: Session) -> AsyncIterator[list[StoredDocument]]:
    """Yield every document once, in no order; some at a time."""
    listed: set[str] = set()  # those that may come again
    n_listed = 0
    async for chunk_counts in _chunk_counts(session, _FIRST):
        stored = await _count_points(session, chunk_counts)
        heads = await _count_points(session, chunk_counts, also=_FIRST)
        n_listed += sum(n for id_, n in stored.items() if id_ not in listed)
        # An interrupted write may have left two first chunks.
        odd = [id_ for id_, n in stored.items() if n != chunk_counts[id_] or heads.get(id_) != 1]
        regular = [
            StoredDocument(id=id_, chunks=n, chunk_count=n)
            for id_, n in stored.items()
            if n == chunk_counts[id_] and heads.get(id_) == 1 and id_ not in listed
        ]
        yield regular + await _tell_apart(session, [id_ for id_ in odd if id_ not in listed])
        listed.update(odd)
    if n_listed == await session.points.count():
        return
    # Or it may have left none.
    async for chunk_counts in _chunk_counts(session, models.Filter(must_not=_FIRST.must)):
        with_first = await _count_points(session, chunk_counts, also=_FIRST)
        headless = [id_ for id_ in chunk_counts if id_ not in with_first and id_ not in listed]
        yield await _tell_apart(session, headless)
        listed.update(headless)


async def read_documents(session: Session, *, with_codes: bool) -> AsyncIterator[list[list[models.Record]]]:
    """Yield the points of every document, in chunk order, some at a time; of a mixed document, one version's."""
    most = _condition_size(session)
    at_once = session.points.page_size(with_codes=with_codes)
    some: list[str] = []
    n = 0
    async for page in document_pages(session):
        for document in page:
            if some and (n + document.chunks > at_once or len(some) == most):
                yield await _points_of(session, some, with_codes=with_codes)
                some, n = [], 0
            some.append(document.id)
            n += document.chunks
    if some:
        yield await _points_of(session, some, with_codes=with_codes)


async def _points_of(session: Session, document_ids: Sequence[str], *, with_codes: bool) -> list[list[models.Record]]:
    points: dict[str, list[models.Record]] = {}
    async for page in session.points.scroll(field_any("document_id", document_ids), with_codes=with_codes):
        for record in page:
            points.setdefault(_payload(record)["document_id"], []).append(record)
    return [
        sorted(_of_one_version(records), key=lambda record: int(_payload(record)["chunk_index"]))
        for records in points.values()
    ]


def _of_one_version(records: list[models.Record]) -> list[models.Record]:
    """Keep the points of the version that is whole, if there are points of several; else all.

    A document that came in pieces has many hashes, and all its points are of it.
    """
    by_hash: dict[str, list[models.Record]] = {}
    for record in records:
        by_hash.setdefault(_payload(record)["document_hash"], []).append(record)
    if len(by_hash) == 1 or any(map(is_of_piece, by_hash)):
        return records
    whole = [some for _, some in sorted(by_hash.items()) if len(some) == _payload(some[0])["chunk_count"]]
    return whole[0] if whole else records


async def _tell_apart(session: Session, document_ids: Sequence[str]) -> list[StoredDocument]:
    """Tell of documents whose points are not one whole version."""
    if not document_ids:
        return []
    points: dict[str, list[models.Record]] = {}
    fields = ["document_id", "document_hash", "chunk_index", "chunk_count"]
    async for page in session.points.scroll(field_any("document_id", document_ids), with_payload=fields):
        for record in page:
            points.setdefault(_payload(record)["document_id"], []).append(record)
    told = []
    for id_, records in points.items():
        current = _of_one_version(records)
        # As the first chunk says: of a mixed document, or one in pieces, that differs from how many are stored.
        _, chunk_count = min((_payload(record)["chunk_index"], _payload(record)["chunk_count"]) for record in current)
        told.append(StoredDocument(id=id_, chunks=len(current), chunk_count=chunk_count))
    return told


async def _chunk_counts(session: Session, condition: models.Filter) -> AsyncIterator[dict[str, int]]:
    """Yield, page by page, the documents of matching points and how many chunks they say they have."""
    fields, size = ["document_id", "chunk_count"], _condition_size(session)
    async for page in session.points.scroll(condition, with_payload=fields, page=size):
        chunk_counts: dict[str, int] = {}
        for payload in map(_payload, page):
            id_ = payload["document_id"]
            chunk_counts[id_] = max(payload["chunk_count"], chunk_counts.get(id_, 0))
        yield chunk_counts


async def _count_points(
    session: Session, documents: Collection[str], also: models.Filter | None = None
) -> dict[str, int]:
    """Count the points of each of these documents, all or those that match."""
    condition = field_any("document_id", list(documents))
    if also is not None:
        condition = models.Filter(must=[condition, also])
    return await session.points.facet("document_id", condition, len(documents))


def _condition_size(session: Session) -> int:
    return min(_CONDITION_SIZE, session.points.limits.condition_size or _CONDITION_SIZE)


def _payload(record: models.Record) -> Mapping[str, Any]:
    return record.payload or {}
