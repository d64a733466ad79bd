"""A gRPC server on loopback that takes points as bytes and answers at once: what is measured is the client's side.

It keeps the requests, and counts their points only when it is asked to; to delete any collection is to forget them.
All else is the stand-in's that the tests use, whose collections stay empty, and stay. It prints its URL, and ends
with its standard input. ::

    python benchmarks/grpc_sink.py FOLDER
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdrant_client import grpc as messages

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import qdrant_grpc as stand_in  # type: ignore[import-not-found] # a module of the tests, which are not typed
from qdrant_server import QdrantServer  # type: ignore[import-not-found] # likewise

UPDATED = messages.UpdateResult(operation_id=0, status=messages.UpdateStatus.Completed)


class Sink:
    """What was sent since a collection was last deleted."""

    def __init__(self) -> None:
        self._upserts: list[bytes] = []
        self._batches: list[bytes] = []

    def serve_delete(self, ask: Any, message: Any) -> Any:
        """Forget what came."""
        self._upserts, self._batches = [], []
        return messages.CollectionOperationResponse(result=True)

    def serve_upsert(self, ask: Any, message: bytes) -> Any:
        """Keep points."""
        self._upserts.append(message)
        return messages.PointsOperationResponse(result=UPDATED)

    def serve_batch(self, ask: Any, message: bytes) -> Any:
        """Keep points, and what is to be done after them."""
        self._batches.append(message)
        return messages.UpdateBatchResponse(result=[UPDATED])

    def serve_scroll(self, ask: Any, message: Any) -> Any:
        """Find nothing."""
        return messages.ScrollResponse()

    def serve_count(self, ask: Any, message: Any) -> Any:
        """Count what came."""
        return messages.CountResponse(result=messages.CountResult(count=sum(map(len, self._lists()))))

    def _lists(self) -> Iterator[Any]:
        for message in self._upserts:
            yield messages.UpsertPoints.FromString(message).points
        for message in self._batches:
            for operation in messages.UpdateBatchPoints.FromString(message).operations:
                yield operation.upsert.points


class Bytes:
    """The message class of a call whose messages stay bytes."""

    @staticmethod
    def FromString(message: bytes) -> bytes:  # noqa: N802 - a message class's name for it
        """Return the message as it came."""
        return message


def main() -> None:
    sink = Sink()
    stand_in._SERVICES["qdrant.Collections"]["Delete"] = (sink.serve_delete, messages.DeleteCollection)
    stand_in._SERVICES["qdrant.Points"] |= {
        "Upsert": (sink.serve_upsert, Bytes),
        "UpdateBatch": (sink.serve_batch, Bytes),
        "Scroll": (sink.serve_scroll, messages.ScrollPoints),
        "Count": (sink.serve_count, messages.CountPoints),
    }
    with stand_in.serve(functools.partial(QdrantServer, sys.argv[1])) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
