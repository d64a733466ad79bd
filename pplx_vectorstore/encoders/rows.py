"""Tokenized documents → the rows that a model runs, and what it pooled of them → one vector per chunk.

A row is a window with the model's own start and end tokens around it. Rows know nothing of each other: they may be run
in any order, in any batches, and beside rows of other plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.errors import AlignmentError
from pplx_vectorstore.pooling import Span, blend, merge_pieces
from pplx_vectorstore.windows import Layout, TokenIds, lay_out, plan_windows

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What some documents are run as.

    A chunk has a slot for its vector in context and, in a model that blends, one for its vector alone; these may be
    the same. What is pooled from one row for one slot is a piece.

    Attributes:
        rows: int64 ids of each row, start and end tokens included.
        spans: For each row its half-open, non-empty token ranges, one per piece.
        first_pieces: For each row the index of its first piece.
        piece_slots: int64, shape (n_pieces,): where each piece belongs.
        piece_tokens: int64, shape (n_pieces,): its tokens, which are its weight in its slot.
        n_slots: Number of slots; those of the vectors in context come first, one per chunk.
        alone_slots: int64, shape (n_chunks,): each chunk's slot for its vector alone; None where nothing is blended.
        counts: Chunks of each document.
    """

    rows: list[TokenIds]
    spans: list[list[Span]]
    first_pieces: list[int]
    piece_slots: npt.NDArray[np.int64]
    piece_tokens: npt.NDArray[np.int64]
    n_slots: int
    alone_slots: npt.NDArray[np.int64] | None
    counts: list[int]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self.rows]

    def new_pieces(self, dimension: int) -> Vectors:
        """Return room for what is pooled: float32, shape (n_pieces, dimension), to be filled by `place`."""
        return np.empty((len(self.piece_slots), dimension), dtype=np.float32)

    def place(self, pieces: Vectors, rows: Sequence[int], pooled: Vectors) -> None:
        """Put what was pooled from some rows where it belongs.

        Args:
            pieces: From `new_pieces`; changed.
            rows: Indices of the rows that were run.
            pooled: float32, shape (total number of their spans, dimension), rows in that order.
        """
        pieces[[self.first_pieces[row] + i for row in rows for i in range(len(self.spans[row]))]] = pooled

    def merge(self, pieces: Vectors, context_weight: float) -> list[Vectors]:
        """Make the chunks' vectors of all pieces.

        Args:
            pieces: float32, shape (n_pieces, dimension), every piece in its place.
            context_weight: Share of the contextual vector.

        Returns:
            One float32 array per document, shape (n_chunks, dimension), unnormalised; zeros for a blank chunk.
        """
        slots = merge_pieces(pieces, self.piece_tokens, self.piece_slots, self.n_slots)
        vectors = slots[: sum(self.counts)]
        if self.alone_slots is not None:
            vectors = blend(vectors, slots[self.alone_slots], context_weight)
        return np.split(vectors, list(accumulate(self.counts))[:-1]) if self.counts else []


class RowPlanner:
    """Plans rows.

    Args:
        separator_id: The token that the model wants between chunks, or None.
        suffix_ids: int64 ids at the end of a row.
        capacity: Most tokens of a window, a row's start and end tokens not counted.
        min_context: Tokens of context on each side of a chunk.
        context_weight: Share of the contextual vector; below 1, chunks are also run alone.

    Raises:
        InvalidInputError: `capacity` or `min_context` is out of range.
    """

    def __init__(
        self,
        separator_id: int | None,
        suffix_ids: TokenIds,
        *,
        capacity: int,
        min_context: int,
        context_weight: float,
    ) -> None:
        self._separator_id = separator_id
        self._suffix = suffix_ids
        self._capacity = capacity
        self._min_context = min_context
        self._weight = context_weight
        plan_windows([], 0, capacity=capacity, min_context=min_context)

    def plan(self, counts: Sequence[int], chunk_ids: Sequence[TokenIds], prefix: TokenIds) -> RowPlan:
        """Plan the rows of some documents.

        Args:
            counts: Chunks of each document.
            chunk_ids: int64 ids of each chunk, documents in order; may be empty.
            prefix: int64 ids at the start of a row.

        Raises:
            AlignmentError: There are not as many chunks as the documents have.
        """
        n_chunks = sum(counts)
        if len(chunk_ids) != n_chunks:
            raise AlignmentError(f"the tokenizer gave {len(chunk_ids)} results for {n_chunks} chunks")
        rows = _Rows(self._capacity, self._min_context, prefix, self._suffix)
        alone_slots = np.arange(n_chunks, 2 * n_chunks)
        first = 0
        for count in counts:
            ids = chunk_ids[first : first + count]
            if self._weight > 0:
                rows.add(lay_out(ids, self._separator_id), first)
            if self._weight == 0 or self._blends(count):
                for i, one in enumerate(ids):
                    rows.add(lay_out([one], None), n_chunks + first + i)
            else:
                alone_slots[first : first + count] = range(first, first + count)
            first += count
        return RowPlan(
            rows.rows,
            rows.spans,
            rows.first_pieces,
            np.array(rows.piece_slots, np.int64),
            np.array(rows.piece_tokens, np.int64),
            n_chunks if self._weight == 1 else 2 * n_chunks,
            None if self._weight == 1 else alone_slots,
            list(counts),
        )

    def least_pieces(self, counts: Sequence[int]) -> int:
        """Return the pieces of documents of so many chunks, as long as no chunk is blank or divided by a window."""
        return sum(2 * count if self._blends(count) else count for count in counts)

    def _blends(self, count: int) -> bool:
        # Alone in its document, a chunk's contextual vector is its independent one.
        return 0 < self._weight < 1 and count > 1


class _Rows:
    """The rows of a plan in the making."""

    def __init__(self, capacity: int, min_context: int, prefix: TokenIds, suffix: TokenIds) -> None:
        self.rows: list[TokenIds] = []
        self.spans: list[list[Span]] = []
        self.first_pieces: list[int] = []
        self.piece_slots: list[int] = []
        self.piece_tokens: list[int] = []
        self._capacity, self._min_context = capacity, min_context
        self._prefix, self._suffix = prefix, suffix

    def add(self, layout: Layout, first_slot: int) -> None:
        """Add the windows of a layout; its chunks' slots follow each other."""
        for window in plan_windows(
            layout.chunk_spans, len(layout.ids), capacity=self._capacity, min_context=self._min_context
        ):
            self.rows.append(np.concatenate([self._prefix, layout.ids[window.start : window.stop], self._suffix]))
            shift = len(self._prefix) - window.start
            self.spans.append([(piece.start + shift, piece.stop + shift) for piece in window.pieces])
            self.first_pieces.append(len(self.piece_slots))
            self.piece_slots.extend(first_slot + piece.chunk for piece in window.pieces)
            self.piece_tokens.extend(piece.stop - piece.start for piece in window.pieces)
