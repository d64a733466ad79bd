"""The store for asyncio: the same methods as coroutines, over the same operations."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.chunking import Chunker
from pplx_vectorstore.collection import DEFAULT_COLLECTION, CollectionConfig, Fingerprint, IndexFields
from pplx_vectorstore.documents import Document, Hit, StoredChunk
from pplx_vectorstore.engines.calls import AsyncCalls, bound
from pplx_vectorstore.engines.folder_turns import DEFAULT_TURN_TIMEOUT
from pplx_vectorstore.engines.retrying import DEFAULT_RETRIES, Retries
from pplx_vectorstore.engines.server import DEFAULT_TIMEOUT, describe, is_emulation, make_client
from pplx_vectorstore.errors import InvalidInputError, StoreClosedError, StoreError
from pplx_vectorstore.operations import manage, search, transfer, write
from pplx_vectorstore.operations.finding import SearchOptions
from pplx_vectorstore.operations.manage import CLOSED_IN_BULK_LOAD
from pplx_vectorstore.operations.prepare import open_session
from pplx_vectorstore.operations.search import Query
from pplx_vectorstore.operations.session import DEFAULT_PARALLEL, Session
from pplx_vectorstore.reports import AddReport, Explanation, StoredDocument, SyncReport

if TYPE_CHECKING:
    from types import TracebackType

    from pplx_vectorstore.encoders import Encoder
    from pplx_vectorstore.filters import FilterLike


class AsyncVectorStore:
    """What `VectorStore` is, with coroutines for methods.

    Over an ``AsyncQdrantClient`` every request is awaited; over the embedded engine it runs in a thread, as
    embedding does. Tasks of one event loop may share a store; another loop needs one of its own.
    Arguments, results and errors are those of ``VectorStore``; the collection is verified on first use, or
    by ``open`` and ``connect``.

    Args:
        client: An ``AsyncQdrantClient``, or the embedded engine's client.
        collection: Name of the collection; created if it does not exist.
        encoder: Embeds documents and queries; see ``load_encoder``.
        chunker: Cuts documents given as text; None for chunks of 256 tokens.
        tenant: Whose points the store reads and writes, and no others; None for a collection without
            tenants.
        create: Whether to create the collection if it does not exist.
        config: How to lay the collection out when it is created.
        index_fields: Metadata fields to index.
        retries: How often a request to a server is tried again after a failure that may pass.
        parallel: Upserts under way at once to a server.
    """

    def __init__(
        self,
        client: Any,
        collection: str = DEFAULT_COLLECTION,
        *,
        encoder: Encoder | None = None,
        chunker: Chunker | None = None,
        tenant: str | None = None,
        create: bool = True,
        config: CollectionConfig | None = None,
        index_fields: IndexFields | None = None,
        retries: int = DEFAULT_RETRIES,
        parallel: int = DEFAULT_PARALLEL,
    ) -> None:
        blocking = not inspect.iscoroutinefunction(getattr(client, "upsert", None))
        if blocking and (describe(client) is not None or is_emulation(client)):
            raise InvalidInputError("AsyncVectorStore needs an AsyncQdrantClient; give a QdrantClient to VectorStore")
        self._client = client
        self._owns_client = False
        self._closed = False
        self._encoder = encoder
        self._tenant = tenant
        self._session: Session | None = None
        self._opening = asyncio.Lock()
        self._options: dict[str, Any] = {
            "collection": collection,
            "where": describe(client),
            "encoder": encoder,
            "chunker": chunker,
            "tenant": tenant,
            "create": create,
            "config": config,
            "index_fields": index_fields,
            "parallel": parallel,
        }
        self._calls = AsyncCalls(bound(client), Retries.of(client, retries), blocking=blocking)

    @classmethod
    async def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        encoder: Encoder | None = None,
        collection: str = DEFAULT_COLLECTION,
        chunker: Chunker | None = None,
        tenant: str | None = None,
        create: bool = True,
        config: CollectionConfig | None = None,
        index_fields: IndexFields | None = None,
        timeout: float = DEFAULT_TURN_TIMEOUT,
        read_only: bool = False,
    ) -> AsyncVectorStore:
        """Open an index folder on the embedded engine; see ``VectorStore.open``."""
        from pplx_vectorstore.engines.edge import EdgeClient

        return await cls._owning(
            await asyncio.to_thread(EdgeClient, folder, timeout=timeout, read_only=read_only),
            collection,
            encoder=encoder,
            chunker=chunker,
            tenant=tenant,
            create=create,
            config=config,
            index_fields=index_fields,
        )

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        encoder: Encoder | None = None,
        collection: str = DEFAULT_COLLECTION,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        chunker: Chunker | None = None,
        tenant: str | None = None,
        create: bool = True,
        config: CollectionConfig | None = None,
        index_fields: IndexFields | None = None,
        retries: int = DEFAULT_RETRIES,
        parallel: int = DEFAULT_PARALLEL,
    ) -> AsyncVectorStore:
        """Connect to a Qdrant server, cluster or cloud; see ``VectorStore.connect``."""
        client = make_client(
            url,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout=timeout,
            asynchronous=True,
        )
        return await cls._owning(
            client,
            collection,
            encoder=encoder,
            chunker=chunker,
            tenant=tenant,
            create=create,
            config=config,
            index_fields=index_fields,
            retries=retries,
            parallel=parallel,
        )

    @classmethod
    async def _owning(cls, client: Any, collection: str, **options: Any) -> AsyncVectorStore:
        store: AsyncVectorStore | None = None
        try:
            store = cls(client, collection, **options)
            await store._open_session()
        except BaseException:
            await _close(client)
            raise
        store._owns_client = True
        return store

    @property
    def fingerprint(self) -> Fingerprint:
        """How the collection's vectors are made."""
        if self._session is not None:
            return self._session.fingerprint
        if self._encoder is None:
            raise StoreError("without an encoder, how vectors are made is known once the store was used")
        return self._encoder.fingerprint

    @property
    def tenant(self) -> str | None:
        """Whose points the store reads and writes, or None in a collection without tenants."""
        return self._tenant

    async def add(self, documents: Iterable[Document], *, replace: bool = True, progress: bool = False) -> AddReport:
        """Embed documents and write their chunks; see ``VectorStore.add``."""
        return await write.add(await self._open_session(), documents, replace=replace, progress=progress)

    async def sync(
        self, documents: Iterable[Document], *, delete_missing: bool = False, progress: bool = False
    ) -> SyncReport:
        """Embed and write only what is new or changed; see ``VectorStore.sync``."""
        return await write.sync(await self._open_session(), documents, delete_missing=delete_missing, progress=progress)

    async def search(
        self,
        query: Query,
        *,
        k: int = 10,
        candidates: int | None = None,
        filter: FilterLike = None,  # noqa: A002 - Qdrant's own word for it
        hybrid: bool = False,
        lexical_weight: float = 0.5,
        group_by_document: bool | int = False,
        diversity: float | None = None,
        score_threshold: float | None = None,
        context: int = 0,
        with_codes: bool = False,
    ) -> list[Hit]:
        """Find the chunks that answer a question best; see ``VectorStore.search``."""
        (hits,) = await self.search_batch(
            [query],
            k=k,
            candidates=candidates,
            filter=filter,
            hybrid=hybrid,
            lexical_weight=lexical_weight,
            group_by_document=group_by_document,
            diversity=diversity,
            score_threshold=score_threshold,
            context=context,
            with_codes=with_codes,
        )
        return hits

    async def search_batch(
        self,
        queries: Sequence[Query],
        *,
        k: int = 10,
        candidates: int | None = None,
        filter: FilterLike = None,  # noqa: A002
        hybrid: bool = False,
        lexical_weight: float = 0.5,
        group_by_document: bool | int = False,
        diversity: float | None = None,
        score_threshold: float | None = None,
        context: int = 0,
        with_codes: bool = False,
    ) -> list[list[Hit]]:
        """Search for several queries, in as few requests as their size allows; see ``VectorStore.search_batch``."""
        session = await self._open_session()
        options = SearchOptions(
            k=k,
            candidates=candidates,
            filter=filter,
            hybrid=hybrid,
            lexical_weight=lexical_weight,
            group_by_document=group_by_document,
            diversity=diversity,
            score_threshold=score_threshold,
            context=context,
            with_codes=with_codes,
        )
        return await search.search_batch(session, queries, options)

    async def explain(
        self,
        query: Query,
        *,
        k: int = 10,
        candidates: int | None = None,
        filter: FilterLike = None,  # noqa: A002
    ) -> Explanation:
        """Show how a search comes to its hits; see ``VectorStore.explain``."""
        session = await self._open_session()
        return await search.explain(session, query, SearchOptions(k=k, candidates=candidates, filter=filter))

    async def get(self, ids: Sequence[str], *, with_codes: bool = False) -> list[StoredChunk]:
        """Fetch chunks by id; see ``VectorStore.get``."""
        return await manage.get(await self._open_session(), ids, with_codes=with_codes)

    async def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        filter: FilterLike = None,  # noqa: A002
    ) -> int:
        """Delete chunks by exactly one of the three; see ``VectorStore.delete``."""
        return await manage.delete(await self._open_session(), ids=ids, document_ids=document_ids, filter=filter)

    async def count(self, filter: FilterLike = None) -> int:  # noqa: A002
        """Count chunks, all or those that match a filter; see ``VectorStore.count``."""
        return await manage.count(await self._open_session(), filter)

    async def documents(self) -> AsyncIterator[StoredDocument]:
        """List the documents that the store holds, with ``async for``; see ``VectorStore.documents``."""
        async for document in manage.list_documents(await self._open_session()):
            yield document

    async def chunks(
        self,
        filter: FilterLike = None,  # noqa: A002
        *,
        with_codes: bool = False,
    ) -> AsyncIterator[StoredChunk]:
        """Read chunks, all or those that match a filter, with ``async for``; see ``VectorStore.chunks``."""
        async for chunk in manage.read_chunks(await self._open_session(), filter, with_codes=with_codes):
            yield chunk

    async def export_parquet(self, path: str | os.PathLike[str]) -> int:
        """Write all chunks with their codes to a Parquet file; see ``VectorStore.export_parquet``."""
        return await transfer.export_parquet(await self._open_session(), path)

    async def import_parquet(self, path: str | os.PathLike[str]) -> int:
        """Write the chunks of an exported Parquet file; see ``VectorStore.import_parquet``."""
        return await transfer.import_parquet(await self._open_session(), path)

    async def copy_to(self, target: AsyncVectorStore) -> int:
        """Write all chunks with their codes to another store; see ``VectorStore.copy_to``."""
        if not isinstance(target, AsyncVectorStore):
            raise InvalidInputError(f"target must be an AsyncVectorStore, not {type(target).__name__}")
        return await transfer.copy(await self._open_session(), await target._open_session())

    async def optimize(self) -> None:
        """Index what was written so far; see ``VectorStore.optimize``."""
        await manage.optimize(await self._open_session())

    @contextlib.asynccontextmanager
    async def bulk_load(self) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
        """Have nothing indexed while much is written, and everything after it; see ``VectorStore.bulk_load``."""
        try:
            async with manage.bulk_load(await self._open_session()) as still_loading:
                yield still_loading
        except StoreError:
            if self._closed:
                raise StoreClosedError(CLOSED_IN_BULK_LOAD) from None
            raise

    async def close(self) -> None:
        """Let go of the index; a client that was handed over stays open."""
        if not self._closed:
            self._closed = True
            if self._owns_client:
                await _close(self._client)

    async def __aenter__(self) -> AsyncVectorStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open_session(self) -> Session:
        if self._closed:
            raise StoreClosedError("the store is closed; open it again")
        if self._session is None:
            async with self._opening:
                if self._session is None:
                    self._session = await open_session(self._calls, **self._options)
        return self._session


async def _close(client: Any) -> None:
    if inspect.iscoroutinefunction(client.close):
        await client.close()
    else:
        await asyncio.to_thread(client.close)
