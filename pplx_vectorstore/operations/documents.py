"""Reading documents whole, each once, also where a write was interrupted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Any

from pplx_vectorstore.operations.access import field_any
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import content_hash, is_of_piece
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.reports import StoredDocument

# Engines take the square of the time for a condition of many values.
_CONDITION_SIZE = 200
_FIRST = models.Filter(must=[models.FieldCondition(key="chunk_index", match=models.MatchValue(value=0))])


async def document_pages(session: Session) -> AsyncIterator[list[StoredDocument]]:
    """Yield every document once, in no order; some at a time."""
    fields = ["document_id", "document_hash", "chunk_index", "chunk_count"]
    async for documents in _whole_documents(session, with_payload=fields, with_codes=False):
        yield [_describe(records) for records in documents]


async def read_documents(session: Session, *, with_codes: bool) -> AsyncIterator[list[list[models.Record]]]:
    """Yield the points of every document, in chunk order, some at a time; of a mixed document, one version's."""
    async for documents in _whole_documents(session, with_payload=True, with_codes=with_codes):
        yield [sorted(_of_one_version(records), key=_index) for records in documents]


async def _whole_documents(
    session: Session, *, with_payload: bool | list[str], with_codes: bool
) -> AsyncIterator[list[list[models.Record]]]:
    """Yield all points of each document, every document once; each point is read once, beside the first of each."""
    read: set[str] = set()  # those that may come again
    n_read = 0
    at_once = session.points.page_size(with_payload=with_payload, with_codes=with_codes)
    async for chunk_counts in _chunk_counts(session, _FIRST):
        for some in _lots(chunk_counts, read, at_once):
            documents = await _points_of(session, some, with_payload=with_payload, with_codes=with_codes)
            n_read += sum(map(len, documents))
            # An interrupted write may have left two first chunks.
            read.update(_payload(records[0])["document_id"] for records in documents if _n_heads(records) > 1)
            yield documents
    if n_read == await session.points.count():
        return
    # Or it may have left none.
    async for chunk_counts in _chunk_counts(session, models.Filter(must_not=_FIRST.must)):
        firsts = models.Filter(must=[field_any("document_id", list(chunk_counts)), _FIRST])
        async for page in session.points.scroll(firsts, with_payload=["document_id"]):
            for record in page:
                chunk_counts.pop(_payload(record)["document_id"], None)
        for some in _lots(chunk_counts, read, at_once):
            read.update(some)
            yield await _points_of(session, some, with_payload=with_payload, with_codes=with_codes)


def _lots(chunk_counts: Mapping[str, int], read: Collection[str], at_once: int) -> Iterator[list[str]]:
    """Cut the ids of documents that were not read yet into lists of about so many chunks."""
    some: list[str] = []
    n = 0
    for id_, chunk_count in chunk_counts.items():
        if id_ in read:
            continue
        if some and n + chunk_count > at_once:
            yield some
            some, n = [], 0
        some.append(id_)
        n += chunk_count
    if some:
        yield some


async def _points_of(
    session: Session, document_ids: Sequence[str], *, with_payload: bool | list[str], with_codes: bool
) -> list[list[models.Record]]:
    points: dict[str, list[models.Record]] = {}
    condition = field_any("document_id", document_ids)
    async for page in session.points.scroll(condition, with_payload=with_payload, with_codes=with_codes):
        for record in page:
            points.setdefault(_payload(record)["document_id"], []).append(record)
    return list(points.values())


def _of_one_version(records: list[models.Record]) -> list[models.Record]:
    """Keep the points of the version that is whole, if there are points of several; else all.

    Versions that differ by their metadata are one. A document that came in pieces has many hashes, and all its points
    are of it.
    """
    versions = _versions(records)
    whole = [some for _, some in sorted(versions.items()) if len(some) == _payload(some[0])["chunk_count"]]
    return whole[0] if whole and len(versions) > 1 else records


def _versions(records: list[models.Record]) -> dict[str, list[models.Record]]:
    """Put points together that are of one version; all are where the document came in pieces."""
    versions: dict[str, list[models.Record]] = {}
    for record in records:
        hash_ = _payload(record)["document_hash"]
        if is_of_piece(hash_):
            return {hash_: records}
        versions.setdefault(content_hash(hash_), []).append(record)
    return versions


def _describe(records: list[models.Record]) -> StoredDocument:
    """Tell of a document by all its points; of a mixed one, how much of its first chunk's version is there."""
    current = _of_one_version(records)
    first = min(current, key=_index)
    if len(_versions(current)) > 1:
        current = _versions(current)[content_hash(_payload(first)["document_hash"])]
    payload = _payload(first)
    return StoredDocument(id=payload["document_id"], chunks=len(current), chunk_count=payload["chunk_count"])


def _n_heads(records: list[models.Record]) -> int:
    return sum(_index(record) == 0 for record in records)


def _index(record: models.Record) -> int:
    return int(_payload(record)["chunk_index"])


async def _chunk_counts(session: Session, condition: models.Filter) -> AsyncIterator[dict[str, int]]:
    """Yield, page by page, the documents of matching points and how many chunks they say they have."""
    fields, size = ["document_id", "chunk_count"], _condition_size(session)
    async for page in session.points.scroll(condition, with_payload=fields, page=size):
        chunk_counts: dict[str, int] = {}
        for payload in map(_payload, page):
            id_ = payload["document_id"]
            chunk_counts[id_] = max(payload["chunk_count"], chunk_counts.get(id_, 0))
        yield chunk_counts


def _condition_size(session: Session) -> int:
    return min(_CONDITION_SIZE, session.points.limits.condition_size or _CONDITION_SIZE)


def _payload(record: models.Record) -> Mapping[str, Any]:
    return record.payload or {}
