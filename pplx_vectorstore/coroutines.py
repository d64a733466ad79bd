"""Coroutines that never wait for an event loop, driven like plain functions."""

from __future__ import annotations

from collections.abc import Coroutine
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
