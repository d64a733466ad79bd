"""How a client's verbs are called: at once, or awaited. Operations are written against this alone.

Every operation is one coroutine function. Over a blocking client nothing in it ever waits for an event
loop, so ``run_now`` drives it to its end like a plain function; over an async client it is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any, Protocol, Self, TypeVar, cast

from pplx_vectorstore.coroutines import run_now, run_to_its_end
from pplx_vectorstore.engines.retrying import GLANCE, Retries, operation, require_wanted
from pplx_vectorstore.engines.server import connect_if_forked, is_qdrants
from pplx_vectorstore.engines.turns import Turn, TurnLock
from pplx_vectorstore.engines.upserts import upsert
from pplx_vectorstore.errors import StoreError
from pplx_vectorstore.forked import renew_when_forked
from pplx_vectorstore.qdrant.conversion import as_clients

T = TypeVar("T")


class Calls(Protocol):
    """A client's verbs, awaitable whatever the client is."""

    client: Any
    awaits: bool
    """Whether an event loop runs that must not be blocked."""

    async def __call__(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """Call a verb of the client, again where that may help.

        "upsert" takes a `Batch`, and what is to be deleted with it: see `upserts.upsert`.
        """
        ...

    async def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run a function that computes for long."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def start(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Begin work beside the caller's; await the result to have its value or its error."""
        ...

    def hold(self, lock: TurnLock) -> contextlib.AbstractAsyncContextManager[None]:
        """Wait for a lock, and hold it within the block."""
        ...


def bound(client: Any) -> Any:
    """Return the client that a store calls: its own, where a collection may be told from others of its name."""
    return client.bound() if hasattr(client, "bound") else client


class BlockingCalls:
    """Calls a blocking client in the caller's thread.

    Args:
        client: Whose verbs are called.
        retries: What is tried again, and when.
        threads: Whether the client stands several threads at once; else they take turns.
    """

    awaits = False

    def __init__(self, client: Any, retries: Retries, *, threads: bool = True) -> None:
        self.client = client
        self._retries = retries
        self._threads = threads

    @classmethod
    def of(cls, client: Any) -> Self:
        """Return what calls an engine for one who has no store over it, and again after failures that may pass."""
        return cls(client, Retries.of(client))

    async def __call__(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """Call a verb, here and now."""
        connect_if_forked(self.client)
        with contextlib.nullcontext() if self._threads else _turns.of(self.client):
            return self._retries.call(verb, _function_of(self.client, verb), arguments, options)

    async def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run a function, here and now."""
        return function(*arguments, **options)

    async def sleep(self, seconds: float) -> None:
        """Wait, in the caller's thread."""
        time.sleep(seconds)

    def start(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Begin work in another thread, or do it now where the client stands no threads."""
        future: Future[T] = Future()

        def complete() -> None:
            try:
                future.set_result(run_now(work))
            except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                future.set_exception(error)

        if self._threads:
            # A thread of its own: work waits for work it has started, which a full pool would never begin.
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(complete,), name="pplx-vectorstore").start()
        else:
            complete()
        return _Result(future)

    @contextlib.asynccontextmanager
    async def hold(self, lock: TurnLock) -> AsyncIterator[None]:
        """Block until the lock is had.

        Raises:
            StoreError: The tasks that have it need the event loop that this thread would block.
        """
        turn = lock.ask()
        try:
            loop = asyncio._get_running_loop()
            if loop is not None and not turn.done() and lock.needs(loop):
                raise StoreError(
                    "a blocking store was called in an event loop whose tasks are writing to the same collection, and "
                    "would wait for them forever; await an AsyncVectorStore, or use asyncio.to_thread"
                )
            while not _is_ours(turn):
                require_wanted()
            yield
        finally:
            lock.leave(turn)


class _Turns:
    """The locks that all stores of a client share which stands one thread at a time."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin with locks that nobody has."""
        self._locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
        self._registering = threading.Lock()

    def of(self, client: Any) -> threading.Lock:
        """Return that of a client."""
        with self._registering:
            return self._locks.setdefault(client, threading.Lock())


_turns = _Turns()
renew_when_forked(_turns, _Turns.begin_anew)


class AsyncCalls:
    """Awaits an async client's verbs; a blocking client's run in threads.

    Args:
        client: Whose verbs are called.
        retries: What is tried again, and when.
        blocking: Whether the client is a blocking one.
    """

    awaits = True

    def __init__(self, client: Any, retries: Retries, *, blocking: bool) -> None:
        self.client = client
        self._retries = retries
        self._blocking = blocking

    async def __call__(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """Await a verb."""
        function = _function_of(self.client, verb)
        if self._blocking:
            # The thread cannot be stopped; a lock that is held must be held until it has ended.
            with operation() as given_up:
                work = asyncio.to_thread(self._retries.call, verb, function, arguments, options)
                return await run_to_its_end(work, given_up.set)
        return await self._retries.acall(verb, function, arguments, options)

    async def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run a function in a thread."""
        return await asyncio.to_thread(function, *arguments, **options)

    async def sleep(self, seconds: float) -> None:
        """Wait, while the event loop goes on."""
        await asyncio.sleep(seconds)

    def start(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Begin work as a task, which goes on where its awaiter is cancelled."""
        return _Unbroken(asyncio.ensure_future(work))

    @contextlib.asynccontextmanager
    async def hold(self, lock: TurnLock) -> AsyncIterator[None]:
        """Await the lock."""
        turn = lock.ask(asyncio.get_running_loop())
        try:
            waiting = asyncio.wrap_future(turn)
            while not (await asyncio.wait([waiting], timeout=GLANCE))[0]:
                require_wanted()
            yield
        finally:
            lock.leave(turn)


def _function_of(client: Any, verb: str) -> Callable[..., Any]:
    if verb == "upsert":
        return partial(upsert, client)
    function = cast("Callable[..., Any]", getattr(client, verb))
    return partial(_in_its_words, function) if is_qdrants(client) else function


def _in_its_words(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a verb of Qdrant's client, or what returns an awaitable of it, with models of its own for ours."""
    return function(*arguments, **{name: as_clients(value) for name, value in options.items()})


def _is_ours(turn: Turn) -> bool:
    """Wait for a turn, for a while."""
    try:
        turn.result(timeout=GLANCE)
    except FutureTimeoutError:
        return False
    return True


def iterate_now(values: AsyncIterator[T]) -> Iterator[T]:
    """Iterate over an async generator over `BlockingCalls`, in this thread."""
    while True:
        try:
            yield run_now(_next(values))
        except StopAsyncIteration:
            return


@contextlib.contextmanager
def enter_now(manager: contextlib.AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter an asynchronous context manager over `BlockingCalls`, in this thread."""
    value = run_now(_enter(manager))
    try:
        yield value
    except BaseException as error:
        if not run_now(_exit(manager, error)):
            raise
    else:
        run_now(_exit(manager, None))


async def _enter(manager: contextlib.AbstractAsyncContextManager[T]) -> T:
    return await manager.__aenter__()


async def _exit(manager: contextlib.AbstractAsyncContextManager[Any], error: BaseException | None) -> bool:
    kind = None if error is None else type(error)
    return bool(await manager.__aexit__(kind, error, None if error is None else error.__traceback__))


async def _next(values: AsyncIterator[T]) -> T:
    return await anext(values)


class _Unbroken(Awaitable[T]):
    """A task that no awaiter's cancellation ends; it may be awaited again."""

    def __init__(self, task: asyncio.Future[T]) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.shield(self._task).__await__()


class _Result(Awaitable[T]):
    """A result that is waited for by blocking."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, T]:
        return self._future.result()
        yield  # makes this a generator, which is what awaiting needs
