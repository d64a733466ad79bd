"""How fast documents come into a server by a job of Ray Data, against one process that syncs them in a loop.

With codes that are hashes, what is compared is everything but the model; with all-MiniLM-L6-v2, embedding dominates.
A model computes in one thread, which is what a worker of one CPU has. A job of a few documents of one word, enough that
each worker loads its model, tells what a job costs whatever its size; rates are of what is beyond that. How many cores
are busy tells why two workers are not twice as fast: the driver, reading, and the server, a stand-in unless a URL is
given, compete for them. Some five minutes on two cores. ::

    python benchmarks/ray_rates.py
    python benchmarks/ray_rates.py http://localhost:6333
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

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
from servers import TESTS, Server, serve

from pplx_vectorstore import Document, Encoder, VectorStore, load_encoder

WORDS = ("byte", "chunk", "code", "cosine", "for", "in", "is", "of", "query", "sign", "the", "window")
CHUNKS = 3
WAYS = {"plain loop": 0, "1 actor": 1, "2 actors": 2}
AIM = 1.8
# In batches of one, and more than Ray queues for the first actor that is ready, so that the other loads its model too.
SMALL = [Document(id=f"small-{i}", chunks=["byte"]) for i in range(16)]


class Model(NamedTuple):
    """What documents are embedded with.

    Attributes:
        n_documents: How many.
        batch_size: So that a batch takes about a second: much more than asking the store what has changed, and not so
            much that the other worker is idle for long while the last is embedded.
        make: Makes the encoder.
    """

    n_documents: int
    batch_size: int
    make: Callable[[], Encoder]


class Cost(NamedTuple):
    """What a job took.

    Attributes:
        seconds: From reading to the end.
        cpu_seconds: Of all processes on this machine that have a part in it, the server's too.
    """

    seconds: float
    cpu_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="of a server on this machine; without, a stand-in")
    parser.add_argument("--hashed", type=int, default=3_000, help="documents with hashes for codes; 0 for none")
    parser.add_argument("--embedded", type=int, default=640, help="documents that are embedded; 0 for none")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    results: dict[str, Any] = {"load before": load}
    print(f"load average before: {load:.1f}\n")
    with start_ray(), serve(arguments.url) as server, tempfile.TemporaryDirectory() as folder:
        results["server"] = server.name
        models = {
            "hashes": Model(arguments.hashed, 64, make_hash_encoder),
            "all-minilm-l6-v2": Model(arguments.embedded, 32, functools.partial(load_encoder, "all-minilm-l6-v2")),
        }
        # Ray's first job starts what it keeps for all others.
        sync(server.url, Path(folder), SMALL, make_hash_encoder, workers=1, batch_size=1)
        for name, model in models.items():
            if not model.n_documents:
                continue
            results[name] = measure(server, Path(folder), model, arguments.rounds)
            print_found(name, results[name])
    results["load after"] = os.getloadavg()[0]
    print(f"load average after: {results['load after']:.1f}")
    if "hashes" not in results or "all-minilm-l6-v2" not in results:
        return
    if any(math.isnan(rate) for name in models for rate in results[name]["documents_per_second"].values()):
        raise SystemExit("a small job took longer than the whole: take more documents, or a machine that is less busy")
    write_results("ray_rates", results)
    embedded = results["all-minilm-l6-v2"]
    rates = embedded["documents_per_second"]
    ratio = rates["2 actors"] / rates["1 actor"]
    print_aim(
        "2 actors",
        f"{ratio:.2f} times the rate of one, which keeps {embedded['busy_cores']['1 actor']:.2f} of two cores busy",
        f"≥ {AIM}",
        ratio >= AIM,
    )


@contextlib.contextmanager
def start_ray() -> Iterator[None]:
    """Start Ray on two CPUs of this machine; what it writes is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ |= {"HOME": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        # As on any machine of few cores: 32 processes by default, which would be most of a small job's cost.
        os.environ["RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"] = "1"
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


def measure(server: Server, folder: Path, model: Model, rounds: int) -> dict[str, Any]:
    """Sync new documents in each way, each round into a collection of its own, and before it a job of a few."""
    rng = np.random.default_rng(1)
    documents = [
        Document(id=f"document-{i}", chunks=[" ".join(rng.choice(WORDS, size=60)) for _ in range(CHUNKS)])
        for i in range(model.n_documents)
    ]
    fixed, whole = ({way: np.zeros((rounds, len(Cost._fields))) for way in WAYS} for _ in range(2))
    memory = dict.fromkeys(WAYS, 0.0)
    for index, way in take_turns(list(WAYS), rounds):
        for costs, some, batch_size in ((fixed, SMALL, 1), (whole, documents, model.batch_size)):
            with watch(server) as seen:
                seconds = sync(server.url, folder, some, model.make, workers=WAYS[way], batch_size=batch_size)
            costs[way][index] = Cost(seconds, seen.cpu_seconds)
            memory[way] = max(memory[way], seen.worker_mb)
    beyond = {way: whole[way] - fixed[way] for way in WAYS}
    taken = {way: float(np.median(costs[:, 0])) for way, costs in beyond.items()}
    return {
        "documents": model.n_documents,
        "seconds": {way: float(np.median(costs[:, 0])) for way, costs in whole.items()},
        "fixed_seconds": {way: float(np.median(costs[:, 0])) for way, costs in fixed.items()},
        "documents_per_second": {
            way: model.n_documents / seconds if seconds > 0 else math.nan for way, seconds in taken.items()
        },
        "busy_cores": {way: float(costs[:, 1].sum() / costs[:, 0].sum()) for way, costs in beyond.items()},
        "worker_mb": memory,
        "rounds": {way: [Cost(*costs)._asdict() for costs in beyond[way].tolist()] for way in WAYS},
    }


def sync(
    url: str, folder: Path, documents: list[Document], make: Callable[[], Encoder], *, workers: int, batch_size: int
) -> float:
    """Sync documents into a new collection; return the seconds that took, the model's loading included."""
    collection = f"ray-rates-{uuid.uuid4().hex}"
    path = folder / "documents.parquet"
    rows = [{"id": one.id, "chunks": [chunk.text for chunk in one.chunks or ()]} for one in documents]  # type: ignore[union-attr]
    pq.write_table(pa.Table.from_pylist(rows), path)
    start = perf_counter()
    if workers:
        dataset = ray.data.read_parquet(str(path))
        options = {"workers": workers, "num_cpus": 0.5, "batch_size": batch_size}
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


@dataclass(slots=True)
class Seen:
    """What was seen of a job's processes.

    Attributes:
        worker_mb: The most that a worker held for itself.
        used: Processor seconds, at first and at last, by process.
    """

    worker_mb: float = 0.0
    used: dict[psutil.Process, tuple[float, float]] = field(default_factory=dict)

    @property
    def cpu_seconds(self) -> float:
        """Of all processes together; of one that has ended, up to half a second of it is missing."""
        return sum(last - first for first, last in self.used.values())

    def look(self, processes: list[psutil.Process], *, first: bool = False) -> None:
        """Look at processes now. Those that come later have used nothing before."""
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                now = times.user + times.system
                before, _ = self.used.get(process, (now if first else 0.0, now))
                self.used[process] = before, now
                if process.name().startswith("ray::MapWorker"):
                    self.worker_mb = max(self.worker_mb, process.memory_full_info().uss / 1e6)


@contextlib.contextmanager
def watch(server: Server) -> Iterator[Seen]:
    """Look at this process, its children and the server twice a second, until the end of the block."""
    here = psutil.Process()
    seen = Seen()
    ended = threading.Event()

    def find() -> list[psutil.Process]:
        return list({here, server.process, *here.children(recursive=True)})

    def look() -> None:
        while not ended.wait(0.5):
            seen.look(find())

    seen.look(find(), first=True)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        seen.look(find())


def print_found(name: str, found: dict[str, Any]) -> None:
    print(f"{name}, {found['documents']:,} documents of {CHUNKS} chunks")
    print(f"{'':12}{'s':>8}{'of these fixed':>16}{'documents/s':>14}{'busy cores':>12}{'MB a worker':>13}")
    for way in WAYS:
        told = [found[key][way] for key in ("seconds", "fixed_seconds", "documents_per_second", "busy_cores")]
        worker = f"{found['worker_mb'][way]:13.0f}" if WAYS[way] else ""
        print(f"{way:12}{told[0]:8.1f}{told[1]:16.1f}{told[2]:14.1f}{told[3]:12.2f}{worker}")
    print(flush=True)


if __name__ == "__main__":
    main()
