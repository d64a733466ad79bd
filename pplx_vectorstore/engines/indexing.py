"""Building an index aside: on a copy of a shard, in a process of its own, while the shard is in use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import qdrant_edge as edge

from pplx_vectorstore.engines import indexing_program
from pplx_vectorstore.engines.retrying import GLANCE, require_wanted
from pplx_vectorstore.engines.shard_files import Workplace
from pplx_vectorstore.errors import StoreClosedError, StoreError

# Held while a program is started, and while this process is forked: the other one would keep ends of its pipes open, so
# that the program, and who reads what it says, would wait for that process to end.
_starting = threading.Lock()
_forking = threading.local()
# Seconds. It takes milliseconds; where it hangs, as on a file system that is gone, the process is forked all the same.
_LONGEST_START = 5.0


def _before_fork() -> None:
    _forking.is_alone = False
    _forking.is_alone = _starting.acquire(timeout=_LONGEST_START)


def _after_fork() -> None:
    if _forking.is_alone:
        _starting.release()


def _after_fork_in_child() -> None:
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


class Logged(NamedTuple):
    """An operation that was applied while an index was built.

    Attributes:
        operation: What was applied.
        new: Points that it writes, or whose payload it changes: those that the index will lack.
        failed: Whether the engine refused it.
    """

    operation: edge.UpdateOperation
    new: int
    failed: bool


class Indexing:
    """One index that is being built, and what was written meanwhile.

    Args:
        workplace: Of a copy of the shard, of which the index is built.

    Attributes:
        log: Everything that was written since the copy, in order.
        log_bytes: About what the log takes.
        is_adopted: Whether the copy has taken the shard's place.
        is_stale: Whether another process wrote to the shard, so that the copy is of no use any more.
        ended: Set when it has taken the shard's place, or failed, or was given up.
        error: Why it failed.
        is_given_up: Whether nothing is to take the shard's place.
    """

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.folder = workplace.folder
        self.is_adopted = False
        self.log: list[Logged] = []
        self.log_bytes = 0
        self.is_stale = False
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.is_given_up = False
        self._lock = threading.Lock()

    def build(self) -> bool:
        """Build the index; return False if it was given up.

        Raises:
            StoreError: The program failed.
        """
        with self._lock, _starting:
            if self.is_given_up:
                return False
            program = [str(indexing_program.__file__), str(self.folder), str(Path(edge.__file__).parent.parent)]
            # Isolated, and without site: it needs the engine alone.
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", *program],
                    bufsize=0,  # buffers have locks, which a forked process could not close the pipes for
                    stdin=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for its parent
                )
            except OSError as error:
                raise StoreError(
                    f"the index of {self.folder.parent} could not be built: {sys.executable} could not be started: "
                    f"{error}"
                ) from error
        with self._process as process:
            pipe = process.stderr
            assert pipe is not None
            said = b"".join(iter(lambda: pipe.read(2**16), b"")).decode(errors="replace")
            code = process.wait()
        if self.is_given_up:
            return False
        if code:
            reason = said.strip().splitlines()[-1] if said.strip() else f"it ended with code {code}"
            raise StoreError(f"the index of {self.folder.parent} could not be built: {reason}")
        return True

    def wait(self) -> None:
        """Wait until it has ended, or whoever waits was cancelled."""
        while not self.ended.wait(GLANCE):
            require_wanted()

    def require_wanted(self) -> None:
        """End what is done for it if it was given up.

        Raises:
            StoreClosedError: It was.
        """
        if self.is_given_up:
            raise StoreClosedError(f"the index {self.folder.parent} was closed; open it again")

    def give_up(self) -> None:
        """End the program; nothing takes the shard's place."""
        with self._lock:
            self.is_given_up = True
            if self._process is not None:
                with contextlib.suppress(OSError):
                    self._process.kill()

    def forget(self) -> None:
        """Leave the program to the process that started it: this one was forked from that."""
        self.is_given_up = True
        self.workplace.forget()
        self.ended.set()
        if self._process is not None:
            self._process.returncode = 0  # else it would be waited for
            for pipe in (self._process.stdin, self._process.stderr):
                if pipe is not None:
                    pipe.close()  # the program ends when the last one does

    @staticmethod
    def is_possible() -> bool:
        """Tell whether this process can start a Python program: one that Python is embedded into cannot."""
        return bool(sys.executable) and not getattr(sys, "frozen", False)
