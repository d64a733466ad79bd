"""What indexing costs beside the model's forward passes, and whether its memory grows with the corpus.

Indexes the corpora of the public brandonstarxel/chunking_evaluation repository (1.45 MB of Markdown) from
text to a closed, searchable index with all-minilm-l6-v2, a model so small that everything else weighs more
beside it than beside any other. Then fresh processes index once, twice and four times some of that text,
each time under new ids, and their peaks of memory are compared.
"""

from __future__ import annotations

import argparse
import functools
import json
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

from harness import print_aim, read_corpora

MODEL = "all-minilm-l6-v2"
AIM = 0.05
AIM_GROWTH = 1.1
REPEATS = (1, 2, 4)
_DOCUMENT_CHARACTERS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a checkout's folder with corpora/*.md")
    parser.add_argument("--rounds", type=int, default=3, help="runs over all corpora; the median one is shown")
    parser.add_argument("--scale", type=int, default=600_000, help="characters of the smallest memory run")
    parser.add_argument("--memory-run", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_run:
        print(json.dumps(measure_memory(arguments.data, arguments.scale, arguments.memory_run)))
        return
    show_time(arguments.data, arguments.rounds)
    show_memory(arguments.data, arguments.scale)


def show_time(data: Path, rounds: int) -> None:
    start = perf_counter()
    import torch  # noqa: F401 - timed
    import transformers  # noqa: F401 - timed

    from pplx_vectorstore import Document, VectorStore, load_encoder
    from pplx_vectorstore.chunking import Chunker
    from pplx_vectorstore.encoders.torch_model import TorchTokenModel
    from pplx_vectorstore.engines.edge import EdgeClient
    from pplx_vectorstore.tokenization import ChunkTokenizer

    imports = perf_counter() - start
    encoder = load_encoder(MODEL)
    loading = perf_counter() - start - imports
    clock = Clock()
    clock.watch(TorchTokenModel, "pool", "forward and pooling")
    clock.watch(Chunker, "split", "chunking")
    clock.watch(ChunkTokenizer, "encode", "tokenization")
    for verb in ("upsert", "delete", "flush"):
        clock.watch(EdgeClient, verb, "writing")
    clock.watch(VectorStore, "close", "building the index")
    documents = [
        Document(id=name, text=text, format="markdown") for name, text in read_corpora(data).items()
    ]
    runs: list[tuple[float, dict[str, float]]] = []
    for _ in range(rounds):
        clock.seconds.clear()
        with tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            store = VectorStore.open(folder, encoder=encoder)
            report = store.add(documents)
            store.close()
            runs.append((perf_counter() - start, dict(clock.seconds)))
    runs.sort(key=lambda run: 1 - run[1]["forward and pooling"] / run[0])
    total, parts = runs[len(runs) // 2]
    forward = parts["forward and pooling"]
    parts["the rest"] = total - sum(parts.values())
    characters = sum(len(document.text or "") for document in documents)
    print(f"{characters:,} characters, {report.chunks} chunks, median of {rounds} runs\n")
    print(f"{'':26}{'seconds':>9}{'share':>8}")
    for name, seconds in parts.items():
        print(f"{name:26}{seconds:9.3f}{seconds / total:8.1%}")
    print(f"{'total':26}{total:9.3f}{1:8.1%}")
    print(f"{'imports':26}{imports:9.3f}")
    print(f"{'loading the model':26}{loading:9.3f}")
    print(f"{'total with these':26}{total + imports + loading:9.3f}")
    outside = 1 - forward / total
    print(f"outside the forward, of the {rounds} runs: " + ", ".join(f"{1 - p['forward and pooling'] / t:.1%}" for t, p in runs))
    print_aim("outside the forward", f"{outside:.1%}", f"≤ {AIM:.0%}", outside <= AIM)


class Clock:
    """Adds up the seconds that methods take.

    Attributes:
        seconds: By label.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, owner: type, method: str, label: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[label] += perf_counter() - start

        setattr(owner, method, timed)


def show_memory(data: Path, scale: int) -> None:
    print(f"\n{'characters':>12}{'chunks':>8}{'peak RSS, MB':>14}{'anonymous, MB':>15}{'before, MB':>12}")
    peaks = []
    for repeat in REPEATS:
        command = [sys.executable, __file__, str(data), "--scale", str(scale), "--memory-run", str(repeat)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        run = json.loads(output.splitlines()[-1])
        peaks.append(run["anonymous"])
        print(
            f"{run['characters']:12,}{run['chunks']:8,}{run['peak']:14.0f}{run['anonymous']:15.0f}"
            f"{run['before']:12.0f}"
        )
    growth = peaks[-1] / peaks[0]
    print_aim(
        f"anonymous memory at {REPEATS[-1]} times the text",
        f"{growth:.2f} times",
        f"≤ {AIM_GROWTH}",
        growth <= AIM_GROWTH,
    )


def measure_memory(data: Path, scale: int, repeat: int) -> dict[str, float]:
    """Index `repeat` times the first `scale` characters and return sizes in MB."""
    from pplx_vectorstore import Document, VectorStore, load_encoder

    text = "\n\n".join(read_corpora(data).values())[:scale]

    def documents() -> Iterator[Document]:
        for copy in range(repeat):
            for start in range(0, len(text), _DOCUMENT_CHARACTERS):
                part = text[start : start + _DOCUMENT_CHARACTERS]
                yield Document(id=f"{copy}-{start}", text=part, format="markdown")

    encoder = load_encoder(MODEL)
    before = anonymous_memory()
    peak = [before]
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], anonymous_memory())

    sampler = threading.Thread(target=sample)
    sampler.start()
    with tempfile.TemporaryDirectory() as folder, VectorStore.open(folder, encoder=encoder) as store:
        report = store.add(documents())
        store.close()
    stop.set()
    sampler.join()
    return {
        "characters": repeat * len(text),
        "chunks": report.chunks,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "anonymous": peak[0],
        "before": before,
    }


def anonymous_memory() -> float:
    """Return RssAnon in MB: what this process holds without files mapped from disk (Linux only)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no RssAnon; the memory part needs Linux")


if __name__ == "__main__":
    main()
