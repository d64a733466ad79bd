"""Taking turns between processes: one at a time has a collection's files, and lets go of them when another waits."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import portalocker

from pplx_vectorstore.engines.retrying import require_wanted
from pplx_vectorstore.errors import StoreLockedError

DEFAULT_TURN_TIMEOUT = 30.0
"""Seconds to wait for another process to let go of a collection."""

_LOCK = "lock"
_WAITING = "waiting"
_HOLDER = "holder"
_NOW = portalocker.LockFlags.NON_BLOCKING
_GLANCE = 0.005
# Longer than any waiter's glance, so that who has just let go does not take the folder again at once.
_COURTESY = 4 * _GLANCE


class FolderTurn:
    """The turn to have a collection's files.

    Three files beside them: ``lock`` is locked by the process whose turn it is, ``waiting`` is locked, together, by all
    that wait, and ``holder`` says who has the turn since when. The system unlocks what a killed process had locked.

    The engine has a lock of its own, but takes it after it has repaired the files of what it believes to be a process
    that was killed: on a collection in use, that damages them.

    Args:
        path: The collection's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: IO[bytes] | None = None
        self._waiting: IO[bytes] | None = None

    def take(self, timeout: float) -> None:
        """Wait for the turn.

        Args:
            timeout: Seconds to wait for a process that has it.

        Raises:
            StoreLockedError: It did not let go in time.
            OSError: The folder cannot be written to.
        """
        until = time.monotonic() + timeout
        lock = (self._path / _LOCK).open("ab")
        try:
            self._waiting = (self._path / _WAITING).open("ab")
            if self.is_wanted():  # by others, who come first
                self._wait(lock, until, _COURTESY)
            elif not _try(lock):
                self._wait(lock, until, 0.0)
        except BaseException:
            lock.close()
            self._close_waiting()
            raise
        self._lock = lock
        with contextlib.suppress(OSError):  # a full disk; it is but for messages
            (self._path / _HOLDER).write_text(json.dumps({"pid": os.getpid(), "since": time.time()}), "utf-8")

    @classmethod
    @contextlib.contextmanager
    def to_read(cls, path: Path, timeout: float) -> Iterator[None]:
        """Have the turn within a block, in a folder that may be one that cannot be written to.

        Raises:
            StoreLockedError: Who has it did not let go in time.
        """
        turn = cls(path)
        try:
            lock = (path / _LOCK).open("rb")
        except FileNotFoundError:  # a copy, which nobody has opened yet
            yield
            return
        with lock:
            if not _try(lock):
                turn._wait(lock, time.monotonic() + timeout, 0.0)
            yield

    def _wait(self, lock: IO[bytes], until: float, at_first: float) -> None:
        with (self._path / _WAITING).open("rb") as sign:
            portalocker.lock(sign, portalocker.LockFlags.SHARED)
            time.sleep(at_first)
            while not _try(lock):
                require_wanted()
                if time.monotonic() > until:
                    raise StoreLockedError(self._describe_holder())
                time.sleep(_GLANCE)

    def _describe_holder(self) -> str:
        who = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads((self._path / _HOLDER).read_text("utf-8"))
            who = f"process {int(holder['pid'])}, since {max(0.0, time.time() - holder['since']):.0f} seconds"
        return (
            f"the index {self._path} is in use by {who}, and was not let go of in time. Close it there, or wait longer "
            "(timeout=)"
        )

    def is_wanted(self) -> bool:
        """Tell whether another process, or another turn of this one, waits."""
        assert self._waiting is not None  # open while the turn is had
        if not _try(self._waiting):
            return True
        portalocker.unlock(self._waiting)
        return False

    def leave(self) -> None:
        """Let others have the turn."""
        self._close_waiting()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _close_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None


def _try(file: IO[bytes]) -> bool:
    try:
        portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | _NOW)
    except portalocker.LockException:
        return False
    return True
