"""Coroutines that never wait for an event loop, driven like plain functions, and such that nothing cuts short."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """Drive a coroutine over a blocking client to its end, in this thread."""
    try:
        work.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    work.close()
    raise RuntimeError("an operation over a blocking client waited for an event loop")


async def run_to_its_end(work: Awaitable[T], hurry: Callable[[], None] = lambda: None) -> T:
    """Await work that goes on when it is cancelled, such as a thread's: a cancellation counts once it has ended.

    Args:
        work: To be awaited.
        hurry: Called at a cancellation, to tell the work that nobody waits for its result any more.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        hurry()
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:  # again; still not before the end
                continue
        if not task.cancelled() and (error := task.exception()):
            for note in getattr(error, "__notes__", ()):  # such as what was written
                cancelled.add_note(note)
        raise
