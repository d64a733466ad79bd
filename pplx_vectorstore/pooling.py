"""Token vectors and token spans → one vector per chunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pplx_vectorstore.errors import AlignmentError

Span = tuple[int, int]
"""A half-open token range, (start, stop)."""


def pool_spans(token_vectors: npt.NDArray[np.float32], spans: Sequence[Span]) -> npt.NDArray[np.float32]:
    """Mean-pool each chunk's token vectors.

    Plain numpy: what runtimes that pool on their device are tested against, and what serves those that
    give token vectors to the host.

    Args:
        token_vectors: float32, shape (n_tokens, dimension), after the model's final norm.
        spans: Half-open token ranges, one per chunk; an empty range is an empty chunk.

    Returns:
        float32, shape (n_chunks, dimension), unnormalised, in span order; zeros for an empty chunk.

    Raises:
        AlignmentError: A span reaches past n_tokens or runs backwards.

    Source: arXiv:2409.04701, section 3.

    >>> pool_spans(np.array([[1, 2], [3, 4], [9, 9]], np.float32), [(0, 2), (2, 2)])
    array([[2., 3.],
           [0., 0.]], dtype=float32)
    """
    n_tokens, dimension = token_vectors.shape
    pooled = np.zeros((len(spans), dimension), dtype=np.float32)
    for row, (start, stop) in zip(pooled, spans, strict=True):
        if not 0 <= start <= stop <= n_tokens:
            raise AlignmentError(f"span ({start}, {stop}) does not lie within {n_tokens} token vectors")
        if stop > start:
            token_vectors[start:stop].mean(axis=0, out=row)
    return pooled


def join_ranges(firsts: Sequence[int], spans: Sequence[Sequence[Span]]) -> list[Span]:
    """Count the spans of all rows from the start of the batch.

    Args:
        firsts: Place of each row's first token in the batch.
        spans: Half-open ranges of each row.
    """
    return [(first + start, first + stop) for first, of in zip(firsts, spans, strict=True) for start, stop in of]


def pool_rows(token_vectors: npt.NDArray[np.float32], spans: Sequence[Sequence[Span]]) -> npt.NDArray[np.float32]:
    """Mean-pool spans of each row of a batch, all in one pass.

    Args:
        token_vectors: float32, shape (n_rows, n_tokens, dimension).
        spans: For each row its half-open, non-empty token ranges.

    Returns:
        float32, shape (total number of spans, dimension), rows in order.
    """
    n_tokens = token_vectors.shape[1]
    ranges = join_ranges(range(0, len(token_vectors) * n_tokens, n_tokens), spans)
    picked = np.concatenate([np.arange(start, stop) for start, stop in ranges])
    lengths = np.array([stop - start for start, stop in ranges])
    firsts = np.cumsum(lengths) - lengths
    flat = token_vectors.reshape(-1, token_vectors.shape[2])
    pooled: npt.NDArray[np.float32] = np.add.reduceat(flat[picked], firsts, axis=0)
    pooled /= lengths[:, None].astype(np.float32)
    return pooled


def merge_pieces(
    piece_vectors: npt.NDArray[np.float32],
    piece_tokens: npt.NDArray[np.int64],
    piece_chunks: npt.NDArray[np.int64],
    n_chunks: int,
) -> npt.NDArray[np.float32]:
    """Join the pieces of chunks longer than a window: the token-weighted mean per chunk.

    A mean over tokens is the token-weighted mean of the means over its parts, so a chunk that was
    pooled in pieces gets the mean of all its token vectors, just like one that was not.

    Args:
        piece_vectors: float32, shape (n_pieces, dimension).
        piece_tokens: int64, shape (n_pieces,): tokens pooled into each piece, at least 1.
        piece_chunks: int64, shape (n_pieces,): the chunk each piece belongs to.
        n_chunks: Number of chunks.

    Returns:
        float32, shape (n_chunks, dimension); zeros for a chunk without pieces.
    """
    merged = np.zeros((n_chunks, piece_vectors.shape[1]), dtype=np.float32)
    tokens = np.bincount(piece_chunks, weights=piece_tokens, minlength=n_chunks)
    if len(piece_chunks) == np.count_nonzero(tokens):
        merged[piece_chunks] = piece_vectors  # one piece per chunk: nothing to weigh, nothing to round
        return merged
    weights = (piece_tokens / tokens[piece_chunks]).astype(np.float32)
    np.add.at(merged, piece_chunks, piece_vectors * weights[:, None])
    return merged


def blend(
    late: npt.NDArray[np.float32], independent: npt.NDArray[np.float32], context_weight: float
) -> npt.NDArray[np.float32]:
    """Mix contextual and context-free vectors: ``w * late + (1 - w) * independent``.

    Args:
        late: float32, shape (n_chunks, dimension), pooled from the document's windows.
        independent: float32, same shape, pooled from each chunk alone.
        context_weight: w, from 0 (independent only) to 1 (late only).

    Returns:
        float32, shape (n_chunks, dimension).
    """
    return (context_weight * late + (1.0 - context_weight) * independent).astype(np.float32, copy=False)
