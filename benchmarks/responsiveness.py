"""How long the embedded engine holds up other threads, and an event loop, of the process that it runs in.

A thread that wants to wake up every 5 ms, or a task that does, tells how late it was at worst, while the store adds,
indexes, searches, deletes and closes. Searches go on while the index is built: how long they take then, and when idle.

    python benchmarks/responsiveness.py [--chunks 100000] [--dimension 384] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pplx_vectorstore import AsyncVectorStore, Document, PrecomputedEncoder, VectorStore
from pplx_vectorstore.quantization import quantize_tanh

_TICK = 0.005
_CHUNKS_EACH = 20
_WORDS = 30


def documents(n: int, dimension: int, seed: int) -> Iterator[Document]:
    """Make documents of chunks about one thing each; texts of random words."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(200, dimension)).astype(np.float32)
    for i in range(n // _CHUNKS_EACH):
        near = centers[rng.integers(200)] + 0.7 * rng.normal(size=(_CHUNKS_EACH, dimension)).astype(np.float32)
        words = rng.integers(5000, size=(_CHUNKS_EACH, _WORDS))
        texts = [" ".join(f"w{word}" for word in row) for row in words]
        yield Document(id=f"d{i}", chunks=texts, vectors=quantize_tanh(0.15 * near))


class Watchdog:
    """Ticks in a thread of its own, and remembers the longest times between two ticks beyond the tick itself."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        last = time.perf_counter()
        while not self._stop.is_set():
            time.sleep(_TICK)
            now = time.perf_counter()
            self.gaps.append(now - last - _TICK)
            last = now

    def __enter__(self) -> Watchdog:
        self._thread.start()
        time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.05)
        self._stop.set()
        self._thread.join()


def report(what: str, seconds: float, gaps: list[float]) -> None:
    """Print how long a step took, and its three longest gaps."""
    worst = ", ".join(f"{1000 * gap:.0f}" for gap in sorted(gaps)[-3:])
    print(f"{what:<34} {seconds:7.2f} s   longest gaps {worst} ms", flush=True)


def watched(what: str, work: Callable[[], Any]) -> Any:
    """Run something beside a watchdog."""
    with Watchdog() as dog:
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
    report(what, seconds, dog.gaps)
    return result


def latencies(store: VectorStore, queries: list[Any], until: Callable[[], bool]) -> list[float]:
    """Search until told to stop; return the milliseconds of each search."""
    found = []
    while not until():
        for query in queries:
            started = time.perf_counter()
            store.search(query)
            found.append(1000 * (time.perf_counter() - started))
            time.sleep(0.005)  # a user's pace; back to back, they would compete with the watchdog for the lock
    return found


def percentiles(values: list[float]) -> str:
    """Say the median and the 99th percentile."""
    return f"p50 {np.percentile(values, 50):.2f}, p99 {np.percentile(values, 99):.2f} ms of {len(values)}"


def measure_threads(n: int, dimension: int, folder: Path) -> None:
    """Watch a thread beside a blocking store."""
    encoder = PrecomputedEncoder("made", dimension)
    asked = documents(50 * _CHUNKS_EACH, dimension, seed=7)
    queries = [document.vectors[0] for document in asked if document.vectors is not None]
    store = watched("open", lambda: VectorStore.open(folder, encoder=encoder))
    watched(f"add {n}", lambda: store.add(documents(n, dimension, seed=1)))
    watched("index the rest", store.optimize)
    calls = iter(range(10))
    idle = latencies(store, queries, lambda: next(calls) == 9)
    watched(f"add {n // 10} more", lambda: store.add(documents(n // 10, dimension, seed=2)))

    indexing = threading.Thread(target=store.optimize)
    with Watchdog() as dog:
        started = time.perf_counter()
        indexing.start()
        busy = latencies(store, queries, lambda: not indexing.is_alive())
        seconds = time.perf_counter() - started
    report("index all, while searching", seconds, dog.gaps)
    print(f"    searches, idle:           {percentiles(idle)}")
    print(f"    searches while indexing:  {percentiles(busy)}")
    for n_threads in (1, 2, 4):
        print(f"    {n_threads} threads search:         {_throughput(store, queries, n_threads):.0f} a second")
    started = time.perf_counter()
    store.search_batch(queries * 20)
    print(f"    search_batch:             {20 * len(queries) / (time.perf_counter() - started):.0f} a second")
    watched("delete a third", lambda: store.delete(document_ids=[f"d{i}" for i in range(n // _CHUNKS_EACH // 3)]))
    watched("close", store.close)
    store = watched("open", lambda: VectorStore.open(folder, encoder=encoder))
    watched("close", store.close)


def _throughput(store: VectorStore, queries: list[Any], n_threads: int) -> float:
    def work() -> None:
        for query in queries * 10:
            store.search(query)

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 10 * len(queries) * n_threads / (time.perf_counter() - started)


async def measure_loop(n: int, dimension: int, folder: Path) -> None:
    """Watch an event loop beside an async store."""

    async def watched_here(what: str, work: Any) -> Any:
        gaps: list[float] = []

        async def tick() -> None:
            last = time.perf_counter()
            while True:
                await asyncio.sleep(_TICK)
                now = time.perf_counter()
                gaps.append(now - last - _TICK)
                last = now

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        result = await work
        seconds = time.perf_counter() - started
        ticking.cancel()
        report(what, seconds, gaps)
        return result

    store = await AsyncVectorStore.open(folder, encoder=PrecomputedEncoder("made", dimension))
    await watched_here(f"async: add {n}", store.add(documents(n, dimension, seed=1)))
    await watched_here("async: index the rest", store.optimize())
    gone = [f"d{i}" for i in range(n // _CHUNKS_EACH // 3)]
    await watched_here("async: delete a third", store.delete(document_ids=gone))
    await watched_here("async: close", store.close())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--folder", type=Path, help="where indexes are made; a temporary folder if not given")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        measure_threads(given.chunks, given.dimension, folder / "threads")
        asyncio.run(measure_loop(given.chunks, given.dimension, folder / "loop"))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
