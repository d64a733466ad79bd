"""How much of an exact search the defaults find on a server, by dimension and size, in every state of a collection.

Real vectors (vectors.py), cut to fewer dimensions or expanded to more dimensions and vectors (dimensions.py), are
written to a server, each ten as a document. recall@10 of 200 questions, by the exact cosine of the codes:

- *loading*: half of them are written, the rest is being written meanwhile;
- *new*: all are written, the server has just begun to index them or not at all;
- *indexed*: after ``optimize()``;
- *trickle*: a document is synced before each search, a quarter of them edits, a quarter deleted again.

The server is the one of --url or QDRANT_URL, which must run on this machine, or a stand-in. ::

    QDRANT_URL=http://localhost:6333 python benchmarks/server_recall.py DATA --sizes 10000 100000
"""

from __future__ import annotations

import argparse
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dimensions import resize
from harness import CHUNKS_PER_DOCUMENT, RESULTS, print_aim, read_results, write_results
from servers import Server, serve
from vectors import real_vectors

from pplx_vectorstore import Document, PrecomputedEncoder, VectorStore, quantize_to_norm
from pplx_vectorstore.quantization import Codes

K = 10
QUERIES = 200
DIMENSIONS = (128, 256, 384, 1024, 2560)
SIZES = (10_000, 100_000)
AIM = 0.97
BLOCK = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md and questions.csv")
    parser.add_argument("--url", default=os.environ.get("QDRANT_URL"))
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--bits", action="store_true", help="as if memory did not hold the codes")
    arguments = parser.parse_args()
    if arguments.bits:
        from pplx_vectorstore.operations import access

        access._CACHED_BYTES = 0
    real = real_vectors(arguments.data, 60_000)
    results: list[dict[str, Any]] = []
    with serve(arguments.url) as server:
        print(f"{server.name}, recall@{K} of {QUERIES} questions\n")
        print("| dimension | vectors | loading | new | indexed | trickle | way |\n|" + "---|" * 7)
        for n in arguments.sizes:
            for dimension in arguments.dimensions:
                vectors = resize(real, n, dimension)
                codes = np.concatenate([quantize_to_norm(vectors.points[i : i + BLOCK]) for i in range(0, n, BLOCK)])
                found, way = measure(server, codes, quantize_to_norm(vectors.queries[:QUERIES]))
                results.append({"dimension": dimension, "vectors": n, "way": way, **found})
                keep("server_recall_bits" if arguments.bits else "server_recall", server.name, results)
                cells = " | ".join(f"{found[state]:.4f}" for state in ("loading", "new", "indexed", "trickle"))
                print(f"| {dimension:,} | {n:,} | {cells} | {way} |", flush=True)
    worst = min(one[state] for one in results for state in ("loading", "new", "indexed", "trickle"))
    print_aim("the worst of all", f"{worst:.4f}", f"≥ {AIM}", worst >= AIM)


def keep(name: str, server: str, results: list[dict[str, Any]]) -> None:
    """Write results beside those of other dimensions and sizes on the same server."""
    kept: Any = read_results(name) if (RESULTS / f"{name}.json").exists() else {"server": server, "found": []}
    known = {(one["vectors"], one["dimension"]): one for one in kept["found"] if kept["server"] == server}
    known |= {(one["vectors"], one["dimension"]): one for one in results}
    write_results(name, {"server": server, "found": [known[place] for place in sorted(known)]})


class Truth:
    """The codes of what is stored, by document.

    Args:
        codes: int8, shape (n, dimension), of the documents in their order.
        queries: int8, shape (n, dimension).
    """

    def __init__(self, codes: Codes, queries: Codes) -> None:
        self._codes, self._queries = codes, queries
        self.is_there = np.zeros(len(codes), bool)
        units = (queries / np.linalg.norm(queries.astype(np.float32), axis=1, keepdims=True)).astype(np.float32)
        self._cosines = np.empty((len(queries), len(codes)), np.float32)
        for first in range(0, len(codes), BLOCK):
            some = codes[first : first + BLOCK].astype(np.float32)
            some /= np.linalg.norm(some, axis=1, keepdims=True)
            self._cosines[:, first : first + BLOCK] = units @ some.T

    def count(self, query: int, places: Sequence[int], was_there: npt.NDArray[np.bool_]) -> int:
        """Count the hits that are at least as good as the tenth best of what was there when the search began."""
        cosines = self._cosines[query]
        tenth = np.partition(cosines[was_there], -K)[-K]
        return sum(bool(cosines[place] >= tenth - 1e-6) for place in places)

    def document(self, number: int) -> Document:
        """Return a document."""
        first = number * CHUNKS_PER_DOCUMENT
        texts = [str(place) for place in range(first, first + CHUNKS_PER_DOCUMENT)]
        return Document(id=str(number), chunks=texts, vectors=self._codes[first : first + CHUNKS_PER_DOCUMENT])


def measure(server: Server, codes: Codes, queries: Codes) -> tuple[dict[str, float], str]:
    """Return the recall in each state, and the way that searches take in the end."""
    n_documents = len(codes) // CHUNKS_PER_DOCUMENT
    n_later = QUERIES  # written while searching
    truth = Truth(codes, queries)
    collection = f"recall-{uuid.uuid4().hex}"
    encoder = PrecomputedEncoder("real", codes.shape[1])
    found: dict[str, float] = {}

    def note(first: int, stop: int, there: bool = True) -> None:
        truth.is_there[first * CHUNKS_PER_DOCUMENT : stop * CHUNKS_PER_DOCUMENT] = there

    def recall(write: Iterator[None] | None = None) -> float:
        right = 0
        for query, row in enumerate(queries):
            if write is not None:
                next(write)
            was_there = truth.is_there.copy()
            places = [int(hit.text) for hit in store.search(row, k=K)]
            right += truth.count(query, places, was_there)
        return right / (K * len(queries))

    def trickle() -> Iterator[None]:
        for number in range(n_documents - n_later, n_documents):
            store.sync([truth.document(number)])
            note(number, number + 1)
            if number % 4 == 1:  # again, with other metadata: its points move
                document = truth.document(number - 20 * (number % 7))
                store.sync(
                    [Document(id=document.id, chunks=document.chunks, vectors=document.vectors, metadata={"n": 1})]
                )
                note(int(document.id), int(document.id) + 1)
            if number % 4 == 2:
                gone = number - 1
                store.delete(document_ids=[str(gone)])
                note(gone, gone + 1, there=False)
            yield

    with VectorStore.connect(server.url, collection=collection, encoder=encoder) as store:
        try:
            half, most = n_documents // 2, n_documents - n_later
            store.add(truth.document(number) for number in range(half))
            note(0, half)

            def load() -> None:
                for first in range(half, most, 50):
                    stop = min(first + 50, most)
                    store.add([truth.document(number) for number in range(first, stop)])
                    note(first, stop)

            loading = threading.Thread(target=load)
            loading.start()
            found["loading"] = recall()
            loading.join()
            found["new"] = recall()
            store.optimize()
            found["indexed"] = recall()
            found["trickle"] = recall(trickle())
            way = store.explain(queries[0]).way
        finally:
            store._client.delete_collection(collection)
    return found, way


if __name__ == "__main__":
    main()
