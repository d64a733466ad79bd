"""Writing points, in the form that the engine behind a client takes fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qdrant_client import models

from pplx_vectorstore.collection import BM25_VECTOR, GENERATION_FIELD, VECTOR_NAME
from pplx_vectorstore.engines.grpc_points import FLOAT_BYTES, complete_message, make_message, send_message
from pplx_vectorstore.engines.server import speaks_grpc
from pplx_vectorstore.points import Point

_JSON_BYTES = 6  # "255.0,"


class Batch(NamedTuple):
    """Points that are written together.

    Attributes:
        points: As the library has them.
        form: As the engine takes them: a message for gRPC, else a list of ``qdrant_client.models.PointStruct``.
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
    return Batch(points, make_message(client, points) if speaks_grpc(client) else [_struct(point) for point in points])


def complete_batch(client: Any, batch: Batch, generation: int, words: Sequence[models.Document] | None) -> None:
    """Add to points what is known only when they are sent; again, where they are sent again.

    Args:
        client: Whose engine gets them.
        batch: Made for it.
        generation: In which they are written.
        words: Of which the server is to make their vectors of words; None where they have none.
    """
    if speaks_grpc(client):
        complete_message(batch.form, generation, words)
        return
    for i, struct in enumerate(batch.form):
        struct.payload[GENERATION_FIELD] = generation
        if words is not None:
            struct.vector[BM25_VECTOR] = words[i]


def upsert(client: Any, collection_name: str, *, batch: Batch, stale: models.Filter | None = None) -> Any:
    """Write points; of an async client, return what is to be awaited.

    Args:
        client: Whose engine gets them; the one that the batch was made for.
        collection_name: Of the collection.
        batch: What to write.
        stale: What to delete after that, in the same request.
    """
    if speaks_grpc(client):
        return send_message(client, collection_name, batch.form, stale)
    if stale is None:
        return client.upsert(collection_name, points=batch.form)
    points = models.PointsList.model_construct(points=batch.form, shard_key=None, update_filter=None)
    operations = [
        models.UpsertOperation.model_construct(upsert=points),
        models.DeleteOperation(delete=models.FilterSelector(filter=stale)),
    ]
    return client.batch_update_points(collection_name, update_operations=operations)


def _struct(point: Point) -> models.PointStruct:
    # Validation is skipped because it would cost more than the upsert; every value is ours.
    vector = {} if point.vector is None else {VECTOR_NAME: point.vector.tolist()}
    return models.PointStruct.model_construct(id=point.id, vector=vector, payload=point.payload)
