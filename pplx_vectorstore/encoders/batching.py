"""Rows of token ids → batches bounded by a token budget, with little padding."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group rows of similar length.

    Args:
        lengths: Tokens of each row.
        token_budget: Most tokens of a batch, padding included (rows × longest row). A row longer than
            that is a batch of its own.

    Returns:
        Row indices per batch, longest rows first, so that memory peaks at the start; equal lengths
        stay in their given order.

    >>> plan_batches([3, 9, 2, 3, 8], token_budget=9)
    [[1], [4], [0, 3, 2]]
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
