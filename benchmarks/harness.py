"""What the benchmarks share: made-up points, interleaved timing, and the line that tells whether an aim is met."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from pplx_vectorstore import Document
from pplx_vectorstore.quantization import Codes, quantize_absmax

DIMENSION = 384  # of all-minilm-l6-v2, whose collections the made-up vectors go to
CHUNKS_PER_DOCUMENT = 10

_WORDS = "a store keeps codes of one byte and finds what a question asks by signs first then by cosine".split()


def made_up_codes(n: int, rng: np.random.Generator, clusters: int = 100) -> Codes:
    """Return int8 codes around some centres, as embeddings lie: shape (n, DIMENSION)."""
    centres = np.random.default_rng(0).normal(size=(clusters, DIMENSION))
    return quantize_absmax(centres[rng.integers(clusters, size=n)] + rng.normal(size=(n, DIMENSION)))


def made_up_documents(n_chunks: int, rng: np.random.Generator) -> list[Document]:
    """Return documents of ten chunks of about 1,000 characters each, with int8 vectors."""
    documents = []
    for first in range(0, n_chunks, CHUNKS_PER_DOCUMENT):
        count = min(CHUNKS_PER_DOCUMENT, n_chunks - first)
        texts = [" ".join(rng.choice(_WORDS, size=200).tolist()) for _ in range(count)]
        codes = made_up_codes(count, rng)
        documents.append(
            Document(id=f"document-{first}", chunks=texts, vectors=codes, metadata={"lang": "en", "page": first})
        )
    return documents


def time_interleaved(variants: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, Any]:
    """Time variants in turn, the first of them changing, so that a noisy neighbour disturbs all alike.

    Returns:
        Seconds of each variant, float64 of shape (rounds,): the same round of two variants is a pair.
    """
    names = list(variants)
    seconds = {name: np.zeros(rounds) for name in names}
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            start = perf_counter()
            variants[name](index)
            seconds[name][index] = perf_counter() - start
    return seconds


def spread(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    """Return the middle half of the values, as "low - high"."""
    low, high = np.percentile(values, [25, 75])
    return f"{low:.3f} - {high:.3f}"


def print_aim(what: str, value: str, aim: str, reached: bool) -> None:
    """Print a result against its aim."""
    print(f"\n{what}: {value} (aim {aim}): {'reached' if reached else 'MISSED'}")


def read_corpora(data: Path) -> dict[str, str]:
    """Read the texts of chunking_evaluation, by name."""
    paths = sorted((data / "corpora").glob("*.md"))
    if not paths:
        raise SystemExit(f"{data} holds no corpora/*.md; give a folder with the chunking_evaluation data")
    return {path.stem: path.read_text("utf-8") for path in paths}


def read_questions(data: Path) -> list[str]:
    """Read the questions of chunking_evaluation."""
    with (data / "questions.csv").open(encoding="utf-8", newline="") as file:
        return [row["question"] for row in csv.DictReader(file)]
