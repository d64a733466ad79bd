"""Qdrant's engine in this process, behind the verbs of ``QdrantClient`` that the store uses.

On disk::

    FOLDER/
      <collection>/
        collection.json     vector settings and metadata; written once, last
        unindexed           most points that the index lacks; present while nobody writes
        lock                locked while a process has the collection open
        shard/              the engine's own files
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import portalocker
import qdrant_edge as edge
from qdrant_client import models

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
    StoreLockedError,
    StoreNotFoundError,
)

if TYPE_CHECKING:
    from types import TracebackType

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SETTINGS = "collection.json"
_UNINDEXED = "unindexed"
_LOCK = "lock"
_TEMPORARY = ".creating-"
_ABANDONED_SECONDS = 60

# The engine leaves a segment without an index below this size (its smallest setting; 0 means never).
_INDEXING_THRESHOLD_KB = 1
# Points written since the last indexing are scanned one by one: 20,000 of them take about a millisecond.
_MOST_UNINDEXED = 20_000
# Indexing rewrites a segment, so it must pay: half of the points during a load, a fiftieth at its end.
_SHARE_WHILE_WRITING = 0.5
_SHARE_AT_CLOSE = 0.02
# Points that are gone from a graph are no longer walked through. With a third of 60,000 gone, recall was 0.996; with
# half, 0.965 to 0.987; with four fifths, 0.6; with all but a twentieth, 0.004 (1,024 dimensions, 100 candidates).
_MOST_WORN = 1 / 3
# Below this size of its codes, a segment is not walked but compared as a whole.
_WALKED_BYTES = 10_000 * 1024


class FoundPoint(NamedTuple):
    """What a search reads of ``qdrant_client.models.ScoredPoint``, which takes ten times as long to make."""

    id: str
    score: float
    payload: dict[str, Any]
    vector: Any = None


class Found(NamedTuple):
    """The points that one query found, best first."""

    points: list[FoundPoint]


class Coverage(NamedTuple):
    """What an index covers.

    Attributes:
        points: That there are.
        unindexed: Most points that the index lacks.
        is_worn: Whether so many of the points that it was built over are gone, or have moved out of it, that walking it
            misses some of the others.
    """

    points: int
    unindexed: int
    is_worn: bool = False


class EdgeClient:
    """Collections of a folder, each one shard of the embedded engine.

    One process can have a collection open at a time. Threads may share a client.

    Args:
        folder: Where the collections live; created when the first one is. A relative path is meant from the folder
            that is the current one now.

    Raises:
        StoreNotFoundError: The folder holds other things than collections.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).resolve()  # once: the current folder may change
        self._open: dict[str, _Shard] = {}
        self._lock = threading.Lock()
        self._creating = threading.Lock()
        self._closed = False
        if self.folder.exists():
            self._require_collections()

    def collection_names(self) -> list[str]:
        """Return the collections of the folder, sorted."""
        return sorted(path.parent.name for path in self.folder.glob(f"[!.]*/{_SETTINGS}"))

    def collection_exists(self, collection_name: str) -> bool:
        """Tell whether the collection was created; a creation cut short does not count."""
        return (self._path(collection_name) / _SETTINGS).is_file()

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
        with self._creating:
            return self._create(collection_name, vectors_config, metadata)

    def _create(
        self, collection_name: str, vectors_config: Mapping[str, models.VectorParams], metadata: Mapping[str, Any]
    ) -> bool:
        path = self._path(collection_name)
        if self.collection_exists(collection_name):
            raise StoreError(f"collection {collection_name!r} exists already in {self.folder}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_half_created()
        config = edge.EdgeConfig(
            vectors={name: edge_vector_params(params) for name, params in vectors_config.items()},
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=_INDEXING_THRESHOLD_KB),
        )
        settings = {
            "vectors": {name: params.model_dump(mode="json") for name, params in vectors_config.items()},
            "metadata": dict(metadata),
        }
        new = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        with _translated(path):
            edge.EdgeShard.create(str(new / "shard"), config).close()
        with (new / _SETTINGS).open("w", encoding="utf-8") as file:
            json.dump(settings, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        try:
            new.rename(path)
        except OSError as error:
            shutil.rmtree(new)
            raise StoreError(f"collection {collection_name!r} cannot be created in {self.folder}: {error}") from error
        return True

    def get_collection(self, collection_name: str) -> models.CollectionInfo:
        """Return settings, metadata and the number of points."""
        settings = self._settings(collection_name)
        info = self._shard(collection_name).info()
        return models.CollectionInfo.model_construct(
            points_count=info.points_count,
            indexed_vectors_count=info.indexed_vectors_count,
            segments_count=info.segments_count,
            payload_schema={
                field: models.PayloadIndexInfo(data_type=payload_schema_type(index.data_type), points=index.points)
                for field, index in info.payload_schema.items()
            },
            config=models.CollectionConfig.model_construct(
                params=models.CollectionParams.model_construct(vectors=settings["vectors"]),
                metadata=settings["metadata"],
            ),
        )

    def create_payload_index(self, collection_name: str, field_name: str, field_schema: Any) -> None:
        """Index a payload field: by a type such as "keyword", or by index parameters."""
        operation = edge.UpdateOperation.create_field_index(field_name, edge_payload_schema(field_schema))
        self._shard(collection_name).write(operation)

    def upsert(self, collection_name: str, points: Sequence[models.PointStruct]) -> None:
        """Write points; on return they are in the write-ahead log and survive a killed process."""
        converted = [edge.Point(point.id, point.vector, point.payload) for point in points]  # type: ignore[arg-type]
        self._shard(collection_name).write(edge.UpdateOperation.upsert_points(converted), new=len(converted))

    def delete(self, collection_name: str, points_selector: models.FilterSelector | models.PointIdsList) -> None:
        """Delete points by filter or by ids."""
        if isinstance(points_selector, models.FilterSelector):
            operation = edge.UpdateOperation.delete_points_by_filter(edge_filter(points_selector.filter))
        else:
            operation = edge.UpdateOperation.delete_points(list(points_selector.points))
        self._shard(collection_name).write(operation)

    def set_payload(self, collection_name: str, payload: Mapping[str, Any], points: Sequence[str]) -> None:
        """Set these payload fields of the points of these ids; other fields stay."""
        operation = edge.UpdateOperation.set_payload(list(points), dict(payload))
        self._shard(collection_name).write(operation, moved=len(points))

    def batch_update_points(
        self,
        collection_name: str,
        update_operations: Sequence[models.UpsertOperation | models.DeleteOperation | models.SetPayloadOperation],
    ) -> None:
        """Write points, delete some by filter, or set payload fields of lots of points; one after the other."""
        for operation in update_operations:
            if isinstance(operation, models.UpsertOperation):
                self.upsert(collection_name, cast("models.PointsList", operation.upsert).points)
                continue
            if isinstance(operation, models.DeleteOperation):
                self.delete(collection_name, cast("models.FilterSelector", operation.delete))
                continue
            change = operation.set_payload
            if change.filter is None:
                self.set_payload(collection_name, payload=change.payload, points=cast("list[str]", change.points or []))
            else:
                update = edge.UpdateOperation.set_payload_by_filter(edge_filter(change.filter), change.payload)
                matching = self.count(collection_name, count_filter=change.filter).count
                self._shard(collection_name).write(update, moved=matching)

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
        results = self._shard(collection_name).query(requests)
        return [
            Found([FoundPoint(str(hit.id), hit.score, hit.payload or {}, hit.vector) for hit in hits])
            for hits in results
        ]

    def coverage(self, collection_name: str) -> Coverage:
        """Tell how many points there are, and how many of them the index does not cover."""
        return self._shard(collection_name).coverage()

    def optimize(self, collection_name: str) -> None:
        """Build the index over everything written so far."""
        self._shard(collection_name).optimize()

    def flush(self, collection_name: str) -> None:
        """Write everything to disk, so that it survives a loss of power too."""
        self._shard(collection_name).flush()

    def close(self) -> None:
        """Index what is not indexed yet, if it is much, and let go of the files."""
        with self._lock:
            self._closed = True
            while self._open:
                _, shard = self._open.popitem()
                shard.close()

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
        others = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
        others = [name for name in others if not (self.folder / name / _SETTINGS).is_file()]
        if others:
            raise StoreNotFoundError(
                f"{self.folder} is not an index: it holds {min(others)!r}. Give an empty or new folder"
            )

    def _remove_half_created(self) -> None:
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            # Creating takes milliseconds; what is this old was left by a killed process.
            with contextlib.suppress(FileNotFoundError):  # its maker has just finished
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _settings(self, collection_name: str) -> dict[str, Any]:
        path = self._path(collection_name) / _SETTINGS
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"there is no collection {collection_name!r} in {self.folder}") from error
        try:
            settings = json.loads(text)
            vectors = {name: models.VectorParams(**params) for name, params in settings["vectors"].items()}
            settings = {"vectors": vectors, "metadata": dict(settings["metadata"])}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"{path} is damaged ({reason}); index the documents into a new folder") from error
        if not vectors:
            raise StoreError(f"{path} is damaged (no vectors); index the documents into a new folder")
        return settings

    def _shard(self, collection_name: str) -> _Shard:
        shard = self._open.get(collection_name)
        if shard is None:
            with self._lock:
                shard = self._open.get(collection_name)
                if self._closed:
                    raise StoreClosedError(f"the index {self.folder} was closed; open it again")
                if shard is None:
                    vectors = self._settings(collection_name)["vectors"]
                    dimension = max(params.size for params in vectors.values())
                    shard = self._open[collection_name] = _Shard(self._path(collection_name), dimension)
        return shard


class _Shard:
    """One open shard, how many of its points the index does not cover, and how worn that is.

    Only indexed segments have usable bits: in the others, the engine takes the sign of the *unsigned* bytes, so every
    bit is 1. Points get there by being written, and by a change of their payload, which moves them out of an indexed
    segment. What is deleted, or moves, stays behind as a hole in the graph. So every write passes through `write`,
    which counts.
    """

    def __init__(self, path: Path, dimension: int) -> None:
        self._path = path
        self._marker = path / _UNINDEXED
        self._leftover = -(-_INDEXING_THRESHOLD_KB * 1024 // dimension)
        self._lock = threading.Lock()
        self._opened = _lock_file(path)
        try:
            with _translated(path):
                self._shard = edge.EdgeShard.load(str(path / "shard"))
        except BaseException:
            self._opened.close()
            raise
        self._dimension = dimension
        self._unindexed = 0
        self._count()
        try:
            self._unindexed = int(self._marker.read_text("ascii"))
        except (FileNotFoundError, ValueError):  # a killed process leaves none
            self._unindexed = self._points

    def write(self, operation: edge.UpdateOperation, *, new: int = 0, moved: int = 0) -> None:
        """Apply an operation.

        Args:
            operation: Any.
            new: Points that it writes.
            moved: Points whose payload it changes.
        """
        # One lock for both, so that no point slips in between an optimization and its book-keeping.
        with self._lock, _translated(self._path):
            if new or moved:
                self._marker.unlink(missing_ok=True)
            # Points written twice count twice: an upper bound is all that is needed.
            self._points += new
            self._unindexed = min(self._unindexed + new + moved, self._points)
            try:
                self._shard.update(operation)
            finally:
                self._count()
        if (new or moved) and self._is_due(_SHARE_WHILE_WRITING) and self._unindexed > _MOST_UNINDEXED:
            self.optimize()

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[edge.ScoredPoint]]:
        with _translated(self._path):
            converted = [edge_query(request) for request in requests]
            if len(converted) == 1:
                return [self._shard.query(converted[0])]
            return self._shard.query_batch(edge.QueryBatchRequest(converted))

    def retrieve(self, ids: list[Any], with_payload: bool | list[str], with_vectors: bool) -> list[edge.Record]:
        with _translated(self._path):
            return self._shard.retrieve(ids, with_payload, with_vectors)

    def scroll(self, request: edge.ScrollRequest) -> tuple[list[edge.Record], Any]:
        with _translated(self._path):
            return self._shard.scroll(request)

    def count(self, request: edge.CountRequest) -> int:
        with _translated(self._path):
            return self._shard.count(request)

    def facet(self, request: edge.FacetRequest) -> edge.FacetResponse:
        with _translated(self._path):
            return self._shard.facet(request)

    def info(self) -> edge.ShardInfo:
        with _translated(self._path):
            return self._shard.info()

    def flush(self) -> None:
        with _translated(self._path):
            self._shard.flush()
        if self._is_worn():  # now, and not at each write: who deletes much does so in several
            self.optimize()

    def coverage(self) -> Coverage:
        return Coverage(self._points, self._unindexed, self._is_worn())

    def optimize(self) -> None:
        with self._lock, _translated(self._path):
            self._shard.optimize()
            # Whatever was deleted or written twice: a segment that is left is below the threshold.
            self._unindexed = min(self._unindexed, self._leftover)
            self._count()
            self._shard.flush()
            self._marker.write_text(str(self._unindexed), "ascii")

    def close(self) -> None:
        if self._is_due(_SHARE_AT_CLOSE) or self._is_worn():
            self.optimize()
        with self._lock, _translated(self._path), self._opened:
            self._shard.flush()
            self._shard.close()
            self._marker.write_text(str(self._unindexed), "ascii")

    def _is_due(self, share: float) -> bool:
        return self._unindexed > max(self._leftover, share * self._points)

    def _is_worn(self) -> bool:
        gone = self._indexed - (self._points - self._unindexed)
        return gone > _MOST_WORN * self._indexed and self._indexed * self._dimension > _WALKED_BYTES

    def _count(self) -> None:
        """Count the points, and those that indexes were built over, whatever has become of them since."""
        info = self._shard.info()
        self._points, self._indexed = info.points_count, info.indexed_vectors_count
        self._unindexed = min(self._unindexed, self._points)


def _lock_file(path: Path) -> IO[bytes]:
    """Lock a collection until the returned file is closed, or the process ends.

    The engine has a lock of its own, but takes it after it has repaired the files of what it believes to
    be a process that was killed: on a collection in use, that damages them.
    """
    file = (path / _LOCK).open("ab")
    try:
        portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.LockException as error:
        file.close()
        raise _locked(path) from error
    return file


def _locked(path: Path) -> StoreLockedError:
    return StoreLockedError(
        f"the index {path} is in use by another process, or by another store in this one; close it there first"
    )


def _record(point: edge.Record) -> models.Record:
    return models.Record.model_construct(id=str(point.id), payload=point.payload or {}, vector=point.vector)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn the engine's errors into ours; it raises bare Exception for all of them."""
    try:
        yield
    except (StoreError, InvalidInputError):
        raise
    except Exception as error:
        if "WouldBlock" in str(error):
            raise _locked(path) from error
        raise StoreError(f"the engine failed on {path}: {error}") from error
