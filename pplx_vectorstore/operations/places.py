"""Where chunks come to stand in documents that are stored piece by piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from pplx_vectorstore.documents import Chunk, Document
from pplx_vectorstore.operations.access import field_any
from pplx_vectorstore.operations.session import Session
from pplx_vectorstore.points import Places, possible_point_ids
from pplx_vectorstore.qdrant import models


@dataclass(frozen=True, slots=True)
class Extension:
    """How chunks are written beside what is stored of their documents.

    Attributes:
        places: Of each document's chunks.
        superseded: Of each document, points that go by the id of a chunk that is written, under another point id:
            those made by a store that gave the chunk no id of its own; with their document hashes.
    """

    places: list[Places]
    superseded: list[dict[str, str]]


async def plan_extension(session: Session, pieces: Sequence[tuple[Document, Sequence[Chunk]]]) -> Extension:
    """Number chunks of documents of which some may be stored already.

    A chunk that is stored keeps its number; new ones follow the last. Where everything stored of a document
    comes again, its chunks are numbered anew, in the order in which they come.

    Args:
        session: The open store.
        pieces: Documents, and the chunks of them that are to be written; each has an id.
    """
    ids = [document.id for document, _ in pieces]
    stored = await session.points.facet("document_id", field_any("document_id", ids), len(ids))
    tenant = session.points.tenant
    names = {id_: possible_point_ids(id_, tenant) for _, chunks in pieces for id_ in _ids(chunks)}
    records = await session.points.retrieve(
        [point for points in names.values() for point in points],
        with_payload=["document_id", "chunk_index", "id", "document_hash"],
    )
    # Under a derived id, only a point that has no id of its own goes by it.
    known = {
        id_: [
            records[point]
            for point in points
            if point in records and (point == points[0] or _is_derived(records[point]))
        ]
        for id_, points in names.items()
    }
    leaving: Counter[str] = Counter(_of(record) for found in known.values() for record in found)
    places = []
    for document, chunks in pieces:
        kept = {
            id_: (record.payload or {})["chunk_index"]
            for id_ in _ids(chunks)
            for record in known[id_]
            if _of(record) == document.id
        }
        n_stored = stored.get(document.id, 0)
        n_others = n_stored - leaving[document.id]
        if n_others <= 0:
            places.append(Places(range(len(chunks)), len(chunks)))
            continue
        new = count(await _end(session, document.id, n_stored))
        indexes = [kept[id_] if id_ in kept else next(new) for id_ in _ids(chunks)]
        places.append(Places(indexes, n_others + len(chunks)))
    superseded = [
        {
            str(record.id): (record.payload or {})["document_hash"]
            for id_ in _ids(chunks)
            for record in known[id_]
            if str(record.id) != names[id_][0]
        }
        for _, chunks in pieces
    ]
    return Extension(places, superseded)


def _of(record: models.Record) -> str:
    return str((record.payload or {})["document_id"])


def _is_derived(record: models.Record) -> bool:
    return (record.payload or {}).get("id") is None


def _ids(chunks: Sequence[Chunk]) -> list[str]:
    return [chunk.id for chunk in chunks if chunk.id is not None]


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
