"""LangChain documents, which are chunks, ↔ documents of the core with their chunks."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

from langchain_core.documents import Document

import pplx_vectorstore as core
from pplx_vectorstore.errors import InvalidDocumentError, InvalidInputError

GroupBy = str | Callable[[Document], str | None] | None
"""A metadata key, or a function: which document a chunk is of. None: each stands alone."""

DEFAULT_GROUP_BY = "source"
DEFAULT_ORDER_BY = ("page", "start_index")

_OFFSET = "start_index"
# Never change it: ids of chunks already written are derived from it.
_NAMESPACE = uuid.UUID("0c8d3c86-5f0e-5a43-9d0f-6c616e67706c")
_ALONE = uuid.uuid5(_NAMESPACE, "alone")


class Grouped(NamedTuple):
    """Documents for the core, and the ids of their chunks in the order in which these came."""

    documents: list[core.Document]
    ids: list[str]


class _Piece(NamedTuple):
    document: Document
    chunk: core.Chunk


def group_documents(
    documents: Iterable[Document],
    *,
    ids: Sequence[str | None] | None = None,
    group_by: GroupBy = DEFAULT_GROUP_BY,
    order_by: Sequence[str] = DEFAULT_ORDER_BY,
) -> Grouped:
    """Put chunks together that are of one document.

    A chunk without an id gets one made of its document, text and metadata, so that writing it twice changes
    nothing; equal ones in one call are told apart by counting.

    Args:
        documents: Chunks, in any order; they are not changed.
        ids: One per chunk, stronger than ``Document.id``; where it is None, that counts.
        group_by: Which document a chunk is of; where there is no answer, it is a document of its own.
        order_by: Metadata keys with numbers that order the chunks of a document, the most significant first.
            Keys that not all of them have are left out, as is ``start_index`` where two have the same.

    Raises:
        InvalidDocumentError: Something is not a document, or its metadata would not come back as they are.
        InvalidInputError: The number of ids differs, or a document's name is no str.
    """
    given = _as_list(documents)
    if isinstance(ids, str):
        raise InvalidInputError(f"ids must be a list of str, not the str {ids!r}")
    given_ids = [None] * len(given) if ids is None else list(ids)
    if len(given_ids) != len(given):
        raise InvalidInputError(f"{len(given_ids)} ids came for {len(given)} documents; give one for each, or none")
    groups: dict[str, list[_Piece]] = {}
    made: list[str] = []
    seen: Counter[str] = Counter()
    for document, given_id in zip(given, given_ids, strict=True):
        own_id = document.id if given_id is None else given_id
        if own_id != document.id:
            document = document.model_copy(update={"id": own_id})
        of = _document_of(document, group_by)
        chunk = core.Chunk(text=document.page_content, metadata=deepcopy(document.metadata))
        if own_id is None:
            content = json.dumps([of, chunk.text, chunk.metadata], sort_keys=True)
            own_id = str(uuid.uuid5(_NAMESPACE, f"{content} {seen[content]}"))
            seen[content] += 1
        chunk = replace(chunk, id=own_id)
        made.append(own_id)
        groups.setdefault(_alone(own_id) if of is None else of, []).append(_Piece(document, chunk))
    return Grouped(
        [core.Document(id=name, chunks=_in_order(pieces, order_by)) for name, pieces in groups.items()], made
    )


def as_langchain(stored: core.StoredChunk) -> Document:
    """Turn a hit or a stored chunk back; with context where the search was asked for it."""
    context = stored.context if isinstance(stored, core.Hit) else None
    text = stored.text if context is None else context
    # An engine in memory may hand out what it holds.
    return Document(id=stored.id, page_content=text, metadata=deepcopy(stored.metadata))


def _alone(chunk_id: object) -> str:
    """Name the document of a text that stands alone; no name that ``group_by`` gives is like it."""
    return str(uuid.uuid5(_ALONE, str(chunk_id)))


def _as_list(documents: object) -> list[Document]:
    if isinstance(documents, (Document, str)) or not isinstance(documents, Iterable):
        raise InvalidDocumentError(f"documents must be a list of Document, not {type(documents).__name__}")
    listed = list(documents)
    for document in listed:
        if not isinstance(document, Document):
            raise InvalidDocumentError(
                f"documents must hold langchain_core Documents, not {type(document).__name__}; texts go to add_texts"
            )
    return listed


def _document_of(document: Document, group_by: GroupBy) -> str | None:
    if group_by is None:
        return None
    name = document.metadata.get(group_by) if isinstance(group_by, str) else group_by(document)
    if name is not None and not isinstance(name, str):
        raise InvalidInputError(
            f"group_by={group_by!r} gave {name!r} as the name of a document; it must be a str (such as "
            "str(...) of it), or None for a text that stands alone"
        )
    return name or None


def _in_order(pieces: Sequence[_Piece], order_by: Sequence[str]) -> list[core.Chunk]:
    """Order chunks as they stand in their document, as far as their metadata tell."""
    keys = [key for key in order_by if all(_is_place(piece.document.metadata.get(key)) for piece in pieces)]
    if _OFFSET in keys and not _tells_apart(pieces, keys):
        keys.remove(_OFFSET)  # it counts anew in parts of the document
    ordered = sorted(pieces, key=lambda piece: _place(piece, keys))
    return [_with_offsets(piece) if _OFFSET in keys else piece.chunk for piece in ordered]


def _with_offsets(piece: _Piece) -> core.Chunk:
    start = int(piece.document.metadata[_OFFSET])
    return replace(piece.chunk, start=start, end=start + len(piece.chunk.text))


def _place(piece: _Piece, keys: Sequence[str]) -> tuple[float, ...]:
    return tuple(piece.document.metadata[key] for key in keys)


def _is_place(value: object) -> bool:
    # A splitter writes -1 where it did not find a chunk in the text.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _tells_apart(pieces: Sequence[_Piece], keys: Sequence[str]) -> bool:
    """Tell whether no two chunks, but for copies of one, have the same place."""
    chunks: dict[tuple[float, ...], core.Chunk] = {}
    copies = (chunks.setdefault(_place(piece, keys), piece.chunk) for piece in pieces)
    return all(
        (one.text, one.metadata) == (piece.chunk.text, piece.chunk.metadata)
        for one, piece in zip(copies, pieces, strict=True)
    )
