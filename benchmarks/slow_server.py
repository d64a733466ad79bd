"""Memory of ``add`` while a server is slow: does what is not written yet pile up?

A generator gives synthetic documents much faster than the server, a process of its own on loopback, takes
their points. The curve is the memory that the client's process holds for itself, at each tenth of the way.

    python benchmarks/slow_server.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter

import numpy as np
import psutil  # type: ignore[import-untyped] # ships no types
from harness import CHUNKS_PER_DOCUMENT, DIMENSION, make_documents, write_results
from servers import serve

from pplx_vectorstore import Document, PrecomputedEncoder, VectorStore

TENTHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds by which each write's answer is late")
    arguments = parser.parse_args()
    with serve(delay=arguments.delay) as server:
        add(server.url, arguments.chunks)


def add(url: str, n_chunks: int) -> None:
    process = psutil.Process()
    curve: list[tuple[int, float]] = []
    start = perf_counter()

    def documents() -> Iterator[Document]:
        n_documents = n_chunks // CHUNKS_PER_DOCUMENT
        for number, document in enumerate(make_documents(n_documents, np.random.default_rng(1))):
            if number % (n_documents // TENTHS) == 0:
                curve.append((number * CHUNKS_PER_DOCUMENT, process.memory_full_info().uss / 2**20))
            yield document

    with VectorStore.connect(url, encoder=PrecomputedEncoder("synthetic", DIMENSION)) as store:
        report = store.add(documents())
        curve.append((report.chunks, process.memory_full_info().uss / 2**20))
        if store.count() != report.chunks:
            raise SystemExit(f"{store.count()} of {report.chunks} chunks are there")
    print(f"{'chunks given':>14}{'memory, MiB':>12}")
    for chunks, memory in curve:
        print(f"{chunks:>14,}{memory:>12.0f}")
    growth = max(memory for _, memory in curve[1:]) / curve[1][1]
    print(f"most after the first tenth / at the first tenth: {growth:.2f}")
    write_results("slow_server", {"chunks": n_chunks, "memory_mb": curve, "growth": growth})
    print(f"{perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
