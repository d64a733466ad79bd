"""What a steady trickle of small writes costs a server, and the searches that go on meanwhile.

Loads made-up chunks (fifty around each of many centres, as in dimensions.py), waits until the server has indexed them,
and searches at a steady pace: first with nobody writing, then while four documents a second are synced, each of ten
chunks, a fifth of them edits. Recall is that of the ten best by the exact cosine of the codes, among all that was
acknowledged when the search began. Processor time is the server's, searches included.

The server is the one of --url or QDRANT_URL, which must run on this machine, or a stand-in: a process with the embedded
engine behind Qdrant's REST interface, of whose time much is Python's. ::

    python benchmarks/trickle.py
    QDRANT_URL=http://localhost:6333 python benchmarks/trickle.py --chunks 60000 --dimension 384
"""

from __future__ import annotations

import argparse
import os
import threading
import time
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import CHUNKS_PER_DOCUMENT, print_aim, write_results
from qdrant_client import models
from servers import Server, serve

from pplx_vectorstore import Document, PrecomputedEncoder, VectorStore, quantize_to_norm
from pplx_vectorstore.quantization import Codes

K = 10
AROUND_A_CENTRE = 50
WRITES_A_SECOND = 4
SEARCHES_A_SECOND = 10
AIM_RECALL, AIM_RATIO = 0.97, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("QDRANT_URL"))
    parser.add_argument("--chunks", type=int, default=60_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--seconds", type=int, default=60, help="of each of the two parts")
    parser.add_argument("--threshold", type=int, help="of indexing, in KB; without, the server's own")
    parser.add_argument("--bits", action="store_true", help="as if memory did not hold the codes")
    arguments = parser.parse_args()
    if arguments.bits:
        from pplx_vectorstore.operations import access

        access._CACHED_BYTES = 0
    with serve(arguments.url) as server:
        results = measure(server, arguments)
    suffix = "_low" * (arguments.threshold is not None) + "_bits" * arguments.bits
    write_results(f"trickle_{server.name.partition(' ')[0].lower()}{suffix}", results)


class Corpus:
    """Made-up documents, and the codes of those that were acknowledged.

    Args:
        chunks: To begin with.
        dimension: Components of a vector.
    """

    def __init__(self, chunks: int, dimension: int) -> None:
        self._rng = np.random.default_rng(1)
        self._centres = self._rng.normal(size=(chunks // AROUND_A_CENTRE, dimension)).astype(np.float32)
        self._lock = threading.Lock()
        self._codes = np.zeros((2 * chunks, dimension), np.float32)
        self.n_documents = 0

    def near(self, n: int, rng: np.random.Generator) -> Codes:
        """Make codes around the centres."""
        noise = rng.normal(size=(n, self._centres.shape[1])).astype(np.float32)
        return quantize_to_norm(self._centres[rng.integers(len(self._centres), size=n)] + noise)

    def make(self, number: int) -> Document:
        """Make a document, or another version of it."""
        texts = [f"chunk {i} of {number}, version {self._rng.integers(2**31)}" for i in range(CHUNKS_PER_DOCUMENT)]
        return Document(id=str(number), chunks=texts, vectors=self.near(CHUNKS_PER_DOCUMENT, self._rng))

    def acknowledge(self, document: Document) -> None:
        """Take a document for stored."""
        assert document.vectors is not None
        first = int(document.id) * CHUNKS_PER_DOCUMENT
        codes = document.vectors.astype(np.float32)
        with self._lock:
            self._codes[first : first + len(codes)] = codes / np.linalg.norm(codes, axis=1, keepdims=True)
            self.n_documents = max(self.n_documents, int(document.id) + 1)

    def cosines(self, query: Codes) -> npt.NDArray[np.float32]:
        """Return the cosine with each chunk that is stored now, in their order."""
        with self._lock:
            stored = self._codes[: self.n_documents * CHUNKS_PER_DOCUMENT]
            cosines: npt.NDArray[np.float32] = stored @ (query / np.linalg.norm(query.astype(np.float32)))
        return cosines


def measure(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Load, and search with and without a trickle."""
    corpus = Corpus(arguments.chunks, arguments.dimension)
    encoder = PrecomputedEncoder("made-up", arguments.dimension)
    collection = f"trickle-{uuid.uuid4().hex}"
    print(
        f"{server.name}: {arguments.chunks:,} chunks of {arguments.dimension} dimensions, {arguments.seconds} s each\n"
    )
    with VectorStore.connect(server.url, collection=collection, encoder=encoder) as store:
        try:
            if arguments.threshold is not None:
                config = models.OptimizersConfigDiff(indexing_threshold=arguments.threshold)
                store._client.update_collection(collection, optimizers_config=config)
            start = time.perf_counter()
            documents = [corpus.make(number) for number in range(arguments.chunks // CHUNKS_PER_DOCUMENT)]
            store.add(documents)
            for document in documents:
                corpus.acknowledge(document)
            settle(store, collection)
            way = store.explain(corpus.near(1, np.random.default_rng(0))[0]).way
            print(f"loaded and indexed in {time.perf_counter() - start:.0f} s; searched by the {way}")
            print(f"{'':10}{'p50 ms':>8}{'p99 ms':>8}{'recall':>8}{'CPU s/min':>11}{'green':>7}")
            idle = search_for(store, corpus, server, collection, arguments.seconds)
            print_row("idle", idle)
            stop = threading.Event()
            writing = threading.Thread(target=trickle, args=(store, corpus, stop))
            writing.start()
            busy = search_for(store, corpus, server, collection, arguments.seconds)
            stop.set()
            writing.join()
            print_row("trickle", busy)
        finally:
            store._client.delete_collection(collection)
    ratio = busy["p50_ms"] / idle["p50_ms"]
    print_aim("p50 while writing / idle", f"{ratio:.2f}", f"≤ {AIM_RATIO}", ratio <= AIM_RATIO)
    print_aim("recall while writing", f"{busy['recall']:.4f}", f"≥ {AIM_RECALL}", busy["recall"] >= AIM_RECALL)
    return {
        "server": server.name,
        "chunks": arguments.chunks,
        "dimension": arguments.dimension,
        "idle": idle,
        "trickle": busy,
    }


def settle(store: VectorStore, collection: str) -> None:
    """Wait until the server is done, and has the index that it is to have."""
    store.optimize()
    while store._client.get_collection(collection).status != "green":
        time.sleep(0.5)


def trickle(store: VectorStore, corpus: Corpus, stop: threading.Event) -> None:
    """Sync small documents until told to stop."""
    rng = np.random.default_rng(3)
    next_time = time.perf_counter()
    while not stop.is_set():
        is_edit = rng.random() < 0.2
        document = corpus.make(int(rng.integers(corpus.n_documents)) if is_edit else corpus.n_documents)
        store.sync([document])
        corpus.acknowledge(document)
        next_time += 1 / WRITES_A_SECOND
        time.sleep(max(0.0, next_time - time.perf_counter()))


def search_for(store: VectorStore, corpus: Corpus, server: Server, collection: str, seconds: int) -> dict[str, float]:
    """Search at a steady pace; return times, recall, and the server's processor seconds a minute."""
    rng = np.random.default_rng(2)
    times: list[float] = []
    found = green = 0
    began, cpu = time.perf_counter(), server.cpu_seconds()
    while (now := time.perf_counter()) < began + seconds:
        query = corpus.near(1, rng)[0]
        cosines = corpus.cosines(query)
        tenth = np.partition(cosines, -K)[-K]
        start = time.perf_counter()
        hits = store.search(query, k=K)
        times.append(1000 * (time.perf_counter() - start))
        found += sum(hit.score >= tenth - 1e-3 for hit in hits)
        if len(times) % SEARCHES_A_SECOND == 0:
            green += store._client.get_collection(collection).status == "green"
        time.sleep(max(0.0, now + 1 / SEARCHES_A_SECOND - time.perf_counter()))
    minutes = (time.perf_counter() - began) / 60
    p50, p99 = np.percentile(times, [50, 99])
    return {
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "recall": found / (K * len(times)),
        "cpu_seconds_a_minute": (server.cpu_seconds() - cpu) / minutes,
        "green": green / max(1, len(times) // SEARCHES_A_SECOND),
    }


def print_row(name: str, found: dict[str, float]) -> None:
    print(
        f"{name:10}{found['p50_ms']:8.2f}{found['p99_ms']:8.1f}{found['recall']:8.4f}"
        f"{found['cpu_seconds_a_minute']:11.1f}{found['green']:7.0%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
