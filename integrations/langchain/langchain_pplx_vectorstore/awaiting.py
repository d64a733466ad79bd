"""What coroutines await: over a server one store for each event loop, else the blocking store in threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Protocol, cast

import pplx_vectorstore as core
from pplx_vectorstore.coroutines import run_to_its_end
from pplx_vectorstore.errors import StoreClosedError


class AwaitedStore(Protocol):
    """A store for coroutines, wherever they run."""

    async def here(self) -> core.AsyncVectorStore:
        """Return the store of the running event loop."""
        ...

    async def close_here(self) -> None:
        """Let go of what belongs to the running event loop."""
        ...

    def close(self) -> None:
        """Refuse further use."""
        ...


class PerLoop:
    """Connects to a server once in each event loop, since connections cannot move to another.

    Args:
        connect: Makes a store in the running event loop.
    """

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, core.AsyncVectorStore]]) -> None:
        self._connect = connect
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[core.AsyncVectorStore]] = {}
        self._lock = threading.Lock()
        self._closed = False

    async def here(self) -> core.AsyncVectorStore:
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


class InThreads:
    """Awaits a blocking store's methods in threads.

    Args:
        store: Threads may share it.
        executor: Whose threads; None for those of the event loop.
    """

    def __init__(self, store: core.VectorStore, executor: Executor | None = None) -> None:
        self._store = store
        self._executor = executor

    async def here(self) -> core.AsyncVectorStore:
        """Return this, which has the methods of an ``AsyncVectorStore``."""
        return cast("core.AsyncVectorStore", self)

    async def close_here(self) -> None:
        """Nothing here belongs to an event loop."""

    def close(self) -> None:
        """The store itself refuses further use."""

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._store, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            work = functools.partial(contextvars.copy_context().run, method, *arguments, **options)
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)

        # A thread cannot be stopped: nothing is written any more once a cancelled call has returned.
        return lambda *arguments, **options: run_to_its_end(call(*arguments, **options))
