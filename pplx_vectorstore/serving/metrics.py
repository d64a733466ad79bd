"""Counters and histograms in Prometheus's text format, under the names of text-embeddings-inference.

Written out by hand: the usual client appends ``_total`` to the names of counters, and dashboards that were made for
that server would stay empty. All series are there from the start and none is ever added, so that nobody can fill the
monitoring's memory by asking in many ways.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ROUTES = ("embeddings", "contextualizedembeddings")
FAILURES = ("validation", "authentication", "overloaded", "unavailable", "backend", "disconnected")

_SECONDS = tuple(1e-3 * 1.5**i for i in range(34))  # to about ten minutes
_SIZES = tuple(float(2**i) for i in range(13))
_TOKENS = tuple(float(2**i) for i in range(18))


class Counter:
    """Only goes up.

    Args:
        name: Of the series.
        help_: What it counts.
        label: Name of its one label; "" for none.
        values: The values that the label may have.
    """

    def __init__(self, name: str, help_: str, label: str = "", values: Sequence[str] = ("",)) -> None:
        self._name, self._help, self._label = name, help_, label
        self._counts = dict.fromkeys(values, 0.0)
        self._lock = threading.Lock()

    def add(self, value: str = "", amount: float = 1) -> None:
        """Count; `value` is one of those that the label may have."""
        with self._lock:
            if value not in self._counts:
                raise KeyError(value)
            self._counts[value] += amount

    def lines(self) -> list[str]:
        """Return the series as text."""
        with self._lock:
            counts = dict(self._counts)
        return _head(self._name, self._help, "counter") + [
            f"{self._name}{_labels(self._label, value)} {_number(count)}" for value, count in counts.items()
        ]


class Gauge:
    """What something is at the time of asking.

    Args:
        name: Of the series.
        help_: What it tells.
        read: Returns it.
    """

    def __init__(self, name: str, help_: str, read: Callable[[], float]) -> None:
        self._name, self._help, self._read = name, help_, read

    def lines(self) -> list[str]:
        """Return the series as text."""
        return [*_head(self._name, self._help, "gauge"), f"{self._name} {_number(self._read())}"]


class Histogram:
    """How often values fell below each of some bounds.

    Args:
        name: Of the series.
        help_: What it tells.
        bounds: Ascending; infinity is added.
    """

    def __init__(self, name: str, help_: str, bounds: Sequence[float]) -> None:
        self._name, self._help, self._bounds = name, help_, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count a value."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def lines(self) -> list[str]:
        """Return the series as text."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines = _head(self._name, self._help, "histogram")
        below = 0
        for bound, count in zip([*map(_number, self._bounds), "+Inf"], counts, strict=True):
            below += count
            lines.append(f"{self._name}_bucket{_labels('le', bound)} {below}")
        return [*lines, f"{self._name}_sum {_number(total)}", f"{self._name}_count {below}"]


class Metrics:
    """All that the server tells of itself.

    Args:
        queue_size: Returns the number of requests that wait.
        held_bytes: Returns the bytes of requests and answers that are held.
    """

    def __init__(self, *, queue_size: Callable[[], float], held_bytes: Callable[[], float]) -> None:
        self.request_count = Counter("te_request_count", "Requests for embeddings", "method", ROUTES)
        self.request_success = Counter("te_request_success", "Requests that were answered", "method", ROUTES)
        self.request_failure = Counter("te_request_failure", "Requests that were not, by reason", "err", FAILURES)
        self.request_duration = Histogram("te_request_duration", "Seconds from head to answer", _SECONDS)
        self.tokenization_duration = Histogram("te_request_tokenization_duration", "Seconds of tokenizing", _SECONDS)
        self.queue_duration = Histogram("te_request_queue_duration", "Seconds until a first batch", _SECONDS)
        self.inference_duration = Histogram("te_request_inference_duration", "Seconds from there to the last", _SECONDS)
        self.input_length = Histogram("te_request_input_length", "Tokens of a request", _TOKENS)
        self.embed_count = Counter("te_embed_count", "Chunks that were asked for")
        self.embed_success = Counter("te_embed_success", "Chunks that were embedded")
        self.batch_size = Histogram("te_batch_next_size", "Rows of a batch", _SIZES)
        self.batch_tokens = Histogram("te_batch_next_tokens", "Tokens of a batch", _TOKENS)
        self.queue_size = Gauge("te_queue_size", "Requests that wait", queue_size)
        self.held_bytes = Gauge("te_held_bytes", "Bytes of requests and answers that are held", held_bytes)

    def text(self) -> str:
        """Return all series in the text format."""
        return "".join(f"{line}\n" for metric in vars(self).values() for line in metric.lines())


def _head(name: str, help_: str, kind: str) -> list[str]:
    return [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]


def _labels(label: str, value: str) -> str:
    return f'{{{label}="{value}"}}' if label else ""


def _number(value: float) -> str:
    return f"{value:.6g}" if value != int(value) else f"{int(value)}"
