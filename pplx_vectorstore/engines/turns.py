"""A lock that threads and tasks of any event loop take in turns."""

from __future__ import annotations

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

    def ask(self) -> Turn:
        """Ask for the lock; each turn must be given back, by `leave`."""
        turn: Turn = Future()
        with self._mutex:
            self._waiting.append(turn)
            if not self._is_held:
                self._pass_on()
        return turn

    def leave(self, turn: Turn) -> None:
        """Give a turn back, had or still waited for."""
        with self._mutex:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():
                self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if turn.set_running_or_notify_cancel():  # else its task was cancelled, and has not left yet
                self._is_held = True
                turn.set_result(None)
                return
        self._is_held = False
