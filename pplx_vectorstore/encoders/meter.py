"""Progress of encoding, while the number of tokens is not known yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all) after every batch; all are estimated until the last are counted."""


class Meter:
    """Counts tokens and reports them; threads may share one.

    Args:
        progress: What to call, or None.
        documents: All that are to be encoded.
    """

    def __init__(self, progress: Progress | None, documents: Sequence[Sequence[str]]) -> None:
        self._progress = progress
        self._characters = count_characters(documents)
        self._counted = 0
        self._planned = 0
        self._done = 0
        self._lock = threading.Lock()

    def plan(self, documents: Sequence[Sequence[str]], tokens: int) -> None:
        """Tell how many tokens some of the documents take."""
        with self._lock:
            self._counted += count_characters(documents)
            self._planned += tokens

    def advance(self, tokens: int) -> None:
        """Count what went through the model, and report."""
        with self._lock:
            self._done += tokens
            if self._progress is not None:
                self._progress(self._done, round(self._planned * self._characters / self._counted))


def count_characters(documents: Sequence[Sequence[str]]) -> int:
    """Return the characters of documents given as chunks."""
    return sum(len(chunk) for document in documents for chunk in document)
