"""How fast `VectorStore.add` writes documents that bring their vectors, against the bare engine or client.

Both write the same points (texts of 1,000 characters, ten to a document) into new collections of the same
settings and payload indexes, 256 at once, and flush; nothing is indexed. The bare engine is given ids and
norms ready made, hashes no document and looks for no stale chunks.

With --grpc, the store writes over gRPC, against the client's own `upload_collection` from a float32 array, with
ids and payloads ready made, by one process and by four at once. Both wait for the server's answers, and write no words
for hybrid search; what those take on top is measured as well. Without a URL, here or in QDRANT_URL, the server is a
process on loopback that answers at once and stores nothing (grpc_sink.py): what is compared then is the work of the
client's side. ::

    python benchmarks/write_rate.py
    python benchmarks/write_rate.py --grpc
    python benchmarks/write_rate.py --grpc http://localhost:6333
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import qdrant_edge as edge
from harness import CHUNKS_PER_DOCUMENT, make_documents, middle_half, print_aim, take_turns, write_results
from qdrant_client import QdrantClient

from pplx_vectorstore import CollectionConfig, Document, PrecomputedEncoder, VectorStore, load_encoder
from pplx_vectorstore.collection import DEFAULT_COLLECTION, VECTOR_NAME
from pplx_vectorstore.points import SHIFT, chunk_point_id, derive_point_id, equalize_codes, hash_document, iter_points
from pplx_vectorstore.quantization import Codes, norms

UPSERT_POINTS = 256
AIM = 0.8
# What goes to a server.
GRPC_DIMENSION = 1024
PROCESSES = 4
HYBRID = "store, hybrid"


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="2,500, or 20,000 with --grpc; without, more would be indexed")
    parser.add_argument("--rounds", type=int, help="40, or 10 with --grpc")
    parser.add_argument("--grpc", metavar="URL", nargs="?", const="", help="over gRPC, to a server")
    arguments = parser.parse_args()
    if arguments.grpc is None:
        measure_embedded(arguments.points or 2_500, arguments.rounds or 40)
        return
    url = arguments.grpc or os.environ.get("QDRANT_URL")
    with serve(url) as (address, server):
        found = measure_grpc(address, server, arguments.points or 20_000, arguments.rounds or 10)
    write_results("write_rate_server" if url else "write_rate_grpc", found)


def measure_embedded(n_points: int, rounds: int) -> None:
    """Compare with the embedded engine."""
    documents = list(make_documents(n_points // CHUNKS_PER_DOCUMENT, np.random.default_rng(1)))
    points = [point for document in documents for point in raw_points(document)]
    encoder = load_encoder("all-minilm-l6-v2")
    seconds = {"raw": np.zeros(rounds), "store": np.zeros(rounds)}
    for index, way in take_turns(list(seconds), rounds):
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
    print(f"{len(points)} points of {len(points[0].codes)} dimensions, {rounds} pairs; medians\n")
    rates = print_rates(seconds, len(points))
    print(f"\nmiddle half of store / raw: {middle_half(share)}")
    ratio = float(np.median(share))
    write_results("write_rate", {**{f"{way}_points_per_second": rate for way, rate in rates.items()}, "ratio": ratio})
    print_aim("store.add", f"{ratio:.0%} of the raw rate", f"≥ {AIM:.0%}", ratio >= AIM)


def measure_grpc(url: str, server: str, n_points: int, rounds: int) -> dict[str, Any]:
    """Compare with the client's own upload to a server; return what is to be kept."""
    documents = list(make_documents(n_points // CHUNKS_PER_DOCUMENT, np.random.default_rng(1), GRPC_DIMENSION))
    encoder = PrecomputedEncoder("made-up", GRPC_DIMENSION)
    client = QdrantClient(
        url=url, grpc_port=(urlsplit(url).port or 6333) + 1, prefer_grpc=True, timeout=60, check_compatibility=False
    )
    batch: Batch | None = None
    uploads = {"upload": 1, f"upload by {PROCESSES}": PROCESSES}
    seconds = {way: np.zeros(rounds) for way in ["store", HYBRID, *uploads]}
    with contextlib.closing(client):
        for index, way in take_turns(list(seconds), rounds):
            collection = f"write-rate-{uuid.uuid4().hex}"
            try:
                config = CollectionConfig(text_index=way == HYBRID)
                with VectorStore.connect(
                    url, collection=collection, encoder=encoder, prefer_grpc=True, config=config
                ) as store:
                    batch = batch or Batch.of(documents, store)
                    start = perf_counter()
                    if way in uploads:
                        batch.upload(client, collection, uploads[way])
                    else:
                        store.add(documents)
                    seconds[way][index] = perf_counter() - start
                    if store.count() != n_points:
                        raise SystemExit(f"{way} wrote {store.count()} of {n_points} points")
            finally:
                client.delete_collection(collection)
    print(f"{n_points} points of {GRPC_DIMENSION} dimensions to {server}, {rounds} rounds; medians\n")
    rates = print_rates(seconds, n_points)
    shares = {way: seconds[way] / seconds["store"] for way in uploads}
    print()
    for way, share in shares.items():
        print(f"middle half of store / {way}: {middle_half(share)}")
    ratios = {way: float(np.median(share)) for way, share in shares.items()}
    for way, ratio in ratios.items():
        print_aim("store.add over gRPC", f"{ratio:.0%} of the rate of the client's {way}", f"≥ {AIM:.0%}", ratio >= AIM)
    return {"server": server, "points_per_second": rates, "ratios": ratios}


@contextlib.contextmanager
def serve(url: str | None) -> Iterator[tuple[str, str]]:
    """Yield the URL of a server, and what to call it: the one that is given, or one that stores nothing."""
    if url:
        with contextlib.closing(QdrantClient(url=url, check_compatibility=False)) as client:
            yield url, f"Qdrant {client.info().version}"
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).with_name("grpc_sink.py")), folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), "a server that stores nothing"
            process.communicate("")


@dataclass(frozen=True)
class Batch:
    """The points that a store makes of documents, as the client's upload takes them.

    Attributes:
        ids: One per point.
        vectors: float32, shape (n, dimension).
        payloads: One per point.
    """

    ids: list[str]
    vectors: npt.NDArray[Any]
    payloads: list[dict[str, Any]]

    @classmethod
    def of(cls, documents: Sequence[Document], store: VectorStore) -> Batch:
        """Make them as the store does."""
        fingerprint = store._session.fingerprint
        points: list[Any] = []
        for document in documents:
            assert document.vectors is not None
            (vectors,) = equalize_codes([document.vectors], fingerprint.squared_norm)
            chunks: Sequence[Any] = document.chunks or ()
            ids = [chunk_point_id(document, chunk, index, None) for index, chunk in enumerate(chunks)]
            points += iter_points(document, chunks, vectors, ids, hash_document(document, chunks, fingerprint))
        stored = np.array([point.vector for point in points], np.float32)
        return cls([point.id for point in points], stored, [point.payload for point in points])

    def upload(self, client: QdrantClient, collection: str, processes: int) -> None:
        """Write them with the client's own means, in batches as large as the store's."""
        client.upload_collection(
            collection,
            {VECTOR_NAME: self.vectors},
            self.payloads,
            self.ids,
            batch_size=UPSERT_POINTS,
            parallel=processes,
            wait=True,
        )


def print_rates(seconds: dict[str, npt.NDArray[np.float64]], n_points: int) -> dict[str, float]:
    """Print the median rate of each way; return them, in points per second."""
    rates = {way: n_points / float(np.median(values)) for way, values in seconds.items()}
    print(f"{'':15}{'points/s':>10}{'µs/point':>10}")
    for way, rate in rates.items():
        print(f"{way:15}{rate:10,.0f}{1e6 / rate:10.1f}")
    return rates


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
