"""Maximal marginal relevance over int8 codes: hits that are relevant and unlike each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.quantization import Codes, norms


def order_by_relevance_and_novelty(query: Codes, codes: Codes, diversity: float, most: int) -> list[int]:
    """Choose vectors one by one, each the best in relevance less its likeness to those before.

    Args:
        query: int8, shape (dimension,).
        codes: int8, shape (n, dimension), most relevant first; ties go to the earlier.
        diversity: 0 for relevance alone, 1 for novelty alone; ``1 - lambda`` of the source.
        most: How many to choose.

    Returns:
        Indexes into `codes` in the order of choice.

    Source: Carbonell and Goldstein, "The Use of MMR", SIGIR 1998.
    """
    n = min(most, len(codes))
    if n == 0:
        return []
    unit = _normalized(codes)
    relevance = unit @ _normalized(query[np.newaxis])[0]
    likeness = np.full(len(codes), -np.inf)
    score = relevance  # at first nothing is there to be unlike
    left = np.ones(len(codes), dtype=bool)
    chosen: list[int] = []
    while True:
        best = int(np.argmax(np.where(left, score, -np.inf)))
        chosen.append(best)
        if len(chosen) == n:
            return chosen
        left[best] = False
        likeness = np.maximum(likeness, unit @ unit[best])
        score = (1.0 - diversity) * relevance - diversity * likeness


def _normalized(codes: Codes) -> npt.NDArray[np.float64]:
    lengths = norms(codes)
    return codes / np.where(lengths > 0, lengths, 1.0)[:, np.newaxis]
