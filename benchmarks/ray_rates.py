"""How fast documents come into a server by a job of Ray Data, against one process that syncs them in a loop.

With codes that are hashes, what is compared is everything but the model; with all-MiniLM-L6-v2, embedding dominates.
Each process computes in one thread. A job of one document tells what a job costs whatever its size; rates are of what
is beyond that. The server, a stand-in unless a URL is given, competes for the same cores. ::

    python benchmarks/ray_rates.py
    python benchmarks/ray_rates.py http://localhost:6333
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

# Before anything imports torch, and for the workers, which inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import psutil  # type: ignore[import-untyped] # ships no types
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from harness import print_aim, take_turns, write_results
from qdrant_client import QdrantClient
from ray_pplx_vectorstore import sync_documents
from servers import TESTS, serve

from pplx_vectorstore import Document, Encoder, VectorStore, load_encoder

WORDS = ("byte", "chunk", "code", "cosine", "for", "in", "is", "of", "query", "sign", "the", "window")
CHUNKS = 3
BATCH_SIZE = 64
WAYS = {"plain loop": 0, "1 actor": 1, "2 actors": 2}
AIM = 1.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="of a server on this machine; without, a stand-in")
    parser.add_argument("--hashed", type=int, default=4_000, help="documents with hashes for codes; 0 for none")
    parser.add_argument("--embedded", type=int, default=600, help="documents that are embedded; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    results: dict[str, Any] = {"load before": load}
    print(f"load average before: {load:.1f}\n")
    with start_ray(), serve(arguments.url) as server, tempfile.TemporaryDirectory() as folder:
        results["server"] = server.name
        models: dict[str, tuple[int, Callable[[], Encoder]]] = {
            "hashes": (arguments.hashed, make_hash_encoder),
            "all-minilm-l6-v2": (arguments.embedded, functools.partial(load_encoder, "all-minilm-l6-v2")),
        }
        for name, (n_documents, make) in models.items():
            if not n_documents:
                continue
            results[name] = measure(server.url, Path(folder), n_documents, make, arguments.rounds)
            print_found(name, results[name])
    if "hashes" not in results or "all-minilm-l6-v2" not in results:
        return
    embedded = results["all-minilm-l6-v2"]["documents_per_second"]
    ratio = embedded["2 actors"] / embedded["1 actor"]
    write_results("ray_rates", results)
    print_aim("2 actors", f"{ratio:.2f} times the rate of one", f"≥ {AIM}", ratio >= AIM)


@contextlib.contextmanager
def start_ray() -> Iterator[None]:
    """Start Ray on two CPUs of this machine; what it writes is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ |= {"HOME": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 * 2**20)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def make_hash_encoder() -> Encoder:
    """Make the encoder of the tests that needs no model; with the dimensions of the other."""
    sys.path.append(str(TESTS))
    from hash_encoder import make_encoder  # type: ignore[import-not-found] # of the tests

    encoder: Encoder = make_encoder(384)
    return encoder


def measure(url: str, folder: Path, n_documents: int, make: Callable[[], Encoder], rounds: int) -> dict[str, Any]:
    """Sync new documents in each way, each round into a collection of its own, and one document in a job of its own."""
    rng = np.random.default_rng(1)
    documents = [
        Document(id=f"document-{i}", chunks=[" ".join(rng.choice(WORDS, size=60)) for _ in range(CHUNKS)])
        for i in range(n_documents)
    ]
    seconds = {way: np.zeros(rounds) for way in WAYS}
    fixed = {way: np.zeros(rounds) for way in WAYS}
    memory = dict.fromkeys(WAYS, 0.0)
    for index, way in take_turns(list(WAYS), rounds):
        with worker_memory() as most:
            fixed[way][index] = sync(url, folder, documents[:1], make, WAYS[way])
            seconds[way][index] = sync(url, folder, documents, make, WAYS[way])
        memory[way] = max(memory[way], *most)
    return {
        "documents": n_documents,
        "seconds": {way: float(np.median(values)) for way, values in seconds.items()},
        "fixed_seconds": {way: float(np.median(values)) for way, values in fixed.items()},
        "documents_per_second": {way: (n_documents - 1) / float(np.median(seconds[way] - fixed[way])) for way in WAYS},
        "worker_mb": memory,
    }


def sync(url: str, folder: Path, documents: list[Document], make: Callable[[], Encoder], workers: int) -> float:
    """Sync documents into a new collection; return how long that took, the model's loading included."""
    collection = f"ray-rates-{uuid.uuid4().hex}"
    path = folder / "documents.parquet"
    rows = [{"id": one.id, "chunks": [chunk.text for chunk in one.chunks or ()]} for one in documents]  # type: ignore[union-attr]
    pq.write_table(pa.Table.from_pylist(rows), path)
    start = perf_counter()
    if workers:
        dataset = ray.data.read_parquet(str(path))
        options = {"workers": workers, "num_cpus": 0.5, "batch_size": BATCH_SIZE}
        report = sync_documents(dataset, url, collection=collection, model=make, **options)  # type: ignore[arg-type]
        written = report.documents
    else:
        with VectorStore.connect(url, collection=collection, encoder=make()) as store:
            written = store.sync(documents).documents
    taken = perf_counter() - start
    if written != len(documents):
        raise SystemExit(f"{written} of {len(documents)} documents were written")
    with contextlib.closing(QdrantClient(url=url, check_compatibility=False)) as client:
        client.delete_collection(collection)
    return taken


@contextlib.contextmanager
def worker_memory() -> Iterator[list[float]]:
    """Yield a list that gets, at the end of the block, the most that a worker held for itself, in MB; 0 for none."""
    most, found = 0.0, [0.0]
    ended = threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(0.25):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("ray::MapWorker"):
                        most = max(most, process.memory_full_info().uss / 1e6)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.append(most)


def print_found(name: str, found: dict[str, Any]) -> None:
    print(f"{name}, {found['documents']:,} documents of {CHUNKS} chunks")
    print(f"{'':12}{'s':>8}{'of these fixed':>16}{'documents/s':>14}{'MB a worker':>14}")
    for way in WAYS:
        told = [found["seconds"][way], found["fixed_seconds"][way], found["documents_per_second"][way]]
        worker = f"{found['worker_mb'][way]:14.0f}" if WAYS[way] else ""
        print(f"{way:12}{told[0]:8.1f}{told[1]:16.1f}{told[2]:14.1f}{worker}")
    print(flush=True)


if __name__ == "__main__":
    main()
