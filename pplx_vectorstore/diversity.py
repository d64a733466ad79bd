"""Maximal marginal relevance over int8 codes: hits that are relevant and unlike each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.quantization import Codes, norms


def order_by_diversity(
    scores: Sequence[float] | npt.NDArray[np.float64], codes: Codes, diversity: float, *, fused: bool
) -> Iterator[int]:
    """Choose hits one by one, each relevant to the query and unlike those before.

    Args:
        scores: The hits' scores, best first, at least one.
        codes: int8, shape (n, dimension).
        diversity: 0 for relevance alone, 1 for novelty alone.
        fused: Whether the scores are no cosines: the best then counts as relevant as a cosine can be.

    Yields:
        Indexes into `codes` in the order of choice.
    """
    relevance = np.asarray(scores, dtype=np.float64)
    if fused:
        relevance = relevance / relevance.max()
    return by_relevance_and_novelty(relevance, codes, diversity)


def by_relevance_and_novelty(relevance: npt.NDArray[np.float64], codes: Codes, diversity: float) -> Iterator[int]:
    """Choose vectors one by one, each the best in relevance less its likeness to those before.

    Args:
        relevance: float64, shape (n,): each vector's likeness to the query, comparable with cosines.
        codes: int8, shape (n, dimension), most relevant first; ties go to the earlier.
        diversity: 0 for relevance alone, 1 for novelty alone; ``1 - lambda`` of the source.

    Yields:
        Indexes into `codes` in the order of choice; each choice costs one pass over `codes`.

    Source: Carbonell and Goldstein, "The Use of MMR", SIGIR 1998.
    """
    lengths = norms(codes)
    unit = codes / np.where(lengths > 0, lengths, 1.0)[:, np.newaxis]
    likeness = np.full(len(codes), -np.inf)
    score = relevance  # at first nothing is there to be unlike
    left = np.ones(len(codes), dtype=bool)
    while left.any():
        best = int(np.argmax(np.where(left, score, -np.inf)))
        yield best
        left[best] = False
        likeness = np.maximum(likeness, unit @ unit[best])
        score = (1.0 - diversity) * relevance - diversity * likeness
