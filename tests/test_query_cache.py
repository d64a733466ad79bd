import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pplx_vectorstore import load_encoder
from pplx_vectorstore.encoders.query_cache import QueryCache
from pplx_vectorstore.errors import InvalidInputError

DIMENSION = 6


def codes_of(query):
    """Stands in for a model: codes that only this query has."""
    return np.array([*query.encode().ljust(DIMENSION)[:DIMENSION]], np.int8)


def ask(cache, *queries):
    """Ask a cache as an encoder does; return the codes and what had to be computed."""
    found, missing = cache.lookup(queries)
    codes = np.array([codes_of(query) for query in missing], np.int8).reshape(len(missing), DIMENSION)
    joined = cache.join(queries, found, missing, codes)
    assert joined.dtype == np.int8
    assert joined.shape == (len(queries), DIMENSION)
    assert all((row == codes_of(query)).all() for row, query in zip(joined, queries, strict=True))
    return joined, missing


class TestQueryCache:
    def test_asks_once(self):
        cache = QueryCache(3, DIMENSION)
        assert ask(cache, "a", "b")[1] == ["a", "b"]
        assert ask(cache, "c", "b", "a")[1] == ["c"]
        assert ask(cache, "c", "b", "a")[1] == []

    def test_the_least_recently_asked_goes_first(self):
        cache = QueryCache(3, DIMENSION)
        ask(cache, "a", "b", "c")
        ask(cache, "a")  # now b is the oldest
        assert ask(cache, "d")[1] == ["d"]
        assert cache.lookup(["a", "b", "c", "d"])[1] == ["b"]

    def test_a_query_found_beside_a_new_one_counts_as_asked(self):
        cache = QueryCache(2, DIMENSION)
        ask(cache, "a", "b")
        ask(cache, "c", "a")
        assert cache.lookup(["a", "b", "c"])[1] == ["b"]

    def test_more_in_one_call_than_are_remembered(self):
        cache = QueryCache(2, DIMENSION)
        assert ask(cache, "a", "b", "c", "d")[1] == ["a", "b", "c", "d"]
        assert cache.lookup(["a", "b", "c", "d"])[1] == ["a", "b"]
        # What is found may be pushed out by what is new in the same call.
        assert ask(cache, "c", "d", "x", "y", "c")[1] == ["x", "y"]

    def test_size_zero_remembers_nothing(self):
        cache = QueryCache(0, DIMENSION)
        for _ in range(3):
            assert ask(cache, "a", "b", "a")[1] == ["a", "b"]  # each once even so
        assert cache._known == {}

    def test_size_one(self):
        cache = QueryCache(1, DIMENSION)
        assert [ask(cache, query)[1] for query in "aabba"] == [["a"], [], ["b"], [], ["a"]]

    def test_duplicates_in_one_call_are_computed_once(self):
        cache = QueryCache(10, DIMENSION)
        assert ask(cache, "b", "a", "b", "b", "a")[1] == ["b", "a"]
        assert ask(cache, "b", "a", "c", "c")[1] == ["c"]

    def test_nothing(self):
        joined, missing = ask(QueryCache(2, DIMENSION))
        assert (joined.shape, missing) == ((0, DIMENSION), [])

    def test_queries_that_look_alike_are_others(self):
        cache = QueryCache(10, DIMENSION)
        alike = ["a", "A", "a ", "á", "a\u0301", "\ud800"]
        found, missing = cache.lookup(alike)
        cache.join(alike, found, missing, np.arange(6 * DIMENSION, dtype=np.int8).reshape(6, DIMENSION))
        assert missing == alike
        assert cache.join(alike, *cache.lookup(alike), np.zeros((0, DIMENSION), np.int8)).ravel().tolist() == [
            *range(36)
        ]

    def test_what_is_returned_may_be_changed(self):
        cache = QueryCache(2, DIMENSION)
        for _ in range(3):  # as computed, and as remembered
            joined, _ = ask(cache, "a", "b")
            joined[:] = 99

    def test_what_was_computed_may_be_changed(self):
        """And is not kept alive: a row that is a view would hold all of a large batch."""
        cache = QueryCache(2, DIMENSION)
        codes = np.array([codes_of("a"), codes_of("b")])
        cache.join(["a", "b"], {}, ["a", "b"], codes)
        codes[:] = 99
        assert ask(cache, "a", "b")[1] == []
        assert all(row.base is None for row in cache._known.values())

    @pytest.mark.parametrize("size", [1, 5, 100])
    def test_threads(self, size):
        """Every thread gets the codes of its own queries, and the cache never outgrows its size."""
        cache = QueryCache(size, DIMENSION)
        together = threading.Barrier(4, timeout=60)

        def work(seed):
            rng = np.random.default_rng(seed)
            together.wait()
            for _ in range(400):
                ask(cache, *(f"q{number}" for number in rng.integers(0, 12, size=rng.integers(0, 8))))

        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(work, range(4)):
                pass
        assert len(cache._known) == min(size, 12)

    @pytest.mark.parametrize("size", [-1, 1.0, "3", None, True])
    def test_bad_sizes(self, size):
        with pytest.raises(InvalidInputError, match="query_cache must be a number of queries, 0 for none, not"):
            QueryCache(size, DIMENSION)


@pytest.fixture
def load(pplx_checkpoint, monkeypatch):
    """Load the tiny model and count the rows that go through it: ``load(**options)`` → (encoder, rows)."""

    def load(**options):
        encoder = load_encoder(str(pplx_checkpoint), dtype="float32", **options)
        rows = []
        pool = encoder._model.pool

        def counted(some, spans):
            rows.extend(row.tolist() for row in some)
            return pool(some, spans)

        monkeypatch.setattr(encoder._model, "pool", counted)
        return encoder, rows

    return load


class TestThroughAnEncoder:
    def test_a_remembered_query_does_not_go_through_the_model(self, load, pplx, sentences):
        encoder, rows = load(query_cache=10)
        expected = pplx.encode_queries(sentences[:4])
        assert np.abs(encoder.encode_queries(sentences[:3]).astype(int) - expected[:3]).max() <= 1
        assert len(rows) == 3
        again = encoder.encode_queries([sentences[2], sentences[3], sentences[0], sentences[2]])
        assert np.abs(again.astype(int) - expected[[2, 3, 0, 2]]).max() <= 1
        assert rows[3:] == [ids.tolist() for ids in encoder.tokenizer.encode(sentences[3:4])]

    def test_without_a_cache_all_do_but_each_once_a_call(self, load):
        for options in ({}, {"query_cache": 0}):
            encoder, rows = load(**options)
            for _ in range(2):
                codes = encoder.encode_queries(["one", "two", "one"])
                assert (codes[0] == codes[2]).all()
                assert (codes[0] != codes[1]).any()
            assert len(rows) == 4

    def test_the_least_recently_asked_goes_first(self, load):
        encoder, rows = load(query_cache=2)
        for query in ("one", "two", "one", "three", "one"):
            encoder.encode_queries([query])
        assert len(rows) == 3
        encoder.encode_queries(["two"])
        assert len(rows) == 4

    def test_changing_what_was_returned_changes_nothing(self, load, pplx):
        encoder, _ = load(query_cache=2)
        expected = pplx.encode_queries(["one", "two"])
        for _ in range(3):
            codes = encoder.encode_queries(["one", "two"])
            assert (codes == expected).all()
            codes[:] = 0

    def test_blank_queries_are_zeros_also_when_remembered(self, load):
        encoder, rows = load(query_cache=5)
        for _ in range(2):
            assert encoder.encode_queries(["", "text", " "]).any(axis=1).tolist() == [False, True, False]
        assert len(rows) == 1

    def test_documents_are_not_looked_up(self, load):
        encoder, rows = load(query_cache=5)
        encoder.encode_queries(["text"])
        encoder.encode_documents([["text"], ["text"]])
        encoder.encode_queries(["text"])
        assert len(rows) == 3

    def test_a_failure_is_not_remembered(self, load, monkeypatch):
        encoder, rows = load(query_cache=5)
        with monkeypatch.context() as patch:

            def fail(some, spans):
                raise MemoryError

            patch.setattr(encoder._model, "pool", fail)
            with pytest.raises(MemoryError):
                encoder.encode_queries(["text"])
        assert encoder.encode_queries(["text"]).any()
        assert len(rows) == 1

    def test_with_cut_dimensions(self, wide_pplx_checkpoint):
        encoder = load_encoder(str(wide_pplx_checkpoint), dtype="float32", dimensions=128, query_cache=3)
        first, again = (encoder.encode_queries(["one", "two"]) for _ in range(2))
        assert first.shape == (2, 128)
        assert (first == again).all()

    def test_threads(self, load, pplx, sentences):
        encoder, rows = load(query_cache=4)
        expected = pplx.encode_queries(sentences)

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(30):
                picked = rng.integers(0, len(sentences), size=3)
                found = encoder.encode_queries([sentences[i] for i in picked])
                assert np.abs(found.astype(int) - expected[picked]).max() <= 1

        with ThreadPoolExecutor(4) as pool:
            for _ in pool.map(work, range(4)):
                pass
        assert len(rows) < 4 * 30 * 3

    def test_does_not_change_the_fingerprint(self, load, pplx):
        assert load(query_cache=7)[0].fingerprint == pplx.fingerprint

    @pytest.mark.parametrize("size", [-1, 1.0, "3", None, True])
    def test_bad_sizes(self, pplx_checkpoint, size):
        with pytest.raises(InvalidInputError, match="query_cache must be a number of queries, 0 for none, not"):
            load_encoder(str(pplx_checkpoint), query_cache=size)
