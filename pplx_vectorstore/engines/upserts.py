"""Writing points, in the form that the engine behind a client takes fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pplx_vectorstore.collection import BM25_VECTOR, GENERATION_FIELD, VECTOR_NAME
from pplx_vectorstore.engines.grpc_points import FLOAT_BYTES, complete_message, make_message, send_message
from pplx_vectorstore.engines.server import is_qdrants, speaks_grpc
from pplx_vectorstore.points import Point
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.qdrant.conversion import as_clients

_JSON_BYTES = 6  # "255.0,"


class Batch(NamedTuple):
    """Points that are written together.

    Attributes:
        points: As the library has them.
        form: As the engine takes them: a message for gRPC, else a list of PointStruct, the client's or ours.
    """

    points: Sequence[Point]
    form: Any


def component_bytes(client: Any) -> int:
    """Return how many bytes a component of a vector takes in a request, at most."""
    return FLOAT_BYTES if speaks_grpc(client) else _JSON_BYTES


def make_batch(client: Any, points: Sequence[Point]) -> Batch:
    """Give points the form that a client's engine takes, which takes its time.

    Raises:
        InvalidInputError: They cannot be sent.
    """
    if speaks_grpc(client):
        return Batch(points, make_message(client, points))
    structs = [_struct(point) for point in points]
    return Batch(points, as_clients(structs) if is_qdrants(client) else structs)


def complete_batch(client: Any, batch: Batch, generation: int, words: Sequence[models.Document] | None) -> None:
    """Add to points what is known only when they are sent; again, where they are sent again.

    Args:
        client: Whose engine gets them.
        batch: Made for it.
        generation: In which they are written.
        words: Of which the server is to make their vectors of words; None where they have none.
    """
    documents = None if words is None else as_clients(list(words))
    if speaks_grpc(client):
        complete_message(batch.form, generation, documents)
        return
    for i, struct in enumerate(batch.form):
        struct.payload[GENERATION_FIELD] = generation
        if documents is not None:
            struct.vector[BM25_VECTOR] = documents[i]


def upsert(client: Any, collection_name: str, *, batch: Batch, stale: models.Filter | None = None) -> Any:
    """Write points; of an async client, return what is to be awaited.

    Args:
        client: Whose engine gets them; the one that the batch was made for.
        collection_name: Of the collection.
        batch: What to write.
        stale: What to delete after that, in the same request.
    """
    if speaks_grpc(client):
        return send_message(client, collection_name, batch.form, as_clients(stale))
    if stale is None:
        return client.upsert(collection_name, points=batch.form)
    operations: list[Any] = [
        models.UpsertOperation(upsert=models.PointsList(points=batch.form)),
        models.DeleteOperation(delete=models.FilterSelector(filter=stale)),
    ]
    if is_qdrants(client):
        operations = as_clients(operations)
    return client.batch_update_points(collection_name, update_operations=operations)


def _struct(point: Point) -> models.PointStruct:
    vector = {} if point.vector is None else {VECTOR_NAME: point.vector.tolist()}
    return models.PointStruct(id=point.id, vector=vector, payload=point.payload)
