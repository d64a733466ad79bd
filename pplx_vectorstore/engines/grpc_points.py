"""Points → Qdrant's gRPC messages, from the bytes of arrays.

Over gRPC, the client turns each component into a Python number and back, one by one, which takes longer than all else
that is done with a point. On the wire, a dense vector is a length and little-endian float32s: the memory of an array.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pplx_vectorstore.collection import BM25_VECTOR, GENERATION_FIELD, VECTOR_NAME
from pplx_vectorstore.engines.retrying import refuse_nesting
from pplx_vectorstore.engines.server import describe_with_port
from pplx_vectorstore.points import Point

if TYPE_CHECKING:
    from qdrant_client import models

FLOAT_BYTES = 4
"""Bytes that a component of a vector takes in a message."""


def make_message(client: Any, points: Sequence[Point]) -> Any:
    """Make a ``qdrant_client.grpc.UpsertPoints`` that lacks but the name of the collection.

    Raises:
        InvalidInputError: A payload nests deeper than messages do.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # ships no types
    from qdrant_client import grpc
    from qdrant_client.conversions.conversion import RestToGrpc

    message = grpc.UpsertPoints(wait=True)
    for point in points:
        added = message.points.add(id={"uuid": point.id}, payload=RestToGrpc.convert_payload(point.payload))
        added.MergeFromString(_vector_message(point))
        if any(isinstance(value, (dict, list)) for value in point.payload["metadata"].values()):
            # What nests too deep is written without a word, and found only where it is read.
            try:
                grpc.PointStruct.FromString(added.SerializeToString())
            except DecodeError as error:
                raise refuse_nesting("upsert", describe_with_port(client), str(error)) from None
    return message


def complete_message(message: Any, generation: int, words: Sequence[models.Document] | None) -> None:
    """Add to the points of a message what is known only when it is sent; again, where it is sent again.

    Args:
        message: From `make_message`.
        generation: In which they are written.
        words: Of which the server is to make their vectors of words, or None.
    """
    from qdrant_client.conversions.conversion import RestToGrpc

    for i, point in enumerate(message.points):
        point.payload[GENERATION_FIELD].integer_value = generation
        if words is not None:
            document = RestToGrpc.convert_document(words[i])
            point.vectors.vectors.vectors[BM25_VECTOR].document.CopyFrom(document)


def send_message(client: Any, collection_name: str, message: Any, stale: models.Filter | None) -> Any:
    """Send a message that `make_message` made, as the client sends its own.

    Args:
        client: A ``QdrantClient`` or ``AsyncQdrantClient`` that prefers gRPC; what is returned of the latter is to be
            awaited.
        collection_name: Of the collection.
        message: With the points to write.
        stale: What to delete after that, in the same request.
    """
    from qdrant_client import grpc, models
    from qdrant_client.conversions.conversion import RestToGrpc

    timeout = _timeout_of(client)
    if stale is None:
        message.collection_name = collection_name
        return client.grpc_points.Upsert(message, timeout=timeout)
    batch = grpc.UpdateBatchPoints(collection_name=collection_name, wait=True)
    batch.operations.add().upsert.points.extend(message.points)
    deletion = models.DeleteOperation(delete=models.FilterSelector(filter=stale))
    batch.operations.append(RestToGrpc.convert_update_operation(deletion))
    return client.grpc_points.UpdateBatch(batch, timeout=timeout)


def _vector_message(point: Point) -> bytes:
    """Return what a point's message holds of its vector."""
    if point.vector is None:
        return _no_vector()
    return _before_components(len(point.vector)) + point.vector.astype("<f4").tobytes()


@functools.lru_cache(maxsize=64)
def _before_components(dimension: int) -> bytes:
    """Return what stands before the components in the message of a point that has a vector alone."""
    from qdrant_client import grpc

    message = _message({VECTOR_NAME: grpc.Vector(dense=grpc.DenseVector(data=[0.0] * dimension))})
    return message[: -FLOAT_BYTES * dimension]


@functools.lru_cache(maxsize=1)
def _no_vector() -> bytes:
    return _message({})


def _message(vectors: Mapping[str, Any]) -> bytes:
    from qdrant_client import grpc

    point = grpc.PointStruct(vectors=grpc.Vectors(vectors=grpc.NamedVectors(vectors=vectors)))
    return bytes(point.SerializeToString())


def _timeout_of(client: Any) -> int:
    """Return the seconds for which the client waits for an answer over gRPC."""
    from qdrant_client.qdrant_remote import QdrantRemote

    timeout = client.init_options.get("timeout")
    return QdrantRemote.DEFAULT_GRPC_TIMEOUT if timeout is None else math.ceil(timeout)
