"""Where chunks come to stand in documents that are stored piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

from qdrant_client import models

from pplx_vectorstore.documents import Chunk, Document
from pplx_vectorstore.operations.access import field_any
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import Places, point_id_of


async def find_places(session: Session, pieces: Sequence[tuple[Document, Sequence[Chunk]]]) -> list[Places]:
    """Number chunks of documents of which some may be stored already.

    A chunk that is stored keeps its number; new ones follow the last. Where everything stored of a document
    comes again, its chunks are numbered anew, in the order in which they come.

    Args:
        session: The open store.
        pieces: Documents, and the chunks of them that are to be written.

    Returns:
        The places of each document's chunks.
    """
    ids = [document.id for document, _ in pieces]
    stored = await session.points.facet("document_id", field_any("document_id", ids), len(ids)) if ids else {}
    point_ids = [
        [None if chunk.id is None else point_id_of(chunk.id, session.points.tenant) for chunk in chunks]
        for _, chunks in pieces
    ]
    known = [point for points in point_ids for point in points if point is not None] if stored else []
    records = await session.points.retrieve(known, with_payload=["document_id", "chunk_index"])
    places = []
    for (document, chunks), points in zip(pieces, point_ids, strict=True):
        kept: dict[str, int] = {}
        for point in points:
            payload = records[point].payload if point in records else None
            if point is not None and payload and payload["document_id"] == document.id:
                kept[point] = payload["chunk_index"]
        n_others = stored.get(document.id, 0) - len(kept)
        if n_others <= 0:
            places.append(Places(range(len(chunks)), len(chunks)))
            continue
        new = iter(range(await _end(session, document.id, n_others + len(kept)), 2**63))
        indexes = [kept[point] if point in kept else next(new) for point in points]
        places.append(Places(indexes, n_others + len(chunks)))
    return places


async def _end(session: Session, document_id: str, n_stored: int) -> int:
    """Return the number after the document's last chunk, which is `n_stored` where none was deleted."""
    end, below = n_stored, n_stored - 1
    while await _reaches(session, document_id, end):
        end, below = 2 * end, end
    while end - below > 1:
        middle = (below + end) // 2
        if await _reaches(session, document_id, middle):
            below = middle
        else:
            end = middle
    return end


async def _reaches(session: Session, document_id: str, index: int) -> bool:
    """Tell whether the document has a chunk of this number or a later one."""
    own = models.FieldCondition(key="document_id", match=models.MatchValue(value=document_id))
    later = models.FieldCondition(key="chunk_index", range=models.Range(gte=index))
    return await session.points.count(models.Filter(must=[own, later])) > 0
