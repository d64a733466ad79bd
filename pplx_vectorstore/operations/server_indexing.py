"""When a server indexes what it holds, and how it is known which points have bits that can be trusted.

In segments that are not indexed yet, all bits are 1. A server does not tell which points are in such segments: its
count of indexed vectors holds those that were deleted or moved since. So every point carries the generation in which it
was written, and the collection's metadata says below which generation all are indexed. Who has everything indexed
(`settle`) begins a new generation first; whoever searches by the bits also looks among the later generations by the
codes. That leaves nothing to chance, however many processes write.

The same metadata says that somebody holds indexing back, or has it done now, and what the settings were, so that others
can restore them after that process was killed.

Where words are kept as sparse vectors, segments that are not indexed must not grow large: for each word of a new point,
the server goes through all points of the segment that have it. So while indexing is held back, there are many small
segments.
"""

from __future__ import annotations

import functools
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pplx_vectorstore.collection import GENERATION_FIELD
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.engines.turns import TurnLock
from pplx_vectorstore.errors import ServerError, StoreError
from pplx_vectorstore.operations.ledger import Ledger
from pplx_vectorstore.qdrant import models

# Keys of the collection's metadata. A change replaces all that is under a key, so what others may change at the same
# time has a key of its own.
GENERATION_KEY = "pplx_vectorstore_generation"
INDEXED_KEY = "pplx_vectorstore_indexed"
HOLD_KEY = "pplx_vectorstore_indexing"

GRACE = 30.0
"""Seconds for which another process may go on to write into a generation that has ended."""

NEVER = 0
"""As a threshold, indexes nothing."""
_AT_ONCE = 1  # indexes segments of more than one or two vectors
# Kilobytes. Qdrant's own default, for a collection that does not tell its threshold.
_DEFAULT_THRESHOLD = 10_000
# Kilobytes, of words or codes: some thousand points.
_SMALL_SEGMENT = 4_000
# Kilobytes. A server takes a largest size of segments, but not back that there is none; this is what a server of
# four processors has without.
_USUAL_SEGMENT = 1_000_000
# Each takes about 70 of the 65,530 mappings that Linux gives a process.
_MOST_SEGMENTS = 200
LOOK = 0.25
"""Seconds between two looks at what a server does."""
# Seconds.
_PATIENCE = 600.0
_LEASE = 600
_RENEWAL = 60.0
_TRIES = 10

_held_here: set[str] = set()
"""Tokens of this process's holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """What a collection's metadata says of its generations.

    Attributes:
        current: That into which points are written.
        indexed_below: All points of lower ones are indexed; 0 where that is not known of any.
        indexed_vectors: How many vectors the server counted as indexed then. With fewer, it has rebuilt some of its
            indexes since, and may have left what was small without one.
    """

    current: int = 1
    indexed_below: int = 0
    indexed_vectors: int = 0

    @classmethod
    def of(cls, info: models.CollectionInfo) -> Generations:
        """Read them."""
        metadata = info.config.metadata or {}
        indexed = metadata.get(INDEXED_KEY) or {}
        below = int(indexed.get("below", 0))
        # Never a lower one than is said to be indexed, whatever became of its own record.
        current = max(below, int((metadata.get(GENERATION_KEY) or {}).get("current", 1)))
        return cls(current=current, indexed_below=below, indexed_vectors=int(indexed.get("vectors", 0)))

    def have_bits(self, info: models.CollectionInfo) -> bool:
        """Tell whether the bits of all below `indexed_below` can be trusted."""
        return self.indexed_below > 0 and (info.indexed_vectors_count or 0) >= self.indexed_vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Who has changed the threshold of indexing for a while.

    Attributes:
        token: Unlike that of any other hold.
        threshold: What it was, in kilobytes.
        host: Where the process can be seen by its number.
        pid: Of the process.
        until: Whole seconds since 1970: later, the process is taken to be gone, unless it has renewed this. (A server
            changes the last digits of fractions.)
        segment_size: What the largest size of a segment is to be afterwards, in kilobytes; None where it stays.
    """

    token: str
    threshold: int
    host: str
    pid: int
    until: int
    segment_size: int | None = None

    @classmethod
    def of(cls, info: models.CollectionInfo) -> Hold | None:
        """Read it."""
        recorded: Mapping[str, Any] = (info.config.metadata or {}).get(HOLD_KEY) or {}
        if any(one.default is MISSING and one.name not in recorded for one in fields(cls)):
            return None
        return cls(**{one.name: recorded[one.name] for one in fields(cls) if one.name in recorded})

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody is left to restore the threshold."""
        if self.host == host_name():
            if self.pid == os.getpid():
                return self.token not in _held_here
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            except PermissionError:  # somebody else's process
                pass
        return time.time() > self.until


@functools.cache
def host_name() -> str:
    """Name what a process id is unique in: the machine since it was started, or the container."""
    parts = [socket.gethostname()]
    for name in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(name)
        try:
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text("utf-8").strip())
        except OSError:  # not on Linux
            continue
    return " ".join(parts)


def later_generations(indexed_below: int) -> models.Filter:
    """Match points that were written since all lower generations were indexed."""
    return models.Filter(must=[models.FieldCondition(key=GENERATION_FIELD, range=models.Range(gte=indexed_below))])


class LoadGoesOnError(StoreError):
    """Another process loads, at whose end all is indexed."""


class IndexingHold:
    """Another threshold of indexing, until `release`; or somebody else's, who will restore it.

    Args:
        calls: The client.
        ledger: Of the collection.
        threshold: In kilobytes.
        small_segments: Whether segments stay small meanwhile.

    Attributes:
        is_ours: Whether it is not somebody else's.
        joins_load: Whether it is that of a bulk load.
    """

    def __init__(self, calls: Calls, ledger: Ledger, threshold: int, *, small_segments: bool = False) -> None:
        self._calls = calls
        self._ledger = ledger
        self._threshold = threshold
        self._small_segment = _SMALL_SEGMENT if small_segments else None
        self._changing = TurnLock()
        self._hold: Hold | None = None
        self.is_ours = self.joins_load = False

    async def take(self) -> None:
        """Change the threshold, unless somebody has done so who lives; whatever ends this, it is undone."""
        info = await self._ledger.info(self._calls, fresh=True)
        before = Hold.of(info)
        if before is not None and not before.is_abandoned:
            self.joins_load = threshold_of(info) == NEVER
            return
        self.is_ours, self.joins_load = True, False
        usual = threshold_of(info) if before is None else before.threshold
        segment_size = None if before is None else before.segment_size
        if self._small_segment is not None:
            segment_size = segment_size or segment_size_of(info) or _USUAL_SEGMENT
            self._small_segment = min(self._small_segment, segment_size)
        token = uuid.uuid4().hex
        _held_here.add(token)
        self._hold = Hold(
            token=token,
            threshold=usual,
            host=host_name(),
            pid=os.getpid(),
            until=_end_of_lease(),
            segment_size=segment_size,
        )
        try:
            await self.insist()
        except BaseException:
            await self.release()
            raise
        self._ledger.renewal = self._renew

    async def insist(self) -> None:
        """Record the hold and change the settings: the record comes first, and goes last."""
        assert self._hold is not None
        await self._ledger.change(self._calls, metadata={HOLD_KEY: asdict(self._hold)})
        await set_threshold(self._calls, self._ledger, self._threshold, self._small_segment or self._hold.segment_size)

    def holds(self, info: models.CollectionInfo) -> bool:
        """Tell whether nobody has changed it since."""
        return self._is_recorded(Hold.of(info)) and threshold_of(info) == self._threshold

    async def release(self) -> None:
        """Restore the threshold, unless somebody has, also where this is cancelled meanwhile."""
        hold = self._hold
        if hold is None or hold.pid != os.getpid():  # it is that of the process that this one was forked from
            return
        self._ledger.renewal = None
        try:
            await self._calls.start(self._restore())
        except BaseException:
            _held_here.discard(hold.token)  # nobody has to wait for us
            raise

    async def _restore(self) -> None:
        async with self._calls.hold(self._changing):
            hold, self._hold = self._hold, None
            if hold is None:
                return
            try:
                info = await self._ledger.info(self._calls, fresh=True)
                found = Hold.of(info)
                # Without a record, but with our settings: whoever restored what another had left, took ours for that.
                is_lost = found is None and threshold_of(info) == self._threshold
                if is_lost or (found is not None and found.token == hold.token):
                    await _end_hold(self._calls, self._ledger, hold)
            finally:
                _held_here.discard(hold.token)

    async def _renew(self) -> None:
        if not self._is_due():
            return
        async with self._calls.hold(self._changing):  # not while it is released
            if self._hold is None or not self._is_due():
                return
            self._hold = replace(self._hold, until=_end_of_lease())
            if self._small_segment is not None:
                info = await self._ledger.info(self._calls, fresh=True)
                if (info.segments_count or 0) > _MOST_SEGMENTS:
                    self._small_segment *= 2
            await self.insist()

    def _is_due(self) -> bool:
        return self._hold is not None and self._hold.until - time.time() <= _LEASE - _RENEWAL

    def _is_recorded(self, found: Hold | None) -> bool:
        return found is not None and self._hold is not None and found.token == self._hold.token


def _end_of_lease() -> int:
    return int(time.time()) + _LEASE


def threshold_of(info: models.CollectionInfo) -> int:
    """Return the size in kilobytes from which on a segment is indexed."""
    threshold = getattr(info.config.optimizer_config, "indexing_threshold", None)
    return _DEFAULT_THRESHOLD if threshold is None else int(threshold)


def segment_size_of(info: models.CollectionInfo) -> int | None:
    """Return the largest size of a segment in kilobytes, None where the server chooses it."""
    return getattr(info.config.optimizer_config, "max_segment_size", None)


async def set_threshold(calls: Calls, ledger: Ledger, threshold: int, segment_size: int | None = None) -> None:
    """Have segments indexed from that size in kilobytes on, and grow to the other, unless that is to stay."""
    config = models.OptimizersConfigDiff(indexing_threshold=threshold, max_segment_size=segment_size)
    await ledger.change(calls, optimizers_config=config)


async def _end_hold(calls: Calls, ledger: Ledger, hold: Hold) -> None:
    await set_threshold(calls, ledger, hold.threshold, hold.segment_size)
    found = Hold.of(await ledger.info(calls, fresh=True))
    if found is not None and found.token == hold.token:  # else another has ended it, too, and somebody has begun one
        await ledger.change(calls, metadata={HOLD_KEY: {}})


async def restore_abandoned(calls: Calls, ledger: Ledger, info: models.CollectionInfo) -> None:
    """Restore the threshold that a process has left changed; a key that may only read leaves that to others."""
    if not _is_abandoned(info) or calls.client in ledger.read_only_clients:
        return
    try:
        info = await ledger.info(calls, fresh=True)
        hold = Hold.of(info)
        if hold is not None and hold.is_abandoned:  # still
            await _end_hold(calls, ledger, hold)
    except ServerError as error:
        if error.status != 403:
            raise
        ledger.read_only_clients.add(calls.client)


def _is_abandoned(info: models.CollectionInfo) -> bool:
    hold = Hold.of(info)
    return hold is not None and hold.is_abandoned


async def settle(calls: Calls, ledger: Ledger) -> None:
    """Have a server index all that is written, and record it, so that it can be searched by the bits.

    Raises:
        StoreError: It does not get done, or failed, for the reason that the server gives.
        LoadGoesOnError: A bulk load goes on.
    """
    hold = IndexingHold(calls, ledger, _AT_ONCE)
    await hold.take()
    while not hold.is_ours:  # one at a time, of all processes
        await _refuse_in_bulk_load(calls, ledger)
        await calls.sleep(LOOK)
        await hold.take()
    try:
        for _ in range(_TRIES):
            if await _settle_under(calls, ledger, hold):
                return
            await hold.insist()
    finally:
        await hold.release()
    raise StoreError(
        f"other programs change the indexing of {ledger.collection!r} again and again; call optimize() when they have "
        "ended"
    )


async def _settle_under(calls: Calls, ledger: Ledger, hold: IndexingHold) -> bool:
    """Begin a generation, and record that all before it is indexed; tell whether nobody has come between."""
    generation = Generations.of(await ledger.info(calls, fresh=True)).current + 1
    await ledger.change(calls, metadata={GENERATION_KEY: {"current": generation}})
    # Other processes learn of it when they next ask for the collection's state.
    info = await wait_until_indexed(calls, ledger, not_before=time.monotonic() + GRACE)
    if not hold.holds(info) or Generations.of(info).current != generation:
        return False
    indexed = {"below": generation, "vectors": info.indexed_vectors_count or 0}
    await ledger.change(calls, metadata={INDEXED_KEY: indexed})
    return True


async def _refuse_in_bulk_load(calls: Calls, ledger: Ledger) -> None:
    info = await ledger.info(calls, fresh=True)
    hold = Hold.of(info)
    if hold is not None and not hold.is_abandoned and threshold_of(info) == NEVER:
        raise LoadGoesOnError(
            f"a bulk load into {ledger.collection!r} goes on (process {hold.pid} on {hold.host.split()[0]}), at whose "
            "end all is indexed; call optimize() after it"
        )


async def wait_until_indexed(calls: Calls, ledger: Ledger, *, not_before: float = 0.0) -> models.CollectionInfo:
    """Wait until a server has nothing left to optimize.

    Args:
        calls: The client.
        ledger: Of the collection.
        not_before: Of ``time.monotonic()``: what was the case earlier does not count.

    Returns:
        The collection's state then.

    Raises:
        StoreError: For ten minutes, the server has neither worked nor changed; or its optimizer failed. It is waited
            for as long as it works: millions of vectors in one segment take hours, and nothing tells how far it is.
    """
    seen: tuple[Any, ...] = ()
    changed = time.monotonic()
    while True:
        asked = time.monotonic()
        info = await ledger.info(calls, fresh=True)
        if info.status == models.CollectionStatus.RED:
            raise StoreError(f"the server could not index {ledger.collection!r}: {info.optimizer_status}")
        queue = getattr(info, "update_queue", None)
        if info.status == models.CollectionStatus.GREEN and asked >= not_before and not (queue and queue.length):
            return info
        state = info.status, info.indexed_vectors_count, info.segments_count, info.points_count
        if state != seen or info.status == models.CollectionStatus.YELLOW:
            seen, changed = state, asked
        elif asked - max(changed, not_before) > _PATIENCE:
            raise StoreError(
                f"the server does not get done indexing {ledger.collection!r}: for {_PATIENCE:.0f} seconds, its status "
                f"is {getattr(info.status, 'value', info.status)}, with {info.indexed_vectors_count} vectors indexed"
            )
        if info.status == models.CollectionStatus.GREY:
            # After a restart, a server optimizes nothing before something is changed.
            await set_threshold(calls, ledger, threshold_of(info))
        await ledger.renew(calls)
        await calls.sleep(LOOK)


async def wait_for_usual_index(calls: Calls, ledger: Ledger) -> None:
    """Wait until a server has indexed all that it indexes by itself.

    Raises:
        StoreError: As for `wait_until_indexed`.
        LoadGoesOnError: A bulk load goes on.
    """
    await restore_abandoned(calls, ledger, await ledger.info(calls, fresh=True))
    await _refuse_in_bulk_load(calls, ledger)
    await wait_until_indexed(calls, ledger)
