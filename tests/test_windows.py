import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.windows import lay_out, plan_windows


@st.composite
def plans(draw):
    """A document's chunk lengths, whether there is a separator, and a window's settings."""
    lengths = draw(st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 80)), max_size=25))
    capacity = draw(st.integers(1, 40))
    min_context = draw(st.integers(0, (capacity - 1) // 2))
    return lengths, draw(st.sampled_from([None, 0])), capacity, min_context


def plan(lengths, separator_id, capacity, min_context):
    layout = lay_out([np.full(length, 7) for length in lengths], separator_id)
    windows = plan_windows(layout.chunk_spans, len(layout.ids), capacity=capacity, min_context=min_context)
    return layout, windows


class TestLayOut:
    def test_gives_the_published_sequence(self, tests_folder):
        """The three chunks' own ids, joined, are what the real model was given (design: known good ids)."""
        published = json.loads((tests_folder / "data" / "pplx_reference.json").read_text("utf-8"))["input_ids"]
        first = [16704, 32179, 12033, 304, 19990, 448, 25678, 4755, 911, 279, 1879, 13]
        second = [2121, 582, 3063, 11, 40228, 20118, 601, 311, 13186, 501, 6708, 13]
        third = [50565, 1086, 41345, 82, 3545, 1191, 448, 264, 22208, 3405, 13]
        layout = lay_out([np.array(ids) for ids in (first, second, third)], separator_id=151643)
        assert layout.ids.tolist() == published
        assert layout.ids.dtype == np.int64
        assert layout.chunk_spans == ((0, 12), (13, 25), (26, 37))

    @given(st.lists(st.lists(st.integers(0, 3), max_size=5)), st.sampled_from([None, 0, 3]))
    def test_spans_hold_each_chunks_ids_even_where_they_equal_the_separator(self, chunks, separator_id):
        layout = lay_out([np.array(ids, np.int64) for ids in chunks], separator_id)
        assert [layout.ids[start:stop].tolist() for start, stop in layout.chunk_spans] == chunks
        n_separators = 0 if separator_id is None else max(len(chunks) - 1, 0)
        assert len(layout.ids) == sum(map(len, chunks)) + n_separators
        gaps = zip(layout.chunk_spans, layout.chunk_spans[1:], strict=False)
        for (_, stop), (start, _) in gaps:
            assert layout.ids[stop:start].tolist() == ([] if separator_id is None else [separator_id])


class TestPlanWindows:
    @given(plans())
    @example(([5, 5, 50, 0, 0, 5], 0, 10, 2))
    def test_every_token_of_every_chunk_is_pooled_exactly_once(self, given_plan):
        layout, windows = plan(*given_plan)
        pooled = [
            (piece.chunk, token)
            for window in windows
            for piece in window.pieces
            for token in range(piece.start, piece.stop)
        ]
        expected = [
            (chunk, token) for chunk, (start, stop) in enumerate(layout.chunk_spans) for token in range(start, stop)
        ]
        assert pooled == expected  # exactly once, and in document order

    @given(plans())
    def test_windows_fit_lie_in_the_document_and_have_something_to_pool(self, given_plan):
        layout, windows = plan(*given_plan)
        capacity = given_plan[2]
        for window in windows:
            assert window.pieces
            assert 0 <= window.start < window.stop <= len(layout.ids)
            assert window.stop - window.start <= capacity
            for piece in window.pieces:
                assert window.start <= piece.start < piece.stop <= window.stop

    @given(plans())
    def test_every_piece_has_its_context_on_both_sides_or_all_there_is(self, given_plan):
        layout, windows = plan(*given_plan)
        _, _, capacity, min_context = given_plan
        n_tokens = len(layout.ids)
        for window in windows:
            for piece in window.pieces:
                left, right = piece.start - window.start, window.stop - piece.stop
                if piece.stop - piece.start <= capacity - 2 * min_context:
                    assert left >= min(min_context, piece.start)
                    assert right >= min(min_context, n_tokens - piece.stop)
                else:
                    # It gets what room there is: all of the window, or of the document's own ends.
                    room = capacity - (piece.stop - piece.start)
                    least = room // 2
                    assert left >= min(least, min_context, piece.start)
                    assert right >= min(least, min_context, n_tokens - piece.stop)
                    wanted = min(min_context, piece.start) + min(min_context, n_tokens - piece.stop)
                    assert left + right >= min(room, wanted)

    @given(plans())
    def test_only_chunks_longer_than_a_window_are_cut_and_evenly(self, given_plan):
        layout, windows = plan(*given_plan)
        _, _, capacity, min_context = given_plan
        lengths = [[] for _ in layout.chunk_spans]
        for window in windows:
            for piece in window.pieces:
                lengths[piece.chunk].append(piece.stop - piece.start)
        for (start, stop), pieces in zip(layout.chunk_spans, lengths, strict=True):
            if stop == start:
                assert pieces == []
            elif stop - start <= capacity:
                assert pieces == [stop - start]
            else:
                assert max(pieces) - min(pieces) <= 1
                assert max(pieces) <= capacity - 2 * min_context

    def test_a_document_that_fits_is_one_window_with_all_of_it(self):
        layout, windows = plan([4, 0, 5, 6], 0, 18, 8)
        assert [(window.start, window.stop) for window in windows] == [(0, len(layout.ids))]
        assert [piece.chunk for piece in windows[0].pieces] == [0, 2, 3]

    def test_a_long_document_needs_few_windows(self):
        _, windows = plan([10] * 400, 0, 512, 64)
        # Each window pools all but its two margins, and loses less than one chunk to rounding.
        assert len(windows) <= -(-400 * 11 // (512 - 128 - 11))

    def test_a_long_chunk_in_the_middle_has_its_room_shared(self):
        layout, windows = plan([20, 17, 20], None, 21, 8)
        (window,) = [window for window in windows if any(piece.chunk == 1 for piece in window.pieces)]
        start, stop = layout.chunk_spans[1]
        assert (start - window.start, window.stop - stop) == (2, 2)

    @pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
    def test_nothing_to_pool_needs_no_window(self, lengths):
        assert plan(lengths, 0, 8, 2)[1] == []

    @pytest.mark.parametrize("capacity", [0, -1])
    def test_refuses_a_window_without_room(self, capacity):
        with pytest.raises(InvalidInputError, match=f"at least 1 token, not {capacity}"):
            plan_windows([], 0, capacity=capacity, min_context=0)

    @pytest.mark.parametrize(("capacity", "min_context"), [(10, -1), (10, 5), (10, 50), (1, 1)])
    def test_refuses_context_that_does_not_fit(self, capacity, min_context):
        with pytest.raises(InvalidInputError, match=f"less than half of the window's {capacity} tokens"):
            plan_windows([(0, 4)], 4, capacity=capacity, min_context=min_context)
