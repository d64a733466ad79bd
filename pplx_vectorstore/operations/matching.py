"""Answering by a filter alone: the chunks that match, in the order of their documents."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_vectorstore.collection import VECTOR_NAME
from pplx_vectorstore.documents import Hit
from pplx_vectorstore.operations.access import field_any, in_batches
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import read_codes, read_hit
from pplx_vectorstore.qdrant import models

_CONDITION_SIZE = 500
_DOCUMENTS = 1000


async def list_matching(
    session: Session, condition: models.Filter, *, k: int, per_document: int, with_codes: bool
) -> list[Hit]:
    """Return the first chunks that match, by document id and chunk index, with a score of 0.

    It costs one count of all that match by their documents, and reading where the chunks of the first documents stand:
    the engine orders by numbers, not by texts.

    Args:
        session: The store.
        condition: From `PointAccess.condition`.
        k: Chunks to return at most; documents where `per_document` is given.
        per_document: Chunks of one document at most; 0 for no such limit.
        with_codes: Whether hits bring their codes.
    """
    # What has no vector is blank, and never found.
    found = models.Filter(must=[condition, models.HasVectorCondition(has_vector=VECTOR_NAME)])
    counts = await session.points.facet("document_id", found, _DOCUMENTS)
    documents = _first_documents(counts, k, per_document)
    ids = await _first_points(session, found, documents, most=per_document or k)
    wanted = ids if per_document else ids[:k]
    records = await session.points.retrieve(wanted, with_codes=with_codes)
    # One that was deleted meanwhile is not among them.
    return [_hit(session, records[id_], with_codes=with_codes) for id_ in wanted if id_ in records]


def _first_documents(counts: Mapping[str, int], k: int, per_document: int) -> list[str]:
    """Choose as many documents as are needed for k chunks, or k documents where grouped."""
    chosen: list[str] = []
    n = 0
    for document_id in sorted(counts):
        if n >= k:
            break
        chosen.append(document_id)
        n += 1 if per_document else counts[document_id]
    return chosen


async def _first_points(session: Session, found: models.Filter, documents: Sequence[str], *, most: int) -> list[str]:
    """Return the ids of the first points of each document, in order."""
    places: dict[str, list[tuple[int, str]]] = {document_id: [] for document_id in documents}
    fields = ["document_id", "chunk_index"]
    size = min(_CONDITION_SIZE, session.points.limits.condition_size or _CONDITION_SIZE)
    for some in in_batches(documents, size):
        of_some = models.Filter(must=[field_any("document_id", some), found])
        async for page in session.points.scroll(of_some, with_payload=fields):
            for record in page:
                payload = record.payload or {}
                places[payload["document_id"]].append((payload["chunk_index"], str(record.id)))
            for document_id in some:
                if len(places[document_id]) > most:
                    places[document_id] = heapq.nsmallest(most, places[document_id])
    return [point_id for document_id in documents for _, point_id in sorted(places[document_id])]


def _hit(session: Session, record: Any, *, with_codes: bool) -> Hit:
    payload = record.payload or {}
    codes = None
    if with_codes:
        codes = read_codes(record.vector, payload, session.fingerprint.dimension, session.fingerprint.squared_norm)
    return read_hit(record.id, payload, 0.0, codes)
