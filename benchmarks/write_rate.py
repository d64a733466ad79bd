"""How fast `VectorStore.add` writes documents that come with vectors, against the bare embedded engine.

Both write the same points (1,000 characters of text, ten to a document) into fresh collections of the same
settings and payload indexes, 256 at once, and flush; nothing is indexed. The bare engine gets ids and norms
ready made and never looks for stale chunks of replaced documents.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import qdrant_edge as edge
from harness import made_up_documents, print_aim, spread, time_interleaved

from pplx_vectorstore import Document, Encoder, VectorStore, load_encoder
from pplx_vectorstore.points import SHIFT, derive_point_id
from pplx_vectorstore.quantization import Codes, norms

UPSERT_POINTS = 256
AIM = 0.8


@dataclass(frozen=True)
class RawPoint:
    """What a point is made of."""

    id: str
    codes: Codes
    norm: float
    text: str
    document: Document
    index: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=5_000, help="fewer than 20,000, which would be indexed")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    documents = made_up_documents(arguments.points, np.random.default_rng(1))
    points = raw_points(documents)
    encoder = load_encoder("all-minilm-l6-v2")
    writing = {"raw": np.zeros(arguments.rounds), "store": np.zeros(arguments.rounds)}

    def run(name: str, index: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = VectorStore.open(folder, encoder=encoder)
            start = perf_counter()
            if name == "raw":
                write_raw(store._client._shard(store._collection)._shard, points)
            else:
                store.add(documents)
            writing[name][index] = perf_counter() - start
            if store.count() != len(points):
                raise SystemExit(f"{name} wrote {store.count()} of {len(points)} points")
            store.close()

    # The outer times include opening and closing the folder, so the inner ones are what counts.
    time_interleaved({name: lambda i, name=name: run(name, i) for name in writing}, arguments.rounds)
    share = writing["raw"] / writing["store"]
    print(f"{len(points)} points of 384 dimensions, {arguments.rounds} pairs\n")
    print(f"{'':8}{'points/s':>10}{'ms per 1,000':>14}")
    for name, seconds in writing.items():
        median = float(np.median(seconds))
        print(f"{name:8}{len(points) / median:10,.0f}{1e6 * median / len(points):14.1f}")
    ratio = float(np.median(share))
    print(f"\nmiddle half of store over raw: {spread(share)}")
    print_aim("store.add", f"{ratio:.0%} of the raw rate", f"≥ {AIM:.0%}", ratio >= AIM)


def raw_points(documents: Sequence[Document]) -> list[RawPoint]:
    """Lay out the points that the store makes of these documents."""
    points = []
    for document in documents:
        chunks: Sequence[Any] = document.chunks or ()
        assert document.vectors is not None
        rows = zip(chunks, document.vectors, norms(document.vectors).tolist(), strict=True)
        for index, (chunk, codes, norm) in enumerate(rows):
            points.append(
                RawPoint(derive_point_id(document.id, index), codes, norm, chunk.text, document, index)
            )
    return points


def write_raw(shard: Any, points: Sequence[RawPoint]) -> None:
    """Write points with nothing between them and the engine."""
    for first in range(0, len(points), UPSERT_POINTS):
        batch = points[first : first + UPSERT_POINTS]
        codes = np.stack([point.codes for point in batch])
        vectors = (codes.astype(np.int16) + SHIFT).tolist()
        shard.update(
            edge.UpdateOperation.upsert_points(
                [
                    edge.Point(point.id, {"codes": values}, raw_payload(point))
                    for point, values in zip(batch, vectors, strict=True)
                ]
            )
        )
    shard.flush()


def raw_payload(point: RawPoint) -> dict[str, Any]:
    """Return a payload of the store's fields."""
    return {
        "text": point.text,
        "document_id": point.document.id,
        "chunk_index": point.index,
        "chunk_count": 10,
        "start": None,
        "end": None,
        "document_hash": "0123456789abcdef0123456789abcdef",
        "norm": point.norm,
        "metadata": point.document.metadata,
    }


if __name__ == "__main__":
    main()
