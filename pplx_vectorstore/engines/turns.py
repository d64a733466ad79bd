"""A lock that threads and tasks of any event loop take in turns."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

Turn = Future[None]
"""Done once its asker has the lock; to be waited for by blocking, or wrapped for an event loop."""


class TurnLock:
    """A lock for one at a time, whoever asked first; threads and tasks wait for it each in their own way."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[Turn] = deque()
        self._is_held = False
        self._loops: dict[Turn, asyncio.AbstractEventLoop] = {}

    def ask(self, loop: asyncio.AbstractEventLoop | None = None) -> Turn:
        """Ask for the lock, for a task of that event loop or for a thread; each turn must be given back, by `leave`."""
        turn: Turn = Future()
        with self._mutex:
            if loop is not None:
                self._loops[turn] = loop
            self._waiting.append(turn)
            if not self._is_held:
                self._pass_on()
        return turn

    def leave(self, turn: Turn) -> None:
        """Give a turn back, had or still waited for."""
        with self._mutex:
            self._loops.pop(turn, None)
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():
                self._pass_on()

    def needs(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether the lock is held, or waited for, by tasks of that event loop."""
        with self._mutex:
            return loop in self._loops.values()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if turn.set_running_or_notify_cancel():  # else its task was cancelled, and has not left yet
                self._is_held = True
                turn.set_result(None)
                return
        self._is_held = False
