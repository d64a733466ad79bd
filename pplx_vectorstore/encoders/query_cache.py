"""Remembers the codes of the last queries."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.forked import renew_when_forked
from pplx_vectorstore.quantization import Codes


class QueryCache:
    """The least recently asked goes first. Threads may share one.

    Args:
        size: Most queries to remember, of `dimension` bytes each beside their text; 0 for none.
        dimension: Components of a vector.
    """

    def __init__(self, size: int, dimension: int) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInputError(f"query_cache must be a number of queries, 0 for none, not {size!r}")
        self._size = size
        self._dimension = dimension
        self._known: OrderedDict[str, Codes] = OrderedDict()
        self._renew_lock()
        renew_when_forked(self, QueryCache._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[QueryCache], tuple[int, int]]:
        """Pickle an empty one of the same size."""
        return QueryCache, (self._size, self._dimension)

    def lookup(self, queries: Sequence[str]) -> tuple[dict[str, Codes], list[str]]:
        """Return what is known of these queries, and the others, each once and in order."""
        found: dict[str, Codes] = {}
        missing: dict[str, None] = {}
        with self._lock:
            for query in queries:
                if query in self._known:
                    self._known.move_to_end(query)
                    found[query] = self._known[query]
                else:
                    missing[query] = None
        return found, list(missing)

    def join(self, queries: Sequence[str], found: dict[str, Codes], missing: Sequence[str], codes: Codes) -> Codes:
        """Remember the missing queries' codes; return those of all queries, int8, shape (n_queries, dimension)."""
        known = found | dict(zip(missing, codes, strict=True))
        if self._size:
            with self._lock:
                for query in missing:
                    self._known[query] = known[query].copy()  # a view would keep the whole batch alive
                while len(self._known) > self._size:
                    self._known.popitem(last=False)
        joined = np.empty((len(queries), self._dimension), dtype=np.int8)
        for row, query in zip(joined, queries, strict=True):
            row[:] = known[query]
        return joined
