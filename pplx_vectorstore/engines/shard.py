"""One collection's shard of the embedded engine: shared by all of a process, taken in turns with other processes."""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import qdrant_edge as edge

from pplx_vectorstore.engines import shard_files
from pplx_vectorstore.engines.folder_turns import DEFAULT_TURN_TIMEOUT, FolderGoneError, FolderTurn
from pplx_vectorstore.engines.indexing import Indexing, Logged
from pplx_vectorstore.engines.retrying import GivenUpError, require_wanted
from pplx_vectorstore.errors import (
    InvalidInputError,
    StoreClosedError,
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
)
from pplx_vectorstore.forked import leave_to_the_other

INDEXING_THRESHOLD_KB = 1
"""The engine leaves a segment without an index below this size (its smallest setting; 0 means never)."""

_UNINDEXED = "unindexed"
_log = logging.getLogger("pplx_vectorstore")

# Below this size of its codes, a segment is not walked but compared as a whole, so that an index brings nothing.
_WALKED_BYTES = 10_000 * 1024
# Indexing rewrites everything, so it must pay: half of the points during a load, a tenth when nothing is being written.
_SHARE_WHILE_WRITING = 0.5
_SHARE_AT_REST = 0.1
_SECONDS_AT_REST = 2.0
_LONGEST_REST = 600.0
# Points that are gone from a graph are no longer walked through. With a third of 60,000 gone, recall was 0.996; with
# half, 0.965 to 0.987; with four fifths, 0.6; with all but a twentieth, 0.004 (1,024 dimensions, 100 candidates).
_MOST_WORN = 1 / 3
# A turn lasts this many times what it takes to open the collection again.
_TURN = 10
_LONGEST_TURN = 5.0
_IDLE = 0.25
_GLANCE = 0.05
# Longer than any call of the engine is thought to take.
_LONGEST_CALL = 60.0
# What was written while an index is built is held in memory, and is to be written again into the new shard.
_MOST_LOGGED_BYTES = 2**27
_POINT_BYTES = 1000
_FEW_LOGGED = 16
# Bytes of disk that a point may take before it is indexed, for each byte of its codes and payload; and what an
# operation may take besides, as the engine maps files in large pieces.
_WRITTEN = 6
_OPERATION_BYTES = 2 * 2**20
# The engine flushes in one go, during which no other thread runs, what was written since it last did.
_MOST_UNFLUSHED = 3000
# A copy, and the index beside it.
_INDEXING_SPACE = 2.5
# Other people's files, and media that cannot be written to.
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class Coverage(NamedTuple):
    """What an index covers.

    Attributes:
        points: That there are.
        unindexed: Most points that the index lacks.
        is_worn: Whether so many of the points that it was built over are gone, or have moved out of it, that walking it
            misses some of the others.
        is_due: Whether it is time to build it anew.
    """

    points: int
    unindexed: int
    is_worn: bool = False
    is_due: bool = False


class Shard:
    """A shard, open while it is this process's turn; how many points its index does not cover, and how worn that is.

    Only indexed segments have usable bits: in the others, the engine takes the sign of the *unsigned* bytes, so every
    bit is 1. Points get there by being written, and by a change of their payload, which moves them out of an indexed
    segment. What is deleted, or moves, stays behind as a hole in the graph. So every write passes through `write`,
    which counts.

    Args:
        path: The collection's folder.
        identity: What tells the collection from others that have its name later, as its settings have it.
        dimension: Components of its vectors.
        read_only: Whether to read a copy of it; so also where its folder cannot be written to.
    """

    def __init__(self, path: Path, identity: str | None, dimension: int, *, read_only: bool) -> None:
        self.path = path
        self.identity = identity
        self.users = 0
        self.is_read_only = read_only
        self._dimension = dimension
        self._leftover = -(-INDEXING_THRESHOLD_KB * 1024 // dimension)
        self._turn = FolderTurn(path)
        self._callers = threading.local()
        self._is_closed = False
        self._is_gone = False
        self._become_unopened()

    def _become_unopened(self) -> None:
        """Forget what is of an open shard, and make new locks: in a forked process, the others may stay locked."""
        self._engine: edge.EdgeShard | None = None
        self._private_copy: shard_files.PrivateCopy | None = None
        self._writing = threading.Lock()  # one write at a time; before `_changed`
        self._changed = threading.Condition(threading.Lock())  # what follows
        self._in_flight = 0
        self._pins: set[object] = set()
        self._unflushed = 0
        self._is_busy = False  # one thread opens the shard, or puts another one in its place; all others wait
        self._indexing: Indexing | None = None
        self._watcher: threading.Thread | None = None
        self._failure: StoreError | None = None
        self._taken = self._used = self._written = time.monotonic()
        self._turn_seconds = 0.0
        self._is_wanted = False
        self._build_seconds = 0.0
        self._failures = 0  # to index unasked, one after the other
        self._failed = self._taken
        self._holds: set[object] = set()  # bulk loads under way, for which indexing waits
        self._mark: str | None = None
        self._points = self._unindexed = self._indexed = 0

    # --- turns -----------------------------------------------------------------------------------------

    def wait_at_most(self, seconds: float) -> None:
        """Have calls of this thread wait so long for another process to let go."""
        self._callers.timeout = seconds

    @contextlib.contextmanager
    def _using(self) -> Iterator[edge.EdgeShard]:
        """Have the engine's shard, which is neither closed nor exchanged meanwhile."""
        entered = False
        try:
            while not entered:
                with self._changed:
                    # Whoever comes when the turn is over stands back until those before have ended, so that others get
                    # theirs.
                    self._changed.wait_for(lambda: not self._is_busy and not (self._in_flight and self._is_turn_over()))
                    self.require_open()
                    engine = self._engine
                    if engine is None:
                        self._is_busy = True
                    else:
                        entered = True
                        self._in_flight += 1
                if engine is None:
                    self._open()
            assert engine is not None
            yield engine
        finally:
            if entered:
                with self._changed:
                    self._in_flight -= 1
                    self._used = time.monotonic()
                    if not self._in_flight:
                        if self._is_turn_over():
                            self._let_go()
                        self._changed.notify_all()

    def pin(self) -> Callable[[], None]:
        """Keep the turn until what this returns is called: no other process has the collection meanwhile.

        In a process that is forked meanwhile, nothing is pinned, and the call does nothing.
        """
        if not self.is_read_only:
            with translated(self.path):
                self._leave_copy()
        pin = object()

        def unpin() -> None:
            with self._changed:
                self._pins.discard(pin)
                self._changed.notify_all()

        with self._using(), self._changed:
            self._pins.add(pin)
        return unpin

    @contextlib.contextmanager
    def _pinned(self) -> Iterator[None]:
        unpin = self.pin()
        try:
            yield
        finally:
            unpin()

    def _is_turn_over(self) -> bool:
        if not self._is_wanted or self._engine is None or self._pins or self._is_busy:
            return False
        now = time.monotonic()
        return now - self._taken > self._turn_seconds or (not self._in_flight and now - self._used > _IDLE)

    def _open(self) -> None:
        """Take the turn and load the shard, as the one thread that does."""
        try:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            with translated(self.path, _DAMAGED):
                try:
                    self._load(self._take_turn())
                except FileNotFoundError as error:
                    if isinstance(error, FolderGoneError) or not self.path.exists():
                        self._is_gone = True
                        self.require_open()
                    raise
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    def _load(self, folder: Path) -> None:
        started = time.monotonic()
        try:
            self._engine = _load(folder)
            self._count()
            self._read_mark()
        except BaseException:
            self._engine = None
            self._leave_turn()
            raise
        self._is_wanted = False
        self._taken = self._used = time.monotonic()
        self._turn_seconds = min(_LONGEST_TURN, _TURN * (self._taken - started))
        if self._watcher is None and self._private_copy is None:
            self._watcher = threading.Thread(target=self._watch, name="pplx-vectorstore turns", daemon=True)
            self._watcher.start()

    def require_open(self) -> None:
        """Refuse what is closed, or not there any more.

        Raises:
            StoreClosedError: So it is.
        """
        if self._is_gone:
            raise StoreClosedError(
                f"the index {self.path} was removed since it was opened, or another one put in its place; open it again"
            )
        if self._is_closed:
            raise StoreClosedError(f"the index {self.path} was closed; open it again")

    def _go_on(self) -> None:
        """End what waits, or copies, for somebody who does not want it any more."""
        require_wanted()
        self.require_open()

    def _take_turn(self) -> Path:
        """Return the folder that is to be loaded: the current one, or a copy to read."""
        timeout = getattr(self._callers, "timeout", DEFAULT_TURN_TIMEOUT)
        if not self.is_read_only:
            try:
                self._turn.take(timeout, self._go_on)
            except OSError as error:  # one of a folder that is gone has no number
                if error.errno not in _NOT_WRITABLE:
                    raise
                self.is_read_only = True
        if self.is_read_only:
            with self._turn.to_read(timeout, self._go_on):
                self._require_same()
                return self._copy_to_read()
        try:
            self._require_same()
            shard_files.remove_leftovers(self.path)
            folder = shard_files.current_folder(self.path)
            if self._is_room_to_open(folder):
                shard_files.keep_log_short(folder)
                return folder
            folder = self._copy_to_read()
        except BaseException:
            self._turn.leave()
            raise
        self._turn.leave()
        return folder

    def _require_same(self) -> None:
        """Refuse another collection in the place of this one."""
        if shard_files.identity_of(self.path / shard_files.SETTINGS) != self.identity:
            raise FolderGoneError(f"another collection is in the place of {self.path}")

    def _is_room_to_open(self, folder: Path) -> bool:
        return shard_files.free_bytes(self.path) >= shard_files.opening_bytes(folder, self.path)

    def _copy_to_read(self) -> Path:
        """Copy the files to the temporary folder: the engine writes beside them even to read."""
        self._private_copy = shard_files.PrivateCopy(self.path, [shard_files.SETTINGS, _UNINDEXED], self._go_on)
        return self._private_copy.folder

    def _leave_turn(self) -> None:
        if self._private_copy is not None:
            self._private_copy.remove()
            self._private_copy = None
        self._turn.leave()

    def _let_go(self) -> None:
        """Close the shard and let others have their turn; whatever fails, they get it."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        try:
            with translated(self.path):
                if self._private_copy is None and not self._is_gone:
                    shard_files.sync_folder(shard_files.current_folder(self.path))
                    self._write_mark()
                engine.close()
        finally:
            del engine
            self._leave_turn()

    def _watch(self) -> None:
        """Let go of the shard when another process waits, and index what is not indexed yet, while nobody calls."""
        while True:
            time.sleep(_GLANCE)
            with self._changed:
                if self._engine is None or self._private_copy is not None:
                    self._watcher = None
                    return
                self._is_wanted = self._turn.is_wanted()  # here, not at each call: it takes as long as half a search
                if not self._in_flight and self._is_turn_over():
                    self._watcher = None
                    try:
                        self._let_go()
                    except StoreError as error:
                        self._failure = error  # the next call raises it
                    self._changed.notify_all()
                    return
                rested = time.monotonic() - max(self._taken, self._written)
                # Between two writes of a load whose embedding takes long, there is no rest.
                is_due = rested > max(_SECONDS_AT_REST, self._build_seconds) and self._is_due(_SHARE_AT_REST)
            if is_due:
                self._index_unasked()

    # --- reading ---------------------------------------------------------------------------------------

    def query(self, requests: Sequence[edge.QueryRequest]) -> list[list[edge.ScoredPoint]]:
        """Run searches together."""
        with self._using() as engine, translated(self.path):
            if len(requests) == 1:
                return [engine.query(requests[0])]
            return engine.query_batch(edge.QueryBatchRequest(list(requests)))

    def retrieve(self, ids: list[Any], with_payload: bool | list[str], with_vectors: bool) -> list[edge.Record]:
        """Return the points of these ids that exist."""
        with self._using() as engine, translated(self.path):
            return engine.retrieve(ids, with_payload, with_vectors)

    def scroll(self, request: edge.ScrollRequest) -> tuple[list[edge.Record], Any]:
        """Return a page of points, and where the next one begins."""
        with self._using() as engine, translated(self.path):
            return engine.scroll(request)

    def count(self, request: edge.CountRequest) -> int:
        """Count points."""
        with self._using() as engine, translated(self.path):
            return engine.count(request)

    def facet(self, request: edge.FacetRequest) -> edge.FacetResponse:
        """Count the points of each value of a field."""
        with self._using() as engine, translated(self.path):
            return engine.facet(request)

    def info(self) -> edge.ShardInfo:
        """Tell what the engine tells."""
        with self._using() as engine, translated(self.path):
            return engine.info()

    def coverage(self) -> Coverage:
        """Tell what the index covers."""
        with self._using():
            return Coverage(self._points, self._unindexed, self._is_worn(), self._is_due(_SHARE_AT_REST))

    # --- writing ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[edge.EdgeShard]:
        """Have the engine's shard, with no write of any other thread of this process within the block.

        No other process has it either, unless this one reads a copy.

        Raises:
            StoreClosedError: The collection was removed, or another one put in its place.
        """
        with self._writing, self._using() as engine:
            with translated(self.path):
                self._require_in_place()
            yield engine

    @contextlib.contextmanager
    def writing(self) -> Iterator[edge.EdgeShard]:
        """Have the same, for one who writes to the collection's own files; no other process has them.

        Raises:
            StoreClosedError: The collection was removed, or another one put in its place.
            StoreFullError: It was opened on a full disk, and the disk still has no room for it.
            StoreReadOnlyError: The store may only be read.
        """
        with translated(self.path):
            self._require_writable()
            self._leave_copy()
        with self.alone() as engine:
            self._require_own_files()
            yield engine

    def write(self, operation: edge.UpdateOperation, *, new: int = 0, moved: int = 0, payload_bytes: int = 0) -> None:
        """Apply an operation; on return it is in the write-ahead log and survives a killed process.

        Args:
            operation: Any.
            new: Points that it writes.
            moved: Points whose payload it changes.
            payload_bytes: About what the payloads take.

        Raises:
            StoreFullError: The disk has no room for it.
            StoreReadOnlyError: The store may only be read.
        """
        # In one block, so that no point slips in between an exchange of shards and its book-keeping.
        with self.writing() as engine, translated(self.path):
            n_bytes = (new + moved) * (self._dimension + _POINT_BYTES) + payload_bytes
            self._require_space(_OPERATION_BYTES + _WRITTEN * n_bytes)
            if self._mark is not None:
                self._mark = None
                shard_files.remove(self.path / _UNINDEXED)
            # Points written twice count twice: an upper bound is all that is needed.
            self._points += new
            self._unindexed = min(self._unindexed + new + moved, self._points)
            failed = True
            try:
                engine.update(operation)
                failed = False
            finally:
                indexing = self._indexing
                if indexing is not None:
                    indexing.log.append(Logged(operation, new + moved, failed))
                    indexing.log_bytes += n_bytes + 4 * new * self._dimension
                self._count()
                self._written = time.monotonic()
            self._unflushed += new + moved
            if self._unflushed > _MOST_UNFLUSHED and indexing is None:
                self._unflushed = 0
                engine.flush()
        if indexing is not None and indexing.log_bytes > _MOST_LOGGED_BYTES:
            indexing.wait()
        elif new and self._is_due(_SHARE_WHILE_WRITING):
            self._index_unasked()

    def flush(self) -> None:
        """Write everything to disk, so that it survives a loss of power too."""
        with self.alone() as engine, translated(self.path):
            if self._private_copy is None:
                shard_files.sync_folder(shard_files.current_folder(self.path))  # lets other threads run, unlike flush
                engine.flush()

    def _require_writable(self) -> None:
        if self.is_read_only:
            raise StoreReadOnlyError(
                f"the index {self.path} was opened to be read: with read_only=True, or because its folder cannot be "
                "written to. Copy it with copy_to, or export it, to where it can"
            )

    def _require_own_files(self) -> None:
        """Refuse to write to a copy."""
        self._require_writable()
        if self._private_copy is not None:
            with translated(self.path):
                self._require_room_to_open()
            raise StoreError(f"the index {self.path} was opened on a full disk, where there is room now; try again")

    def _require_in_place(self) -> None:
        """Refuse to go on with what is not the collection any more."""
        if self._turn.is_gone() if self._private_copy is None else not self.is_there():
            self._is_gone = True
            self.require_open()

    def _leave_copy(self) -> None:
        """If the shard was opened on a full disk, from a copy, have it opened anew, now that it is to be written to."""
        if self._private_copy is not None:
            if not self.path.exists():
                self.mark_gone()
            self.require_open()
            self._require_room_to_open()
            with self._changed:
                self._changed.wait_for(lambda: not self._in_flight and not self._is_busy)
                self._let_go()

    def _require_room_to_open(self) -> None:
        folder = shard_files.current_folder(self.path)
        self._require_space(_OPERATION_BYTES + shard_files.opening_bytes(folder, self.path))

    def _require_space(self, needed: int) -> None:
        shard_files.require_space(self.path, needed, f"this write to the index {self.path}")

    def _count(self) -> None:
        """Count the points, and those that indexes were built over, whatever has become of them since."""
        assert self._engine is not None
        info = self._engine.info()
        self._points, self._indexed = info.points_count, info.indexed_vectors_count
        self._unindexed = min(self._unindexed, self._points)

    def _read_mark(self) -> None:
        """Learn how many points the index lacks, and whether another process has written."""
        mark: str | None = None
        unindexed = self._points
        copy = self._private_copy
        path = self.path / _UNINDEXED if copy is None else copy.path_of(_UNINDEXED)
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):  # a killed process leaves none, or no more
            text = path.read_text("ascii")
            unindexed = int(text.split()[0])
            mark = text
        if self._indexing is not None and (mark is None or mark != self._mark):
            self._indexing.is_stale = True
            self._indexing.give_up()
        self._mark = mark
        self._unindexed = min(unindexed, self._points)

    def _write_mark(self) -> None:
        """Record how many points the index lacks, until something is written; a new mark for each such state."""
        if self._mark is not None or self._private_copy is not None:
            return
        mark = f"{self._unindexed} {secrets.token_hex(8)}"
        with contextlib.suppress(OSError):  # without one, as many as can be are believed to be not indexed
            shard_files.write_safely(self.path / _UNINDEXED, mark)
            self._mark = mark

    # --- indexing --------------------------------------------------------------------------------------

    def optimize(self) -> None:
        """Index everything written so far, and return when that is done.

        Raises:
            StoreFullError: The disk has no room for the copy that is indexed.
            StoreError: It failed, or the store was closed; the index is as it was.
        """
        self._require_writable()
        self._leave_copy()
        if not Indexing.is_possible():
            self._optimize_here()
            return
        running = self._indexing
        if running is not None:  # it may have begun before the last write
            running.wait()
        if not self._lacks_something():
            return
        indexing = self._start_indexing()
        indexing.wait()
        if indexing.is_stale:  # another process wrote meanwhile, and might again
            with self._pinned():
                indexing = self._start_indexing()
                indexing.wait()
        if indexing.error is not None:
            raise indexing.error
        self._failures = 0
        with self._changed:
            if not indexing.is_adopted:
                self.require_open()

    def _lacks_something(self) -> bool:
        """Tell whether there is anything that an index would change."""
        with self._using():
            return max(self._unindexed, self._gone()) > self._leftover

    def _optimize_here(self) -> None:
        with self._writing, self._using() as engine, translated(self.path):
            self._require_in_place()
            self._require_space(self._indexing_bytes())
            engine.optimize()
            engine.flush()
            self._unindexed = min(self._unindexed, self._leftover)
            self._count()
            self._mark = None
            self._write_mark()

    def _indexing_bytes(self) -> int:
        folder = shard_files.current_folder(self.path)
        opening = shard_files.opening_bytes(folder, self.path)
        return opening + int(_INDEXING_SPACE * shard_files.used_bytes(folder))

    def _index_unasked(self) -> None:
        """Begin to index beside other work; where that fails again and again, try it less and less often.

        What is not indexed is found all the same, so who searches or writes has nothing to do with it.
        """
        wait = min(_LONGEST_REST, _SECONDS_AT_REST * 2**self._failures)
        if self._indexing is not None or not Indexing.is_possible():
            return
        if self._failures and time.monotonic() - self._failed < wait:
            return
        try:
            self._start_indexing()
        except StoreClosedError:
            return
        except StoreError as error:
            self._heed_failure(error)

    def _heed_failure(self, error: BaseException) -> None:
        self._failed = time.monotonic()
        self._failures += 1
        if self._failures == 1:
            _log.warning("%s. It is tried again, less and less often; until then, searches are slower", error)

    def _start_indexing(self) -> Indexing:
        """Copy the shard and begin to index the copy; what is written from now on is written to that as well."""
        # Pinned rather than in flight: while the files are copied, searches go on.
        with self._writing, self._pinned(), translated(self.path):
            if self._indexing is not None:
                return self._indexing
            self._require_own_files()
            self._require_in_place()
            self._require_space(self._indexing_bytes())
            workplace = shard_files.Workplace(self.path)
            try:
                shard_files.copy_folder(shard_files.current_folder(self.path), workplace.folder, self._go_on)
                with self._changed:
                    self.require_open()
                    self._write_mark()  # what tells whether another process writes, should it get its turn
                    indexing = self._indexing = Indexing(workplace)
                threading.Thread(
                    target=self._index, args=(indexing,), name="pplx-vectorstore index", daemon=True
                ).start()
            except BaseException:
                self._indexing = None
                workplace.leave(keep=False)
                raise
        return indexing

    def _index(self, indexing: Indexing) -> None:
        started = time.monotonic()
        try:
            if indexing.build():
                self._adopt(indexing)
                self._build_seconds = time.monotonic() - started
        except BaseException as error:  # noqa: BLE001 - raised where the index is waited for
            if not indexing.is_given_up:
                indexing.error = error
                self._heed_failure(error)
        finally:
            with self._writing:
                if self._indexing is indexing:
                    self._indexing = None
            indexing.workplace.leave(keep=indexing.is_adopted)
            indexing.ended.set()

    def _adopt(self, indexing: Indexing) -> None:
        """Have the indexed copy take the shard's place, with all that was written meanwhile."""
        with self._pinned(), translated(self.path):
            if indexing.is_stale or self._private_copy is not None:
                return
            engine = _load(indexing.folder)
            try:
                done = 0
                while len(indexing.log) - done > _FEW_LOGGED:
                    done = _replay(engine, indexing, done)
                shard_files.sync_folder(indexing.folder, indexing.require_wanted)
                with self._writing:
                    self._require_own_files()
                    self._require_in_place()
                    _replay(engine, indexing, done)
                    shard_files.sync_folder(indexing.folder, indexing.require_wanted)
                    engine.flush()
                    old = self._exchange(engine, indexing)
            except BaseException:
                engine.close()
                raise
            del engine
        old_folder, old_engine = old
        old_engine.close()
        shutil.rmtree(old_folder, ignore_errors=True)

    def _exchange(self, engine: edge.EdgeShard, indexing: Indexing) -> tuple[Path, edge.EdgeShard]:
        """Put a shard in the place of the one before, and return that."""
        with self._changed:
            self._is_busy = True
            try:
                self._changed.wait_for(lambda: not self._in_flight)
                indexing.require_wanted()
                assert self._engine is not None  # it is pinned
                old = shard_files.current_folder(self.path), self._engine
                shard_files.remove(self.path / _UNINDEXED)
                shard_files.make_current(self.path, indexing.folder)
                self._engine = engine
                indexing.is_adopted = True
                self._mark = None
                # Whatever was written twice: a segment that is left without an index is below the threshold.
                self._unindexed = self._leftover + sum(logged.new for logged in indexing.log)
                self._count()
                self._write_mark()
                self._indexing = None
            finally:
                self._is_busy = False
                self._changed.notify_all()
        return old

    def hold_indexing(self) -> Callable[[], None]:
        """Index nothing unasked until what this returns is called.

        In a process that is forked meanwhile, nothing is held back, and the call does nothing.
        """
        hold = object()

        def resume() -> None:
            with self._changed:
                self._holds.discard(hold)

        with self._changed:
            self._holds.add(hold)
        return resume

    def _is_due(self, share: float) -> bool:
        if self._holds:
            return False
        if self._points * self._dimension <= _WALKED_BYTES and not self._is_worn():
            return False
        return self._unindexed > max(self._leftover, share * self._points) or self._is_worn()

    def _is_worn(self) -> bool:
        return self._gone() > _MOST_WORN * self._indexed and self._indexed * self._dimension > _WALKED_BYTES

    def _gone(self) -> int:
        """Return how many of the points that indexes were built over are not in them any more, at most."""
        return self._indexed - (self._points - self._unindexed)

    # --- the end ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the files; what is not indexed yet is left to another opening."""
        with self._changed:
            self._is_closed = True
            indexing = self._indexing
        if indexing is not None:
            indexing.give_up()
            indexing.ended.wait()
        with self._writing, self._changed:
            # A call that is under way holds up this thread too; what is left of an interrupted one must not, forever.
            self._changed.wait_for(lambda: not self._in_flight and not self._is_busy, timeout=_LONGEST_CALL)
            self._let_go()

    def retire(self) -> None:
        """Close it for all who use it, since it will not be where it is."""
        self.close()
        self.mark_gone()

    def is_gone(self) -> bool:
        """Tell whether the folder was removed, or another one put in its place, since this was opened."""
        with self._changed:
            if not self._is_busy and self._private_copy is None and not self.is_there():
                self._is_gone = True
        return self._is_gone

    def is_there(self) -> bool:
        """Tell whether the collection is what has the name now, which a copy may be read for longer.

        What cannot be looked at is taken to be as it was.
        """
        try:
            return (
                not self._turn.is_gone() and shard_files.identity_of(self.path / shard_files.SETTINGS) == self.identity
            )
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    @property
    def settings_file(self) -> Path:
        """Where what the collection is stands: beside what is read of it."""
        copy = self._private_copy
        return self.path / shard_files.SETTINGS if copy is None else copy.path_of(shard_files.SETTINGS)

    def mark_gone(self) -> None:
        """Tell all users of this process that the collection was removed, or another one put in its place."""
        with self._changed:
            self._is_gone = True

    def folders(self) -> Iterator[Path]:
        """Yield where its files may be: the folder may be a link, or have moved since its files were opened."""
        yield Path(os.path.realpath(self.path))
        moved_to = self._turn.folder()
        if moved_to is not None:
            yield moved_to

    def forget(self) -> None:
        """Leave the open shard to the process that this one was forked from, and take turns with it from now on.

        What threads of that process had open besides is to be closed after this, since it has locks.
        """
        if self._engine is not None:
            leave_to_the_other(self._engine)  # it has threads, which are not here, and files of the other
        indexing, copy = self._indexing, self._private_copy
        self._become_unopened()
        if indexing is not None:
            indexing.forget()
        if copy is not None:
            copy.forget()
        self._turn.leave()


def _load(folder: Path) -> edge.EdgeShard:
    shard_files.read_ahead(folder)
    return edge.EdgeShard.load(str(folder))


def _replay(engine: edge.EdgeShard, indexing: Indexing, done: int) -> int:
    """Apply what is in the log from `done` on; return how much of it is applied."""
    end = len(indexing.log)
    unflushed = 0
    for logged in indexing.log[done:end]:
        indexing.require_wanted()
        try:
            engine.update(logged.operation)
        except Exception:
            if not logged.failed:  # else it fails again, after as much of it
                raise
        time.sleep(0)  # other threads run between two of them
        unflushed += logged.new
        if unflushed > _MOST_UNFLUSHED:
            unflushed = 0
            engine.flush()
    return end


_DAMAGED = ". If it cannot be opened again and again, it is damaged: put a copy of it back, or index into a new folder"


@contextlib.contextmanager
def translated(path: Path, way_out: str = "") -> Iterator[None]:
    """Turn the engine's errors into ours, which end in a way out; it raises bare Exception for all of them."""
    try:
        yield
    except (StoreError, InvalidInputError, GivenUpError):
        raise
    except Exception as error:
        if "WouldBlock" in str(error):
            raise StoreLockedError(f"the index {path} is in use by another program; close it there first") from error
        raise StoreError(f"the engine failed on {path}: {error}{way_out}") from error


_shards: dict[tuple[Path, bool], Shard] = {}
_all: weakref.WeakSet[Shard] = weakref.WeakSet()
_registering = threading.Lock()


def share_shard(path: Path, identity: str | None, dimension: int, *, read_only: bool) -> Shard:
    """Return the shard of a collection that all of this process share; give it back with `leave_shard`.

    Args:
        path: The collection's folder.
        identity: What tells the collection from others that have its name later.
        dimension: Components of its vectors.
        read_only: Whether to read a copy of it.
    """
    gone: Shard | None = None
    with _registering:
        shard = _shards.get((path, read_only))
        if shard is not None and shard.is_gone():
            gone, shard = shard, None
        if shard is not None and shard.identity != identity:  # a copy, which others read on
            shard = None
        if shard is None:
            shard = Shard(path, identity, dimension, read_only=read_only)
            _all.add(shard)  # first, so that a process forked meanwhile does not believe it to be its own
            _shards[path, read_only] = shard
        shard.users += 1
    if gone is not None:
        gone.close()
    return shard


def leave_shard(shard: Shard) -> None:
    """Give a shard back; the last one closes it."""
    with _registering:
        shard.users -= 1
        if shard.users:
            return
        for key in [key for key, one in _shards.items() if one is shard]:
            del _shards[key]
    shard.close()


def _forget_all() -> None:
    global _registering
    _registering = threading.Lock()
    shards = list(_all)
    with contextlib.ExitStack() as stack:  # whatever fails, all are forgotten, and all files closed
        # Not before all have closed what they know of: those of one folder would find their files closed by another.
        folders: set[Path] = set()
        stack.callback(shard_files.close_inherited, folders)
        for shard in shards:
            stack.callback(shard.forget)
        for shard in shards:
            folders.update(shard.folders())


@atexit.register
def _close_all() -> None:
    with contextlib.suppress(StoreError), contextlib.ExitStack() as stack:  # whatever fails, all are closed
        for shard in list(_all):
            stack.callback(shard.close)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
