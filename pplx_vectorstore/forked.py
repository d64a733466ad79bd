"""What a forked process makes anew: locks that threads may have had which are not there, threads, connections."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

T = TypeVar("T")

_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()
_registering = threading.Lock()
_of_the_other: list[object] = []


def renew_when_forked(owner: T, renew: Callable[[T], object]) -> None:
    """Have a function called with an object in every process that is forked from this one, while there is the object.

    Args:
        owner: Told from others by its identity.
        renew: Must not wait for anything: what threads of the other process had, nobody gives back. It must not refer
            to the object, which else would live as long as the process.
    """
    with _registering:
        _renewals[owner] = renew


def leave_to_the_other(*things: object) -> None:
    """In a forked process, keep what the other has open from ever being closed: that may wait for its locks."""
    _of_the_other.extend(things)


def _renew_all() -> None:
    global _registering
    _registering = threading.Lock()
    with ExitStack() as stack:  # whatever fails, all others are renewed
        for owner, renew in list(_renewals.items()):
            stack.callback(renew, owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
