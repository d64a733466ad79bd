"""When a server indexes what it holds, and how it is known which points have bits that can be trusted.

In segments that are not indexed yet, all bits are 1. A server does not tell which points are in such segments: its
count of indexed vectors holds those that were deleted or moved since. So every point carries the generation in which it
was written, and the collection's metadata says below which generation all are indexed. Who has everything indexed
(`settle`) begins a new generation first; whoever searches by the bits also looks among the later generations by the
codes. That leaves nothing to chance, however many processes write.

The same metadata says that somebody holds indexing back, or has it done now, and what its threshold was, so that who
opens the collection after a killed process can restore it.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from qdrant_client import models

from pplx_vectorstore.collection import GENERATION_FIELD
from pplx_vectorstore.engines.calls import Calls
from pplx_vectorstore.errors import ServerError, StoreError
from pplx_vectorstore.operations.ledger import Ledger

# Keys of the collection's metadata. Each is replaced as a whole, so what changes at different times has its own.
GENERATIONS_KEY = "pplx_vectorstore_generations"
HOLD_KEY = "pplx_vectorstore_indexing"

GRACE = 30.0
"""Seconds for which another process may go on to write into a generation that has ended."""

# Kilobytes. Qdrant's own default, for a collection that does not tell its threshold.
_DEFAULT_THRESHOLD = 10_000
NEVER = 0
"""As a threshold, indexes nothing."""
_AT_ONCE = 1  # indexes segments of more than one or two vectors
# Seconds.
_LOOK = 0.25
_PATIENCE = 600.0
_LEASE = 600.0
_RENEWAL = 60.0


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
        recorded = (info.config.metadata or {}).get(GENERATIONS_KEY)
        return cls(**recorded) if recorded else cls()

    def have_bits(self, info: models.CollectionInfo) -> bool:
        """Tell whether the bits of all below `indexed_below` can be trusted."""
        return self.indexed_below > 0 and (info.indexed_vectors_count or 0) >= self.indexed_vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Who has changed the threshold of indexing for a while.

    Attributes:
        threshold: What it was, in kilobytes.
        host: Name of the machine.
        pid: Of the process.
        until: Seconds since 1970: later, the process is taken to be gone, unless it has renewed this.
    """

    threshold: int
    host: str
    pid: int
    until: float

    @classmethod
    def of(cls, info: models.CollectionInfo) -> Hold | None:
        """Read it."""
        recorded = (info.config.metadata or {}).get(HOLD_KEY)
        return cls(**recorded) if recorded else None

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody is left to restore the threshold."""
        if self.host == socket.gethostname() and self.pid != os.getpid():
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            except PermissionError:  # somebody else's process
                pass
        return time.time() > self.until


def later_generations(indexed_below: int) -> models.Filter:
    """Match points that were written since all lower generations were indexed."""
    return models.Filter(must=[models.FieldCondition(key=GENERATION_FIELD, range=models.Range(gte=indexed_below))])


class IndexingHold:
    """Another threshold of indexing within a block of ``async with``, whatever ends that.

    Args:
        calls: The client.
        ledger: Of the collection.
        threshold: In kilobytes.
    """

    def __init__(self, calls: Calls, ledger: Ledger, threshold: int) -> None:
        self._calls = calls
        self._ledger = ledger
        self._threshold = threshold
        self._hold: Hold | None = None

    async def __aenter__(self) -> IndexingHold:
        info = await self._ledger.info(self._calls, fresh=True)
        before = Hold.of(info)
        if before is not None and not before.is_abandoned and self._threshold == NEVER:
            return self  # another holds it back, or has it done, and will restore it
        usual = before.threshold if before is not None else threshold_of(info)
        self._hold = _hold(usual)
        # The record comes first, and goes last.
        await self._record(self._hold)
        await self._set_threshold(self._threshold)
        self._ledger.renewal = self._renew_if_due
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._hold is not None:
            self._ledger.renewal = None
            await self._set_threshold(self._hold.threshold)
            await self._record(None)

    async def _renew_if_due(self) -> None:
        if self._hold is not None and self._hold.until - time.time() < _LEASE - _RENEWAL:
            self._hold = _hold(self._hold.threshold)
            await self._record(self._hold)

    async def _record(self, hold: Hold | None) -> None:
        await self._ledger.change(self._calls, metadata={HOLD_KEY: asdict(hold) if hold else {}})

    async def _set_threshold(self, threshold: int) -> None:
        await self._ledger.change(self._calls, optimizers_config=_threshold_config(threshold))


def _hold(threshold: int) -> Hold:
    return Hold(threshold=threshold, host=socket.gethostname(), pid=os.getpid(), until=time.time() + _LEASE)


def threshold_of(info: models.CollectionInfo) -> int:
    """Return the size in kilobytes from which on a segment is indexed."""
    threshold = getattr(info.config.optimizer_config, "indexing_threshold", None)
    return _DEFAULT_THRESHOLD if threshold is None else int(threshold)


async def restore_abandoned(calls: Calls, ledger: Ledger, info: models.CollectionInfo) -> None:
    """Restore the threshold that a killed process has changed; a key that may only read leaves that to others."""
    hold = Hold.of(info)
    if hold is None or not hold.is_abandoned:
        return
    try:
        await ledger.change(calls, optimizers_config=_threshold_config(hold.threshold))
        await ledger.change(calls, metadata={HOLD_KEY: {}})
    except ServerError as error:
        if error.status != 403:
            raise


async def settle(calls: Calls, ledger: Ledger) -> None:
    """Have a server index all that is written, and record it, so that it can be searched by the bits.

    Raises:
        StoreError: It does not get done, or failed, for the reason that the server gives.
    """
    before = Generations.of(await ledger.info(calls, fresh=True))
    began = replace(before, current=before.current + 1)
    await ledger.change(calls, metadata={GENERATIONS_KEY: asdict(began)})
    started = time.monotonic()
    async with IndexingHold(calls, ledger, _AT_ONCE):
        # Other processes learn of the generation when they next ask for the collection's state.
        info = await wait_until_indexed(calls, ledger, not_before=started + GRACE)
    done = replace(began, indexed_below=began.current, indexed_vectors=info.indexed_vectors_count or 0)
    await ledger.change(calls, metadata={GENERATIONS_KEY: asdict(done)})


async def wait_until_indexed(calls: Calls, ledger: Ledger, *, not_before: float = 0.0) -> models.CollectionInfo:
    """Wait until a server has nothing left to optimize.

    Args:
        calls: The client.
        ledger: Of the collection.
        not_before: Of ``time.monotonic()``: what was the case earlier does not count.

    Returns:
        The collection's state then.

    Raises:
        StoreError: For ten minutes, nothing has changed; or the server's optimizer failed.
    """
    seen: tuple[Any, ...] = ()
    changed = time.monotonic()
    while True:
        info = await ledger.info(calls, fresh=True)
        now = time.monotonic()
        if info.status == models.CollectionStatus.RED:
            raise StoreError(f"the server could not index {ledger.collection!r}: {info.optimizer_status}")
        queue = getattr(info, "update_queue", None)
        if info.status == models.CollectionStatus.GREEN and now >= not_before and not (queue and queue.length):
            return info
        state = info.status, info.indexed_vectors_count, info.segments_count, info.points_count
        if state != seen:
            seen, changed = state, now
        elif now - changed > _PATIENCE:
            raise StoreError(
                f"the server does not get done indexing {ledger.collection!r}: for {_PATIENCE:.0f} seconds, its status "
                f"is {getattr(info.status, 'value', info.status)}, with {info.indexed_vectors_count} vectors indexed"
            )
        if info.status == models.CollectionStatus.GREY:
            # After a restart, a server optimizes nothing before something is changed.
            await ledger.change(calls, optimizers_config=_threshold_config(threshold_of(info)))
        await ledger.renew(calls)
        await calls.sleep(_LOOK)


def _threshold_config(threshold: int) -> models.OptimizersConfigDiff:
    return models.OptimizersConfigDiff(indexing_threshold=threshold)
