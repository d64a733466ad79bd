"""What `VectorStore.bulk_load` saves a server: time and processor time until all is loaded and indexed.

Made-up vectors are written to new collections, the usual way and in a bulk load, in turns. Time is until the server has
nothing left to index. The server is the one of --url or QDRANT_URL, which must run on this machine, or a stand-in. ::

    QDRANT_URL=http://localhost:6333 python benchmarks/bulk_load.py --chunks 300000 --dimension 128
"""

from __future__ import annotations

import argparse
import contextlib
import os
import uuid
from collections.abc import Iterator
from time import perf_counter

import numpy as np
from harness import CHUNKS_PER_DOCUMENT, take_turns, write_results
from servers import Server, serve

from pplx_vectorstore import Document, PrecomputedEncoder, VectorStore, quantize_to_norm

AROUND_A_CENTRE = 50
WAYS = ("as usual", "bulk load")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("QDRANT_URL"))
    parser.add_argument("--chunks", type=int, default=300_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with serve(arguments.url) as server:
        print(f"{server.name}, {arguments.chunks:,} chunks of {arguments.dimension} dimensions\n")
        print(f"{'':12}{'loaded s':>10}{'indexed s':>11}{'server CPU s':>14}{'client CPU s':>14}")
        for _, way in take_turns(WAYS, arguments.rounds):
            result = load(server, way, arguments.chunks, arguments.dimension)
            found[way].append(result)
            print(
                f"{way:12}{result['loaded']:10.1f}{result['indexed']:11.1f}{result['server_cpu']:14.1f}"
                f"{result['client_cpu']:14.1f}",
                flush=True,
            )
    medians = {
        way: {name: float(np.median([one[name] for one in results])) for name in results[0]}
        for way, results in found.items()
    }
    for name in ("indexed", "server_cpu"):
        print(f"{name}: bulk load / as usual = {medians['bulk load'][name] / medians['as usual'][name]:.2f}")
    write_results(
        "bulk_load",
        {"server": server.name, "chunks": arguments.chunks, "dimension": arguments.dimension, "ways": medians},
    )


def load(server: Server, way: str, n: int, dimension: int) -> dict[str, float]:
    """Write all documents, and wait until they are indexed."""
    documents = list(make_documents(n, dimension))
    collection = f"bulk-load-{uuid.uuid4().hex}"
    with VectorStore.connect(
        server.url, collection=collection, encoder=PrecomputedEncoder("made-up", dimension)
    ) as store:
        try:
            server_cpu, client_cpu, start = server.cpu_seconds(), sum(os.times()[:2]), perf_counter()
            with contextlib.ExitStack() as loading:
                if way == "bulk load":
                    loading.enter_context(store.bulk_load())
                store.add(documents)
                loaded = perf_counter() - start
            if way != "bulk load":
                store.optimize()
            result = {
                "loaded": loaded,
                "indexed": perf_counter() - start,
                "server_cpu": server.cpu_seconds() - server_cpu,
                "client_cpu": sum(os.times()[:2]) - client_cpu,
            }
            info = store._client.get_collection(collection)
            if info.points_count != n or info.status != "green":
                raise SystemExit(f"{info.points_count} of {n} points are there, and the status is {info.status}")
        finally:
            store._client.delete_collection(collection)
    return result


def make_documents(n: int, dimension: int) -> Iterator[Document]:
    """Make documents of ten chunks each, around random centres."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(max(1, n // AROUND_A_CENTRE), dimension)).astype(np.float32)
    for number in range(n // CHUNKS_PER_DOCUMENT):
        near = centres[rng.integers(len(centres), size=CHUNKS_PER_DOCUMENT)]
        noise = rng.normal(size=near.shape).astype(np.float32)
        texts = [f"chunk {i} of {number}" for i in range(CHUNKS_PER_DOCUMENT)]
        yield Document(id=str(number), chunks=texts, vectors=quantize_to_norm(near + noise))


if __name__ == "__main__":
    main()
