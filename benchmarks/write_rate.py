"""How fast `VectorStore.add` writes documents that bring their vectors, against the bare embedded engine.

Both write the same points (texts of 1,000 characters, ten to a document) into new collections of the same
settings and payload indexes, 256 at once, and flush; nothing is indexed. The bare engine is given ids and
norms ready made, hashes no document and looks for no stale chunks.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import qdrant_edge as edge
from harness import CHUNKS_PER_DOCUMENT, make_documents, middle_half, print_aim, take_turns, write_results

from pplx_vectorstore import Document, VectorStore, load_encoder
from pplx_vectorstore.collection import DEFAULT_COLLECTION
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
    index: int
    document: Document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=2_500, help="fewer than 20,000, which would be indexed")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    documents = list(make_documents(arguments.points // CHUNKS_PER_DOCUMENT, np.random.default_rng(1)))
    points = [point for document in documents for point in raw_points(document)]
    encoder = load_encoder("all-minilm-l6-v2")
    seconds = {"raw": np.zeros(arguments.rounds), "store": np.zeros(arguments.rounds)}
    for index, way in take_turns(list(seconds), arguments.rounds):
        with tempfile.TemporaryDirectory() as folder, VectorStore.open(folder, encoder=encoder) as store:
            start = perf_counter()
            if way == "raw":
                write_raw(store._client._shard(DEFAULT_COLLECTION)._engine, points)
            else:
                store.add(documents)
            seconds[way][index] = perf_counter() - start
            if store.count() != len(points):
                raise SystemExit(f"{way} wrote {store.count()} of {len(points)} points")
    share = seconds["raw"] / seconds["store"]
    print(f"{len(points)} points of {len(points[0].codes)} dimensions, {arguments.rounds} pairs; medians\n")
    print(f"{'':8}{'points/s':>10}{'µs/point':>10}")
    for way, values in seconds.items():
        median = float(np.median(values))
        print(f"{way:8}{len(points) / median:10,.0f}{1e6 * median / len(points):10.1f}")
    print(f"\nmiddle half of store / raw: {middle_half(share)}")
    ratio = float(np.median(share))
    rates = {f"{way}_points_per_second": len(points) / float(np.median(values)) for way, values in seconds.items()}
    write_results("write_rate", {**rates, "ratio": ratio})
    print_aim("store.add", f"{ratio:.0%} of the raw rate", f"≥ {AIM:.0%}", ratio >= AIM)


def raw_points(document: Document) -> list[RawPoint]:
    """Lay out the points that the store makes of a document."""
    chunks: Sequence[Any] = document.chunks or ()
    assert document.vectors is not None
    rows = zip(chunks, document.vectors, norms(document.vectors).tolist(), strict=True)
    return [
        RawPoint(derive_point_id(document.id, index), codes, norm, chunk.text, index, document)
        for index, (chunk, codes, norm) in enumerate(rows)
    ]


def write_raw(shard: Any, points: Sequence[RawPoint]) -> None:
    """Write points with nothing between them and the engine."""
    for first in range(0, len(points), UPSERT_POINTS):
        batch = points[first : first + UPSERT_POINTS]
        vectors = (np.stack([point.codes for point in batch]).astype(np.int16) + SHIFT).tolist()
        made = [
            edge.Point(point.id, {"codes": values}, raw_payload(point))
            for point, values in zip(batch, vectors, strict=True)
        ]
        shard.update(edge.UpdateOperation.upsert_points(made))
    shard.flush()


def raw_payload(point: RawPoint) -> dict[str, Any]:
    """Return the payload that the store writes."""
    return {
        "text": point.text,
        "document_id": point.document.id,
        "chunk_index": point.index,
        "chunk_count": CHUNKS_PER_DOCUMENT,
        "start": None,
        "end": None,
        "document_hash": "0123456789abcdef" * 3,
        "norm": point.norm,
        "metadata": point.document.metadata,
    }


if __name__ == "__main__":
    main()
