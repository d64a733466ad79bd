"""Documents in, hits out: the store over an embedded engine or any ``QdrantClient``."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.chunking import Chunker
from pplx_vectorstore.collection import DEFAULT_COLLECTION, PAYLOAD_INDEXES, Fingerprint, vector_params
from pplx_vectorstore.documents import Chunk, Document, Hit, StoredChunk, has_lone_surrogate, is_blank
from pplx_vectorstore.errors import (
    AlignmentError,
    DuplicateDocumentError,
    InvalidDocumentError,
    InvalidInputError,
    StoreClosedError,
    StoreNotFoundError,
)
from pplx_vectorstore.points import (
    hash_document,
    iter_points,
    point_id_of,
    possible_point_ids,
    read_chunk,
    read_codes,
    read_hit,
)
from pplx_vectorstore.progress import Advance, show_progress
from pplx_vectorstore.quantization import Codes, Quantizer, quantize
from pplx_vectorstore.query import build_filter, build_query, check_threshold, choose_candidates, is_empty

if TYPE_CHECKING:
    from types import TracebackType

    from qdrant_client import models

    from pplx_vectorstore.encoders import Encoder

# What is embedded and acknowledged together: enough text to fill length-sorted batches, little enough
# to keep memory flat however large the corpus is.
_GROUP_CHARACTERS = 2**18
_GROUP_DOCUMENTS = 256
_UPSERT_POINTS = 256

Query = str | npt.NDArray[np.int8]
"""A question, or int8 codes of shape (dimension,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddReport:
    """What an ``add`` wrote.

    Attributes:
        documents: Documents written, those without chunks included.
        chunks: Chunks written.
        blank_chunks: Those among them that hold white space alone: kept, but never found.
        empty_documents: Ids of documents without any chunk: nothing of them can be found.
    """

    documents: int
    chunks: int
    blank_chunks: int
    empty_documents: tuple[str, ...]


class VectorStore:
    """A collection of documents whose chunks are embedded in context and found by two-stage search.

    Threads may share a store. Close it, or use it as a context manager.

    Args:
        client: A ``QdrantClient``, or the embedded engine's client.
        collection: Name of the collection; created if it does not exist.
        encoder: Embeds documents and queries; see ``load_encoder``.
        chunker: Cuts documents given as text; None for chunks of 256 tokens.
        create: Whether to create the collection if it does not exist.

    Raises:
        SchemaMismatchError: The collection was written with another model, dimension or setting.
        StoreNotFoundError: It does not exist and `create` is false.
        StoreLockedError: Another process has it open.
    """

    def __init__(
        self,
        client: Any,
        collection: str = DEFAULT_COLLECTION,
        *,
        encoder: Encoder,
        chunker: Chunker | None = None,
        create: bool = True,
    ) -> None:
        self._client = client
        self._collection = collection
        self._encoder = encoder
        self._fingerprint = encoder.fingerprint
        self._chunker = chunker
        self._owns_client = False
        self._closed = False
        self._least_count = 0
        self._write_lock = threading.Lock()
        self._prepare_collection(create)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        encoder: Encoder,
        collection: str = DEFAULT_COLLECTION,
        chunker: Chunker | None = None,
        create: bool = True,
    ) -> VectorStore:
        """Open an index folder on the embedded engine; arguments and errors as for the class.

        Args:
            folder: Where the index is, or will be.
            encoder: Embeds documents and queries.
            collection: Name of the collection in the folder.
            chunker: Cuts documents given as text; None for chunks of 256 tokens.
            create: Whether to create the folder and the collection if they do not exist.
        """
        from pplx_vectorstore.engines.edge import EdgeClient

        client = EdgeClient(folder)
        try:
            store = cls(client, collection, encoder=encoder, chunker=chunker, create=create)
        except BaseException:
            client.close()
            raise
        store._owns_client = True
        return store

    @property
    def fingerprint(self) -> Fingerprint:
        """How the collection's vectors are made."""
        return self._fingerprint

    def add(self, documents: Iterable[Document], *, progress: bool = False) -> AddReport:
        """Embed documents and write their chunks; a document already there is replaced whole.

        Written group by group: when this returns, all of it survives a killed process. If it is
        interrupted, a document is there whole, or not yet replaced, or (the one being written) mixed;
        adding the same documents again gives the state of an undisturbed run.

        Args:
            documents: Any iterable; a generator is consumed as it is written, in bounded memory.
            progress: Show a progress bar on standard error.

        Returns:
            What was written.

        Raises:
            InvalidDocumentError: Something in `documents` is not a document, or its vectors do not fit.
            DuplicateDocumentError: An id comes twice. Groups before it are written.
            EncodingError: The model gave NaN or infinity; its group is not written.
        """
        self._require_open()
        if isinstance(documents, (Document, str, Mapping)) or not isinstance(documents, Iterable):
            raise InvalidDocumentError(
                f"documents must be a list or another iterable of Document, not {type(documents).__name__}"
            )
        n_documents = n_chunks = n_blank = 0
        empty: list[str] = []
        total = len(documents) if isinstance(documents, Sized) else None
        shown = show_progress(total) if progress else contextlib.nullcontext(None)
        with shown as advance:
            for group in self._groups(documents):
                self._write_group(group, advance)
                n_documents += len(group)
                n_chunks += sum(len(chunks) for _, chunks in group)
                n_blank += sum(is_blank(chunk.text) for _, chunks in group for chunk in chunks)
                empty.extend(document.id for document, chunks in group if not chunks)
                if advance is not None:
                    advance.documents(n_documents, n_chunks)
            self._flush()
        return AddReport(documents=n_documents, chunks=n_chunks, blank_chunks=n_blank, empty_documents=tuple(empty))

    def search(
        self,
        query: Query,
        *,
        k: int = 10,
        candidates: int | None = None,
        filter: models.Filter | Mapping[str, Any] | None = None,  # noqa: A002 - Qdrant's own word for it
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """Find the chunks that answer a question best.

        Args:
            query: A text, or its int8 codes.
            k: Most hits to return.
            candidates: Points that Hamming ranking hands to the exact stage, at least k; None for ten
                per hit and at least 100. With as many as there are chunks, the search is exact.
            filter: A dict of metadata equalities, or a ``qdrant_client.models.Filter`` on the payload.
                A field that no chunk has matches nothing.
            score_threshold: Least cosine of a hit.

        Returns:
            Hits by falling cosine, at most k.

        Raises:
            InvalidInputError: The query is blank, or an argument is out of range.
        """
        return self.search_batch([query], k=k, candidates=candidates, filter=filter, score_threshold=score_threshold)[0]

    def search_batch(
        self,
        queries: Sequence[Query],
        *,
        k: int = 10,
        candidates: int | None = None,
        filter: models.Filter | Mapping[str, Any] | None = None,  # noqa: A002
        score_threshold: float | None = None,
    ) -> list[list[Hit]]:
        """Search for several queries in one request; arguments as for :meth:`search`.

        Returns:
            One list of hits per query, in the given order.
        """
        self._require_open()
        chosen = choose_candidates(k, candidates)
        check_threshold(score_threshold)
        condition = build_filter(filter)
        codes = self._query_codes(queries)
        if not len(codes):
            return []
        exact = self._covers_all(chosen)
        requests = [
            build_query(row, k=k, candidates=chosen, filter=condition, score_threshold=score_threshold, exact=exact)
            for row in codes
        ]
        responses = self._client.query_batch_points(self._collection, requests=requests)
        return [[read_hit(point.id, point.payload, point.score) for point in response.points] for response in responses]

    def get(self, ids: Sequence[str], *, with_codes: bool = False) -> list[StoredChunk]:
        """Fetch chunks by id.

        Args:
            ids: Ids as in hits: callers' own, or derived ones.
            with_codes: Fetch the int8 codes too.

        Returns:
            The chunks that exist, in the order of `ids`.
        """
        self._require_open()
        wanted = [possible_point_ids(chunk_id) for chunk_id in _as_ids(ids, "ids")]
        records = self._client.retrieve(
            self._collection,
            ids=[point_id for options in wanted for point_id in options],
            with_payload=True,
            with_vectors=with_codes,
        )
        by_id = {str(record.id): record for record in records}
        found = [next((by_id[option] for option in options if option in by_id), None) for options in wanted]
        dimension = self._fingerprint.dimension
        return [
            read_chunk(record.id, record.payload, read_codes(record.vector, dimension) if with_codes else None)
            for record in found
            if record is not None
        ]

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        filter: models.Filter | Mapping[str, Any] | None = None,  # noqa: A002
    ) -> int:
        """Delete chunks; give exactly one of the three.

        Args:
            ids: Ids of chunks.
            document_ids: Documents to delete whole.
            filter: As for :meth:`search`; must not be empty.

        Returns:
            Number of chunks deleted.

        Raises:
            InvalidInputError: None or several of the three came, or an empty filter, which would
                delete everything.
        """
        self._require_open()
        from qdrant_client import models

        given = [
            name
            for name, value in (("ids", ids), ("document_ids", document_ids), ("filter", filter))
            if value is not None
        ]
        if len(given) != 1:
            raise InvalidInputError(
                f"delete needs exactly one of ids, document_ids and filter; {' and '.join(given) or 'none'} came"
            )
        if filter is not None:
            condition = build_filter(filter)
            if condition is None or is_empty(condition):
                raise InvalidInputError("an empty filter would delete every chunk; say what to delete")
        elif document_ids is not None:
            condition = _documents_filter(_as_ids(document_ids, "document_ids"))
        else:
            points = [point for chunk_id in _as_ids(ids, "ids") for point in possible_point_ids(chunk_id)]
            condition = models.Filter(must=[models.HasIdCondition(has_id=cast(Any, points))])
        with self._write_lock:
            count = self._client.count(self._collection, count_filter=condition, exact=True).count
            if count:
                self._client.delete(self._collection, points_selector=models.FilterSelector(filter=condition))
                self._flush()
                self._least_count = 0
        return int(count)

    def count(self, filter: models.Filter | Mapping[str, Any] | None = None) -> int:  # noqa: A002
        """Count chunks, all or those that match a filter (as for :meth:`search`)."""
        self._require_open()
        condition = build_filter(filter)
        return int(self._client.count(self._collection, count_filter=condition, exact=True).count)

    def optimize(self) -> None:
        """Index what was written so far; happens by itself during large writes and on close.

        A Qdrant server optimizes on its own, so there this does nothing.
        """
        self._require_open()
        if hasattr(self._client, "optimize"):
            self._client.optimize(self._collection)

    def close(self) -> None:
        """Let go of the index; a client that was handed over stays open."""
        if not self._closed:
            self._closed = True
            if self._owns_client:
                self._client.close()

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare_collection(self, create: bool) -> None:
        if not self._client.collection_exists(self._collection):
            if not create:
                raise StoreNotFoundError(f"there is no collection {self._collection!r}; index documents first")
            self._client.create_collection(
                self._collection,
                vectors_config=vector_params(self._fingerprint.dimension),
                metadata=self._fingerprint.to_metadata(),
            )
        info = self._client.get_collection(self._collection)
        recorded = Fingerprint.from_metadata(info.config.metadata, self._collection)
        recorded.require_same(self._fingerprint, self._collection)
        for field, kind in PAYLOAD_INDEXES.items():
            if field not in (info.payload_schema or {}):  # new, or killed while it was new
                self._client.create_payload_index(self._collection, field_name=field, field_schema=kind)

    def _groups(self, documents: Iterable[Document]) -> Iterator[list[tuple[Document, Sequence[Chunk]]]]:
        """Chunk documents and gather them into what is embedded and written together."""
        group: list[tuple[Document, Sequence[Chunk]]] = []
        characters = 0
        seen: set[str] = set()
        seen_chunks: set[str] = set()
        for document in documents:
            if not isinstance(document, Document):
                raise InvalidDocumentError(f"documents must hold Document objects, not {type(document).__name__}")
            if document.id in seen:
                raise DuplicateDocumentError(f"document id {document.id!r} comes twice in one call; ids are unique")
            seen.add(document.id)
            chunks = self._chunks_of(document)
            for chunk in chunks:
                if chunk.id is not None:
                    if chunk.id in seen_chunks:
                        raise DuplicateDocumentError(f"chunk id {chunk.id!r} comes twice in one call; ids are unique")
                    seen_chunks.add(chunk.id)
            group.append((document, chunks))
            characters += sum(len(chunk.text) for chunk in chunks)
            if characters >= _GROUP_CHARACTERS or len(group) == _GROUP_DOCUMENTS:
                yield group
                group, characters = [], 0
        if group:
            yield group

    def _chunks_of(self, document: Document) -> Sequence[Chunk]:
        if document.chunks is not None:
            return cast("Sequence[Chunk]", document.chunks)  # made Chunk objects by Document itself
        if self._chunker is None:  # made late: searching needs no tokenizer
            self._chunker = Chunker(self._encoder.tokenizer.tokenizer)
        return self._chunker.split(document.text or "", document.format)

    def _write_group(self, group: Sequence[tuple[Document, Sequence[Chunk]]], advance: Advance | None) -> None:
        """Upsert the group's chunks, then delete what earlier versions of its documents left."""
        from qdrant_client import models

        all_codes = self._codes_of(group, advance)
        hashes = [hash_document(document.id, chunks, self._fingerprint) for document, chunks in group]
        points = (
            point
            for (document, chunks), codes, document_hash in zip(group, all_codes, hashes, strict=True)
            for point in iter_points(document, chunks, codes, document_hash)
        )
        stale = _documents_filter([document.id for document, _ in group])
        stale.must_not = [models.FieldCondition(key="document_hash", match=models.MatchAny(any=hashes))]
        # One writer at a time: between another's upsert and its delete, ours would look stale to it.
        with self._write_lock:
            self._require_own_chunk_ids(group)
            while batch := list(islice(points, _UPSERT_POINTS)):
                self._client.upsert(self._collection, points=batch)
            self._client.delete(self._collection, points_selector=models.FilterSelector(filter=stale))
            self._least_count = 0  # replaced documents may have shrunk

    def _require_own_chunk_ids(self, group: Sequence[tuple[Document, Sequence[Chunk]]]) -> None:
        """Refuse chunk ids that would overwrite a chunk of a document outside the group."""
        owners = {
            point_id_of(chunk.id): (chunk.id, document.id)
            for document, chunks in group
            for chunk in chunks
            if chunk.id is not None
        }
        if not owners:
            return
        replaced = {document.id for document, _ in group}
        for record in self._client.retrieve(self._collection, ids=list(owners), with_payload=["document_id"]):
            holder = record.payload["document_id"]
            if holder not in replaced:
                chunk_id, document_id = owners[str(record.id)]
                raise DuplicateDocumentError(
                    f"chunk id {chunk_id!r} of document {document_id!r} belongs to document {holder!r} already; "
                    "use ids that are unique in the collection, or delete that document first"
                )

    def _codes_of(self, group: Sequence[tuple[Document, Sequence[Chunk]]], advance: Advance | None) -> list[Codes]:
        """Embed the group's documents that come without vectors, together."""
        texts = [[chunk.text for chunk in chunks] for document, chunks in group if document.vectors is None]
        codes = []
        if texts:
            codes = self._encoder.encode_documents(texts, progress=None if advance is None else advance.tokens)
        if len(codes) != len(texts):
            raise AlignmentError(f"the encoder gave codes of {len(codes)} documents for {len(texts)}")
        for chunks, some in zip(texts, codes, strict=True):
            self._require_codes(some, len(chunks))
        encoded = iter(codes)
        return [
            next(encoded) if document.vectors is None else self._given_codes(document, chunks)
            for document, chunks in group
        ]

    def _require_codes(self, codes: Codes, n: int) -> None:
        expected = (n, self._fingerprint.dimension)
        if codes.shape != expected or codes.dtype != np.int8:
            raise AlignmentError(f"the encoder gave {codes.dtype} of shape {codes.shape}; int8 of {expected} is needed")

    def _given_codes(self, document: Document, chunks: Sequence[Chunk]) -> Codes:
        vectors = cast(npt.NDArray[Any], document.vectors)
        dimension = self._fingerprint.dimension
        if vectors.shape[1] != dimension:
            raise InvalidDocumentError(
                f"vectors of document {document.id!r} have {vectors.shape[1]} dimensions; "
                f"collection {self._collection!r} holds {dimension} (model {self._fingerprint.model!r})"
            )
        if vectors.dtype == np.int8:
            codes = vectors.copy()
        else:
            codes = quantize(vectors, cast(Quantizer, self._fingerprint.quantizer))
        codes[[is_blank(chunk.text) for chunk in chunks]] = 0  # a blank chunk is never found
        return codes

    def _query_codes(self, queries: Sequence[Query]) -> Codes:
        if isinstance(queries, (str, np.ndarray)) or not isinstance(queries, Sequence):
            raise InvalidInputError(f"queries must be a list of str or int8 codes, not {type(queries).__name__}")
        dimension = self._fingerprint.dimension
        codes = np.zeros((len(queries), dimension), dtype=np.int8)
        texts: dict[int, str] = {}
        for row, query in enumerate(queries):
            if isinstance(query, str):
                if is_blank(query):
                    raise InvalidInputError("a query must not be blank")
                texts[row] = query
            elif isinstance(query, np.ndarray) and query.dtype == np.int8 and query.shape == (dimension,):
                codes[row] = query
            else:
                shape = f"{query.dtype} {query.shape}" if isinstance(query, np.ndarray) else type(query).__name__
                raise InvalidInputError(f"a query must be a str or int8 codes of shape ({dimension},), not {shape}")
        if texts:
            encoded = self._encoder.encode_queries(list(texts.values()))
            self._require_codes(encoded, len(texts))
            codes[list(texts)] = encoded
        if not codes.any(axis=1).all():
            raise InvalidInputError("a query's vector is all zero, so its cosine with anything is undefined")
        return codes

    def _covers_all(self, candidates: int) -> bool:
        """Tell whether so many candidates are all there are, asking the engine as rarely as possible."""
        if candidates >= self._least_count:
            self._least_count = int(self._client.count(self._collection, exact=True).count)
        return candidates >= self._least_count

    def _flush(self) -> None:
        if hasattr(self._client, "flush"):
            self._client.flush(self._collection)

    def _require_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed; open it again")


def _documents_filter(document_ids: list[str]) -> models.Filter:
    from qdrant_client import models

    return models.Filter(must=[models.FieldCondition(key="document_id", match=models.MatchAny(any=document_ids))])


def _as_ids(ids: object, what: str) -> list[str]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InvalidInputError(f"{what} must be a list of str, not {type(ids).__name__}")
    listed = list(ids)
    for one in listed:
        if not isinstance(one, str) or has_lone_surrogate(one):
            raise InvalidInputError(f"{what} must be a list of str of valid Unicode; it holds {one!r}")
    return listed
