"""Documents → groups, and rows of token ids → batches, of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pplx_vectorstore.windows import TokenIds


def plan_batches(lengths: Sequence[int], token_budget: int, *, pads: bool) -> list[list[int]]:
    """Group rows of similar length.

    Args:
        lengths: Tokens of each row.
        token_budget: Most tokens of a batch, padding included. A row longer than that is a batch of its own.
        pads: Whether every row of a batch takes as many tokens as its longest.

    Returns:
        Row indices per batch, longest rows first, so that memory peaks at the start; equal lengths
        stay in their given order.

    >>> plan_batches([3, 9, 2, 3, 8], token_budget=9, pads=True)
    [[1], [4], [0, 3, 2]]
    """
    batches: list[list[int]] = []
    taken = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        takes = lengths[batches[-1][0]] if pads and batches else lengths[row]
        if batches and taken + takes <= token_budget:
            batches[-1].append(row)
            taken += takes
        else:
            batches.append([row])
            taken = lengths[row]
    return batches


def pad_rows(
    rows: Sequence[TokenIds], pad_id: int, *, grain: int = 1, most: int | None = None
) -> tuple[TokenIds, TokenIds]:
    """Fill rows up to the longest, or somewhat further.

    Args:
        rows: int64 ids, at least one row.
        pad_id: What to fill with.
        grain: What the width is to be a multiple of.
        most: Width at which that ends, if any; longer rows are not cut.

    Returns:
        int64 ids of shape (n_rows, width), and the rows' lengths, int64, shape (n_rows,).
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    longest = int(lengths.max())
    width = -(-longest // grain) * grain
    if most is not None:
        width = max(longest, min(width, most))
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for filled, row in zip(ids, rows, strict=True):
        filled[: len(row)] = row
    return ids, lengths


def group_by_characters(documents: Sequence[Sequence[str]], most: int) -> list[list[Sequence[str]]]:
    """Cut a list of documents into groups of whole documents.

    Args:
        documents: For each its chunks.
        most: Characters at which a group is full.

    Returns:
        At least one group.
    """
    groups: list[list[Sequence[str]]] = [[]]
    characters = 0
    for document in documents:
        if characters >= most:
            groups.append([])
            characters = 0
        groups[-1].append(document)
        characters += sum(map(len, document))
    return groups
