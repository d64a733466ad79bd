"""Which rows go through the model next, and which requests are taken on at all.

A job is what one request has the model do: rows of known lengths, of which any may share a batch with rows of other
jobs. Short jobs (queries) and the others (documents) wait in lanes of their own, which take turns, so that neither
starves the other. Within a lane jobs take turns as well: the one that has waited longest begins a batch, and what room
it leaves goes to those behind it, one row each, in turn. Who says how long they will wait, and has waited half of that,
goes before the others; no more of these are taken on than can be done in the other half. Nothing here knows HTTP, text
or a model.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

Lane = Literal["short", "bulk"]
LANES: tuple[Lane, ...] = ("short", "bulk")

SHORT_TOKENS = 512
"""Most tokens of a job that counts as short."""
MOST_SECONDS = 600.0
"""Most work that may wait, as the time that it takes."""

# After half of it a job goes before those that came later, and all that go before it are done in the other half.
_SHARE_OF_PATIENCE = 0.5
# Jobs that are looked at to fill a batch; there may be thousands.
_LOOKED_AT = 64
# Padding that a batch may have: rows differ by a quarter of the longest, or by so many tokens, which hardly cost
# anything beside what every batch costs.
_PADDING_SHARE = 4
_PADDING_TOKENS = 64
_MEMORY = 0.9  # of the rate, from batch to batch


class QueueFullError(Exception):
    """There is more work than can be done in time.

    Args:
        retry_after: Seconds after which it may be otherwise, 1 to 60.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"full for about {retry_after} s")
        self.retry_after = retry_after


class Job:
    """Rows of one request.

    Args:
        lengths: Tokens of each row; at least one.
        model: What runs them; only rows of one model share a batch.
        payload: The caller's.
    """

    def __init__(self, lengths: Sequence[int], *, model: Hashable = None, payload: Any = None) -> None:
        self.model = model
        self.payload = payload
        self.tokens = sum(lengths)
        self.lane: Lane = "short" if self.tokens <= SHORT_TOKENS else "bulk"
        self.waiting_tokens = self.tokens
        self.urgent_from = math.inf
        self.is_cancelled = False
        self._unfinished = len(lengths)
        self._waiting = sorted((length, row) for row, length in enumerate(lengths))  # the longest last

    @property
    def is_waiting(self) -> bool:
        """Whether rows are left that no batch has taken."""
        return bool(self._waiting)

    @property
    def is_done(self) -> bool:
        """Whether all rows have been run."""
        return not self._unfinished

    def longest(self, at_most: float = math.inf) -> int:
        """Return the length of the longest waiting row that is not longer than that, or 0."""
        place = bisect_right(self._waiting, (at_most, math.inf))
        return self._waiting[place - 1][0] if place else 0

    def take(self, length: int) -> int:
        """Take a row of this length out of those that wait; return its index."""
        _, row = self._waiting.pop(bisect_right(self._waiting, (length, math.inf)) - 1)
        self.waiting_tokens -= length
        return row

    def drop(self) -> None:
        """Let go of the rows that wait."""
        self.is_cancelled = True
        self._waiting.clear()
        self.waiting_tokens = 0

    def count_done(self, rows: int) -> None:
        """Count rows that have been run."""
        self._unfinished -= rows


@dataclass(slots=True)
class Batch:
    """Rows to be run together.

    Attributes:
        lane: Which one they waited in.
        parts: Each job's rows, by index.
        tokens: Of all rows, without padding.
        size: Number of rows.
        longest: Tokens of the longest of them.
        shortest: And of the shortest.
    """

    lane: Lane
    parts: dict[Job, list[int]] = field(default_factory=dict)
    tokens: int = 0
    size: int = 0
    longest: int = 0
    shortest: int = sys.maxsize

    def add(self, job: Job, length: int) -> None:
        """Move a row of this length from a job into the batch."""
        self.parts.setdefault(job, []).append(job.take(length))
        self.tokens += length
        self.size += 1
        self.longest = max(self.longest, length)
        self.shortest = min(self.shortest, length)


class Scheduler:
    """Queues jobs and makes batches of them; threads share one.

    Args:
        turn_tokens: Tokens of a batch: the longest that one lane waits for the other. A longer row is a batch of its
            own.
        pads: Whether every row of a batch costs as much as its longest.
        tokens_per_second: What the model does, until it is known better.
        apart: Whether each lane has a thread of its own; if not, they share one.
        clock: Seconds; any zero.
    """

    def __init__(
        self,
        turn_tokens: int,
        *,
        pads: bool,
        tokens_per_second: float,
        apart: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._turn_tokens = turn_tokens
        self._pads = pads
        self._apart = apart
        self._clock = clock
        self._queues: dict[Lane, deque[Job]] = {lane: deque() for lane in LANES}
        self._waiting_tokens: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._rates = {lane: _Rate(tokens_per_second) for lane in LANES}
        self._running: dict[int, tuple[Batch, float]] = {}
        self._last_lane: Lane = "bulk"
        self._is_closed = False
        self._changed = threading.Condition()

    @property
    def n_waiting(self) -> int:
        """Jobs of which rows wait."""
        with self._changed:
            return sum(map(len, self._queues.values()))

    def check(self, tokens: int, patience: float | None = None) -> None:
        """Refuse a job of about so many tokens if it could not be done in time.

        Args:
            tokens: Of the job.
            patience: Seconds that whoever asks will wait; None for as long as it takes.

        Raises:
            QueueFullError: Says when to ask again.
        """
        with self._changed:
            self._check("short" if tokens <= SHORT_TOKENS else "bulk", tokens, patience)

    def add(self, job: Job, patience: float | None = None) -> None:
        """Queue a job.

        Raises:
            QueueFullError: As `check`.
        """
        with self._changed:
            self._check(job.lane, job.tokens, patience)
            if patience is not None:
                job.urgent_from = self._clock() + _SHARE_OF_PATIENCE * patience
            self._queues[job.lane].append(job)
            self._waiting_tokens[job.lane] += job.tokens
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Drop what waits of a job; what is being run ends unheard."""
        with self._changed:
            if job.is_waiting:
                self._queues[job.lane].remove(job)
                self._waiting_tokens[job.lane] -= job.waiting_tokens
            job.drop()

    def take(self, lanes: Sequence[Lane]) -> Batch | None:
        """Wait for a batch of one of these lanes; None once the scheduler is closed."""
        with self._changed:
            while (batch := self._poll(lanes)) is None and not self._is_closed:
                self._changed.wait()
            return batch

    def poll(self, lanes: Sequence[Lane] = LANES) -> Batch | None:
        """Return a batch of one of these lanes, if anything waits there."""
        with self._changed:
            return self._poll(lanes)

    def finish(self, batch: Batch) -> list[Job]:
        """Tell that a batch was run; return the jobs that are done by that."""
        with self._changed:
            _, started = self._running.pop(id(batch))
            self._rates[batch.lane].count(batch.tokens, self._clock() - started)
            for job, rows in batch.parts.items():
                job.count_done(len(rows))
            return [job for job in batch.parts if job.is_done and not job.is_cancelled]

    def close(self) -> None:
        """Let those who wait for a batch go; to be called when nothing is queued any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _check(self, lane: Lane, tokens: int, patience: float | None) -> None:
        if not self._running and not any(self._queues.values()):
            return  # whatever it takes: nobody else waits
        bound = MOST_SECONDS if patience is None else min(MOST_SECONDS, _SHARE_OF_PATIENCE * patience)
        excess = max(
            self._estimate(lane, tokens, patience) - bound,
            self._seconds(lane, self._waiting_tokens[lane] + tokens) - MOST_SECONDS,
        )
        if excess > 0:
            raise QueueFullError(min(60, max(1, math.ceil(excess))))

    def _estimate(self, lane: Lane, tokens: int, patience: float | None) -> float:
        """Return the seconds after which a job of so many tokens would be done, if no other came."""
        # Jobs take turns: until one of so many tokens is done, each of the others has had as many at most, but for
        # those that may go before it.
        until = math.inf if patience is None else self._clock() + patience
        ahead = sum(
            job.waiting_tokens if job.urgent_from < until else min(job.waiting_tokens, tokens)
            for job in self._queues[lane]
        )
        others: tuple[Lane, ...] = (lane,) if self._apart else LANES
        running = sum(
            self._seconds_left(batch, started) for batch, started in self._running.values() if batch.lane in others
        )
        seconds = self._seconds(lane, ahead + tokens)
        if not self._apart:
            # As many turns are the other lane's, as long as anything waits there.
            seconds += min(seconds, sum(self._seconds(one, self._waiting_tokens[one]) for one in LANES if one != lane))
        return seconds + running

    def _seconds(self, lane: Lane, tokens: int) -> float:
        return tokens / self._rates[lane].tokens_per_second

    def _seconds_left(self, batch: Batch, started: float) -> float:
        return max(0.0, self._seconds(batch.lane, batch.tokens) - (self._clock() - started))

    def _poll(self, lanes: Sequence[Lane]) -> Batch | None:
        waiting = [lane for lane in lanes if self._queues[lane]]
        if not waiting:
            return None
        lane = waiting[0] if len(waiting) == 1 or waiting[0] != self._last_lane else waiting[1]
        self._last_lane = lane
        batch = self._fill(lane)
        self._waiting_tokens[lane] -= batch.tokens
        self._running[id(batch)] = (batch, self._clock())
        return batch

    def _fill(self, lane: Lane) -> Batch:
        """Make a batch; the first job gets its longest row in, and who got any goes behind the others."""
        queue, now = self._queues[lane], self._clock()
        urgent = sorted((job for job in queue if job.urgent_from <= now), key=lambda job: job.urgent_from)
        first = urgent[0] if urgent else queue[0]
        batch = Batch(lane)
        batch.add(first, first.longest())
        for job in urgent:
            while self._add_one(batch, job):
                pass
        rotation = deque(job for job in islice(queue, _LOOKED_AT) if job not in batch.parts)
        rotation.append(first)  # which has had its turn
        while rotation:
            job = rotation.popleft()
            if self._add_one(batch, job):
                rotation.append(job)
        for job in batch.parts:
            queue.remove(job)
        queue.extend(job for job in batch.parts if job.is_waiting)
        return batch

    def _add_one(self, batch: Batch, job: Job) -> bool:
        """Add the longest of a job's rows that fits a batch; tell whether there is one."""
        if job.model != next(iter(batch.parts)).model:
            return False
        if not self._pads:
            length = job.longest(self._turn_tokens - batch.tokens)
        else:
            length = job.longest(max(batch.longest, _PADDING_TOKENS))
            longest = max(batch.longest, length)
            padding = longest - min(batch.shortest, length)
            if (batch.size + 1) * longest > self._turn_tokens or padding > max(
                longest // _PADDING_SHARE, _PADDING_TOKENS
            ):
                return False
        if not length:
            return False
        batch.add(job, length)
        return True


class _Rate:
    """Tokens a second, of the last ten batches or so."""

    def __init__(self, tokens_per_second: float) -> None:
        self._tokens = tokens_per_second
        self._seconds = 1.0

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds

    def count(self, tokens: int, seconds: float) -> None:
        self._tokens = _MEMORY * self._tokens + tokens
        self._seconds = _MEMORY * self._seconds + max(seconds, 1e-6)
