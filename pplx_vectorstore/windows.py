"""Chunks' token ids → windows that a model can take, with every token of every chunk pooled once.

A document is laid out as one token sequence: the tokens of its chunks in order, with the model's
separator between neighbours. A window is a token range of that sequence. Consecutive windows
overlap, so that each chunk is pooled from a window in which it has context on both sides::

    chunks     [ 0 ][ 1  ][   2   ][ 3 ][   4    ][ 5 ]
    window 1   =========================                     pools 0 1 2
    window 2                ==========================       pools 3 4 5
                            <-----> context of 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.pooling import Span

TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """A document as one token sequence.

    Attributes:
        ids: int64, shape (n_tokens,): all chunks' tokens with separators between chunks.
        chunk_spans: One half-open range of `ids` per chunk, without separators; empty for an
            empty chunk.
    """

    ids: TokenIds
    chunk_spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of one chunk's tokens that is pooled from one window: the whole chunk, or a part.

    Attributes:
        chunk: Index of the chunk in its document.
        start: First token, counted in the layout.
        stop: Token after the last.
    """

    chunk: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open token range of a layout that goes through the model at once.

    Attributes:
        start: First token.
        stop: Token after the last.
        pieces: What is pooled from this window; each lies within it.
    """

    start: int
    stop: int
    pieces: tuple[Piece, ...]


def lay_out(chunk_ids: Sequence[TokenIds], separator_id: int | None) -> Layout:
    """Join chunks into one token sequence.

    Args:
        chunk_ids: int64 token ids of each chunk; may be empty.
        separator_id: Token put between neighbouring chunks, or None for nothing.

    Returns:
        The sequence and the chunks' spans, computed from token counts: an id equal to the separator
        within a chunk stays part of that chunk.

    >>> layout = lay_out([np.array([7, 8]), np.array([], int), np.array([9])], separator_id=0)
    >>> layout.ids.tolist(), layout.chunk_spans
    ([7, 8, 0, 0, 9], ((0, 2), (3, 3), (4, 5)))
    """
    separator = np.array([] if separator_id is None else [separator_id], dtype=np.int64)
    parts: list[TokenIds] = []
    spans: list[Span] = []
    position = 0
    for index, ids in enumerate(chunk_ids):
        if index:
            parts.append(separator)
            position += len(separator)
        parts.append(ids)
        spans.append((position, position + len(ids)))
        position += len(ids)
    ids = np.concatenate(parts).astype(np.int64, copy=False) if parts else separator[:0]
    return Layout(ids, tuple(spans))


def plan_windows(chunk_spans: Sequence[Span], n_tokens: int, *, capacity: int, min_context: int) -> list[Window]:
    """Cover a document with windows so that every token of every chunk is pooled exactly once.

    A chunk of at most ``capacity - 2 * min_context`` tokens has at least `min_context` tokens of the
    document on each side of it in its window, or all there is up to the document's end. A longer one
    that still fits a window gets what room there is, evenly. A chunk longer than a window is cut into
    pieces of nearly equal length that have their context too.

    Args:
        chunk_spans: Half-open token ranges in order, as in `Layout`.
        n_tokens: Length of the layout.
        capacity: Most tokens of a window, the model's own start and end tokens not counted.
        min_context: Tokens of context on each side, less than half of `capacity`.

    Returns:
        Windows in order; those with nothing to pool are left out.

    Raises:
        InvalidInputError: `capacity` or `min_context` is out of range.

    >>> [(w.start, w.stop, [p.chunk for p in w.pieces])
    ...  for w in plan_windows([(0, 4), (4, 8), (8, 12), (12, 16)], 16, capacity=10, min_context=2)]
    [(0, 10, [0, 1]), (6, 16, [2, 3])]
    """
    if capacity < 1:
        raise InvalidInputError(f"a window must hold at least 1 token, not {capacity}")
    if not 0 <= 2 * min_context < capacity:
        raise InvalidInputError(
            f"min_context must be from 0 to less than half of the window's {capacity} tokens, not {min_context}"
        )
    windows: list[Window] = []
    pieces = _cut_pieces(chunk_spans, capacity, capacity - 2 * min_context)
    first = 0
    while first < len(pieces):
        start, limit = _place_window(pieces[first], n_tokens, capacity, min_context)
        # A piece belongs to this window if its right-hand context fits as well; the first always does.
        after = first + 1
        while after < len(pieces) and min(pieces[after].stop + min_context, n_tokens) <= limit:
            after += 1
        owned = tuple(pieces[first:after])
        # Beyond the last piece's context, tokens would be computed for nothing.
        windows.append(Window(start, min(owned[-1].stop + min_context, limit), owned))
        first = after
    return windows


def _cut_pieces(chunk_spans: Sequence[Span], capacity: int, longest: int) -> list[Piece]:
    pieces: list[Piece] = []
    for chunk, (start, stop) in enumerate(chunk_spans):
        length = stop - start
        count = 1 if length <= capacity else -(-length // longest)
        edges = [start + length * i // count for i in range(count + 1)]
        pieces.extend(Piece(chunk, left, right) for left, right in pairwise(edges) if right > left)
    return pieces


def _place_window(first: Piece, n_tokens: int, capacity: int, min_context: int) -> Span:
    """Where the window that pools `first` first starts, and where it must end."""
    room = capacity - (first.stop - first.start)
    left = min(min_context, first.start)
    right = min(min_context, n_tokens - first.stop)
    if left + right > room:
        # Too long for full context: share the room, and give one side what the other cannot use.
        left = max(room - right, min(left, room // 2))
    start = first.start - left
    return start, min(start + capacity, n_tokens)
