"""Chunks and codes → Qdrant points, and points → chunks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.collection import VECTOR_NAME, Fingerprint
from pplx_vectorstore.documents import Chunk, Document, Hit, StoredChunk
from pplx_vectorstore.errors import AlignmentError
from pplx_vectorstore.quantization import Codes, norms

if TYPE_CHECKING:
    from qdrant_client import models

# Never change it: ids of points already written are derived from it.
_NAMESPACE = uuid.UUID("6e1f0a1c-6f4e-5d0b-9a55-70706c785f76")

_ROWS_AT_ONCE = 256

SHIFT = 128
"""Added to int8 codes (-128 to 127) to store them as uint8 (0 to 255)."""


def derive_point_id(document_id: str, chunk_index: int) -> str:
    """Return the id of a chunk that has none of its own: UUIDv5 of document id and chunk index.

    >>> derive_point_id("handbook", 0) == derive_point_id("handbook", 0) != derive_point_id("handbook", 1)
    True
    """
    return str(uuid.uuid5(_NAMESPACE, json.dumps([document_id, chunk_index], ensure_ascii=False)))


def point_id_of(chunk_id: str) -> str:
    """Return the point id of a chunk that has an id of its own: UUIDv5 of that id."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps([chunk_id], ensure_ascii=False)))


def possible_point_ids(chunk_id: str) -> list[str]:
    """Return the point ids that a hit's id may stand for: a caller's id, or a derived one as it is.

    >>> len(possible_point_ids("intro")), len(possible_point_ids(derive_point_id("handbook", 0)))
    (1, 2)
    """
    ids = [point_id_of(chunk_id)]
    with contextlib.suppress(ValueError):  # not a UUID: it can only be a caller's id
        ids.append(str(uuid.UUID(chunk_id)))
    return ids


def hash_document(document_id: str, chunks: Sequence[Chunk], fingerprint: Fingerprint) -> str:
    """Return 32 hex digits that change whenever a stored vector, text, offset or id would.

    Metadata is left out: it changes no vector.
    """
    digest = hashlib.sha256(json.dumps([document_id, fingerprint.identity()]).encode())
    for chunk in chunks:
        text = chunk.text.encode()
        # The length keeps chunk boundaries part of what is hashed.
        digest.update(f"\n{len(text)} {chunk.start} {chunk.end} {json.dumps(chunk.id)}\n".encode())
        digest.update(text)
    return digest.hexdigest()[:32]


def iter_points(
    document: Document, chunks: Sequence[Chunk], codes: Codes, document_hash: str
) -> Iterator[models.PointStruct]:
    """Make one point per chunk.

    Args:
        document: Its id and metadata are stored with every chunk.
        chunks: The document's chunks in order.
        codes: int8, shape (n_chunks, dimension).
        document_hash: From :func:`hash_document`.

    Yields:
        Points in chunk order. The vector is the codes + 128. A chunk whose codes are all zero gets no
        vector at all, so no vector search can return it: cosine with the zero vector means nothing.

    Raises:
        AlignmentError: The numbers of chunks and codes differ.
    """
    from qdrant_client import models

    if len(chunks) != len(codes):
        raise AlignmentError(f"{len(codes)} vectors for {len(chunks)} chunks of document {document.id!r}")
    document_metadata = dict(document.metadata)
    for first in range(0, len(chunks), _ROWS_AT_ONCE):
        some = codes[first : first + _ROWS_AT_ONCE]
        # Lists of Python numbers take ten times the codes' memory, so they are made piecemeal.
        rows = zip(norms(some).tolist(), (some.astype(np.int16) + SHIFT).tolist(), strict=True)
        for index, (norm, values) in enumerate(rows, start=first):
            chunk = chunks[index]
            payload: dict[str, Any] = {
                "text": chunk.text,
                "document_id": document.id,
                "chunk_index": index,
                "chunk_count": len(chunks),
                "start": chunk.start,
                "end": chunk.end,
                "document_hash": document_hash,
                "norm": norm,
                "metadata": {**document_metadata, **chunk.metadata} if chunk.metadata else document_metadata,
            }
            if chunk.id is None:
                point_id = derive_point_id(document.id, index)
            else:
                point_id = point_id_of(chunk.id)
                payload["id"] = chunk.id
            # Validation is skipped because it would cost more than the upsert; every value is ours.
            yield models.PointStruct.model_construct(
                id=point_id, vector={VECTOR_NAME: values} if norm > 0 else {}, payload=payload
            )


def read_chunk(point_id: object, payload: Mapping[str, Any], codes: Codes | None = None) -> StoredChunk:
    """Turn a point back into the chunk it was made of."""
    return StoredChunk(**_fields(point_id, payload), codes=codes)


def read_hit(point_id: object, payload: Mapping[str, Any], score: float) -> Hit:
    """Turn a scored point into a hit."""
    # The engine's 32-bit arithmetic may pass the bounds of a cosine by one part in ten million.
    return Hit(**_fields(point_id, payload), score=min(1.0, max(-1.0, score)))


def read_codes(vector: object, dimension: int) -> Codes:
    """Turn a point's stored vector back into int8 codes, shape (dimension,); zeros where it has none."""
    values = vector.get(VECTOR_NAME) if isinstance(vector, dict) else None
    if values is None:
        return np.zeros(dimension, dtype=np.int8)
    shifted: npt.NDArray[np.int16] = np.asarray(values).astype(np.int16)
    return (shifted - SHIFT).astype(np.int8)


def _fields(point_id: object, payload: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": payload.get("id") or str(point_id),
        "text": payload["text"],
        "document_id": payload["document_id"],
        "chunk_index": payload["chunk_index"],
        "chunk_count": payload["chunk_count"],
        "start": payload["start"],
        "end": payload["end"],
        "metadata": payload["metadata"],
    }
