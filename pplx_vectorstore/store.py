"""Documents in, hits out: the store over an embedded engine or a Qdrant server."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.chunking import Chunker
from pplx_vectorstore.collection import DEFAULT_COLLECTION, CollectionConfig, Fingerprint, IndexFields
from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.documents import Document, Hit, StoredChunk
from pplx_vectorstore.engines.calls import BlockingCalls, bound, enter_now, iterate_now
from pplx_vectorstore.engines.folder_turns import DEFAULT_TURN_TIMEOUT
from pplx_vectorstore.engines.retrying import DEFAULT_RETRIES, Retries
from pplx_vectorstore.engines.server import (
    DEFAULT_TIMEOUT,
    describe,
    is_emulation,
    is_of_another_process,
    make_client,
)
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


class VectorStore:
    """A collection of documents whose chunks are embedded in context and found by their bits or their codes.

    Threads may share a store. Close it, or use it as a context manager.

    Args:
        client: A ``QdrantClient``, or the embedded engine's client.
        collection: Name of the collection; created if it does not exist.
        encoder: Embeds documents and queries; see ``load_encoder``. None to open a collection that exists
            without its model: documents must bring vectors then, and queries be int8 codes.
        chunker: Cuts documents given as text; None for chunks of 256 tokens.
        tenant: Whose points the store reads and writes, and no others; None for a collection without
            tenants. Which of the two a collection is, is settled when it is created.
        create: Whether to create the collection if it does not exist.
        config: How to lay the collection out when it is created.
        index_fields: Metadata fields to index, so that filters on them are fast, and possible in strict
            mode: ``{"lang": "keyword", "year": "integer"}``, nested as in the metadata; types are
            keyword, integer, float, bool, datetime, uuid, text, geo, or Qdrant's index parameters. Whole
            numbers are indexed as floats, so that a filter matches the same with and without an index.
        retries: How often a request to a server is tried again after a failure that may pass.
        parallel: Upserts under way at once to a server.

    Raises:
        SchemaMismatchError: The collection was written with another model, dimension or setting.
        StoreNotFoundError: It does not exist and `create` is false.
        StoreLockedError: Another process has it open (embedded engine).
        UnsupportedServerError: The server is too old.
        ServerUnavailableError: The server does not answer.
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
        if inspect.iscoroutinefunction(getattr(client, "upsert", None)):
            raise InvalidInputError(
                f"VectorStore needs a blocking client; give {type(client).__name__} to AsyncVectorStore"
            )
        self._client = client
        self._owns_client = False
        self._closed = False
        where = describe(client)
        calls = BlockingCalls(bound(client), Retries.of(client, retries), threads=not is_emulation(client))
        self._session = run_now(
            open_session(
                calls,
                collection,
                where=where,
                encoder=encoder,
                chunker=chunker,
                tenant=tenant,
                create=create,
                config=config,
                index_fields=index_fields,
                parallel=parallel,
            )
        )

    @classmethod
    def open(
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
    ) -> VectorStore:
        """Open an index folder on the embedded engine, or begin one.

        Stores of one process share the folder. Processes take turns: one that has the folder lets go of it, between
        two calls, when another waits for it.

        `folder` is where the index is, or will be. `timeout` is how many seconds any call waits for another process
        to let go. `read_only` reads a copy of the folder as it is now, which is made in the temporary folder; so does a
        folder that cannot be written to, without being asked. The other arguments, and errors, are those of the class.

        Raises:
            StoreLockedError: Another process did not let go in time; also from any other call.
            StoreReadOnlyError: From calls that write to what is only read.
            StoreFullError: From calls for which the disk has no room.
        """
        from pplx_vectorstore.engines.edge import EdgeClient

        return cls._owning(
            EdgeClient(folder, timeout=timeout, read_only=read_only),
            collection,
            encoder=encoder,
            chunker=chunker,
            tenant=tenant,
            create=create,
            config=config,
            index_fields=index_fields,
        )

    @classmethod
    def connect(
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
    ) -> VectorStore:
        """Connect to a Qdrant server, cluster or cloud.

        `url` is such as ``http://localhost:6333``; without a port, 6333 is meant, and where it has a path, as below
        a proxy, that of the scheme. `api_key` None reads the environment variable QDRANT_API_KEY. `prefer_grpc` sends
        points and searches over gRPC, on the port after the URL's, or on `grpc_port`, which alone means the same.
        `timeout` is in seconds for one request, rounded up to whole ones; a longer one counts as failed.
        The other arguments, and errors, are those of the class.
        """
        client = make_client(
            url,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout=timeout,
            asynchronous=False,
        )
        return cls._owning(
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
    def _owning(cls, client: Any, collection: str, **options: Any) -> VectorStore:
        try:
            store = cls(client, collection, **options)
        except BaseException:
            client.close()
            raise
        store._owns_client = True
        return store

    @property
    def fingerprint(self) -> Fingerprint:
        """How the collection's vectors are made."""
        return self._session.fingerprint

    @property
    def tenant(self) -> str | None:
        """Whose points the store reads and writes, or None in a collection without tenants."""
        return self._session.points.tenant

    def add(self, documents: Iterable[Document], *, replace: bool = True, progress: bool = False) -> AddReport:
        """Embed documents and write their chunks; a document already there is replaced whole.

        Written group by group, the next being embedded meanwhile: when this returns, all of it survives
        a killed process. If it is interrupted, a document is there as it was or as it is, or, where it took several
        requests, mixed; adding the same documents again gives the state of an undisturbed run.

        Args:
            documents: Any iterable; a generator is consumed as it is written, in bounded memory.
            replace: False where a document comes in pieces, of chunks that have ids of their own: its other
                chunks stay, a chunk whose id is taken takes that one's place (from another document, too), and
                new chunks follow the last. Only chunks that come in one call are each other's context;
                `sync` with the whole document repairs that, and their order.
            progress: Show a progress bar on standard error.

        Returns:
            What was written.

        Raises:
            InvalidDocumentError: Something in `documents` is not a document, or its vectors do not fit.
            DuplicateDocumentError: An id comes twice; groups before it are written. Or a chunk's id belongs to a
                document that does not come; all others are written.
            EncodingError: The model gave NaN or infinity; its group is not written.
            ServerUnavailableError: The server failed on every try. Each error of ours tells in its
                ``report`` what was written before.
        """
        return run_now(write.add(self._open_session(), documents, replace=replace, progress=progress))

    def sync(
        self, documents: Iterable[Document], *, delete_missing: bool = False, progress: bool = False
    ) -> SyncReport:
        """Embed and write only what is new or changed.

        A document is skipped when text, chunks, metadata and model are as they were; embedded again whole
        when anything that its vectors depend on differs; and where only metadata differs, that alone
        is written. What an interrupted write left is completed.

        Args:
            documents: As for `add`.
            delete_missing: Delete every document of the store that is not among `documents`.
            progress: Show a progress bar on standard error.

        Returns:
            What was done.

        Raises:
            InvalidInputError: `delete_missing` without any document, which would delete everything.
            PplxVectorStoreError: As for `add`.
        """
        return run_now(write.sync(self._open_session(), documents, delete_missing=delete_missing, progress=progress))

    def search(
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
        """Find the chunks that answer a question best.

        Args:
            query: A text, its int8 codes, or an ``EncodedQuery`` of both. Where the text is blank, the filter answers
                alone: the first chunks that match, by document and place in it, with a score of 0.
            k: Most hits to return; where grouped, most documents.
            candidates: Points to be compared by their codes, or the width of the beam where these are walked by; at
                least k; None for ten per hit and at least 100. The more, the nearer to an exact search. Also how
                many a hybrid search takes of each ranking, and what diversity and grouping choose from.
            filter: ``{"lang": "en", "year": {"$gte": 2020}}`` for metadata conditions (a list stands for
                any of its values, a dict for inner fields; see ``docs``), or a
                ``qdrant_client.models.Filter``, whose keys begin with ``metadata.``, and whose ids are
                those of hits.
            hybrid: Fuse two rankings, by cosine and by BM25 on the words, by their reciprocal ranks.
            lexical_weight: Share of BM25 in a hybrid search, 0 to 1. With 1, it ranks alone, hits have its
                score, and nothing is embedded; with 0, the cosine ranks alone.
            group_by_document: True for the best chunk of each document, or how many chunks of one at
                most. Hits of a document stand together, documents in the order of their best. There are k
                documents whenever k match.
            diversity: Choose among the candidates by maximal marginal relevance over the int8 codes: 0
                for relevance alone (the cosine, or the fused score where hybrid), 1 for novelty alone.
            score_threshold: Least score of a hit: cosine, or the fused score where hybrid.
            context: Also fetch so many chunks before and after each hit, joined in ``hit.context``, whether
                or not they match the filter.
            with_codes: Fetch the int8 codes too, as ``hit.codes``.

        Returns:
            Hits, best first (where diversity is given: in the order of choice).

        Raises:
            InvalidInputError: An argument is out of range, or the query has nothing to embed or no words.
            UnsupportedFilterError: The filter says what the engine cannot answer as it is meant.
            UnsupportedServerError: The server is too old for `hybrid`, or for a condition of the filter.
            StoreError: Grouped, on a server whose strict mode lets too few documents be excluded.
        """
        (hits,) = self.search_batch(
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

    def search_batch(
        self,
        queries: Sequence[Query],
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
    ) -> list[list[Hit]]:
        """Search for several queries, in as few requests as their size allows; arguments as for `search`.

        Returns:
            One list of hits per query, in the given order.
        """
        session = self._open_session()
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
        return run_now(search.search_batch(session, queries, options))

    def explain(
        self,
        query: Query,
        *,
        k: int = 10,
        candidates: int | None = None,
        filter: FilterLike = None,  # noqa: A002
    ) -> Explanation:
        """Show how a search comes to its hits, and what it misses of an exact scan.

        The exact scan is one among all chunks up to 100,000; beyond, among the 100,000 nearest by
        Euclidean distance.

        Args:
            query: A text, or its int8 codes.
            k: As for `search`.
            candidates: As for `search`.
            filter: As for `search`.
        """
        session = self._open_session()
        return run_now(search.explain(session, query, SearchOptions(k=k, candidates=candidates, filter=filter)))

    def get(self, ids: Sequence[str], *, with_codes: bool = False) -> list[StoredChunk]:
        """Fetch chunks by id.

        Args:
            ids: Ids as in hits: callers' own, or derived ones.
            with_codes: Fetch the int8 codes too.

        Returns:
            The chunks that exist, in the order of `ids`.
        """
        return run_now(manage.get(self._open_session(), ids, with_codes=with_codes))

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        filter: FilterLike = None,  # noqa: A002
    ) -> int:
        """Delete chunks; give exactly one of the three.

        Args:
            ids: Ids of chunks.
            document_ids: Documents to delete whole.
            filter: As for `search`; must not be empty.

        Returns:
            Number of chunks deleted.

        Raises:
            InvalidInputError: None or several of the three came, or an empty filter, which would
                delete everything.
        """
        return run_now(manage.delete(self._open_session(), ids=ids, document_ids=document_ids, filter=filter))

    def count(self, filter: FilterLike = None) -> int:  # noqa: A002
        """Count chunks, all or those that match a filter (as for `search`)."""
        return run_now(manage.count(self._open_session(), filter))

    def documents(self) -> Iterator[StoredDocument]:
        """List the documents that the store holds, each with its number of chunks, in no order.

        A document without chunks leaves nothing in the store, so it is not listed.
        """
        return iterate_now(manage.list_documents(self._open_session()))

    def chunks(
        self,
        filter: FilterLike = None,  # noqa: A002
        *,
        with_codes: bool = False,
    ) -> Iterator[StoredChunk]:
        """Read chunks, all or those that match a filter (as for `search`), in no order.

        Args:
            filter: Which chunks.
            with_codes: Fetch the int8 codes too.
        """
        return iterate_now(manage.read_chunks(self._open_session(), filter, with_codes=with_codes))

    def export_parquet(self, path: str | os.PathLike[str]) -> int:
        """Write all chunks with their text, metadata and int8 codes to a Parquet file.

        Args:
            path: The file; replaced as a whole once it is complete.

        Returns:
            Number of chunks written.

        Raises:
            MissingExtraError: The extra ``parquet`` is not installed.
        """
        return run_now(transfer.export_parquet(self._open_session(), path))

    def import_parquet(self, path: str | os.PathLike[str]) -> int:
        """Write the chunks of an exported Parquet file, without embedding anything.

        A document already there is replaced whole. The file is read twice, and nothing is written if anything of it is
        wrong. Doing it again completes an interrupted import.

        Args:
            path: A file that `export_parquet` wrote, from a store of the same model and settings.

        Returns:
            Number of chunks written.

        Raises:
            SchemaMismatchError: The file is of another model or setting; every difference is named.
            InvalidInputError: It is no such file, or a value of it is wrong: its column and row are named.
            DuplicateDocumentError: A chunk's own id belongs to a document that the file does not hold.
            MissingExtraError: The extra ``parquet`` is not installed.
        """
        return run_now(transfer.import_parquet(self._open_session(), path))

    def copy_to(self, target: VectorStore) -> int:
        """Write all chunks with their codes to another store, without embedding anything.

        A document already there is replaced whole. Doing it again completes an interrupted copy.

        Args:
            target: A store of the same model and settings, on any engine, of any tenant.

        Returns:
            Number of chunks written.

        Raises:
            SchemaMismatchError: The stores are of different models or settings.
            DuplicateDocumentError: A chunk's own id belongs to a document that only the target has.
        """
        if not isinstance(target, VectorStore):
            raise InvalidInputError(f"target must be a VectorStore, not {type(target).__name__}")
        return run_now(transfer.copy(self._open_session(), target._open_session()))

    def optimize(self) -> None:
        """Index what was written so far, in a process of its own; return when that is done.

        It happens by itself, beside other work, during large writes and once a tenth is not indexed. Until then, what
        is not indexed is compared with each query one by one.

        A Qdrant server indexes on its own; it is waited for. Codes that no memory will hold, more than a gigabyte on
        disk, are searched by their bits from then on, which what is written later does not change; after many deletes,
        call it again.

        Raises:
            StoreError: A server does not get done, or could not build the index.
        """
        run_now(manage.optimize(self._open_session()))

    @contextlib.contextmanager
    def bulk_load(self) -> Iterator[Callable[[], None]]:
        """Have nothing indexed while much is written, and everything after it.

        A context manager::

            with store.bulk_load():
                store.add(documents)

        A server indexes while it is loaded, and what it has indexed again as more comes; at once and at the end, it
        takes less time. Until then, searches compare all that is new one by one: as exact, but slow. At the end of the
        block the server's own threshold is restored and its index waited for; after an error too, but not after an
        interruption. A killed process's is restored by whoever opens the collection next.

        The embedded engine builds its index once, at the end. `QdrantClient(":memory:")` has none.

        Where only other processes write meanwhile, this one has to tell that it lives, at least every few minutes: by
        calling what the context manager returns. Its own writes tell it too.

        Raises:
            StoreError: The server does not get done, or could not build the index.
        """
        try:
            with enter_now(manage.bulk_load(self._open_session())) as still_loading:
                yield lambda: run_now(still_loading())
        except StoreError:
            if self._closed:
                raise StoreClosedError(CLOSED_IN_BULK_LOAD) from None
            raise

    def close(self) -> None:
        """Let go of the index; a client that was handed over stays open."""
        if not self._closed:
            self._closed = True
            if self._owns_client and not is_of_another_process(self._client):
                self._client.close()

    def __enter__(self) -> VectorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_session(self) -> Session:
        if self._closed:
            raise StoreClosedError("the store is closed; open it again")
        return self._session
