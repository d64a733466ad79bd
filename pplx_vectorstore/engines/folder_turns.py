"""Taking turns between processes: one at a time has a collection's files, and lets go of them when another waits."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

import portalocker

from pplx_vectorstore.errors import StoreError, StoreLockedError
from pplx_vectorstore.locked_files import is_in_place, path_of

DEFAULT_TURN_TIMEOUT = 30.0
"""Seconds to wait for another process to let go of a collection."""

_LOCK = "lock"
_WAITING = "waiting"
_HOLDER = "holder"
_GLANCE = 0.005
# Each time, the folder was replaced between two system calls.
_MOST_TRIES = 100


class FolderGoneError(FileNotFoundError):
    """There is no folder to have a turn of."""


class FolderTurn:
    """The turn to have a collection's files.

    Three files beside them: ``lock`` is locked by the process whose turn it is, ``waiting`` by the one whose turn is
    next, and ``holder`` says who has the turn since when. The system unlocks what a killed process had locked.

    The engine has a lock of its own, but takes it after it has repaired the files of what it believes to be a process
    that was killed: on a collection in use, that damages them.

    Args:
        path: The collection's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: IO[bytes] | None = None
        self._waiting: IO[bytes] | None = None

    def take(self, timeout: float, go_on: Callable[[], object]) -> None:
        """Wait for the turn.

        Args:
            timeout: Seconds to wait for a process that has it.
            go_on: Raises what ends the waiting.

        Raises:
            StoreLockedError: It did not let go in time.
            FolderGoneError: The folder is not there.
            StoreError: Locks do not hold here.
            OSError: The folder cannot be written to.
        """
        with contextlib.ExitStack() as opened:
            try:
                lock, waiting = self._lock_files("ab", opened, timeout, go_on)
            except FileNotFoundError as error:
                raise FolderGoneError(f"there is no {self._path}") from error
            opened.pop_all()
        self._lock, self._waiting = lock, waiting
        with contextlib.suppress(OSError):  # a full disk; it is but for messages
            (self._path / _HOLDER).write_text(json.dumps({"pid": os.getpid(), "since": time.time()}), "utf-8")

    @contextlib.contextmanager
    def to_read(self, timeout: float, go_on: Callable[[], object]) -> Iterator[None]:
        """Have the turn within a block, in a folder that may be one that cannot be written to.

        Raises:
            StoreLockedError: Who has it did not let go in time.
        """
        with contextlib.ExitStack() as opened:
            with contextlib.suppress(FileNotFoundError):  # a copy, which nobody has opened yet
                self._lock_files("rb", opened, timeout, go_on)
            yield

    def _lock_files(
        self, mode: Literal["ab", "rb"], opened: contextlib.ExitStack, timeout: float, go_on: Callable[[], object]
    ) -> tuple[IO[bytes], IO[bytes]]:
        """Open `lock` and `waiting`, and lock the one that is there once that is done; `opened` closes them."""
        until = time.monotonic() + timeout
        for _ in range(_MOST_TRIES):
            with contextlib.ExitStack() as tried:
                # Without buffers, which have locks: a process that is forked while another thread closes them must not
                # wait for that.
                lock = tried.enter_context((self._path / _LOCK).open(mode, buffering=0))
                waiting = tried.enter_context((self._path / _WAITING).open(mode, buffering=0))
                self._queue(lock, waiting, until, go_on)
                if is_in_place(lock, self._path / _LOCK):
                    opened.enter_context(tried.pop_all())
                    return lock, waiting
        raise StoreError(
            f"{self._path / _LOCK} is another file each time that it is locked, as a file system without lasting "
            "inodes has it; put the index on another one"
        )

    def _queue(self, lock: IO[bytes], waiting: IO[bytes], until: float, go_on: Callable[[], object]) -> None:
        """Lock `lock`, after all who wait for it: so whoever has just let go does not get it again at once."""
        for file in (waiting, lock):
            while not _try(file):
                go_on()
                if time.monotonic() > until:
                    raise StoreLockedError(self._describe_holder())
                time.sleep(_GLANCE)
        portalocker.unlock(waiting)

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

    def is_gone(self) -> bool:
        """Tell whether the folder was removed, or another one put in its place, since the turn was taken."""
        return self._lock is not None and not is_in_place(self._lock, self._path / _LOCK)

    def folder(self) -> Path | None:
        """Return where the folder is now of which the turn is had, without links; None where that is not known."""
        lock = self._lock
        if lock is None:
            return None
        try:
            return path_of(lock.fileno()).parent
        except (OSError, ValueError):  # it was just closed
            return None

    def leave(self) -> None:
        """Let others have the turn; in a forked process, leave it to the other."""
        for file in (self._waiting, self._lock):
            if file is not None:
                file.close()  # which does not unlock what a forked process has a copy of
        self._waiting = self._lock = None


def _try(file: IO[bytes]) -> bool:
    try:
        portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException as error:
        raise StoreError(f"{file.name} cannot be locked, as a file system without locks has it: {error}") from error
    return True
