import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore.encoders.batching import plan_batches


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200))
def test_budget_is_kept_and_every_row_comes_once(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200))
def test_longest_rows_come_first_and_equal_ones_stay_in_order(lengths, budget):
    rows = [row for batch in plan_batches(lengths, budget) for row in batch]
    assert rows == sorted(rows, key=lambda row: (-lengths[row], row))


def test_batches_are_filled():
    assert [len(batch) for batch in plan_batches([8] * 100, 80)] == [10] * 10


@pytest.mark.parametrize("budget", [1, 10])
def test_nothing_makes_no_batch(budget):
    assert plan_batches([], budget) == []
