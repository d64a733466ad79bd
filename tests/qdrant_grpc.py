"""Qdrant's gRPC interface on 127.0.0.1: each call becomes the request over REST that means the same.

It serves the calls that ``QdrantClient(prefer_grpc=True)`` makes for the verbs of the store. Over REST and over
gRPC there is one engine, as in Qdrant. ::

    with serve(lambda: QdrantServer(folder)) as server:
        client = QdrantClient(url=server.url, grpc_port=server.port, prefer_grpc=True)
        server.refusals.append(Refusal(grpc.StatusCode.UNAVAILABLE))
        ...
    assert not server.rest.errors
"""

import contextlib
import functools
import json
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc
import qdrant_versions
from qdrant_client import grpc as messages
from qdrant_client.conversions.conversion import (
    GrpcToRest,
    RestToGrpc,
    grpc_field_type_to_payload_schema,
    payload_to_grpc,
)
from qdrant_client.http import models

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    500: grpc.StatusCode.INTERNAL,
}
# What a client of Qdrant may send is bounded by the server's settings, not by gRPC's own 4 MB. Without the last,
# another server could listen on the same port, and get some of the connections.
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True)
class Refusal:
    """The answer to one call, which is not carried out.

    Attributes:
        code: Its status.
        words: Its message.
        trailers: Its trailing metadata, such as ``(("retry-after", "1"),)``.
        method: Refuse the next call of this method, such as "Upsert"; None for the next call.
    """

    code: grpc.StatusCode
    words: str = "injected, nothing was applied"
    trailers: tuple[tuple[str, str], ...] = ()
    method: str | None = None


class GrpcServer:
    """The server; it listens from its construction until `close`.

    Args:
        rest: The QdrantServer that carries the requests out; closed with this one.
        port: Where on 127.0.0.1 to listen.

    Attributes:
        rest: That server; failures of this one are in its `errors`, too.
        url: Of that server, which is what a client is told.
        port: Where calls are taken.
        calls: Method of each call in order of arrival, such as "Upsert".
        metadata: What a client sent with each call, in the same order.
        refusals: Answers to calls to come.

    Raises:
        RuntimeError: Somebody else listens there.
    """

    def __init__(self, rest, port):
        self.rest, self.url, self.port = rest, rest.url, port
        self.calls, self.metadata, self.refusals = [], [], []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(16)
        self._server = grpc.server(self._threads, options=_OPTIONS)
        for service, methods in _SERVICES.items():
            handlers = {name: self._handler(name, *method) for name, method in methods.items()}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        try:
            self._server.add_insecure_port(f"127.0.0.1:{port}")
            self._server.start()
        except RuntimeError:
            self.stop()
            raise

    def close(self):
        """Hang up on everybody, and close the server behind."""
        self.rest.stopping.set()
        self.stop()
        self.rest.close()

    def stop(self):
        """Hang up on everybody, and leave the server behind for another of these."""
        self._server.stop(None).wait()
        self._threads.shutdown()

    def _handler(self, name, carry_out, request):
        def serve(message, context):
            self.calls.append(name)
            self.metadata.append(dict(context.invocation_metadata()))
            self._refuse(name, context)
            try:
                return carry_out(functools.partial(self._ask, message), message)
            except _RefusedError as error:
                status, words = error.args
                context.abort(_CODES[status], words)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
                self.rest.errors.append(traceback.format_exc())
                context.abort(grpc.StatusCode.INTERNAL, f"Service internal error: {error!r}")

        return grpc.unary_unary_rpc_method_handler(
            serve,
            request_deserializer=request.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )

    def _ask(self, message, method, path, body=None):
        """Return the result of a request to the server behind, on the collection that a message is about."""
        try:
            body = qdrant_versions.understood(
                self.rest.version, method, path, body, unknown=self.rest.unknown, grpc=True
            )
        except qdrant_versions.NotUnderstoodError as error:
            raise _RefusedError(400, str(error)) from None
        if hasattr(message, "collection_name"):
            path = f"/collections/{message.collection_name}{path}"
        status, content = self.rest.answer(method, path, b"" if body is None else json.dumps(body).encode())
        answer = json.loads(content)
        if status != 200:
            raise _RefusedError(status, answer["status"]["error"])
        return answer.get("result", answer)

    def _refuse(self, name, context):
        with self._lock:
            refusal = next((one for one in self.refusals if one.method in (None, name)), None)
            if refusal is None:
                return
            self.refusals.remove(refusal)
        context.set_trailing_metadata(refusal.trailers)
        context.abort(refusal.code, refusal.words)


@contextlib.contextmanager
def serve(make_rest):
    """Run both servers on neighbouring ports, where clients expect them.

    Args:
        make_rest: Makes a QdrantServer on a free port.

    Yields:
        A GrpcServer.
    """
    running = None
    while running is None:
        rest = make_rest()
        try:
            running = GrpcServer(rest, urlsplit(rest.url).port + 1)
        except (RuntimeError, OverflowError):  # the port after is somebody else's, or beyond the last
            rest.close()
    try:
        yield running
    finally:
        running.close()


class _RefusedError(Exception):
    pass


# --- one function per call: (ask the server behind, message) → message -----------------------------------


def _health_check(ask, message):
    answer = ask("GET", "/")
    return messages.HealthCheckReply(title=answer["title"], version=answer["version"])


def _collection_exists(ask, message):
    exists = ask("GET", "/exists")["exists"]
    return messages.CollectionExistsResponse(result=messages.CollectionExists(exists=exists))


def _create_collection(ask, message):
    vectors = GrpcToRest.convert_vectors_config(message.vectors_config)
    body = {
        "vectors": {name: _dump(params) for name, params in vectors.items()},
        "metadata": GrpcToRest.convert_payload(message.metadata),
    }
    for name in ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload"):
        if message.HasField(name):
            body[name] = getattr(message, name)
    if message.HasField("sparse_vectors_config"):
        sparse = GrpcToRest.convert_sparse_vector_config(message.sparse_vectors_config)
        body["sparse_vectors"] = {name: _dump(params) for name, params in sparse.items()}
    return messages.CollectionOperationResponse(result=ask("PUT", "", body))


def _get_collection(ask, message):
    info = models.CollectionInfo.model_validate(ask("GET", ""))
    info.config.wal_config = info.config.wal_config or models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0)
    return messages.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))


def _update_collection(ask, message):
    body = {"metadata": GrpcToRest.convert_payload(message.metadata)}
    if message.HasField("optimizers_config"):
        body["optimizers_config"] = _dump(GrpcToRest.convert_optimizers_config_diff(message.optimizers_config))
    return messages.CollectionOperationResponse(result=ask("PATCH", "", body))


def _create_field_index(ask, message):
    if message.HasField("field_index_params"):
        schema = _dump(GrpcToRest.convert_payload_schema_params(message.field_index_params))
    else:
        schema = GrpcToRest.convert_payload_schema_type(grpc_field_type_to_payload_schema(message.field_type)).value
    ask("PUT", "/index", {"field_name": message.field_name, "field_schema": schema})
    return _UPDATED


def _upsert(ask, message):
    ask("PUT", "/points", _points(message))
    return _UPDATED


def _points(message):
    points = [
        {
            "id": GrpcToRest.convert_point_id(point.id),
            "vector": {
                name: _dump(vector) if isinstance(vector, models.Document) else vector
                for name, vector in GrpcToRest.convert_vectors(point.vectors).items()
            },
            "payload": GrpcToRest.convert_payload(point.payload),
        }
        for point in message.points
    ]
    return {"points": points}


def _delete(ask, message):
    ask("POST", "/points/delete", _dump(GrpcToRest.convert_points_selector(message.points)))
    return _UPDATED


def _update_batch(ask, message):
    operations = [_update(operation) for operation in message.operations]
    ask("POST", "/points/batch", {"operations": operations})
    return messages.UpdateBatchResponse(result=[_UPDATED.result] * len(operations))


def _update(operation):
    kind = operation.WhichOneof("operation")
    if kind == "upsert":
        return {"upsert": _points(operation.upsert)}
    if kind == "delete_points":
        return {"delete": _dump(GrpcToRest.convert_points_selector(operation.delete_points.points))}
    if kind != "set_payload":
        raise ValueError(f"not served in a batch: {operation}")
    change = operation.set_payload
    # Not by way of a model, from whose dump null values would be missing.
    selected = _dump(GrpcToRest.convert_points_selector(change.points_selector))
    return {"set_payload": {"payload": GrpcToRest.convert_payload(change.payload), **selected}}


def _get(ask, message):
    body = {"ids": [GrpcToRest.convert_point_id(id_) for id_ in message.ids], **_wanted(message)}
    return messages.GetResponse(result=map(_retrieved, ask("POST", "/points", body)))


def _scroll(ask, message):
    body = {**_wanted(message), **_filter(message), "limit": message.limit}
    if message.HasField("offset"):
        body["offset"] = GrpcToRest.convert_point_id(message.offset)
    page = ask("POST", "/points/scroll", body)
    after = page["next_page_offset"]
    return messages.ScrollResponse(
        result=map(_retrieved, page["points"]),
        next_page_offset=None if after is None else RestToGrpc.convert_extended_point_id(after),
    )


def _count(ask, message):
    found = ask("POST", "/points/count", {**_filter(message), "exact": message.exact})
    return messages.CountResponse(result=messages.CountResult(count=found["count"]))


def _facet(ask, message):
    body = {"key": message.key, "limit": message.limit, "exact": message.exact, **_filter(message)}
    hits = [models.FacetValueHit(**hit) for hit in ask("POST", "/facet", body)["hits"]]
    return messages.FacetResponse(hits=map(RestToGrpc.convert_facet_value_hit, hits))


def _query_batch(ask, message):
    searches = [_dump(GrpcToRest.convert_query_points(query)) for query in message.query_points]
    answers = ask("POST", "/points/query/batch", {"searches": searches})
    found = [[messages.ScoredPoint(score=hit["score"], **_fields(hit)) for hit in one["points"]] for one in answers]
    return messages.QueryBatchResponse(result=[messages.BatchResult(result=hits) for hits in found])


def _filter(message):
    return {"filter": _dump(GrpcToRest.convert_filter(message.filter))} if message.HasField("filter") else {}


def _wanted(message):
    return {
        "with_payload": GrpcToRest.convert_with_payload_selector(message.with_payload),
        "with_vector": GrpcToRest.convert_with_vectors_selector(message.with_vectors),
    }


def _retrieved(point):
    return messages.RetrievedPoint(**_fields(point))


def _fields(point):
    """Return the fields of a point's message."""
    vectors = point.get("vector")
    return {
        "id": RestToGrpc.convert_extended_point_id(point["id"]),
        "payload": payload_to_grpc(point.get("payload") or {}),
        "vectors": None if vectors is None else RestToGrpc.convert_vector_struct_output(vectors),
    }


def _dump(model):
    return model.model_dump(mode="json", exclude_none=True, by_alias=True)


_UPDATED = messages.PointsOperationResponse(
    result=messages.UpdateResult(operation_id=0, status=messages.UpdateStatus.Completed)
)
_SERVICES = {
    "qdrant.Qdrant": {"HealthCheck": (_health_check, messages.HealthCheckRequest)},
    "qdrant.Collections": {
        "CollectionExists": (_collection_exists, messages.CollectionExistsRequest),
        "Create": (_create_collection, messages.CreateCollection),
        "Get": (_get_collection, messages.GetCollectionInfoRequest),
        "Update": (_update_collection, messages.UpdateCollection),
    },
    "qdrant.Points": {
        "CreateFieldIndex": (_create_field_index, messages.CreateFieldIndexCollection),
        "Upsert": (_upsert, messages.UpsertPoints),
        "Delete": (_delete, messages.DeletePoints),
        "UpdateBatch": (_update_batch, messages.UpdateBatchPoints),
        "Get": (_get, messages.GetPoints),
        "Scroll": (_scroll, messages.ScrollPoints),
        "Count": (_count, messages.CountPoints),
        "Facet": (_facet, messages.FacetCounts),
        "QueryBatch": (_query_batch, messages.QueryBatchPoints),
    },
}
