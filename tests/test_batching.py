import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore.encoders.batching import pad_rows, plan_batches


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200), st.booleans())
def test_budget_is_kept_and_every_row_comes_once(lengths, budget, pads):
    batches = plan_batches(lengths, budget, pads=pads)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        of_batch = [lengths[row] for row in batch]
        assert len(batch) == 1 or (len(batch) * max(of_batch) if pads else sum(of_batch)) <= budget


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200), st.booleans())
def test_longest_rows_come_first_and_equal_ones_stay_in_order(lengths, budget, pads):
    rows = [row for batch in plan_batches(lengths, budget, pads=pads) for row in batch]
    assert rows == sorted(rows, key=lambda row: (-lengths[row], row))


@pytest.mark.parametrize("pads", [True, False])
def test_batches_are_filled(pads):
    assert [len(batch) for batch in plan_batches([8] * 100, 80, pads=pads)] == [10] * 10


def test_without_padding_short_rows_take_no_more_than_they_have():
    assert plan_batches([9, 1, 1, 1], 12, pads=False) == [[0, 1, 2, 3]]
    assert plan_batches([9, 1, 1, 1], 12, pads=True) == [[0], [1, 2, 3]]


@pytest.mark.parametrize("budget", [1, 10])
def test_nothing_makes_no_batch(budget):
    assert plan_batches([], budget, pads=True) == []


def test_pad_rows():
    ids, lengths = pad_rows([np.array([5, 6, 7]), np.array([8])], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert lengths.tolist() == [3, 1]
    assert ids.dtype == lengths.dtype == np.int64


@pytest.mark.parametrize(
    ("longest", "grain", "most", "width"),
    [(1, 16, None, 16), (16, 16, None, 16), (17, 16, None, 32), (17, 16, 32, 32), (17, 16, 20, 20), (17, 16, 8, 17)],
)
def test_rows_are_filled_up_to_a_multiple_as_far_as_that_goes(longest, grain, most, width):
    ids, lengths = pad_rows([np.arange(longest), np.arange(1)], pad_id=9, grain=grain, most=most)
    assert ids.shape == (2, width)
    assert lengths.tolist() == [longest, 1]
    assert ids[0].tolist() == [*range(longest), *[9] * (width - longest)]
