"""What `VectorStore.bulk_load` saves a server: time and processor time until all is loaded and indexed.

Made-up vectors are written to new collections, the usual way and in a bulk load, in turns, with hybrid search and
without. Texts have 150 words, of which few are frequent, as in real text. Time is until the server has nothing left to
index. The server is the one of --url or QDRANT_URL, which must run on this machine, or a stand-in. ::

    QDRANT_URL=http://localhost:6333 python benchmarks/bulk_load.py --chunks 100000 --dimension 384
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

from pplx_vectorstore import CollectionConfig, Document, PrecomputedEncoder, VectorStore, quantize_to_norm

AROUND_A_CENTRE = 50
WORDS, WORDS_PER_CHUNK = 30_000, 150
USUAL, BULK = "as usual", "bulk load"
WAYS = {
    f"{way}, {'hybrid' if text_index else 'no hybrid'}": (way, text_index)
    for text_index in (False, True)
    for way in (USUAL, BULK)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("QDRANT_URL"))
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with serve(arguments.url) as server:
        print(f"{server.name}, {arguments.chunks:,} chunks of {arguments.dimension} dimensions\n")
        print(f"{'':22}{'loaded s':>10}{'indexed s':>11}{'server CPU s':>14}{'client CPU s':>14}")
        for _, name in take_turns(list(WAYS), arguments.rounds):
            way, text_index = WAYS[name]
            result = load(server, way, arguments.chunks, arguments.dimension, text_index=text_index)
            found[name].append(result)
            print(
                f"{name:22}{result['loaded']:10.1f}{result['indexed']:11.1f}{result['server_cpu']:14.1f}"
                f"{result['client_cpu']:14.1f}",
                flush=True,
            )
    medians = {
        way: {name: float(np.median([one[name] for one in results])) for name in results[0]}
        for way, results in found.items()
    }
    for kind in ("no hybrid", "hybrid"):
        for name in ("indexed", "server_cpu"):
            ratio = medians[f"{BULK}, {kind}"][name] / medians[f"{USUAL}, {kind}"][name]
            print(f"{kind}, {name}: {BULK} / {USUAL} = {ratio:.2f}")
    write_results(
        "bulk_load",
        {"server": server.name, "chunks": arguments.chunks, "dimension": arguments.dimension, "ways": medians},
    )


def load(server: Server, way: str, n: int, dimension: int, *, text_index: bool) -> dict[str, float]:
    """Write all documents, and wait until they are indexed."""
    documents = list(make_documents(n, dimension))
    collection = f"bulk-load-{uuid.uuid4().hex}"
    with VectorStore.connect(
        server.url,
        collection=collection,
        encoder=PrecomputedEncoder("made-up", dimension),
        config=CollectionConfig(text_index=text_index),
    ) as store:
        try:
            server_cpu, client_cpu, start = server.cpu_seconds(), sum(os.times()[:2]), perf_counter()
            with contextlib.ExitStack() as loading:
                if way == BULK:
                    loading.enter_context(store.bulk_load())
                store.add(documents)
                loaded = perf_counter() - start
            if way != BULK:
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
    words = np.array([f"w{rank}" for rank in range(1, WORDS + 1)], dtype=object)
    frequencies = np.cumsum(1 / np.arange(1, WORDS + 1))
    for number in range(n // CHUNKS_PER_DOCUMENT):
        near = centres[rng.integers(len(centres), size=CHUNKS_PER_DOCUMENT)]
        noise = rng.normal(size=near.shape).astype(np.float32)
        drawn = rng.uniform(0, frequencies[-1], size=(CHUNKS_PER_DOCUMENT, WORDS_PER_CHUNK))
        texts = [" ".join(row) for row in words[np.searchsorted(frequencies, drawn)]]
        yield Document(id=str(number), chunks=texts, vectors=quantize_to_norm(near + noise))


if __name__ == "__main__":
    main()
