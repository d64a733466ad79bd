"""Qdrant's engine in this process, behind the verbs of ``QdrantClient`` that the store uses.

On disk::

    FOLDER/
      <collection>/
        collection.json     vector settings and metadata; written last, and replaced whole
        current             which of the folders below is the current one; absent until the first index
        unindexed           most points that the index lacks; absent while somebody writes
        lock, waiting, holder   whose turn it is to have the files, of several processes
        shard/, shard-…/    the engine's own files: the current ones, and a copy while it is indexed
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import qdrant_edge as edge

from pplx_vectorstore.collection import TEXT_FIELD
from pplx_vectorstore.engines import shard_files
from pplx_vectorstore.engines.folder_turns import DEFAULT_TURN_TIMEOUT
from pplx_vectorstore.engines.shard import (
    INDEXING_THRESHOLD_KB,
    Coverage,
    Shard,
    leave_shard,
    share_shard,
    translated,
)
from pplx_vectorstore.engines.translation import (
    edge_filter,
    edge_payload_schema,
    edge_payload_selector,
    edge_query,
    edge_vector_params,
    payload_schema_type,
)
from pplx_vectorstore.errors import (
    InvalidInputError,
    StoreClosedError,
    StoreError,
    StoreNotFoundError,
    StoreReadOnlyError,
)
from pplx_vectorstore.forked import renew_when_forked
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.qdrant.conversion import as_ours

if TYPE_CHECKING:
    from types import TracebackType

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CONFIG = "config.toml"  # of the command line
_TEMPORARY = ".creating-"
_DELETED = ".deleted-"
_ABANDONED_SECONDS = 60
_MOST_TRIES = 20
_EMPTY_BYTES = 2**22

# Points that are deleted or changed at once: the engine lets no other thread run meanwhile.
_AT_ONCE = 256


class FoundPoint(NamedTuple):
    """What a search reads of ``qdrant_client.models.ScoredPoint``, which takes ten times as long to make."""

    id: str
    score: float
    payload: dict[str, Any]
    vector: Any = None


class Found(NamedTuple):
    """The points that one query found, best first."""

    points: list[FoundPoint]


class EdgeClient:
    """Collections of a folder, each one shard of the embedded engine.

    Threads may share a client, and clients of one process share a collection. Processes take turns: one that has a
    collection lets go of it, between two calls, when another waits. A forked process becomes one more of them.

    A call means the collection that has the name now, or, of what is read from a copy, had it when that was made. A
    store keeps to the one that it has opened: see `bound`.

    Args:
        folder: Where the collections live; created when the first one is. A relative path is meant from the folder
            that is the current one now.
        timeout: Seconds to wait for another process to let go of a collection.
        read_only: Whether to read only, from a copy in the temporary folder; so also where nothing can be written.

    Raises:
        StoreNotFoundError: The folder holds other things than collections.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, timeout: float = DEFAULT_TURN_TIMEOUT, read_only: bool = False
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise InvalidInputError(f"timeout must be a number of seconds, 0 or more, not {timeout!r}")
        self.folder = Path(folder).resolve()  # once: the current folder may change
        self.read_only = read_only
        self._timeout = float(timeout)
        self._open: dict[str, Shard] = {}
        self._renew_locks()
        self._closed = False
        self._superseded: list[Shard] = []  # copies that are read on by those who opened them
        self._bound: weakref.WeakSet[BoundClient] = weakref.WeakSet()
        self._callers = threading.local()
        renew_when_forked(self, EdgeClient._renew_locks)
        weakref.finalize(self, _leave_later, self._open, self._superseded).atexit = False
        if self.folder.exists():
            self._require_collections()

    def _renew_locks(self) -> None:
        self._lock = threading.Lock()
        self._creating = threading.Lock()

    def bound(self) -> BoundClient:
        """Return what calls this client for one store."""
        client = BoundClient(self)
        self._bound.add(client)
        return client

    @contextlib.contextmanager
    def keeping_to(self, opened: dict[str, Shard]) -> Iterator[None]:
        """Have this thread's calls mean, within the block, the collections that were opened, and note new ones."""
        before = getattr(self._callers, "opened", None)
        self._callers.opened = opened
        try:
            yield
        finally:
            self._callers.opened = before

    def collection_names(self) -> list[str]:
        """Return the collections of the folder, sorted."""
        return sorted(path.parent.name for path in self.folder.glob(f"[!.]*/{shard_files.SETTINGS}"))

    def collection_exists(self, collection_name: str) -> bool:
        """Tell whether the collection was created; a creation cut short does not count."""
        return (self._path(collection_name) / shard_files.SETTINGS).is_file()

    def is_gone(self, collection_name: str) -> bool:
        """Tell whether the collection was removed, or another one put in its place, since this client opened it."""
        opened = getattr(self._callers, "opened", None)
        shard = (self._open if opened is None else opened).get(collection_name)
        return shard is not None and (shard.is_gone() or not shard.is_there())

    def create_collection(
        self,
        collection_name: str,
        *,
        vectors_config: Mapping[str, models.VectorParams],
        metadata: Mapping[str, Any],
    ) -> bool:
        """Create a collection, wholly or, when killed, not at all.

        Raises:
            StoreError: It exists already.
        """
        self._require_writable(collection_name)
        with self._creating:
            return self._create(collection_name, vectors_config, metadata)

    def _create(
        self, collection_name: str, vectors_config: Mapping[str, models.VectorParams], metadata: Mapping[str, Any]
    ) -> bool:
        path = self._path(collection_name)
        if self.collection_exists(collection_name):
            raise StoreError(f"collection {collection_name!r} exists already in {self.folder}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"an index cannot be made in {self.folder}: {error}") from error
        shard_files.require_space(self.folder, _EMPTY_BYTES, f"a new collection in {self.folder}")
        self._remove_half_created()
        config = edge.EdgeConfig(
            vectors={name: edge_vector_params(params) for name, params in vectors_config.items()},
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=INDEXING_THRESHOLD_KB),
        )
        settings = {
            "id": secrets.token_hex(16),
            "vectors": {name: as_ours(params).model_dump() for name, params in vectors_config.items()},
            "metadata": dict(metadata),
        }
        try:
            new = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        except OSError as error:
            raise StoreError(f"collection {collection_name!r} cannot be created in {self.folder}: {error}") from error
        with translated(path):
            edge.EdgeShard.create(str(new / shard_files.FIRST), config).close()
        shard_files.keep_log_short(new / shard_files.FIRST)
        shard_files.remove_log(new / shard_files.FIRST)
        shard_files.write_safely(new / shard_files.SETTINGS, json.dumps(settings, indent=2))
        try:
            new.rename(path)
        except OSError as error:
            shutil.rmtree(new)
            raise StoreError(f"collection {collection_name!r} cannot be created in {self.folder}: {error}") from error
        return True

    def get_collection(self, collection_name: str) -> models.CollectionInfo:
        """Return settings, metadata and the number of points.

        Raises:
            StoreClosedError: The collection was removed, or another one put in its place, since this client opened it.
        """
        opened = getattr(self._callers, "opened", None)
        is_relied_on = opened is not None and collection_name in opened
        for _ in range(_MOST_TRIES):
            shard = self._shard(collection_name)
            try:
                info = shard.info()
                settings = _read_settings(shard.settings_file)
                if settings["id"] == shard.identity:
                    break
                shard.mark_gone()
            except (StoreClosedError, StoreNotFoundError):
                if not shard.is_gone() or not self.collection_exists(collection_name):
                    raise
            if is_relied_on:
                shard.mark_gone()
                shard.require_open()
            if opened is not None:
                opened.pop(collection_name, None)
        else:
            raise StoreError(f"{self._path(collection_name)} is another collection each time that it is opened")
        return models.CollectionInfo(
            points_count=info.points_count,
            indexed_vectors_count=info.indexed_vectors_count,
            segments_count=info.segments_count,
            payload_schema={
                field: models.PayloadIndexInfo(data_type=payload_schema_type(index.data_type), points=index.points)
                for field, index in info.payload_schema.items()
            },
            config=models.CollectionConfig(
                params=models.CollectionParams(vectors=settings["vectors"]),
                metadata=settings["metadata"],
            ),
        )

    def update_collection(self, collection_name: str, *, metadata: Mapping[str, Any]) -> bool:
        """Add to a collection's metadata, key by key; when killed, wholly or not at all.

        What other threads and processes add meanwhile stays.

        Raises:
            StoreClosedError: The collection was removed, or another one put in its place, since this client opened it.
            StoreReadOnlyError: The client, or the folder, may only be read.
            StoreError: The file cannot be written.
        """
        path = self._path(collection_name) / shard_files.SETTINGS
        with self._shard(collection_name, to_write=True).writing():
            settings = self._settings(collection_name)
            changed = {
                **({} if settings["id"] is None else {"id": settings["id"]}),
                "vectors": {name: params.model_dump() for name, params in settings["vectors"].items()},
                "metadata": {**settings["metadata"], **metadata},
            }
            try:
                shard_files.write_safely(path, json.dumps(changed, indent=2))
            except OSError as error:
                raise StoreError(f"{path} cannot be changed: {error}") from error
        return True

    def delete_collection(self, collection_name: str) -> bool:
        """Delete a collection; other stores of it are told so at their next call. Returns whether there was one."""
        self._require_writable(collection_name)
        if not self.collection_exists(collection_name):
            return False
        with self._taken_away(collection_name):
            pass
        return True

    def replace_collection(self, collection_name: str, *, by: str) -> None:
        """Give a collection the name of another one, which is deleted, if there is one.

        When killed, that was done, or not, or the name is free and the new collection is still there.
        """
        self._require_writable(collection_name)
        if not self.collection_exists(by):
            raise StoreNotFoundError(f"there is no collection {by!r} in {self.folder}")
        shard = self._shard(by, to_write=True)
        shard.retire()
        self._leave(by, shard)
        with self._taken_away(collection_name):
            try:
                self._path(by).rename(self._path(collection_name))
            except OSError as error:
                raise StoreError(f"{self._path(by)} cannot be renamed: {error}") from error

    @contextlib.contextmanager
    def _taken_away(self, collection_name: str) -> Iterator[None]:
        """Have no collection of this name within the block; what had it is back after an error, or else deleted."""
        if not self.collection_exists(collection_name):
            yield
            return
        path, old = self._path(collection_name), self.folder / f"{_DELETED}{secrets.token_hex(8)}"
        shard = self._shard(collection_name, to_write=True)
        with shard.alone():  # no other thread or process is in the midst of writing
            try:
                path.rename(old)
            except OSError as error:
                raise StoreError(f"{path} cannot be deleted: {error}") from error
            try:
                yield
            except BaseException:
                try:
                    _put_back(old, path)
                except StoreError:
                    shard.mark_gone()
                    raise
                raise
            shard.mark_gone()
        self._leave(collection_name, shard)
        shutil.rmtree(old, ignore_errors=True)  # what is left is left for the next one who creates a collection

    def _leave(self, collection_name: str, shard: Shard) -> None:
        """Give a collection's shard back, if this client uses it still."""
        with self._lock:
            is_used = self._open.get(collection_name) is shard
            if is_used:
                del self._open[collection_name]
        if is_used:
            shard.is_gone()  # so that nothing is written into a folder that has taken its place
            leave_shard(shard)

    def create_payload_index(self, collection_name: str, field_name: str, field_schema: Any) -> None:
        """Index a payload field: by a type such as "keyword", or by index parameters."""
        operation = edge.UpdateOperation.create_field_index(field_name, edge_payload_schema(field_schema))
        self._shard(collection_name, to_write=True).write(operation)

    def upsert(self, collection_name: str, points: Sequence[models.PointStruct]) -> None:
        """Write points; on return they are in the write-ahead log and survive a killed process."""
        shard = self._shard(collection_name, to_write=True)
        converted = [edge.Point(point.id, point.vector, point.payload) for point in points]
        payload_bytes = sum(len(str((point.payload or {}).get(TEXT_FIELD, ""))) for point in points)
        shard.write(edge.UpdateOperation.upsert_points(converted), new=len(converted), payload_bytes=payload_bytes)

    def delete(self, collection_name: str, points_selector: models.FilterSelector | models.PointIdsList) -> None:
        """Delete points by filter or by ids."""
        shard = self._shard(collection_name, to_write=True)
        selector = as_ours(points_selector)
        if isinstance(selector, models.FilterSelector):
            pages = _matching(shard, edge_filter(selector.filter))
        else:
            pages = _some_at_once(selector.points)
        for ids in pages:
            shard.write(edge.UpdateOperation.delete_points(ids))

    def set_payload(self, collection_name: str, payload: Mapping[str, Any], points: Sequence[str]) -> None:
        """Set these payload fields of the points of these ids; other fields stay."""
        shard = self._shard(collection_name, to_write=True)
        for ids in _some_at_once(points):
            shard.write(edge.UpdateOperation.set_payload(ids, dict(payload)), moved=len(ids))

    def batch_update_points(
        self,
        collection_name: str,
        update_operations: Sequence[models.UpsertOperation | models.DeleteOperation | models.SetPayloadOperation],
    ) -> None:
        """Write points, delete some by filter, or set payload fields of lots of points; one after the other."""
        for given in update_operations:
            operation = as_ours(given)
            if isinstance(operation, models.UpsertOperation):
                self.upsert(collection_name, operation.upsert.points)
                continue
            if isinstance(operation, models.DeleteOperation):
                self.delete(collection_name, operation.delete)
                continue
            change = operation.set_payload
            if change.filter is None:
                self.set_payload(collection_name, payload=change.payload, points=change.points or [])
                continue
            shard = self._shard(collection_name, to_write=True)
            for ids in _matching(shard, edge_filter(change.filter)):
                shard.write(edge.UpdateOperation.set_payload(ids, change.payload), moved=len(ids))

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[str],
        *,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        """Return the points of these ids that exist, in no order."""
        found = self._shard(collection_name).retrieve(list(ids), edge_payload_selector(with_payload), with_vectors)
        return [_record(point) for point in found]

    def scroll(
        self,
        collection_name: str,
        *,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        offset: str | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> tuple[list[models.Record], str | None]:
        """Return a page of points ordered by id, and the id that the next page starts with."""
        request = edge.ScrollRequest(
            offset=offset,
            limit=limit,
            filter=None if scroll_filter is None else edge_filter(scroll_filter),
            with_payload=edge_payload_selector(with_payload),
            with_vector=with_vectors,
        )
        points, after = self._shard(collection_name).scroll(request)
        return [_record(point) for point in points], None if after is None else str(after)

    def count(
        self, collection_name: str, *, count_filter: models.Filter | None = None, exact: bool = True
    ) -> models.CountResult:
        """Count points that match a filter."""
        request = edge.CountRequest(filter=None if count_filter is None else edge_filter(count_filter), exact=exact)
        return models.CountResult(count=self._shard(collection_name).count(request))

    def facet(
        self,
        collection_name: str,
        key: str,
        *,
        facet_filter: models.Filter | None = None,
        limit: int = 10,
        exact: bool = True,
    ) -> models.FacetResponse:
        """Count the points of each value of an indexed field, most frequent first."""
        request = edge.FacetRequest(
            key, limit, exact, filter=None if facet_filter is None else edge_filter(facet_filter)
        )
        response = self._shard(collection_name).facet(request)
        # The engine remembers, with a count of 0, values whose points were all deleted.
        return models.FacetResponse(
            hits=[models.FacetValueHit(value=hit.value, count=hit.count) for hit in response.hits if hit.count]
        )

    def query_batch_points(self, collection_name: str, requests: Sequence[models.QueryRequest]) -> list[Found]:
        """Run searches together."""
        with translated(self.folder):
            converted = [edge_query(request) for request in requests]
        results = self._shard(collection_name).query(converted)
        return [
            Found([FoundPoint(str(hit.id), hit.score, hit.payload or {}, hit.vector) for hit in hits])
            for hits in results
        ]

    def coverage(self, collection_name: str) -> Coverage:
        """Tell how many points there are, and how many of them the index does not cover."""
        return self._shard(collection_name).coverage()

    def optimize(self, collection_name: str) -> None:
        """Build the index over everything written so far."""
        self._shard(collection_name, to_write=True).optimize()

    def hold_indexing(self, collection_name: str, *, held: list[Callable[[], None]]) -> None:
        """Index nothing unasked, until `resume_indexing` is called with the same list."""
        held.append(self._shard(collection_name, to_write=True).hold_indexing())

    def resume_indexing(self, collection_name: str, *, held: list[Callable[[], None]]) -> None:
        """End what `hold_indexing` began, whether or not this client was closed meanwhile."""
        while held:
            held.pop()()

    def pin(self, collection_name: str, *, pinned: list[Callable[[], None]]) -> None:
        """Keep other processes from the collection, until `unpin` is called with the same list, which tells of it.

        What a call returns is lost where its awaiter is cancelled.
        """
        pinned.append(self._shard(collection_name, to_write=True).pin())

    def unpin(self, collection_name: str, *, pinned: list[Callable[[], None]]) -> None:
        """Let other processes have the collection again, whether or not this client was closed meanwhile."""
        while pinned:
            pinned.pop()()

    def flush(self, collection_name: str) -> None:
        """Write everything to disk, so that it survives a loss of power too."""
        self._shard(collection_name).flush()

    def close(self) -> None:
        """Let go of the files; what is not indexed yet is left to another opening."""
        with self._lock:
            self._closed = True
            with contextlib.ExitStack() as stack:  # whatever fails, all of them are given back
                while self._open:
                    stack.callback(leave_shard, self._open.popitem()[1])
                while self._superseded:
                    stack.callback(leave_shard, self._superseded.pop())

    def __enter__(self) -> EdgeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, collection_name: str) -> Path:
        if not isinstance(collection_name, str) or not _NAME.fullmatch(collection_name):
            raise InvalidInputError(
                "a collection's name must be 1 to 128 letters, digits, '_', '-' or '.', and not start with "
                f"'.' or '-'; {collection_name!r} came"
            )
        return self.folder / collection_name

    def _require_collections(self) -> None:
        if not self.folder.is_dir():
            raise StoreNotFoundError(f"{self.folder} is a file; an index is a folder")
        # What another process renames while it is listed is there the next time.
        others = self._others() and self._others() & self._others()
        if others:
            raise StoreNotFoundError(
                f"{self.folder} is not an index: it holds {min(others)!r}. Give an empty or new folder"
            )

    def _others(self) -> set[str]:
        """Return what is no collection."""
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(".") and path.name != _CONFIG}
        return {name for name in names if not (self.folder / name / shard_files.SETTINGS).is_file()}

    def _remove_half_created(self) -> None:
        for path in (*self.folder.glob(f"{_TEMPORARY}*"), *self.folder.glob(f"{_DELETED}*")):
            # Creating takes milliseconds; what is this old was left by a killed process.
            with contextlib.suppress(FileNotFoundError):  # its maker has just finished
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _settings(self, collection_name: str) -> dict[str, Any]:
        return _read_settings(self._path(collection_name) / shard_files.SETTINGS)

    def _require_writable(self, collection_name: str) -> None:
        if self.read_only:
            raise StoreReadOnlyError(
                f"the index {self._path(collection_name)} was opened with read_only=True; open it without to write"
            )

    def _shard(self, collection_name: str, *, to_write: bool = False) -> Shard:
        if to_write:
            self._require_writable(collection_name)
        opened = getattr(self._callers, "opened", None)
        if opened is None:
            shard = self._current(collection_name)
        else:
            shard = opened.get(collection_name)
            if shard is None:
                shard = opened[collection_name] = self._current(collection_name, anew=True)
            else:
                self._require_open()
        shard.wait_at_most(self._timeout)
        return shard

    def _current(self, collection_name: str, *, anew: bool = False) -> Shard:
        """Return the shard of what has the name now; anew, not a copy of what had it before."""
        shard = self._open.get(collection_name)
        if shard is not None and shard.is_gone():
            self._leave(collection_name, shard)
            shard = None
        if shard is not None and not anew:
            return shard
        with self._lock:
            self._require_open()
            shard = self._open.get(collection_name)
            settings = self._settings(collection_name)
            unused: list[Shard] = []
            if shard is not None and shard.identity != settings["id"]:
                self._superseded.append(shard)
                unused = [one for one in self._superseded if not any(client.uses(one) for client in list(self._bound))]
                self._superseded[:] = [one for one in self._superseded if one not in unused]
                shard = None
            if shard is None:
                dimension = max(params.size for params in settings["vectors"].values())
                shard = self._open[collection_name] = share_shard(
                    self._path(collection_name), settings["id"], dimension, read_only=self.read_only
                )
        for one in unused:
            leave_shard(one)
        return shard

    def _require_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the index {self.folder} was closed; open it again")


class BoundClient:
    """Calls a client for one store, which keeps to the collections that it has opened.

    Once another one has taken the place of such a collection, calls raise `StoreClosedError`; else vectors of one model
    would be written beside those of another.

    Args:
        client: Whose verbs are called. It keeps open what the store has opened.
    """

    def __init__(self, client: EdgeClient) -> None:
        self._client = client
        self._opened: dict[str, Shard] = {}

    def uses(self, shard: Shard) -> bool:
        """Tell whether the store has opened this one."""
        return shard in list(self._opened.values())

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return functools.partial(self._call, value) if callable(value) else value

    def _call(self, verb: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self._client.keeping_to(self._opened):
            return verb(*arguments, **options)


def _put_back(old: Path, path: Path) -> None:
    """Give a collection its name again, or, where another one has taken it, a name that nobody removes."""
    try:
        old.rename(path)
    except OSError as error:
        kept = path.with_name(f"{path.name[:100]}.kept-{secrets.token_hex(4)}")
        try:
            old.rename(kept)
        except OSError:
            raise StoreError(
                f"{path} cannot be put back ({error}); rename {old} yourself, before it is removed"
            ) from error
        raise StoreError(f"{path} cannot be put back ({error}); it is kept as collection {kept.name!r}") from error


def _some_at_once(ids: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield list(ids[start : start + _AT_ONCE])


def _matching(shard: Shard, condition: edge.Filter) -> Iterator[list[Any]]:
    """Yield the ids of the points that match, some at a time, which may be deleted meanwhile."""
    offset = None
    while True:
        request = edge.ScrollRequest(
            offset=offset, limit=_AT_ONCE, filter=condition, with_payload=False, with_vector=False
        )
        points, offset = shard.scroll(request)
        if points:
            yield [point.id for point in points]
        if offset is None:
            return


def _record(point: edge.Record) -> models.Record:
    return models.Record(id=str(point.id), payload=point.payload or {}, vector=point.vector)


def _read_settings(path: Path) -> dict[str, Any]:
    """Read what a collection is: its vectors, its metadata, and what tells it from others of its name."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"there is no collection {path.parent.name!r} in {path.parent.parent}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    try:
        read = json.loads(text)
        vectors = {name: _read_vector_params(params) for name, params in read["vectors"].items()}
        settings = {"id": shard_files.identity_in(read), "vectors": vectors, "metadata": dict(read["metadata"])}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} is damaged ({reason}); index the documents into a new folder") from error
    if not vectors:
        raise StoreError(f"{path} is damaged (no vectors); index the documents into a new folder")
    return settings


def _read_vector_params(recorded: Mapping[str, Any]) -> models.VectorParams:
    """Read what `model_dump` wrote, ours or the client's.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: It is nothing of the kind.
    """
    size, memory, datatype = recorded["size"], recorded.get("memory"), recorded.get("datatype")
    if type(size) is not int or size < 1:
        raise ValueError(f"a size of {size!r}")
    graph, quantization = recorded.get("hnsw_config"), recorded.get("quantization_config")
    return models.VectorParams(
        size=size,
        distance=models.Distance(recorded["distance"]),
        hnsw_config=None if graph is None else models.HnswConfigDiff(**graph),
        quantization_config=None
        if quantization is None
        else models.BinaryQuantization(binary=models.BinaryQuantizationConfig(**quantization["binary"])),
        on_disk=recorded.get("on_disk"),
        memory=None if memory is None else models.Memory(memory),
        datatype=None if datatype is None else models.Datatype(datatype),
    )


def _leave_later(shards: dict[str, Shard], superseded: list[Shard]) -> None:
    """Give back what a client had that nobody closed; in a thread, since this one may be in the midst of anything."""

    def leave() -> None:
        for shard in (*shards.values(), *superseded):
            with contextlib.suppress(StoreError):  # nobody is there to be told
                leave_shard(shard)

    if shards or superseded:
        threading.Thread(target=leave, name="pplx-vectorstore closing", daemon=True).start()
