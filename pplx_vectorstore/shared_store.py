"""A store for the adapters of frameworks, whose methods and coroutines are called from anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar, cast

from pplx_vectorstore.async_store import AsyncVectorStore
from pplx_vectorstore.coroutines import run_to_its_end
from pplx_vectorstore.engines.retrying import DEFAULT_RETRIES, operation
from pplx_vectorstore.engines.server import DEFAULT_TIMEOUT
from pplx_vectorstore.errors import InvalidInputError, StoreClosedError
from pplx_vectorstore.forked import renew_when_forked
from pplx_vectorstore.operations.session import DEFAULT_PARALLEL
from pplx_vectorstore.store import VectorStore

T = TypeVar("T")

_WRITERS = 4


class SharedStore:
    """A store that is opened once, for threads and event loops alike.

    Reading, coroutines await a server's answers where `url` is given, each event loop over connections of its own;
    everything else that they await runs in threads.

    Args:
        folder: Where the index is, or will be, on the embedded engine.
        url: A Qdrant server.
        client: A ``QdrantClient``, which stays open when the store is closed.
        api_key: Of the server.
        prefer_grpc: Whether points and searches go over gRPC.
        grpc_port: Where gRPC is; given, points and searches go over it. None for the port after the URL's.
        timeout: Seconds for one request to a server.
        retries: How often a request to a server is tried again.
        parallel: Upserts under way at once to a server.
        **options: Of ``VectorStore``: `collection`, `encoder`, `tenant`, `create`, `config`, `index_fields`.

    Attributes:
        store: The store itself.
        writing: Its methods as coroutines, for those that write: they wait for one lock, in threads of their own.

    Raises:
        InvalidInputError: Not exactly one place came, or an option that another place has.
        PplxVectorStoreError: As ``VectorStore`` does.
    """

    def __init__(
        self,
        *,
        folder: str | os.PathLike[str] | None,
        url: str | None,
        client: Any,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: int = DEFAULT_RETRIES,
        parallel: int = DEFAULT_PARALLEL,
        **options: Any,
    ) -> None:
        places = {"folder": folder, "url": url, "client": client}
        given = [name for name, value in places.items() if value is not None]
        if len(given) != 1:
            raise InvalidInputError(
                f"PplxVectorStore needs exactly one of folder, url and client; {' and '.join(given) or 'none'} came"
            )
        if client is not None and not _is_blocking(client):
            raise InvalidInputError(
                f"client must be a QdrantClient, not {type(client).__name__}; coroutines await its answers in threads, "
                "and a server's over connections of their own where url= is given"
            )
        of_servers = {"api_key": api_key, "prefer_grpc": prefer_grpc or None, "grpc_port": grpc_port}
        for name, value in of_servers.items():
            if value is not None and url is None:
                raise InvalidInputError(f"{name} is an option of a store with url=; leave it out with {given[0]}=")
        if url is not None:
            options |= {
                "api_key": api_key,
                "prefer_grpc": prefer_grpc,
                "grpc_port": grpc_port,
                "timeout": timeout,
                "retries": retries,
                "parallel": parallel,
            }
            self.store = VectorStore.connect(url, **options)
            self._reading: _PerLoop | _InThreads = _PerLoop(lambda: AsyncVectorStore.connect(url, **options))
        else:
            if folder is not None:
                self.store = VectorStore.open(folder, **options)
            else:
                self.store = VectorStore(client, **options, retries=retries, parallel=parallel)
            self._reading = _InThreads(self.store)
        # They end with this object, not when it is closed: a closed store is to say so itself.
        self.writing = cast("AsyncVectorStore", _InThreads(self.store, threads=_WRITERS))

    @property
    def filters_by_index_only(self) -> bool:
        """Whether the server refuses filters on fields without an index (strict mode)."""
        return not self.store._session.points.limits.unindexed_filtering

    async def reading(self) -> AsyncVectorStore:
        """Return the store whose methods a coroutine awaits to read."""
        return await self._reading.here()

    def close(self) -> None:
        """Let go of the index; a client that was handed over stays open."""
        self._reading.close()
        self.store.close()

    async def aclose(self) -> None:
        """Let go of the index, and of the running event loop's connections to a server."""
        self._reading.close()
        try:
            await self._reading.close_here()
        finally:
            await asyncio.to_thread(self.close)

    async def adisconnect(self) -> None:
        """Let go of the running event loop's connections to a server; the store stays open."""
        await self._reading.close_here()


def _is_blocking(client: Any) -> bool:
    verb = getattr(client, "query_batch_points", None)
    return verb is not None and not inspect.iscoroutinefunction(verb)


async def open_in_thread(make: Callable[[], T], close: Callable[[T], None]) -> T:
    """Await what a thread opens: models are loaded, and servers asked. Cancelled, it is closed again."""
    opened: list[T] = []
    try:
        await run_to_its_end(asyncio.to_thread(lambda: opened.append(make())))
    except asyncio.CancelledError:
        for one in opened:
            close(one)
        raise
    return opened[0]


class _PerLoop:
    """Connects to a server once in each event loop, since connections cannot move to another.

    Args:
        connect: Makes a store in the running event loop.
    """

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, AsyncVectorStore]]) -> None:
        self._connect = connect
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[AsyncVectorStore]] = {}
        self._renew_lock()
        self._closed = False
        renew_when_forked(self, _PerLoop._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    async def here(self) -> AsyncVectorStore:
        """Return the store of the running event loop, connecting at its first use."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise StoreClosedError("the store is closed; open it again")
            for other in [other for other in self._opening if other.is_closed()]:
                del self._opening[other]
            opening = self._opening.get(loop)
            if opening is None or (opening.done() and (opening.cancelled() or opening.exception())):
                opening = self._opening[loop] = asyncio.create_task(self._connect())
        return await asyncio.shield(opening)  # others may wait for it when one gives up

    async def close_here(self) -> None:
        """Close the connections of the running event loop; it may connect again."""
        with self._lock:
            opening = self._opening.pop(asyncio.get_running_loop(), None)
        if opening is not None:
            with contextlib.suppress(Exception):  # it was raised where the store was needed
                await asyncio.shield(opening)
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()

    def close(self) -> None:
        """Refuse further use."""
        self._closed = True


class _InThreads:
    """Awaits a blocking store's methods in threads.

    Args:
        store: Threads may share it.
        threads: Of its own; None for those of the event loop.
    """

    def __init__(self, store: VectorStore, *, threads: int | None = None) -> None:
        self._store = store
        self._executor: Executor | None = None
        if threads is not None:
            begin = functools.partial(_InThreads._begin_threads, n_threads=threads)
            begin(self)
            renew_when_forked(self, begin)

    def _begin_threads(self, n_threads: int) -> None:
        self._executor = ThreadPoolExecutor(n_threads, thread_name_prefix="pplx-vectorstore-writes")

    async def here(self) -> AsyncVectorStore:
        """Return this, which has the methods of an ``AsyncVectorStore``."""
        return cast("AsyncVectorStore", self)

    async def close_here(self) -> None:
        """Nothing here belongs to an event loop."""

    def close(self) -> None:
        """The store itself refuses further use."""

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._store, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            with operation() as given_up:
                work = functools.partial(contextvars.copy_context().run, method, *arguments, **options)
            future = asyncio.get_running_loop().run_in_executor(self._executor, work)
            # A thread cannot be stopped, but told: nothing is written any more once a cancelled call has returned.
            return await run_to_its_end(future, given_up.set)

        return call
