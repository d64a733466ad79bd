"""Vectors for benchmarks of search: real ones of all-minilm-l6-v2, and a recipe that makes more and longer ones.

*Real*: passages of 100 to 1,000 characters, cut at random places (seed 1) of the corpora of the public
brandonstarxel/chunking_evaluation repository, each embedded alone, 384 dimensions of float32. The queries are that
repository's 472 questions. Embedding takes minutes, so the result is kept in build/benchmarks.

*Expanded*, for as many vectors of as many dimensions as wanted: take a random passage ``a``, and ``b``, the nearest to
it of 50 other random ones; mix them, ``0.7 a + 0.3 b``; scale to length 1; rotate into the longer space by a random
matrix with orthonormal rows, which changes no cosine; add noise of length 0.3 in a random direction, so that no
dimension follows from others. Queries are rotated alike, without noise. Fixed seeds: the same numbers each time.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from harness import BUILD, read_corpora

from pplx_vectorstore import load_encoder

MODEL = "all-minilm-l6-v2"
OTHERS = 50
SHARE = 0.3
NOISE = 0.3

Floats = npt.NDArray[np.float32]

_BLOCK = 10_000


class Vectors(NamedTuple):
    """Vectors of length about 1, shape (n, dimension), and queries, shape (questions, dimension)."""

    points: Floats
    queries: Floats


def real_vectors(data: Path, n: int) -> Vectors:
    """Embed n random passages and all questions, or read what was kept of an earlier run."""
    kept = BUILD / f"passages-{n}-{_digest(data)}.npz"
    if not kept.exists():
        encoder = load_encoder(MODEL, context_weight=0.0, dtype="float32")
        with (data / "questions.csv").open(encoding="utf-8", newline="") as file:
            questions = [row["question"] for row in csv.DictReader(file)]
        passages = [[passage] for passage in cut_passages("\n\n".join(read_corpora(data).values()), n)]
        print(f"embedding {n:,} passages, once", flush=True)
        points = _unit(np.concatenate(encoder.chunk_vectors(passages)))
        queries = _unit(np.concatenate(encoder.chunk_vectors([[question] for question in questions])))
        BUILD.mkdir(parents=True, exist_ok=True)
        np.savez(kept, points=points, queries=queries)
    with np.load(kept) as arrays:
        return Vectors(arrays["points"], arrays["queries"])


def cut_passages(text: str, n: int) -> list[str]:
    """Cut passages at random places, between words."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(100, 1_000, size=n)
    starts = rng.integers(0, len(text) - 1_000, size=n)
    cuts = (text[start : start + length] for start, length in zip(starts, lengths, strict=True))
    return [" ".join(cut.split()[1:-1]) or cut for cut in cuts]


def expand(real: Vectors, n: int, dimension: int) -> Vectors:
    """Make n vectors of so many dimensions by the recipe above; dimension must be at least the real one."""
    rng = np.random.default_rng(2)
    width = real.points.shape[1]
    rotation = np.linalg.qr(rng.normal(size=(dimension, width)))[0].T.astype(np.float32)
    points = np.empty((n, dimension), np.float32)
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        some = real.points[rng.integers(len(real.points), size=size)]
        others = real.points[rng.integers(len(real.points), size=(size, OTHERS))]
        nearest = np.einsum("id,ijd->ij", some, others).argmax(axis=1)
        mixed = _unit((1 - SHARE) * some + SHARE * others[np.arange(size), nearest])
        noise = _unit(rng.normal(size=(size, dimension)).astype(np.float32))
        points[start : start + size] = mixed @ rotation + NOISE * noise
    return Vectors(points, real.queries @ rotation)


def _unit(vectors: npt.NDArray[np.floating]) -> Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


def _digest(data: Path) -> str:
    texts = "".join(read_corpora(data).values()) + (data / "questions.csv").read_text("utf-8")
    return hashlib.sha256(texts.encode()).hexdigest()[:12]
