"""Mean-pooling in PyTorch, on whatever device the token vectors are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pplx_vectorstore.pooling import Span

if TYPE_CHECKING:
    import torch


def pool_tokens(tokens: torch.Tensor, ranges: Sequence[Span]) -> torch.Tensor:
    """Mean of each range of token vectors, all in one pass.

    Args:
        tokens: Any float dtype, shape (n_tokens, dimension).
        ranges: Non-empty, half-open.

    Returns:
        float32, shape (n_ranges, dimension).
    """
    import torch

    if tokens.device.type == "mps":
        tokens = tokens.cpu()  # has no segment_reduce, and shares its memory with the CPU
    picked = np.concatenate([np.arange(start, stop) for start, stop in ranges])
    lengths = torch.tensor([stop - start for start, stop in ranges], device=tokens.device)
    chosen = tokens[torch.from_numpy(picked).to(tokens.device)].float()
    return torch.segment_reduce(chosen, "mean", lengths=lengths, axis=0)
