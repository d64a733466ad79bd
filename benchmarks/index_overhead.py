"""What indexing costs beside the model's forward passes, and whether its memory grows with the corpus.

Indexes the corpora of the public brandonstarxel/chunking_evaluation repository (1.45 MB of Markdown) from
text to a closed, searchable index with all-minilm-l6-v2, a model so small that everything else weighs more
beside it than beside any other. Then fresh processes index part of that text once, twice and four times,
each time under new ids, and their peaks of memory are compared.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from harness import print_aim, read_corpora, write_results

MODEL = "all-minilm-l6-v2"
AIM = 0.05
FORWARD = "forward and pooling"

REPEATS = (1, 2, 4)
DOCUMENT_CHARACTERS = 20_000
AIM_GROWTH = 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with corpora/*.md")
    parser.add_argument("--rounds", type=int, default=1, help="runs; the median one is shown")
    parser.add_argument("--threads", type=int, default=0, help="of the forward; 0 for one per core")
    parser.add_argument("--scale", type=int, default=300_000, help="characters of the smallest memory run")
    parser.add_argument("--memory-run", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_run:
        print(json.dumps(measure_memory(arguments.data, arguments.scale, arguments.memory_run)))
        return
    results: dict[str, Any] = {}
    if arguments.rounds:
        results["time"] = show_time(read_corpora(arguments.data), arguments.rounds, arguments.threads)
    if arguments.scale:
        results["memory"] = show_memory(arguments.data, arguments.scale)
    write_results("index_overhead", results)


class Clock:
    """Adds up the seconds that methods take, by label."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, label: str, owner: type, *methods: str) -> None:
        """Count the time in these methods of a class from now on."""
        for method in methods:
            setattr(owner, method, self._timed(label, getattr(owner, method)))

    def _timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[label] += perf_counter() - start

        return timed


def show_time(corpora: dict[str, str], rounds: int, threads: int) -> dict[str, Any]:
    """Print and return where the seconds of indexing went."""
    start = perf_counter()
    import torch
    import transformers  # noqa: F401 - timed

    from pplx_vectorstore import Chunker, Document, VectorStore, load_encoder
    from pplx_vectorstore.encoders.torch_model import TorchTokenModel
    from pplx_vectorstore.engines.edge import EdgeClient
    from pplx_vectorstore.tokenization import ChunkTokenizer

    imports = perf_counter() - start
    start = perf_counter()
    encoder = load_encoder(MODEL)
    loading = perf_counter() - start
    if threads:
        torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    clock = Clock()
    clock.watch(FORWARD, TorchTokenModel, "pool")
    clock.watch("chunking", Chunker, "split")
    clock.watch("tokenization", ChunkTokenizer, "encode")
    clock.watch("writing", EdgeClient, "upsert", "delete", "flush")
    clock.watch("building the index", VectorStore, "close")
    documents = [Document(id=name, text=text, format="markdown") for name, text in corpora.items()]
    runs: list[tuple[float, float, dict[str, float]]] = []
    for _ in range(rounds):
        clock.seconds.clear()
        with tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            with VectorStore.open(folder, encoder=encoder) as store:
                report = store.add(documents)
            total = perf_counter() - start
        runs.append((1 - clock.seconds[FORWARD] / total, total, dict(clock.seconds)))
    outside, total, parts = sorted(runs, key=lambda run: run[0])[rounds // 2]
    print(f"{sum(map(len, corpora.values())):,} characters, {report.chunks} chunks")
    # Waiting for a core slows the threads of a forward more than it slows what has one thread.
    print(f"{torch.get_num_threads()} threads on {os.cpu_count()} cores with a load of {load:.1f} before\n")
    print(f"{'':22}{'seconds':>9}{'share':>8}")
    rest = total - sum(parts.values())
    for name, seconds in [*parts.items(), ("the rest", rest), ("total", total)]:
        print(f"{name:22}{seconds:9.2f}{seconds / total:8.1%}")
    print(f"{'imports':22}{imports:9.2f}\n{'loading the model':22}{loading:9.2f}")
    print(f"{'total with these':22}{total + imports + loading:9.2f}")
    print_aim("outside the forward", f"{outside:.1%}", f"≤ {AIM:.0%}", outside <= AIM)
    everything = total + imports + loading
    return {
        "characters": sum(map(len, corpora.values())),
        "chunks": report.chunks,
        "seconds": {**parts, "imports": imports, "loading the model": loading},
        "outside_forward": outside,
        "outside_forward_with_imports": 1 - parts[FORWARD] / everything,
    }


def show_memory(data: Path, scale: int) -> list[dict[str, float]]:
    """Print and return sizes in MB for one, two and four times the text."""
    print(f"{'characters':>12}{'chunks':>10}{'peak RSS':>12}{'anonymous':>12}{'at start':>12}   in MB")
    runs = []
    for repeat in REPEATS:
        command = [sys.executable, __file__, str(data), f"--scale={scale}", f"--memory-run={repeat}"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        run = json.loads(output.splitlines()[-1])
        runs.append(run)
        sizes = "".join(f"{run[name]:12.0f}" for name in ("peak", "anonymous", "start"))
        print(f"{run['characters']:12,}{run['chunks']:10,}{sizes}", flush=True)
    growth = runs[-1]["anonymous"] / runs[0]["anonymous"]
    what = f"anonymous memory for {REPEATS[-1]} times the text"
    print_aim(what, f"{growth:.2f} times", f"≤ {AIM_GROWTH}", growth <= AIM_GROWTH)
    return runs


def measure_memory(data: Path, scale: int, repeat: int) -> dict[str, float]:
    """Index the first `scale` characters so many times and return sizes in MB."""
    from pplx_vectorstore import Document, VectorStore, load_encoder

    text = "\n\n".join(read_corpora(data).values())[:scale]

    def documents() -> Iterator[Document]:
        for copy in range(repeat):
            for start in range(0, len(text), DOCUMENT_CHARACTERS):
                part = text[start : start + DOCUMENT_CHARACTERS]
                yield Document(id=f"{copy}-{start}", text=part, format="markdown")

    encoder = load_encoder(MODEL)
    sizes = [anonymous_memory()]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            sizes.append(anonymous_memory())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        with tempfile.TemporaryDirectory() as folder, VectorStore.open(folder, encoder=encoder) as store:
            report = store.add(documents())
    finally:
        done.set()
        sampler.join()
    return {
        "characters": repeat * len(text),
        "chunks": report.chunks,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "anonymous": max(sizes),
        "start": sizes[0],
    }


def anonymous_memory() -> float:
    """Return RssAnon in MB: what this process holds itself, without files mapped from disk (Linux only)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no RssAnon; measuring memory needs Linux")


if __name__ == "__main__":
    main()
