"""What a forked process makes anew: locks that threads may have had which are not there, threads, connections."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

T = TypeVar("T")

_renewals: dict[int, tuple[weakref.ref[Any], Callable[[Any], object]]] = {}
_registering = threading.RLock()  # a finalizer may be run in the midst of it


def renew_when_forked(owner: T, renew: Callable[[T], object]) -> None:
    """Have a function called with an object in every process that is forked from this one, while there is the object.

    Args:
        owner: Told from others by its identity.
        renew: Must not take long, nor wait for anything: what threads of the other process had, nobody gives back, and
            the process may have been forked for something else. It must not refer to the object, which else would live
            as long as the process.
    """
    number = id(owner)

    def forget(reference: weakref.ref[Any]) -> None:
        with _registering:
            if number in _renewals and _renewals[number][0] is reference:
                del _renewals[number]

    with _registering:
        _renewals[number] = weakref.ref(owner, forget), renew


def leave_to_the_other(thing: object) -> None:
    """In a forked process, keep what the other has open from ever being closed: that would wait for its threads."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _renew_all() -> None:
    global _registering
    _registering = threading.RLock()
    with ExitStack() as stack:  # whatever fails, all others are renewed
        for reference, renew in list(_renewals.values()):
            owner = reference()
            if owner is not None:
                stack.callback(renew, owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
