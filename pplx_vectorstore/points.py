"""Chunks and codes → Qdrant points, and points → chunks."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.collection import (
    GENERATION_FIELD,
    LOSS_FIELD,
    TENANT_FIELD,
    VECTOR_NAME,
    WORDS_FIELD,
    Fingerprint,
)
from pplx_vectorstore.documents import Chunk, Document, Hit, StoredChunk
from pplx_vectorstore.equal_norms import (
    MOST_LOSS,
    NOTABLE_LOSS,
    crest_factor_for,
    equalize_norms,
    recover_codes,
    storage_loss,
)
from pplx_vectorstore.errors import AlignmentError, EncodingError
from pplx_vectorstore.lexical import unseen_words
from pplx_vectorstore.quantization import Codes, norms

# Never change it: ids of points already written are derived from it.
_NAMESPACE = uuid.UUID("6e1f0a1c-6f4e-5d0b-9a55-70706c785f76")

_encode_json = json.JSONEncoder(ensure_ascii=False).encode

_NORM = "norm"
_OWN_CODES = "own_codes"
_PIECE = "+"
_CONTENT_DIGITS = 32
_METADATA_DIGITS = 16

_OF_STORAGE = {_NORM, _OWN_CODES, LOSS_FIELD, TENANT_FIELD, WORDS_FIELD, GENERATION_FIELD}

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
    name = _encode_json(parts if tenant is None else {"tenant": tenant, "of": parts})
    # uuid.uuid5, which takes more than twice as long: of every point written, that tells.
    digits = hashlib.sha1(_NAMESPACE.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


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
    parts = [f"[{json.dumps(document.id)}, {_identity_json(fingerprint)}]".encode()]
    for chunk in chunks:  # joined: to hash piece by piece takes longer
        text = chunk.text.encode()
        own_id = "null" if chunk.id is None else json.dumps(chunk.id)
        # The length keeps chunk boundaries part of what is hashed.
        parts += (f"\n{len(text)} {chunk.start} {chunk.end} {own_id}\n".encode(), text)
    if document.vectors is not None:
        parts.append(f"\n{document.vectors.dtype} {document.vectors.shape}\n".encode())
    content = hashlib.sha256(b"".join(parts))
    if document.vectors is not None:
        content.update(document.vectors.tobytes())
    metadata = [dict(document.metadata), *(dict(chunk.metadata) for chunk in chunks)]
    of_metadata = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    return content.hexdigest()[:_CONTENT_DIGITS] + of_metadata.hexdigest()[:_METADATA_DIGITS]


def hash_of_piece(document_hash: str) -> str:
    """Return the hash for chunks that were written beside others of their document.

    It is not that of the document, even if those others go: context and numbers are still of a piece.
    """
    return _PIECE + document_hash[len(_PIECE) :]


def is_of_piece(document_hash: str) -> bool:
    """Tell whether chunks of that hash were written beside others of their document."""
    return document_hash.startswith(_PIECE)


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


class Point(NamedTuple):
    """A chunk as it is stored, before it takes the form in which an engine wants it.

    Attributes:
        id: A UUID.
        vector: uint8, shape (dimension,): the stored codes, shifted; None for the zero vector. Without a vector, no
            vector search can return the point: cosine with the zero vector means nothing.
        payload: JSON values.
    """

    id: str
    vector: npt.NDArray[np.uint8] | None
    payload: dict[str, Any]


class Vectors(NamedTuple):
    """Codes of some chunks, and what is stored of them; all of the same length.

    Attributes:
        codes: int8, shape (n, dimension), as the model gave them.
        stored: int8, same shape, of the collection's norm.
        norms: float64: of `codes`.
        are_recovered: bool: whether the norm is enough to get `codes` back.
        losses: float64: what storing cost of their cosines, from `storage_loss`.
    """

    codes: Codes
    stored: Codes
    norms: npt.NDArray[np.float64]
    are_recovered: npt.NDArray[np.bool_]
    losses: npt.NDArray[np.float64]

    @property
    def n_bent(self) -> int:
        """How many lost more than is left unsaid."""
        return int(np.count_nonzero(self.losses > NOTABLE_LOSS))

    def require_directions(self, document_id: str, indexes: Sequence[int]) -> None:
        """Refuse vectors of a document that would lose too much.

        Args:
            document_id: Of the document.
            indexes: Of its chunks.

        Raises:
            EncodingError: Names the chunk, and the crest factor that would do.
        """
        for row in np.flatnonzero(self.losses > MOST_LOSS).tolist():
            crest_factor = math.ceil(crest_factor_for(self.codes[[row]].astype(np.float64)))
            raise EncodingError(
                f"the vector of chunk {indexes[row]} of document {document_id!r} has components too far above the "
                f"others for this collection: stored, its cosine with itself would be {1 - self.losses[row]:.2f}. Make "
                f"the encoder with crest_factor={crest_factor}, and index into a new collection"
            )

    def part(self, first: int, stop: int) -> Vectors:
        """Return those of some chunks."""
        return Vectors(
            self.codes[first:stop],
            self.stored[first:stop],
            self.norms[first:stop],
            self.are_recovered[first:stop],
            self.losses[first:stop],
        )

    def rows(self) -> Iterator[tuple[npt.NDArray[np.uint8] | None, dict[str, Any]]]:
        """Yield each vector as it is stored, None for the zero vector, and the payload fields that belong to it."""
        shifted = self.stored.view(np.uint8) ^ np.uint8(SHIFT)  # which is to add it, modulo 256
        for row, norm in enumerate(self.norms.tolist()):
            fields: dict[str, Any] = {_NORM: norm}
            if not self.are_recovered[row]:
                fields[_OWN_CODES] = base64.b64encode(self.codes[row].tobytes()).decode("ascii")
            if self.losses[row] > NOTABLE_LOSS:
                fields[LOSS_FIELD] = float(self.losses[row])
            yield shifted[row] if norm > 0 else None, fields


def equalize_codes(documents: Sequence[Codes], squared_norm: int) -> list[Vectors]:
    """Bring the codes of documents to the collection's norm, all together: many small arrays take longer.

    Args:
        documents: int8, shape (n_chunks, dimension) each.
        squared_norm: That all stored vectors have.
    """
    if not documents:
        return []
    codes = np.concatenate(documents)
    stored, lengths = codes.copy(), norms(codes)
    are_recovered, losses = np.ones(len(codes), np.bool_), np.zeros(len(codes))
    # Codes of that norm, such as come of floats, and zeros stay as they are.
    others = np.flatnonzero((lengths != math.sqrt(squared_norm)) & (lengths > 0))
    if len(others):
        own = codes[others]
        stored[others] = equal = equalize_norms(own, squared_norm)
        are_recovered[others] = (recover_codes(equal, lengths[others], squared_norm) == own).all(axis=1)
        losses[others] = storage_loss(own, equal, squared_norm)
    together = Vectors(codes, stored, lengths, are_recovered, losses)
    stops = np.cumsum([len(of_document) for of_document in documents]).tolist()
    return [together.part(first, stop) for first, stop in zip([0, *stops], stops, strict=False)]


def iter_points(
    document: Document,
    chunks: Sequence[Chunk],
    vectors: Vectors,
    point_ids: Sequence[str],
    document_hash: str,
    tenant: str | None = None,
    places: Places | None = None,
) -> Iterator[Point]:
    """Make one point per chunk.

    Args:
        document: Its id and metadata are stored with every chunk.
        chunks: Chunks of the document, in order.
        vectors: Of the chunks, from `equalize_codes`.
        point_ids: Of the chunks, from `chunk_point_id`.
        document_hash: From `hash_document`.
        tenant: Whose document it is, or None in a collection without tenants.
        places: Where the chunks stand; None if they are all that the document has.

    Yields:
        Points in chunk order.

    Raises:
        AlignmentError: The numbers of chunks and vectors differ.
    """
    if len(chunks) != len(vectors.codes):
        raise AlignmentError(f"{len(vectors.codes)} vectors for {len(chunks)} chunks of document {document.id!r}")
    places = places or Places(range(len(chunks)), len(chunks))
    for chunk, id_, index, (vector, fields) in zip(chunks, point_ids, places.indexes, vectors.rows(), strict=True):
        payload: dict[str, Any] = {
            "text": chunk.text,
            "document_id": document.id,
            "chunk_index": index,
            "chunk_count": places.chunk_count,
            "start": chunk.start,
            "end": chunk.end,
            "document_hash": document_hash,
            "metadata": join_metadata(document, chunk),
            **fields,
            **_words_of(chunk.text),
        }
        if chunk.id is not None:
            payload["id"] = chunk.id
        if tenant is not None:
            payload[TENANT_FIELD] = tenant
        yield Point(id_, vector, payload)


def copy_points(
    payloads: Sequence[Mapping[str, Any]], vectors: Vectors, point_ids: Sequence[str], tenant: str | None
) -> Iterator[Point]:
    """Make points of stored ones, for another collection or tenant.

    Args:
        payloads: As stored.
        vectors: Of the chunks, from `equalize_codes` for the other collection.
        point_ids: Of the chunks there, from `stored_point_id`.
        tenant: Whose they are to be.

    Raises:
        AlignmentError: The numbers of payloads and vectors differ.
    """
    if len(payloads) != len(vectors.codes):
        raise AlignmentError(f"{len(vectors.codes)} vectors for {len(payloads)} chunks")
    for stored, id_, (vector, fields) in zip(payloads, point_ids, vectors.rows(), strict=True):
        payload = {name: value for name, value in stored.items() if name not in _OF_STORAGE} | fields
        payload |= _words_of(payload["text"])
        if tenant is not None:
            payload[TENANT_FIELD] = tenant
        yield Point(id_, vector, payload)


def _words_of(text: str) -> dict[str, str]:
    words = unseen_words(text)
    return {WORDS_FIELD: words} if words else {}


def stored_point_id(payload: Mapping[str, Any], tenant: str | None) -> str:
    """Return the id that the point of a payload has as a tenant's."""
    own_id = payload.get("id")
    if own_id is None:
        return derive_point_id(payload["document_id"], payload["chunk_index"], tenant)
    return point_id_of(own_id, tenant)


def estimate_bytes(points: Sequence[Point], component_bytes: int) -> int:
    """Estimate how many bytes points take in a request, from above.

    Args:
        points: To be sent.
        component_bytes: Bytes that a component of a vector takes, at most.
    """
    components = sum(len(point.vector) for point in points if point.vector is not None)
    texts = sum(len(point.payload["text"].encode()) for point in points)
    rest = [{name: value for name, value in point.payload.items() if name != "text"} for point in points]
    return component_bytes * components + 2 * texts + 2 * len(json.dumps(rest)) + 100 * len(points)


def read_chunk(point_id: object, payload: Mapping[str, Any], codes: Codes | None = None) -> StoredChunk:
    """Turn a point back into the chunk it was made of."""
    return StoredChunk(**_fields(point_id, payload), codes=codes)


def read_hit(point_id: object, payload: Mapping[str, Any], score: float, codes: Codes | None = None) -> Hit:
    """Turn a scored point into a hit."""
    return Hit(**_fields(point_id, payload), score=score, codes=codes)


def read_codes(vector: object, payload: Mapping[str, Any], dimension: int, squared_norm: int) -> Codes:
    """Turn a point back into the codes that it was made of, byte for byte.

    Args:
        vector: As stored.
        payload: As stored.
        dimension: Components of a vector.
        squared_norm: That all stored vectors have.

    Returns:
        int8, shape (dimension,); zeros where it has no vector.
    """
    own = payload.get(_OWN_CODES)
    if own is not None:
        return np.frombuffer(base64.b64decode(own), dtype=np.int8)
    stored = read_stored_codes(vector, dimension)
    recovered: Codes = recover_codes(stored[None], np.array([payload[_NORM]]), squared_norm)[0]
    return recovered


def read_stored_codes(vector: object, dimension: int) -> Codes:
    """Turn a point's vector back into the codes that are stored, shape (dimension,); zeros where it has none."""
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
