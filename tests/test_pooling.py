import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore.errors import AlignmentError
from pplx_vectorstore.pooling import blend, merge_pieces, pool_spans


def random_vectors(n, dimension=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted).map(tuple), max_size=6))
def test_pool_spans_is_the_mean_of_each_span(spans):
    tokens = random_vectors(20)
    pooled = pool_spans(tokens, spans)
    assert pooled.dtype == np.float32
    assert pooled.shape == (len(spans), 5)
    for vector, (start, stop) in zip(pooled, spans, strict=True):
        rows = [tokens[index].astype(np.float64) for index in range(start, stop)]
        expected = sum(rows) / len(rows) if rows else np.zeros(5)
        assert vector == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("span", [(0, 21), (-1, 3), (5, 4), (21, 21)])
def test_pool_spans_refuses_a_span_that_is_not_there(span):
    with pytest.raises(AlignmentError, match="does not lie within 20 token vectors"):
        pool_spans(random_vectors(20), [(0, 3), span])


@given(st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=6), st.randoms())
def test_merge_pieces_gives_the_mean_over_all_tokens(piece_lengths, random):
    """However a chunk's tokens are cut, and in whatever order the pieces come."""
    n_tokens = sum(sum(lengths) for lengths in piece_lengths)
    tokens = random_vectors(n_tokens)
    pieces, expected, position = [], [], 0
    for chunk, lengths in enumerate(piece_lengths):
        first = position
        for length in lengths:
            pieces.append((tokens[position : position + length].mean(axis=0), length, chunk))
            position += length
        expected.append(tokens[first:position].mean(axis=0) if position > first else np.zeros(5))
    random.shuffle(pieces)
    merged = merge_pieces(
        np.array([vector for vector, _, _ in pieces], np.float32).reshape(-1, 5),
        np.array([length for _, length, _ in pieces], np.int64),
        np.array([chunk for _, _, chunk in pieces], np.int64),
        len(piece_lengths),
    )
    assert merged.dtype == np.float32
    assert merged.shape == (len(piece_lengths), 5)
    assert np.abs(merged - np.array(expected).reshape(-1, 5)).max(initial=0) < 1e-5


def test_merge_pieces_keeps_whole_chunks_bit_by_bit():
    vectors = random_vectors(3)
    order = np.array([2, 0, 3])
    merged = merge_pieces(vectors, np.array([7, 3, 1]), order, 4)
    assert (merged[order] == vectors).all()
    assert not merged[1].any()


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [2.0, 4.0]), (1.0, [1.0, 0.0]), (0.25, [1.75, 3.0])])
def test_blend(weight, expected):
    late, independent = np.array([[1.0, 0.0]], np.float32), np.array([[2.0, 4.0]], np.float32)
    blended = blend(late, independent, weight)
    assert blended.dtype == np.float32
    assert blended.tolist() == [expected]
