"""Chunks and codes → Qdrant points, and points → chunks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.collection import TENANT_FIELD, VECTOR_NAME, Fingerprint
from pplx_vectorstore.documents import Chunk, Document, Hit, StoredChunk
from pplx_vectorstore.errors import AlignmentError
from pplx_vectorstore.quantization import Codes, norms

if TYPE_CHECKING:
    from qdrant_client import models

# Never change it: ids of points already written are derived from it.
_NAMESPACE = uuid.UUID("6e1f0a1c-6f4e-5d0b-9a55-70706c785f76")

_ROWS_AT_ONCE = 256
_CONTENT_DIGITS = 32
_METADATA_DIGITS = 16

SHIFT = 128
"""Added to int8 codes (-128 to 127) to store them as uint8 (0 to 255)."""


def derive_point_id(document_id: str, chunk_index: int, tenant: str | None = None) -> str:
    """Return the id of a chunk that has none of its own: UUIDv5 of document id and chunk index.

    Tenants may use the same document ids: each has points of its own.

    >>> derive_point_id("handbook", 0) == derive_point_id("handbook", 0) != derive_point_id("handbook", 1)
    True
    """
    return _uuid([document_id, chunk_index], tenant)


def point_id_of(chunk_id: str, tenant: str | None = None) -> str:
    """Return the point id of a chunk that has an id of its own: UUIDv5 of that id."""
    return _uuid([chunk_id], tenant)


def _uuid(parts: list[str | int], tenant: str | None) -> str:
    named = parts if tenant is None else {"tenant": tenant, "of": parts}
    return str(uuid.uuid5(_NAMESPACE, json.dumps(named, ensure_ascii=False)))


def possible_point_ids(chunk_id: str, tenant: str | None = None) -> list[str]:
    """Return the point ids that a hit's id may stand for: a caller's id, or a derived one as it is.

    >>> len(possible_point_ids("intro")), len(possible_point_ids(derive_point_id("handbook", 0)))
    (1, 2)
    """
    ids = [point_id_of(chunk_id, tenant)]
    with contextlib.suppress(ValueError):  # not a UUID: it can only be a caller's id
        ids.append(str(uuid.UUID(chunk_id)))
    return ids


def hash_document(document: Document, chunks: Sequence[Chunk], fingerprint: Fingerprint) -> str:
    """Return 48 hex digits that change whenever what is stored of a document would.

    The first 32 (`content_hash`) stand for vectors, texts, offsets and ids, the others for
    metadata: where only those differ, nothing has to be embedded again.
    """
    content = hashlib.sha256(f"[{json.dumps(document.id)}, {_identity_json(fingerprint)}]".encode())
    for chunk in chunks:
        text = chunk.text.encode()
        # The length keeps chunk boundaries part of what is hashed.
        content.update(f"\n{len(text)} {chunk.start} {chunk.end} {json.dumps(chunk.id)}\n".encode())
        content.update(text)
    if document.vectors is not None:
        vectors = np.ascontiguousarray(document.vectors)
        content.update(f"\n{vectors.dtype} {vectors.shape}\n".encode())
        content.update(vectors.tobytes())
    metadata = [dict(document.metadata), *(dict(chunk.metadata) for chunk in chunks)]
    of_metadata = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    return content.hexdigest()[:_CONTENT_DIGITS] + of_metadata.hexdigest()[:_METADATA_DIGITS]


def hash_of_piece(document_hash: str) -> str:
    """Return the hash for chunks that were written beside others of their document.

    It is not that of the document, even if those others go: context and numbers are still of a piece.
    """
    return hashlib.sha256(f"piece {document_hash}".encode()).hexdigest()[: len(document_hash)]


@functools.lru_cache(maxsize=16)
def _identity_json(fingerprint: Fingerprint) -> str:
    return json.dumps(fingerprint.identity())


def content_hash(document_hash: str) -> str:
    """Return the part of a document's hash that stands for everything but its metadata."""
    return document_hash[:_CONTENT_DIGITS]


def chunk_point_id(document: Document, chunk: Chunk, index: int, tenant: str | None) -> str:
    """Return the id of the point that a chunk becomes."""
    if chunk.id is None:
        return derive_point_id(document.id, index, tenant)
    return point_id_of(chunk.id, tenant)


def join_metadata(document: Document, chunk: Chunk) -> dict[str, Any]:
    """Return what is stored as a chunk's metadata: the document's, overridden by its own."""
    return {**document.metadata, **chunk.metadata}


@dataclass(frozen=True, slots=True)
class Places:
    """Where chunks stand in their document.

    Attributes:
        indexes: One per chunk, from 0.
        chunk_count: Chunks that the document has with them.
    """

    indexes: Sequence[int]
    chunk_count: int

    @property
    def are_whole(self) -> bool:
        """Whether the chunks are all there are, in their order."""
        return list(self.indexes) == list(range(self.chunk_count))


def iter_points(
    document: Document,
    chunks: Sequence[Chunk],
    codes: Codes,
    document_hash: str,
    tenant: str | None = None,
    places: Places | None = None,
) -> Iterator[models.PointStruct]:
    """Make one point per chunk.

    Args:
        document: Its id and metadata are stored with every chunk.
        chunks: Chunks of the document, in order.
        codes: int8, shape (n_chunks, dimension).
        document_hash: From `hash_document`.
        tenant: Whose document it is, or None in a collection without tenants.
        places: Where the chunks stand; None if they are all that the document has.

    Yields:
        Points in chunk order.

    Raises:
        AlignmentError: The numbers of chunks and codes differ.
    """
    if len(chunks) != len(codes):
        raise AlignmentError(f"{len(codes)} vectors for {len(chunks)} chunks of document {document.id!r}")
    places = places or Places(range(len(chunks)), len(chunks))
    for first in range(0, len(chunks), _ROWS_AT_ONCE):
        some = codes[first : first + _ROWS_AT_ONCE]
        # Lists of Python numbers take ten times the codes' memory, so they are made piecemeal.
        for i, (norm, values) in enumerate(_rows(some), start=first):
            chunk, index = chunks[i], places.indexes[i]
            payload: dict[str, Any] = {
                "text": chunk.text,
                "document_id": document.id,
                "chunk_index": index,
                "chunk_count": places.chunk_count,
                "start": chunk.start,
                "end": chunk.end,
                "document_hash": document_hash,
                "norm": norm,
                "metadata": join_metadata(document, chunk),
            }
            if chunk.id is not None:
                payload["id"] = chunk.id
            if tenant is not None:
                payload[TENANT_FIELD] = tenant
            yield _point(chunk_point_id(document, chunk, index, tenant), values, payload)


def copy_points(
    payloads: Sequence[Mapping[str, Any]], codes: Codes, tenant: str | None
) -> Iterator[models.PointStruct]:
    """Make points of stored ones, for another collection or tenant.

    Args:
        payloads: As stored.
        codes: int8, shape (n_payloads, dimension).
        tenant: Whose they are to be.

    Raises:
        AlignmentError: The numbers of payloads and codes differ.
    """
    if len(payloads) != len(codes):
        raise AlignmentError(f"{len(codes)} vectors for {len(payloads)} chunks")
    for stored, (norm, values) in zip(payloads, _rows(codes), strict=True):
        payload = {**stored, "norm": norm}
        payload.pop(TENANT_FIELD, None)
        if tenant is not None:
            payload[TENANT_FIELD] = tenant
        own_id = payload.get("id")
        if own_id is None:
            point_id = derive_point_id(payload["document_id"], payload["chunk_index"], tenant)
        else:
            point_id = point_id_of(own_id, tenant)
        yield _point(point_id, values, payload)


def point_bytes(point: models.PointStruct) -> int:
    """Estimate how many bytes a point takes in a request, from above."""
    payload = point.payload or {}
    vector: Any = point.vector.get(VECTOR_NAME, ()) if isinstance(point.vector, dict) else ()
    # A component takes at most six characters of JSON ("255.0,").
    rest = {name: value for name, value in payload.items() if name != "text"}
    return 6 * len(vector) + 2 * len(payload.get("text", "").encode()) + 2 * len(json.dumps(rest)) + 100


def _rows(codes: Codes) -> Iterator[tuple[float, list[int]]]:
    return zip(norms(codes).tolist(), (codes.astype(np.int16) + SHIFT).tolist(), strict=True)


def _point(point_id: str, values: list[int], payload: dict[str, Any]) -> models.PointStruct:
    from qdrant_client import models

    # Without a vector, no vector search can return the point: cosine with the zero vector means nothing.
    vector = {VECTOR_NAME: values} if payload["norm"] > 0 else {}
    # Validation is skipped because it would cost more than the upsert; every value is ours.
    return models.PointStruct.model_construct(id=point_id, vector=vector, payload=payload)


def read_chunk(point_id: object, payload: Mapping[str, Any], codes: Codes | None = None) -> StoredChunk:
    """Turn a point back into the chunk it was made of."""
    return StoredChunk(**_fields(point_id, payload), codes=codes)


def read_hit(
    point_id: object, payload: Mapping[str, Any], score: float, codes: Codes | None = None, *, is_cosine: bool = True
) -> Hit:
    """Turn a scored point into a hit."""
    if is_cosine:  # the engine's 32-bit arithmetic may pass its bounds by one part in ten million
        score = min(1.0, max(-1.0, score))
    return Hit(**_fields(point_id, payload), score=score, codes=codes)


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
