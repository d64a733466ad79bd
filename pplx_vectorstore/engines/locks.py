"""Locks that threads and event loops of this process share."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Hashable
from typing import Any

_ASK_AGAIN_SECONDS = 0.005


class _Shared:
    """A lock of threads, and the event loop of the task that holds it, if one does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None


_shared_locks: weakref.WeakValueDictionary[tuple[Hashable, ...], _Shared] = weakref.WeakValueDictionary()
_turns: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
_registering = threading.Lock()
# In a thread that a blocking call started: the event loop that the call blocks.
_blocked_loop: contextvars.ContextVar[asyncio.AbstractEventLoop | None] = contextvars.ContextVar(
    "blocked_loop", default=None
)


def turn_of(client: Any) -> threading.Lock:
    """Return the lock of a client that stands one thread at a time."""
    with _registering:
        return _turns.setdefault(client, threading.Lock())


def waiting_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that stands still until this code has ended, if there is one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return _blocked_loop.get()


def mark_blocked(loop: asyncio.AbstractEventLoop | None) -> None:
    """Tell, in a new thread, which event loop stands still until it has ended."""
    _blocked_loop.set(loop)


class BlockingLock:
    """A lock behind ``async with``, for code that no event loop waits for.

    Args:
        what: Whatever it guards; locks of the same are one lock.
    """

    def __init__(self, *what: Hashable) -> None:
        self._shared = _find(what)
        self._held = threading.local()

    async def __aenter__(self) -> None:
        # Called from a coroutine whose loop's other task has the lock, waiting would never end.
        loop = waiting_loop()
        self._held.here = loop is None or self._shared.loop is not loop
        if self._held.here:
            self._shared.lock.acquire()

    async def __aexit__(self, *error: object) -> None:
        if self._held.here:
            self._shared.lock.release()


class AwaitedLock:
    """The same for tasks of one event loop: they queue, and the first asks again and again.

    Args:
        what: Whatever it guards; locks of the same are one lock.
    """

    def __init__(self, *what: Hashable) -> None:
        self._shared = _find(what)
        self._of_loop = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._of_loop.acquire()
        try:
            # Waiting in a thread could take the last one of those that the lock's holder needs to go on.
            while not self._shared.lock.acquire(blocking=False):
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
            self._shared.loop = asyncio.get_running_loop()
        except BaseException:
            self._of_loop.release()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._shared.loop = None
        self._shared.lock.release()
        self._of_loop.release()


def _find(what: tuple[Hashable, ...]) -> _Shared:
    with _registering:
        found = _shared_locks.get(what)
        if found is None:
            found = _shared_locks[what] = _Shared()
        return found
