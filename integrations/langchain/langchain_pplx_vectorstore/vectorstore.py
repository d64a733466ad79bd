"""LangChain's vector store over the core store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import SecretStr

import pplx_vectorstore as core
from langchain_pplx_vectorstore.conversion import (
    DEFAULT_GROUP_BY,
    DEFAULT_ORDER_BY,
    GroupBy,
    Grouped,
    as_langchain,
    group_documents,
)
from langchain_pplx_vectorstore.encoding import as_encoder
from langchain_pplx_vectorstore.options import SearchOptions, StoreOptions
from langchain_pplx_vectorstore.retriever import PplxRetriever
from pplx_vectorstore.collection import DEFAULT_COLLECTION
from pplx_vectorstore.diversity import order_by_diversity
from pplx_vectorstore.documents import is_blank
from pplx_vectorstore.engines.retrying import DEFAULT_RETRIES
from pplx_vectorstore.engines.server import DEFAULT_TIMEOUT
from pplx_vectorstore.equal_norms import as_codes
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.operations.session import DEFAULT_PARALLEL
from pplx_vectorstore.quantization import Codes
from pplx_vectorstore.shared_store import SharedStore, open_in_thread

if TYPE_CHECKING:
    from types import TracebackType

    from qdrant_client import models

Scored = list[tuple[Document, float]]


class PplxVectorStore(VectorStore):
    """A vector store that embeds chunks in the context of their document.

    Chunks that come in one call and are of one document (`group_by`) go through the model together. They are
    stored as int8 codes and packed bits, and found by either, with exact cosines. Give one of `folder`,
    `url` and `client`. Threads and event loops may share a store. Coroutines that read await a server's answers where
    `url` is given; all others run in threads. Close it, or use it as a context manager.

    Args:
        embedding: ``PplxEmbeddings``, or any other embeddings: those embed each chunk by itself, and their floats
            are scaled to int8.
        folder: Where the index is, or will be, on the embedded engine.
        url: A Qdrant server, such as ``http://localhost:6333``.
        client: A ``QdrantClient``, which stays open when the store is closed.
        collection: Name of the collection; created if it does not exist.
        group_by: Metadata key that names a chunk's document, or a function of the chunk. Where there is no name,
            or with None, each text stands alone.
        order_by: Metadata keys with numbers that order the chunks of a document, as far as all of them have these;
            else they stand as they come.
        tenant: Whose chunks the store reads and writes, and no others.
        create: Whether to create the collection if it does not exist.
        config: How to lay the collection out when it is created.
        index_fields: Metadata fields to index: ``{"lang": "keyword", "year": "integer"}``.
        api_key: Of the server; None for the environment's QDRANT_API_KEY.
        prefer_grpc: Whether points and searches go over gRPC.
        grpc_port: Where gRPC is; given, points and searches go over it. None for the port after the URL's.
        timeout: Seconds for one request to a server.
        retries: How often a request to a server is tried again after a failure that may pass.
        parallel: Upserts under way at once to a server.

    Raises:
        InvalidInputError: Not exactly one place came, or an argument is not usable.
        SchemaMismatchError: The collection was written with another model, dimension or setting.
        StoreNotFoundError: It does not exist and `create` is false.
        StoreLockedError: Another process has the folder open.
        ServerUnavailableError: The server does not answer.
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        folder: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: Any = None,
        collection: str = DEFAULT_COLLECTION,
        group_by: GroupBy = DEFAULT_GROUP_BY,
        order_by: Sequence[str] = DEFAULT_ORDER_BY,
        tenant: str | None = None,
        create: bool = True,
        config: core.CollectionConfig | None = None,
        index_fields: Mapping[str, Any] | None = None,
        api_key: str | SecretStr | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: int = DEFAULT_RETRIES,
        parallel: int = DEFAULT_PARALLEL,
    ) -> None:
        if group_by is not None and not isinstance(group_by, str) and not callable(group_by):
            raise InvalidInputError(f"group_by must be a metadata key, a function or None, not {group_by!r}")
        if isinstance(order_by, str) or not all(isinstance(key, str) for key in order_by):
            raise InvalidInputError(f"order_by must be a list of metadata keys, not {order_by!r}")
        self._embedding = embedding
        self._group_by = group_by
        self._order_by = tuple(order_by)
        self._shared = SharedStore(
            folder=folder,
            url=url,
            client=client,
            collection=collection,
            encoder=as_encoder(embedding),
            tenant=tenant,
            create=create,
            config=config,
            index_fields=index_fields,
            api_key=api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout=timeout,
            retries=retries,
            parallel=parallel,
        )
        self._store = self._shared.store

    @property
    def store(self) -> core.VectorStore:
        """The core store: whole documents, explanations, export."""
        return self._store

    @property
    def embeddings(self) -> Embeddings:
        """What the store was made with."""
        return self._embedding

    # --- writing -------------------------------------------------------------------------------------

    def add_documents(
        self,
        documents: list[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed chunks, those of one document together, and write them.

        A chunk whose id is stored is replaced, whichever document it was of; everything else stays, other chunks
        of its document too. New ones stand after these, whatever their `start_index`. What comes in another call is
        not context: give a document's chunks in one call, or use `sync`.

        Args:
            documents: Chunks, in any order.
            ids: One per chunk, stronger than ``Document.id``. A chunk without an id gets one made of its document,
                text and metadata, so that adding it again changes nothing.
            batch_size: Not needed, since batches are sized by text; ``langchain_core.indexing.index`` gives it.
            **kwargs: None.

        Returns:
            Ids, in the order of the chunks.

        Raises:
            InvalidDocumentError: Metadata would not come back as they are (dates go in as ``isoformat()``).
            DuplicateDocumentError: An id comes twice.
        """
        _refuse(kwargs)
        grouped = self._grouped(documents, ids)
        self._store.add(grouped.documents, replace=False)
        return grouped.ids

    async def aadd_documents(
        self,
        documents: list[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Await what `add_documents` returns."""
        _refuse(kwargs)
        grouped = await asyncio.to_thread(self._grouped, documents, ids)
        await self._shared.writing.add(grouped.documents, replace=False)
        return grouped.ids

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and write them; see `add_documents`."""
        return self.add_documents(_documents(texts, metadatas), ids=ids, **kwargs)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Await what `add_texts` returns."""
        documents = await asyncio.to_thread(_documents, texts, metadatas)
        return await self.aadd_documents(documents, ids=ids, **kwargs)

    def sync(
        self,
        documents: Iterable[Document],
        *,
        ids: Sequence[str | None] | None = None,
        delete_missing: bool = False,
        progress: bool = False,
    ) -> core.SyncReport:
        """Write whole documents: what has changed is embedded again whole, and its stale chunks are deleted.

        Args:
            documents: All chunks of each document that they are of.
            ids: One per chunk, as for `add_documents`. With ids of your own, a document of which only the
                metadata have changed is not embedded again; those that are made change with the metadata.
            delete_missing: Delete every document of the store that is not among these.
            progress: Show a progress bar on standard error.

        Returns:
            What was done.

        Raises:
            DuplicateDocumentError: An id of yours is that of a chunk of another document; delete that one first.
        """
        grouped = self._grouped(documents, ids)
        return self._store.sync(grouped.documents, delete_missing=delete_missing, progress=progress)

    async def async_sync(
        self,
        documents: Iterable[Document],
        *,
        ids: Sequence[str | None] | None = None,
        delete_missing: bool = False,
        progress: bool = False,
    ) -> core.SyncReport:
        """Await what `sync` returns."""
        grouped = await asyncio.to_thread(self._grouped, documents, ids)
        report: core.SyncReport = await self._shared.writing.sync(
            grouped.documents, delete_missing=delete_missing, progress=progress
        )
        return report

    def delete(
        self,
        ids: list[str] | None = None,
        *,
        filter: models.Filter | Mapping[str, Any] | None = None,  # noqa: A002 - Qdrant's own word for it
        document_ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> bool:
        """Delete chunks; give exactly one of the three. Ids that are not stored are no error.

        Args:
            ids: Ids of chunks.
            filter: As for a search; must not be empty.
            document_ids: Names of documents to delete whole, as `group_by` gives them.
            **kwargs: None.

        Returns:
            True.

        Raises:
            InvalidInputError: Nothing or several came: nothing empties the collection by accident.
        """
        _refuse(kwargs)
        self._store.delete(ids=ids, filter=filter, document_ids=document_ids)
        return True

    async def adelete(
        self,
        ids: list[str] | None = None,
        *,
        filter: models.Filter | Mapping[str, Any] | None = None,  # noqa: A002
        document_ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> bool:
        """Await what `delete` returns."""
        _refuse(kwargs)
        await self._shared.writing.delete(ids=ids, filter=filter, document_ids=document_ids)
        return True

    # --- reading -------------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Fetch chunks, in the order of `ids`; those that are not stored are left out."""
        return [as_langchain(chunk) for chunk in self._store.get(ids)]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Await what `get_by_ids` returns."""
        return [as_langchain(chunk) for chunk in await (await self._shared.reading()).get(ids)]

    def similarity_search(self, query: str, k: int = 4, **options: Unpack[SearchOptions]) -> list[Document]:
        """Find the chunks that answer a question best.

        Args:
            query: Blank only with a `filter`, which then answers alone: the first chunks that match, by document
                and place in it, with a score of 0.
            k: Most chunks to return; where grouped, most documents.
            **options: See `SearchOptions`.

        Returns:
            Chunks, best first. With `context`, ``page_content`` holds the passage around each.
        """
        return _unscored(self.similarity_search_with_score(query, k, **options))

    async def asimilarity_search(self, query: str, k: int = 4, **options: Unpack[SearchOptions]) -> list[Document]:
        """Await what `similarity_search` returns."""
        return _unscored(await self.asimilarity_search_with_score(query, k, **options))

    def similarity_search_with_score(self, query: str, k: int = 4, **options: Unpack[SearchOptions]) -> Scored:
        """Search; arguments as for `similarity_search`.

        Returns:
            Chunks with their cosine, from -1 to 1, best first; with the fused score where hybrid.
        """
        return _scored(self._store.search(query, k=k, **_checked(options)))

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **options: Unpack[SearchOptions]) -> Scored:
        """Await what `similarity_search_with_score` returns."""
        return _scored(await (await self._shared.reading()).search(query, k=k, **_checked(options)))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **options: Unpack[SearchOptions]
    ) -> list[Document]:
        """Find the chunks nearest to a vector.

        Args:
            embedding: As ``embeddings.embed_query`` gives it.
            k: As for `similarity_search`.
            **options: As for `similarity_search`, without `hybrid`.
        """
        return _unscored(self.similarity_search_with_score_by_vector(embedding, k, **options))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **options: Unpack[SearchOptions]
    ) -> list[Document]:
        """Await what `similarity_search_by_vector` returns."""
        return _unscored(await self.asimilarity_search_with_score_by_vector(embedding, k, **options))

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **options: Unpack[SearchOptions]
    ) -> Scored:
        """Search by vector, with cosines; arguments as for `similarity_search_by_vector`."""
        return _scored(self._store.search(as_codes([embedding])[0], k=k, **_without_words(options)))

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **options: Unpack[SearchOptions]
    ) -> Scored:
        """Await what `similarity_search_with_score_by_vector` returns."""
        return _scored(
            await (await self._shared.reading()).search(as_codes([embedding])[0], k=k, **_without_words(options))
        )

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **options: Unpack[SearchOptions]
    ) -> Scored:
        return _relevant(self.similarity_search_with_score(query, k, **options), options)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **options: Unpack[SearchOptions]
    ) -> Scored:
        return _relevant(await self.asimilarity_search_with_score(query, k, **options), options)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **options: Unpack[SearchOptions],
    ) -> list[Document]:
        """Find chunks that are relevant and unlike each other.

        Args:
            query: As for `similarity_search`.
            k: Chunks to return.
            fetch_k: Best chunks to choose from, at least k.
            lambda_mult: 1 for relevance alone, 0 for novelty alone.
            **options: As for `similarity_search`.

        Returns:
            Chunks in the order of choice, which is that of LangChain's ``maximal_marginal_relevance`` on the codes.
        """
        if isinstance(query, str) and is_blank(query):
            return _unscored(self.similarity_search_with_score(query, k, **_checked(options, fetch_k)))
        if options.get("hybrid"):
            hits = self._store.search(query, k=max(k, fetch_k), with_codes=True, **_checked(options, fetch_k))
            return _diverse(hits, None, k, lambda_mult)
        embedding = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(embedding, k, fetch_k, lambda_mult, **options)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **options: Unpack[SearchOptions],
    ) -> list[Document]:
        """Await what `max_marginal_relevance_search` returns."""
        if isinstance(query, str) and is_blank(query):
            return _unscored(await self.asimilarity_search_with_score(query, k, **_checked(options, fetch_k)))
        if options.get("hybrid"):
            store = await self._shared.reading()
            hits = await store.search(query, k=max(k, fetch_k), with_codes=True, **_checked(options, fetch_k))
            return await asyncio.to_thread(_diverse, hits, None, k, lambda_mult)
        embedding = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(embedding, k, fetch_k, lambda_mult, **options)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **options: Unpack[SearchOptions],
    ) -> list[Document]:
        """Search by vector; see `max_marginal_relevance_search`."""
        codes = as_codes([embedding])[0]
        hits = self._store.search(codes, k=max(k, fetch_k), with_codes=True, **_without_words(options, fetch_k))
        return _diverse(hits, codes, k, lambda_mult)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **options: Unpack[SearchOptions],
    ) -> list[Document]:
        """Await what `max_marginal_relevance_search_by_vector` returns."""
        store = await self._shared.reading()
        codes = as_codes([embedding])[0]
        hits = await store.search(codes, k=max(k, fetch_k), with_codes=True, **_without_words(options, fetch_k))
        return await asyncio.to_thread(_diverse, hits, codes, k, lambda_mult)

    def as_retriever(self, **kwargs: Any) -> PplxRetriever:
        """Return a retriever.

        Args:
            **kwargs: `search_type` ("similarity", "mmr" or "similarity_score_threshold"), `search_kwargs`, `tags`
                and others of LangChain's retrievers; search options (`k`, `filter`, `hybrid`, `context`, ...) may
                stand here too.
        """
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return PplxRetriever(vectorstore=self, tags=tags, **kwargs)

    # --- opening and closing -------------------------------------------------------------------------

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Unpack[StoreOptions],
    ) -> Self:
        """Open a store and add texts to it.

        Args:
            texts: As for `add_texts`.
            embedding: As for the class.
            metadatas: As for `add_texts`.
            ids: As for `add_texts`.
            **options: As for the class: `folder`, `url` or `client`, and others.
        """
        return cls.from_documents(_documents(texts, metadatas), embedding, ids=ids, **options)

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Unpack[StoreOptions],
    ) -> Self:
        """Await what `from_texts` returns."""
        return await cls.afrom_documents(_documents(texts, metadatas), embedding, ids=ids, **options)

    @classmethod
    def from_documents(
        cls,
        documents: list[Document],
        embedding: Embeddings,
        *,
        ids: Sequence[str | None] | None = None,
        **options: Unpack[StoreOptions],
    ) -> Self:
        """Open a store and add chunks to it.

        Args:
            documents: As for `add_documents`.
            embedding: As for the class.
            ids: As for `add_documents`.
            **options: As for the class: `folder`, `url` or `client`, and others.
        """
        store = cls(embedding, **options)
        try:
            store.add_documents(documents, ids=ids)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    async def afrom_documents(
        cls,
        documents: list[Document],
        embedding: Embeddings,
        *,
        ids: Sequence[str | None] | None = None,
        **options: Unpack[StoreOptions],
    ) -> Self:
        """Await what `from_documents` returns."""
        store = await cls._aopen(embedding, options)
        try:
            await store.aadd_documents(documents, ids=ids)
        except BaseException:
            await store.aclose()
            raise
        return store

    @classmethod
    def from_existing(cls, embedding: Embeddings, **options: Unpack[StoreOptions]) -> Self:
        """Open a collection that is there already.

        Args:
            embedding: What it was written with.
            **options: As for the class.

        Raises:
            StoreNotFoundError: It is not there.
        """
        existing: StoreOptions = {**options, "create": False}
        return cls(embedding, **existing)

    @classmethod
    async def afrom_existing(cls, embedding: Embeddings, **options: Unpack[StoreOptions]) -> Self:
        """Await what `from_existing` returns."""
        existing: StoreOptions = {**options, "create": False}
        return await cls._aopen(embedding, existing)

    @classmethod
    async def _aopen(cls, embedding: Embeddings, options: StoreOptions) -> Self:
        return await open_in_thread(lambda: cls(embedding, **options), cls.close)

    def close(self) -> None:
        """Let go of the index; a client that was handed over stays open."""
        self._shared.close()

    async def aclose(self) -> None:
        """Let go of the index, and of the running event loop's connections to a server."""
        await self._shared.aclose()

    async def adisconnect(self) -> None:
        """Let go of the running event loop's connections to a server; the store stays open."""
        await self._shared.adisconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _grouped(self, documents: Iterable[Document], ids: Sequence[str | None] | None) -> Grouped:
        return group_documents(documents, ids=ids, group_by=self._group_by, order_by=self._order_by)


def _documents(texts: Iterable[str], metadatas: Sequence[Mapping[str, Any] | None] | None) -> list[Document]:
    if isinstance(texts, str):
        raise InvalidInputError("texts must be a list of str, not one str")
    listed = list(texts)
    all_metadata: Sequence[Mapping[str, Any] | None] = metadatas or [None] * len(listed)
    if len(all_metadata) != len(listed):
        raise InvalidInputError(
            f"{len(all_metadata)} metadatas came for {len(listed)} texts; give one for each, or none"
        )
    return [
        Document(page_content=text, metadata=dict(metadata or {}))
        for text, metadata in zip(listed, all_metadata, strict=True)
    ]


def _checked(options: SearchOptions, fetch_k: int | None = None) -> SearchOptions:
    """Refuse options that no search has, and candidates of which MMR would have too few."""
    unknown = sorted(options.keys() - SearchOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"unexpected keyword argument {', '.join(map(repr, unknown))} of a search")
    candidates = options.get("candidates")
    if fetch_k is not None and isinstance(candidates, int) and candidates < fetch_k:
        raise InvalidInputError(f"candidates must be at least fetch_k = {fetch_k}, not {candidates}")
    return options


def _without_words(options: SearchOptions, fetch_k: int | None = None) -> SearchOptions:
    """Refuse, beside what `_checked` does, a hybrid search by a vector alone."""
    if options.get("hybrid") and options.get("lexical_weight", 0.5):
        raise InvalidInputError(
            "a hybrid search needs the question's words; give the question to similarity_search, or to "
            "max_marginal_relevance_search"
        )
    return _checked(options, fetch_k)


def _refuse(kwargs: Mapping[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"unknown options: {', '.join(sorted(kwargs))}")


def _scored(hits: Iterable[core.Hit]) -> Scored:
    return [(as_langchain(hit), hit.score) for hit in hits]


def _unscored(scored: Scored) -> list[Document]:
    return [document for document, _ in scored]


def _relevant(scored: Scored, options: SearchOptions) -> Scored:
    """Map cosines and scores of BM25 to 0 to 1; fused scores are there already."""
    weight = options.get("lexical_weight", 0.5) if options.get("hybrid") else 0
    if weight == 1:
        return [(document, score / (1.0 + score)) for document, score in scored]
    if weight:
        return scored
    return [(document, (1.0 + score) / 2.0) for document, score in scored]


def _diverse(hits: Sequence[core.Hit], query: Codes | None, k: int, lambda_mult: float) -> list[Document]:
    """Choose by marginal relevance: to the query, or by fused scores where there is none."""
    if not 0 <= lambda_mult <= 1:
        raise InvalidInputError(f"lambda_mult must be a number from 0 to 1, not {lambda_mult!r}")
    if not hits:
        return []
    codes = np.stack([cast("Codes", hit.codes) for hit in hits])
    chosen: Iterable[int]
    if query is None:
        chosen = islice(order_by_diversity([hit.score for hit in hits], codes, 1.0 - lambda_mult, fused=True), k)
    else:
        # Its own function, so that ties fall as they do in other stores: a query that is stored has many.
        chosen = maximal_marginal_relevance(query.astype(float), list(codes.astype(float)), lambda_mult, k)
    return [as_langchain(hits[i]) for i in chosen]
