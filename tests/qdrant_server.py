"""A Qdrant server on 127.0.0.1: its REST routes over the embedded engine, and what can go wrong on the way.

It serves the verbs that the store uses, in the way that ``QdrantClient`` and ``AsyncQdrantClient`` ask for
them, in bodies of at most 32 MiB. ::

    with QdrantServer(folder) as server, QdrantClient(url=server.url, check_compatibility=False) as client:
        server.faults = Faults(seed=1, rate=0.2)
        ...
        server.faults = None
    assert not server.errors
"""

import contextlib
import json
import math
import os
import random
import re
import shutil
import socket
import socketserver
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import qdrant_bm25
import qdrant_versions
from pydantic import TypeAdapter
from qdrant_client.http import models

from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.engines.shard import leave_shard
from pplx_vectorstore.errors import StoreError, StoreNotFoundError
from pplx_vectorstore.qdrant.conversion import as_clients

NOT_APPLIED = ("reset_before", "429", "429_bare", "500", "503", "stall_before")
APPLIED = ("reset_after", "500_after", "stall_after", "truncated", "truncated_json")
ALL_KINDS = (*NOT_APPLIED, *APPLIED)

_REFUSALS = {
    "429": (429, "Too many requests: rate limiter exceeded"),
    "429_bare": (429, "Too many requests: rate limiter exceeded"),
    "500": (500, "Service internal error: injected, nothing was applied"),
    "500_after": (500, "Service internal error: injected, the request was applied"),
    "503": (503, "Service unavailable: injected"),
}
# The engine says these of a request; whatever else it says is a failure of its own.
_COMPLAINTS = re.compile(
    r"Vector dimension error|Not existing vector name|No appropriate index|Validation failed|failed to parse"
)
# Of a body in bytes, as Qdrant's max_request_size_mb by default.
_MOST_BODY = 32 * 2**20
_COLLECTION = re.compile(r"/collections/([^/]+)(/.*)?")
_LINGER_NOT = struct.pack("ii", 1, 0)


class Faults:
    """Which requests fail, and how.

    Args:
        seed: Of the choices, which follow the order in which requests arrive.
        rate: Share of the requests that fail, 0 to 1.
        kinds: Some of `ALL_KINDS`: the request is never carried out (`NOT_APPLIED`) or carried out although
            the client does not learn it (`APPLIED`). "reset" closes the connection with RST and without an
            answer, "stall" after `stall_seconds` with FIN; "truncated" cuts the answer off, "truncated_json"
            the JSON in it; "429_bare" comes without Retry-After.
        stall_seconds: How long a stall holds the connection.
        most: Faults after which there are no more.
        retry_after: The header's value with a "429".
        everything: Fail ``GET /`` too, by which a client asks for the version.

    Attributes:
        counts: Faults injected so far, by kind.
    """

    def __init__(self, seed, rate, kinds=ALL_KINDS, *, stall_seconds=2.0, most=None, retry_after="0", everything=False):
        if unknown := set(kinds) - set(ALL_KINDS):
            raise ValueError(f"unknown kinds of faults: {sorted(unknown)}")
        self.kinds = tuple(kinds)
        self.rate, self.most, self.everything = rate, most, everything
        self.stall_seconds, self.retry_after = stall_seconds, retry_after
        self.counts = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def total(self):
        return self.counts.total()

    def choose(self, path):
        """Return the fault of this request, or None."""
        if path == "/" and not self.everything:
            return None
        with self._lock:
            if self.most is not None and self.total >= self.most:
                return None
            if self._random.random() >= self.rate:
                return None
            kind = self._random.choice(self.kinds)
            self.counts[kind] += 1
            return kind


class QdrantServer:
    """The server; it listens from its construction until `close`.

    Args:
        folder: Of the embedded engine's collections.
        version: What it says it is. It knows no more of requests than a server of that version (`qdrant_versions`).
        strict_mode: Every collection's ``strict_mode_config``; told, not enforced.
        faults: May be replaced at any time; None for none.

    Attributes:
        url: Where it listens.
        client: The engine behind it.
        requests: Method and path, without the query string, of each request in order of arrival.
        bodies: Size of each request's body in bytes, in the same order.
        errors: Tracebacks of the server's own failures; a test that is through should find none.
        unknown: What was sent and a server of that version does not know, such as "Rrf.weights" or "MatchSubstring".
        delay: Seconds by which the answer to a write of points is late.
    """

    def __init__(self, folder, *, version="1.20.0", strict_mode=None, faults=None):
        self.version, self.strict_mode, self.faults = version, strict_mode, faults
        self.delay = 0.0
        self.requests, self.bodies, self.errors, self.unknown = [], [], [], []
        self.stopping = threading.Event()
        self.client = EdgeClient(folder)
        self.words = {}  # collection → its sparse vectors, if it has them
        self.updates = _Updates(self.client, Path(folder) / "updates.json")
        self._lock = threading.Lock()
        self._listener = _Listener(self)
        self.url = "http://{}:{}".format(*self._listener.server_address)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def largest_body(self):
        return max(self.bodies, default=0)

    def close(self):
        """Hang up on everybody, also in the middle of a request, and close the engine."""
        self.stopping.set()
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
        self._listener.hang_up()
        self.updates.close()
        self.client.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def record(self, method, path, size):
        with self._lock:
            self.requests.append((method, path))
            self.bodies.append(size)

    def answer(self, method, path, body):
        """Carry a request out.

        Returns:
            HTTP status and response body.
        """
        start = time.perf_counter()
        try:
            status, content = self._answer(method, path, body)
            return status, _to_json({**content, "time": time.perf_counter() - start})
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer
            self.errors.append(traceback.format_exc())
            return 500, _to_json(_error(self.errors[-1].splitlines()[-1]))

    def _answer(self, method, path, body):
        if (method, path) == ("GET", "/"):
            return 200, {"title": "qdrant - vector search engine", "version": self.version}
        match = _COLLECTION.fullmatch(path)
        operation = match and _ROUTES.get((method, match[2] or ""))
        if not operation:
            self.errors.append(f"{method} {path} is not served")
            return 404, _error(f"Not found: {method} {path} is not served")
        name = match[1]
        try:
            result = operation(self, name, self._understood(name, method, match[2] or "", body))
        except qdrant_versions.NotUnderstoodError as error:
            return 400, _error(f"Format error in JSON body: {error}")
        except StoreNotFoundError:
            return 404, _error(f"Not found: Collection `{name}` doesn't exist!")
        except _ConflictError as error:
            return 409, _error(f"Wrong input: {error}")
        except (ValueError, TypeError) as error:  # of JSON, of the models, or of the engine's types
            return 400, _error(f"Wrong input: {error}")
        except StoreError as error:
            if "No point with id" in str(error):
                return 404, _error(f"Not found: {error}")
            if _COMPLAINTS.search(str(error)):
                return 400, _error(f"Wrong input: {error}")
            raise
        if operation in _WRITES and self.delay:
            self.stopping.wait(self.delay)
        return 200, {"result": result, "status": "ok"}

    def _understood(self, name, method, route, body):
        """Return what a server of this version reads of a request's body."""
        parsed = json.loads(body) if body else None
        if qdrant_versions.number_of(self.version) >= qdrant_versions.NEWEST:
            return parsed
        fields = self.client.get_collection(name).payload_schema if self.client.collection_exists(name) else {}
        words = {field for field, index in fields.items() if index.data_type == "text"}
        return qdrant_versions.understood(self.version, method, route, parsed, unknown=self.unknown, text_indexes=words)


class _ConflictError(Exception):
    pass


class _Updates:
    """What was changed of collections since they were created: their metadata, and from when on they are indexed.

    The embedded engine indexes with a threshold of its own. So one of 0 holds it back altogether, and any other one has
    it index everything, beside other requests, in which time a collection's status is yellow.

    Args:
        client: The engine's.
        path: Where it is kept.
    """

    DEFAULT_THRESHOLD = 10_000

    def __init__(self, client, path):
        self._client, self._path = client, path
        self._lock = threading.Lock()
        self._held, self._optimizing = {}, {}
        self._of = json.loads(path.read_text("utf-8")) if path.exists() else {}
        for name, update in self._of.items():
            if update["threshold"] == 0:
                self._hold(name)

    def metadata_of(self, name, original):
        return {**original, **self._update_of(name)["metadata"]}

    def threshold_of(self, name):
        return self._update_of(name)["threshold"]

    def segment_size_of(self, name):
        return self._update_of(name).get("segment_size")

    def status_of(self, name):
        return "yellow" if any(thread.is_alive() for thread in self._optimizing.get(name, ())) else "green"

    def change(self, name, threshold, metadata, segment_size=None):
        with self._lock:
            update = self._of.setdefault(name, self._update_of(name))
            for key, value in (metadata or {}).items():
                update["metadata"][key] = _as_kept(value)
            if segment_size is not None:
                update["segment_size"] = segment_size
            changed = threshold is not None and threshold != update["threshold"]
            if changed:
                update["threshold"] = threshold
            self._path.write_text(json.dumps(self._of), "utf-8")
            if changed and threshold == 0:
                self._hold(name)
            elif changed:
                if name in self._held:
                    self._client.resume_indexing(name, held=self._held.pop(name))
                thread = threading.Thread(target=self._optimize, args=(name,))
                self._optimizing.setdefault(name, []).append(thread)
                thread.start()

    def close(self):
        for thread in [thread for threads in self._optimizing.values() for thread in threads]:
            thread.join()

    def _update_of(self, name):
        return self._of.get(name, {"threshold": self.DEFAULT_THRESHOLD, "metadata": {}})

    def _hold(self, name):
        self._client.hold_indexing(name, held=self._held.setdefault(name, []))

    def _optimize(self, name):
        with contextlib.suppress(StoreError):  # such as of a collection that was deleted
            self._client.optimize(name)


def _as_kept(value):
    """Return a value as a server gives it back: of some fractions, the last digits change."""
    if isinstance(value, dict):
        return {name: _as_kept(inner) for name, inner in value.items()}
    return math.nextafter(value, 0) if isinstance(value, float) else value


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, owner):
        self.owner = owner
        self._connections = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks for a host name, perhaps of the network

    def process_request(self, request, client_address):
        args = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=args, daemon=True)
        self._connections[thread] = request
        thread.start()

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._connections[threading.current_thread()]

    def hang_up(self):
        for thread, request in list(self._connections.items()):
            with contextlib.suppress(OSError):  # it is closed already
                request.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # clients may go away
            self.owner.errors.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self):
        owner = self.server.owner
        path = urlsplit(self.path).path
        size = int(self.headers.get("Content-Length", 0))
        owner.record(self.command, path, size)
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            return
        if size > _MOST_BODY:
            message = f"Payload error: JSON payload ({size} bytes) is larger than allowed (limit: {_MOST_BODY} bytes)."
            self._send(400, _to_json(_error(message)))
            return
        faults = owner.faults
        kind = faults and faults.choose(path)
        if kind not in NOT_APPLIED:
            status, content = owner.answer(self.command, path, body)
        if not kind:
            self._send(status, content)
        elif kind in _REFUSALS:
            status, message = _REFUSALS[kind]
            headers = {"Retry-After": faults.retry_after} if kind == "429" else {}
            self._send(status, _to_json(_error(message)), headers)
        elif kind == "truncated_json":
            self._send(status, content[: len(content) // 2])
        else:
            self.close_connection = True
            if kind == "truncated":
                self._send(status, content, cut=len(content) // 2)
            elif kind.startswith("stall"):
                owner.stopping.wait(faults.stall_seconds)
            else:
                self._reset()

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - the base class's names

    def _send(self, status, content, headers=(), *, cut=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:cut])

    def _reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        os.close(self.connection.detach())  # the server's own way would begin with FIN

    def log_message(self, format, *args):  # noqa: A002 - the base class's name for it
        pass


# --- one function per verb: (server, collection, JSON of the request) → JSON of the result ---------------


def _create_collection(server, name, body):
    request = models.CreateCollection.model_validate(body)
    if not isinstance(request.vectors, dict):
        raise TypeError("only named vectors are served")
    conflict = _ConflictError(f"Collection `{name}` already exists!")
    if server.client.collection_exists(name):
        raise conflict
    try:
        server.client.create_collection(name, vectors_config=request.vectors, metadata=request.metadata or {})
        if request.sparse_vectors:
            if set(request.sparse_vectors) != {"bm25"} or request.sparse_vectors["bm25"].modifier != "idf":
                raise ValueError("of sparse vectors, only bm25 with the modifier idf is served")
            server.words[name] = qdrant_bm25.WordVectors()
    except StoreError:
        if server.client.collection_exists(name):  # created by another request meanwhile
            raise conflict from None
        raise
    return True


def _update_collection(server, name, body):
    request = models.UpdateCollection.model_validate(body)
    if unknown := set(body) - {"optimizers_config", "metadata"}:
        raise ValueError(f"not served: {sorted(unknown)}")
    server.client.get_collection(name)  # which raises where there is none
    changed = request.optimizers_config or models.OptimizersConfigDiff()
    server.updates.change(name, changed.indexing_threshold, request.metadata, changed.max_segment_size)
    return True


def _collection_exists(server, name, body):
    return {"exists": server.client.collection_exists(name)}


def _delete_collection(server, name, body):
    """Forget a collection, which the engine does not do by itself."""
    found = server.client.collection_exists(name)
    shard = server.client._open.pop(name, None)
    if shard is not None:
        leave_shard(shard)
    if found:
        shutil.rmtree(server.client.folder / name)
    return found


def _get_collection(server, name, body):
    info = server.client.get_collection(name)
    answer = {
        "status": server.updates.status_of(name),
        "optimizer_status": "ok",
        "points_count": info.points_count,
        "indexed_vectors_count": info.indexed_vectors_count,
        "segments_count": info.segments_count,
        "payload_schema": {field: _dump(index) for field, index in info.payload_schema.items()},
        "config": {
            "params": {
                "vectors": {vector: _dump(params) for vector, params in info.config.params.vectors.items()},
                "sparse_vectors": {"bm25": {"modifier": "idf"}} if name in server.words else None,
            },
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
            "optimizer_config": {
                "default_segment_number": 0,
                "flush_interval_sec": 5,
                "indexing_threshold": server.updates.threshold_of(name),
                "max_segment_size": server.updates.segment_size_of(name),
            },
            "strict_mode_config": server.strict_mode,
            "metadata": server.updates.metadata_of(name, info.config.metadata),
        },
    }
    return qdrant_versions.told(server.version, answer)


def _create_payload_index(server, name, body):
    request = models.CreateFieldIndex.model_validate(body)
    server.client.create_payload_index(name, request.field_name, request.field_schema)
    return _UPDATED


def _upsert(server, name, body):
    # Validating every component of every vector takes longer than the upsert.
    make = models.PointStruct.model_construct
    try:
        points = [make(id=row["id"], vector=row["vector"], payload=row.get("payload")) for row in body["points"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"malformed points: {error!r}") from error
    _take_words(server, name, points)
    server.client.upsert(name, points)
    return _UPDATED


def _take_words(server, name, points):
    """Keep what becomes a sparse vector to ourselves: the embedded engine is not asked for any."""
    for point in points:
        documents = {vector: value for vector, value in point.vector.items() if qdrant_bm25.is_document(value)}
        if set(documents) - ({"bm25"} if name in server.words else set()):
            raise ValueError(f"Not existing vector name error: {sorted(documents)}")
        for document in documents.values():
            server.words[name].put(point.id, document, qdrant_versions.number_of(server.version))
        point.vector = {vector: value for vector, value in point.vector.items() if vector not in documents}


def _delete(server, name, body):
    server.client.delete(name, _POINTS_SELECTOR.validate_python(body))
    return _UPDATED


def _set_payload(server, name, body):
    request = models.SetPayload.model_validate(body)
    if request.key or (request.points is None) == (request.filter is None):
        raise ValueError("set_payload is served by ids or by a filter, without a key")
    if request.filter is None:
        server.client.set_payload(name, request.payload, request.points)
    else:
        server.client.batch_update_points(name, [models.SetPayloadOperation(set_payload=request)])
    return _UPDATED


def _batch_update(server, name, body):
    models.UpdateOperations.model_validate(body)  # nothing is applied when one is malformed
    operations = [item for operation in body["operations"] for item in operation.items()]
    if others := {kind for kind, _ in operations} - set(_UPDATES):
        raise ValueError(f"not served in a batch: {sorted(others)}")
    return [_UPDATES[kind](server, name, inner) for kind, inner in operations]


def _retrieve(server, name, body):
    request = models.PointRequest.model_validate(body)
    with_payload = True if request.with_payload is None else request.with_payload
    with_vectors = bool(request.with_vector)
    records = server.client.retrieve(name, request.ids, with_payload=with_payload, with_vectors=with_vectors)
    return [_point(record, with_payload, with_vectors) for record in records]


def _scroll(server, name, body):
    request = models.ScrollRequest.model_validate(body)
    with_payload = True if request.with_payload is None else request.with_payload
    with_vectors = bool(request.with_vector)
    records, after = server.client.scroll(
        name,
        scroll_filter=request.filter,
        limit=10 if request.limit is None else request.limit,
        offset=request.offset,
        with_payload=with_payload,
        with_vectors=with_vectors,
    )
    points = [_point(record, with_payload, with_vectors) for record in records]
    return {"points": points, "next_page_offset": after}


def _count(server, name, body):
    request = models.CountRequest.model_validate(body)
    return _dump(server.client.count(name, count_filter=request.filter, exact=request.exact is not False))


def _facet(server, name, body):
    request = models.FacetRequest.model_validate(body)
    limit = 10 if request.limit is None else request.limit
    found = server.client.facet(name, request.key, facet_filter=request.filter, limit=limit, exact=bool(request.exact))
    return _dump(found)


def _query_batch(server, name, body):
    requests = models.QueryRequestBatch.model_validate(body).searches
    answers = _query_all(server, name, requests)
    return [
        {
            "points": [
                {**_point(hit, request.with_payload, request.with_vector), "score": hit.score, "version": 0}
                for hit in answer.points
            ]
        }
        for request, answer in zip(requests, answers, strict=True)
    ]


def _query_all(server, name, requests):
    if not any(_asks_for_words(request) for request in requests):
        return server.client.query_batch_points(name, requests)
    return [
        _query_words(server, name, request)
        if _asks_for_words(request)
        else server.client.query_batch_points(name, [request])[0]
        for request in requests
    ]


def _asks_for_words(stage):
    inner = stage.prefetch or []
    if any(map(_asks_for_words, inner if isinstance(inner, list) else [inner])):
        return True
    return isinstance(stage.query, models.NearestQuery) and qdrant_bm25.is_document(stage.query.nearest)


def _query_words(server, name, request):
    """Answer a search by words, or one that is fused with them."""
    if request.prefetch:
        rankings = []
        for stage in request.prefetch:
            one = models.QueryRequest(**{**dict(stage), "lookup_from": None})
            rankings.append([point.id for point in _query_all(server, name, [one])[0].points])
        ranked = qdrant_bm25.fuse(rankings, request.query)
    else:
        everything = [str(point.id) for point in _scroll_all(server, name, None)]
        among = [str(point.id) for point in _scroll_all(server, name, request.filter)]
        number = qdrant_versions.number_of(server.version)
        ranked = server.words[name].rank(request.query.nearest, among, everything, number)
    if request.score_threshold is not None:
        ranked = [(score, id_) for score, id_ in ranked if score >= request.score_threshold]
    ranked = ranked[: request.limit or 10]
    ids = [id_ for _, id_ in ranked]
    records = {
        str(record.id): record
        for record in server.client.retrieve(name, ids, with_payload=True, with_vectors=bool(request.with_vector))
    }
    points = [
        models.ScoredPoint(id=id_, version=0, score=score, payload=records[id_].payload, vector=records[id_].vector)
        for score, id_ in ranked
        if id_ in records
    ]
    return models.QueryResponse(points=points)


def _scroll_all(server, name, condition):
    records, _ = server.client.scroll(
        name, scroll_filter=condition, limit=1_000_000, with_payload=False, with_vectors=False
    )
    return records


def _point(point, with_payload, with_vector):
    """Return the fields of a point, without those not asked for."""
    fields = {"id": point.id}
    if with_payload is not None and with_payload is not False:
        fields["payload"] = point.payload
    if with_vector:
        fields["vector"] = point.vector
    return fields


def _dump(model):
    return as_clients(model).model_dump(mode="json", exclude_none=True)


def _error(message):
    return {"status": {"error": message}, "time": 0.0}


def _to_json(value):
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


_UPDATED = {"operation_id": 0, "status": "completed"}
_POINTS_SELECTOR = TypeAdapter(models.PointsSelector)
_UPDATES = {"upsert": _upsert, "delete": _delete, "set_payload": _set_payload}
_ROUTES = {
    ("PUT", ""): _create_collection,
    ("GET", ""): _get_collection,
    ("PATCH", ""): _update_collection,
    ("DELETE", ""): _delete_collection,
    ("GET", "/exists"): _collection_exists,
    ("PUT", "/index"): _create_payload_index,
    ("PUT", "/points"): _upsert,
    ("POST", "/points"): _retrieve,
    ("POST", "/points/delete"): _delete,
    ("POST", "/points/payload"): _set_payload,
    ("POST", "/points/batch"): _batch_update,
    ("POST", "/points/scroll"): _scroll,
    ("POST", "/points/count"): _count,
    ("POST", "/points/query/batch"): _query_batch,
    ("POST", "/facet"): _facet,
}
_WRITES = {_upsert, _delete, _set_payload, _batch_update}
