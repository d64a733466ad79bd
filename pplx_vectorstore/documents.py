"""The values that go into a store and come out of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.errors import InvalidDocumentError

# The engine reads back JSON of at most 128 levels.
_MOST_LEVELS = 64

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of a document that is found on its own.

    Attributes:
        text: The text that is embedded. A blank chunk is kept, has no vector, and is never found.
        start: First character in the document's text, or None where unknown.
        end: Character after the last, or None.
        id: The caller's own id, unique in the collection, or None to derive one from the document's
            id and the chunk's index.
        metadata: JSON values of this chunk alone; joined with the document's, and stronger than they.
    """

    text: str
    start: int | None = None
    end: int | None = None
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean_text(self.text, "a chunk's text"))
        if self.id is not None:
            check_id(self.id, "a chunk's id")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise InvalidDocumentError(f"{name} of a chunk must be a character offset ≥ 0, not {value!r}")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise InvalidDocumentError(f"a chunk cannot start at {self.start} and end before, at {self.end}")
        object.__setattr__(self, "metadata", copy_metadata(self.metadata))


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The unit of truth: its chunks are embedded in each other's context, replaced and deleted together.

    Give either `text`, which the store cuts into chunks, or `chunks`. What is given is copied: a dict, a list or an
    array may be used again for the next document.

    Attributes:
        id: Unique in the collection; adding a document of the same id again replaces it.
        text: The whole text. Lone surrogates, which no UTF-8 can hold, become U+FFFD one for one, so
            that offsets do not move.
        chunks: Ready-made chunks in document order: strings, or `Chunk` where offsets, ids or
            metadata are known.
        metadata: JSON values (None, bool, int of 64 bits, finite float, str, list, dict with str
            keys), given back as they are with every hit. (The embedded engine reads JSON numbers so that a float of
            more than 15 digits, or a very large or small one, may miss its last bit.)
        format: How `text` is cut: "text", "markdown", or a programming language such as "python".
        vectors: Ready-made vectors of `chunks`, shape (n_chunks, dimension): int8 codes, stored as
            they are, or floats, quantized as the store's model is; read-only. None to embed with the
            store's encoder.
    """

    id: str
    text: str | None = None
    chunks: Sequence[str | Chunk] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    format: str = "text"
    vectors: npt.NDArray[Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_id(self.id, "a document's id")
        if (self.text is None) == (self.chunks is None):
            given = "neither" if self.text is None else "both"
            raise InvalidDocumentError(f"document {self.id!r} needs either text or chunks; {given} came")
        if not isinstance(self.format, str):
            raise InvalidDocumentError(f"format of document {self.id!r} must be a str, not {self.format!r}")
        if self.text is not None:
            object.__setattr__(self, "text", clean_text(self.text, f"text of document {self.id!r}"))
        if self.chunks is not None:
            object.__setattr__(self, "chunks", _as_chunks(self.id, self.chunks))
        object.__setattr__(self, "metadata", copy_metadata(self.metadata))
        if self.vectors is not None:
            n_chunks = None if self.chunks is None else len(self.chunks)
            _check_vectors(self.id, self.vectors, n_chunks)
            object.__setattr__(self, "vectors", _as_read_only(self.vectors))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChunk:
    """A chunk as the store holds it.

    Attributes:
        id: The caller's id of the chunk, or the derived one (a UUID string).
        text: The chunk's text.
        document_id: The document it belongs to.
        chunk_index: Its place in the document, from 0.
        chunk_count: Number of chunks in the document.
        start: First character in the document's text, or None where unknown.
        end: Character after the last, or None.
        metadata: As given with the document and the chunk.
        codes: int8, shape (dimension,), where asked for; zeros for a blank chunk.
    """

    id: str
    text: str
    document_id: str
    chunk_index: int
    chunk_count: int
    start: int | None
    end: int | None
    metadata: dict[str, Any]
    codes: npt.NDArray[np.int8] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(StoredChunk):
    """A chunk found by a search.

    Attributes:
        score: Cosine of the int8 codes of query and chunk, from -1 to 1; in a hybrid search, the fused
            score of both rankings, or BM25's where it ranks alone.
        context: The chunk with its neighbours as one passage, where asked for.
    """

    score: float
    context: str | None = None


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A question that is embedded already, with its words, which a hybrid search needs too.

    Attributes:
        text: The question.
        codes: int8, shape (dimension,), not all zero.
    """

    text: str
    codes: npt.NDArray[np.int8] = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.codes, np.ndarray):  # else a search says what it expects
            object.__setattr__(self, "codes", _as_read_only(self.codes))


def check_id(value: object, what: str) -> None:
    """Refuse an id that is not a non-empty string of valid Unicode.

    Raises:
        InvalidDocumentError: Names `what`, and str() as the way out for other types.
    """
    if not isinstance(value, str):
        raise InvalidDocumentError(
            f"{what} must be a str, not {type(value).__name__} {value!r}; convert it with str() if that is unique"
        )
    if not value:
        raise InvalidDocumentError(f"{what} must not be the empty string")
    if has_lone_surrogate(value):
        raise InvalidDocumentError(f"{what} {value!r} holds a lone surrogate, which cannot be stored as UTF-8")


def clean_text(text: object, what: str) -> str:
    """Return `text` with each lone surrogate replaced by U+FFFD, of the same length.

    Raises:
        InvalidDocumentError: `text` is not a str.
    """
    if not isinstance(text, str):
        raise InvalidDocumentError(f"{what} must be a str, not {type(text).__name__}")
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def is_blank(text: str) -> bool:
    """Tell whether a chunk has nothing to embed: it is empty or white space alone."""
    return not text.strip()


def copy_metadata(metadata: object) -> dict[str, Any]:
    """Copy metadata, deep; refuse what would not come back from JSON as it went in.

    Raises:
        InvalidDocumentError: Names the path of the value and its type.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidDocumentError(f"metadata must be a dict, not {type(metadata).__name__}")
    return cast("dict[str, Any]", _copy_json(dict(metadata), "metadata", 0))


def has_lone_surrogate(text: str) -> bool:
    """Tell whether a text cannot be written as UTF-8."""
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def _copy_json(value: object, path: str, level: int) -> object:
    if level > _MOST_LEVELS:
        raise InvalidDocumentError(f"metadata is nested more than {_MOST_LEVELS} levels deep; flatten it")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if has_lone_surrogate(value):
            raise InvalidDocumentError(f"{path} holds a lone surrogate, which cannot be stored as UTF-8")
        return str.__str__(value)  # of an enumeration's member, its value
    if isinstance(value, int) and type(value) is int:
        if not -(2**63) <= value < 2**63:
            raise InvalidDocumentError(f"{path} is {value}, which does not fit 64 bits; store it as a str")
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise InvalidDocumentError(f"{path} is {value}, which JSON cannot hold; leave it out or store None")
        return value
    if isinstance(value, list):
        return [_copy_json(item, f"{path}[{index}]", level + 1) for index, item in enumerate(value)]
    if isinstance(value, dict):
        copied = {}
        for key, item in value.items():
            if not isinstance(key, str) or has_lone_surrogate(key):
                raise InvalidDocumentError(f"{path} has the key {key!r}; keys must be str of valid Unicode")
            copied[str.__str__(key)] = _copy_json(item, f"{path}[{key!r}]", level + 1)
        return copied
    raise InvalidDocumentError(
        f"{path} is of type {type(value).__name__}, which would not come back as it is; "
        "use None, bool, int, float, str, list or dict (dates as isoformat(), tuples as lists)"
    )


def _as_read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copied = np.array(array, order="C")
    copied.setflags(write=False)
    return copied


def _as_chunks(document_id: str, chunks: object) -> tuple[Chunk, ...]:
    if isinstance(chunks, str) or not isinstance(chunks, Sequence):
        raise InvalidDocumentError(
            f"chunks of document {document_id!r} must be a list of str or Chunk, not {type(chunks).__name__}; "
            "a whole text goes into text="
        )
    made = []
    for index, chunk in enumerate(chunks):
        if isinstance(chunk, str):
            made.append(Chunk(text=chunk))
        elif isinstance(chunk, Chunk):
            made.append(chunk)
        else:
            raise InvalidDocumentError(
                f"chunk {index} of document {document_id!r} must be a str or Chunk, not {type(chunk).__name__}"
            )
    return tuple(made)


def _check_vectors(document_id: str, vectors: object, n_chunks: int | None) -> None:
    what = f"vectors of document {document_id!r}"
    if n_chunks is None:
        raise InvalidDocumentError(f"{what} need the chunks they are of; give chunks= instead of text=")
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
        shape = getattr(vectors, "shape", type(vectors).__name__)
        raise InvalidDocumentError(f"{what} must be an array of shape ({n_chunks}, dimension), not {shape}")
    if len(vectors) != n_chunks:
        raise InvalidDocumentError(f"{what}: {len(vectors)} came for {n_chunks} chunks")
    if vectors.dtype != np.int8 and vectors.dtype.kind != "f":
        raise InvalidDocumentError(f"{what} must be int8 codes or floats, not {vectors.dtype}")
    if vectors.dtype.kind == "f" and not np.isfinite(vectors).all():
        raise InvalidDocumentError(f"{what} hold NaN or infinite values")
