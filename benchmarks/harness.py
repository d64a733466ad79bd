"""What the benchmarks share: made-up documents, turns, the line that tells whether an aim is met, the corpora."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore import Document
from pplx_vectorstore.equal_norms import quantize_to_norm
from pplx_vectorstore.quantization import Codes

DIMENSION = 384  # of all-minilm-l6-v2, into whose collections the made-up vectors go
CHUNKS_PER_DOCUMENT = 10
RESULTS = Path(__file__).parent / "results"
BUILD = Path(__file__).parent.parent / "build" / "benchmarks"  # what takes long to make is kept there

_WORDS_PER_CHUNK = 210
_WORDS = ("byte", "chunk", "code", "cosine", "for", "in", "is", "of", "query", "sign", "the", "window")


def make_codes(n: int, rng: np.random.Generator, clusters: int = 100, dimension: int = DIMENSION) -> Codes:
    """Make int8 codes that lie around centres, as embeddings do: shape (n, dimension)."""
    centres = np.random.default_rng(0).normal(size=(clusters, dimension))
    return quantize_to_norm(centres[rng.integers(clusters, size=n)] + rng.normal(size=(n, dimension)))


def make_documents(n: int, rng: np.random.Generator, dimension: int = DIMENSION) -> Iterator[Document]:
    """Make n documents of ten chunks of about 1,000 characters each, with int8 vectors, one by one."""
    for number in range(n):
        texts = [" ".join(rng.choice(_WORDS, size=_WORDS_PER_CHUNK)) for _ in range(CHUNKS_PER_DOCUMENT)]
        codes = make_codes(CHUNKS_PER_DOCUMENT, rng, dimension=dimension)
        metadata = {"lang": "en", "number": number}
        yield Document(id=f"document-{number}", chunks=texts, vectors=codes, metadata=metadata)


def take_turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield (round, name), each round in another order, so that noise and warm caches favour no one."""
    for index in range(rounds):
        for place in np.random.default_rng(index).permutation(len(names)):
            yield index, names[place]


def middle_half(values: npt.NDArray[Any]) -> str:
    """Return what the middle half of the values spans."""
    low, high = np.percentile(values, [25, 75])
    return f"{low:.3f} to {high:.3f}"


def print_aim(what: str, found: str, aim: str, reached: bool) -> None:
    """Print a result against its aim."""
    print(f"\n{what}: {found}, aim {aim}: {'reached' if reached else 'MISSED'}", flush=True)


def write_results(name: str, results: Any) -> None:
    """Keep results as results/NAME.json, from which draw.py and fill_tables.py make the docs' pictures and tables."""
    RESULTS.mkdir(exist_ok=True)
    kept = {"machine": describe_machine(), "results": results}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_results(name: str) -> Any:
    """Read the results that `write_results` kept."""
    return _read_kept(name)["results"]


def read_machine(name: str) -> str:
    """Read where results were measured."""
    return str(_read_kept(name)["machine"])


def _read_kept(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def describe_machine() -> str:
    """Name the processor, its cores, and whether it multiplies bfloat16 itself."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.+)", text)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    kind = "with" if multiplies_bfloat16() else "without"
    return f"{name}, {os.cpu_count()} cores, {kind} bfloat16 instructions"


def multiplies_bfloat16() -> bool:
    """Tell whether the library would compute in bfloat16 here by default."""
    from pplx_vectorstore.encoders.torch_model import _choose_dtype  # imports PyTorch, which not every script needs

    return _choose_dtype("cpu") == "bfloat16"


def read_corpora(data: Path) -> dict[str, str]:
    """Read the Markdown texts of chunking_evaluation, by name."""
    paths = sorted((data / "corpora").glob("*.md"))
    if not paths:
        raise SystemExit(f"{data} holds no corpora/*.md; give the folder of the chunking_evaluation data")
    return {path.stem: path.read_text("utf-8") for path in paths}
