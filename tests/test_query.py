"""Search arguments → one request. What requests find is in test_store.py."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore.collection import TEXT_FIELD, VECTOR_NAME
from pplx_vectorstore.engines.translation import edge_query
from pplx_vectorstore.equal_norms import equalize_norms, squared_norm_of
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.quantization import cosine_similarity
from pplx_vectorstore.query import (
    QueryVector,
    Ranking,
    build_hamming,
    build_query,
    choose_candidates,
    is_lexical,
    map_stages,
)


def equal(path, value):
    return models.FieldCondition(key=path, match=models.MatchValue(value=value))


@pytest.mark.parametrize(("k", "expected"), [(1, 100), (10, 100), (11, 110), (50, 500)])
def test_default_candidates_are_ten_per_hit_and_at_least_a_hundred(k, expected):
    assert choose_candidates(k, None) == expected


def test_candidates_that_are_given_are_taken():
    assert choose_candidates(10, 10) == 10
    assert choose_candidates(10, 12_345) == 12_345


@pytest.mark.parametrize("k", [0, -1, True, False, 1.0, "1", None, np.float64(3), [1], 10**30])
def test_k_must_be_a_positive_whole_number(k):
    with pytest.raises(InvalidInputError, match="k must be"):
        choose_candidates(k, None)


@pytest.mark.parametrize("candidates", [0, -1, 9, True, 10.0, "10", [10], 10**30])
def test_candidates_must_be_a_whole_number_of_at_least_k(candidates):
    with pytest.raises(InvalidInputError, match="candidates must be"):
        choose_candidates(10, candidates)


@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 64, 1024]), st.integers(1, 128))
def test_distances_from_vectors_of_one_norm_become_cosines_and_back(seed, dimension, largest):
    rng = np.random.default_rng(seed)
    codes, query = rng.integers(-largest, largest, size=(2, dimension), endpoint=True).clip(-128, 127).astype(np.int8)
    codes[0], query[0] = codes[0] or 1, query[0] or 1
    wide = equalize_norms(codes[None], squared_norm_of(dimension))[0].astype(float)
    vector = QueryVector.of(query, int(wide @ wide))
    # What the engine compares is the query times a whole number, and shifted like what is stored.
    compared = np.array(vector.values) - 128
    factor = compared[0] // query[0]
    assert np.array_equal(compared, query.astype(int) * factor)
    assert 64 <= np.abs(compared).max() <= 128
    assert vector.norm == pytest.approx(float(np.linalg.norm(compared)), abs=1e-9)
    distance = np.float32(np.linalg.norm(compared - wide))  # as the engine has it
    cosine = float(cosine_similarity(query, wide.astype(np.int8)[None])[0])
    assert vector.cosine(float(distance)) == pytest.approx(cosine, abs=1e-6)
    # What has the least cosine that is asked for is within the distance; what falls short of it by much is not.
    assert distance < np.float32(vector.largest_distance(cosine))
    assert vector.largest_distance(cosine + 1e-3) < distance or cosine > 1 - 1e-3


def test_cosines_of_rounded_distances_keep_to_their_bounds():
    vector = QueryVector.of(np.array([127, 0], np.int8), 127**2)
    assert vector.cosine(0.0) == 1.0
    assert vector.cosine(254.0) == -1.0
    assert vector.cosine(254.0001) == -1.0
    assert QueryVector.of(np.array([100, 1], np.int8), 127**2).cosine(26.99) == 1.0
    assert vector.largest_distance(2.0) < 1


@pytest.mark.parametrize("component", [1, -1, 5, 63, 64, -127, -128])
def test_a_query_fits_the_bytes_that_it_is_compared_as(component):
    codes = np.array([component, 0, 1, -1], np.int8)
    vector = QueryVector.of(codes, 127**2)
    assert min(vector.values) >= 0
    assert max(vector.values) <= 255
    assert vector.values[1] == 128


NEAREST = QueryVector.of(np.array([-128, 0, 127], np.int8), 127**2)


@pytest.mark.parametrize(("by_bits", "beam", "oversampling"), [(True, 80, 40 / 3), (False, 40, None)])
def test_a_request_ranks_by_bits_or_by_codes(by_bits, beam, oversampling):
    condition = models.Filter(must=[equal("metadata.a", 1)])
    ranking = Ranking(candidates=40, by_bits=by_bits)
    request = build_query(NEAREST, ranking, k=3, filter=condition, score_threshold=0.5, with_codes=True)
    assert request.prefetch is None
    assert request.query.nearest == [0, 128, 255]
    assert (request.using, request.limit, request.filter) == (VECTOR_NAME, 3, condition)
    assert (request.with_payload, request.with_vector) == (True, True)
    assert request.score_threshold == NEAREST.largest_distance(0.5)
    assert request.params.hnsw_ef == beam
    assert not request.params.exact
    quantization = request.params.quantization
    assert (quantization.ignore, quantization.rescore) == (not by_bits, True)
    assert quantization.oversampling == oversampling


@pytest.mark.parametrize(("by_bits", "beam"), [(True, 80), (False, 120)])
def test_the_beam_by_the_codes_is_wider_where_it_has_to_be(by_bits, beam):
    request = build_query(NEAREST, Ranking(candidates=40, by_bits=by_bits, widening=3), k=3)
    assert request.params.hnsw_ef == beam
    assert request.limit == 3
    fused = build_query(NEAREST, Ranking(candidates=40, by_bits=by_bits, widening=3), k=3, text="words")
    assert [stage.limit for stage in fused.prefetch] == [40, 40]
    assert fused.prefetch[0].params.hnsw_ef == beam


@pytest.mark.parametrize("by_bits", [True, False])
def test_an_exact_request_uses_neither_bits_nor_graph(by_bits):
    request = build_query(NEAREST, Ranking(candidates=5, by_bits=by_bits, exact=True), k=1)
    assert request.params.exact
    assert request.params.quantization.ignore


@pytest.mark.parametrize("by_bits", [True, False])
def test_a_beam_is_no_wider_than_the_server_accepts(by_bits):
    ranking = Ranking(candidates=100, by_bits=by_bits, most_hnsw_ef=30)
    assert build_query(NEAREST, ranking, k=10).params.hnsw_ef == 30
    assert build_hamming(NEAREST, 100, most_hnsw_ef=30).params.hnsw_ef == 30
    assert build_query(NEAREST, replace(ranking, most_hnsw_ef=1000), k=10).params.hnsw_ef <= 200


def test_a_hybrid_request_fuses_as_many_candidates_of_both_rankings():
    condition = models.Filter(must=[equal("metadata.a", 1)])
    ranking = Ranking(candidates=40, by_bits=True)
    request = build_query(NEAREST, ranking, k=3, filter=condition, score_threshold=0.2, text="words")
    vectors, words = request.prefetch
    assert (vectors.query.nearest, vectors.limit, vectors.filter) == (NEAREST.values, 40, condition)
    assert vectors.params.quantization.oversampling == 1.0
    assert (words.query.text, words.using, words.limit, words.filter) == ("words", TEXT_FIELD, 40, condition)
    assert (request.query.fusion, request.limit, request.score_threshold) == (models.Fusion.RRF, 3, 0.2)
    weighted = build_query(NEAREST, ranking, k=3, text="words", lexical_weight=0.25)
    assert weighted.query.rrf.weights == [1.5, 0.5]


def test_words_alone_are_one_ranking():
    request = build_query(None, Ranking(candidates=40, by_bits=False), k=3, text="words", lexical_weight=1)
    assert (request.query.text, request.using, request.limit, request.prefetch) == ("words", TEXT_FIELD, 3, None)


def test_a_request_by_the_bits_alone_compares_no_codes():
    condition = models.Filter(must=[equal("metadata.a", 1)])
    request = build_hamming(NEAREST, 40, filter=condition)
    assert (request.query.nearest, request.limit, request.filter) == (NEAREST.values, 40, condition)
    assert (request.params.quantization.ignore, request.params.quantization.rescore) == (False, False)
    assert request.with_payload is False


def test_filters_are_changed_in_every_stage_that_reads_points():
    ranking = Ranking(candidates=40, by_bits=True)
    own = models.Filter(must=[equal("tenant", "a")])
    single = build_query(NEAREST, ranking, k=3)
    fused = build_query(NEAREST, ranking, k=3, text="words")
    assert [is_lexical(stage) for stage in (single, *fused.prefetch)] == [False, False, True]

    def restrict(stage):
        return stage.model_copy(update={"filter": own})

    assert map_stages(single, restrict).filter == own
    assert [stage.filter for stage in map_stages(fused, restrict).prefetch] == [own, own]
    assert single.filter is None
    assert [stage.filter for stage in fused.prefetch] == [None, None]


@pytest.mark.parametrize("by_bits", [True, False])
def test_acorn_is_for_walks_by_the_codes(by_bits):
    condition = models.Filter(must=[equal("metadata.a", 1)])
    ranking = Ranking(candidates=40, by_bits=by_bits, acorn=True)

    def asks(ranking, **options):
        request = build_query(NEAREST, ranking, k=3, filter=condition, **options)
        stages = request.prefetch or [request]
        return [bool(stage.params and stage.params.acorn and stage.params.acorn.enable) for stage in stages]

    assert asks(ranking) == [not by_bits]
    assert asks(replace(ranking, acorn=False)) == asks(replace(ranking, exact=True)) == [False]
    assert asks(ranking, text="words") == [not by_bits, False]
    if by_bits:
        assert asks(replace(ranking, unindexed=models.Filter(must=[equal("generation", 2)]))) == [False, True]
    by_codes = replace(ranking, by_bits=False)
    translated = edge_query(build_query(NEAREST, by_codes, k=3, filter=condition)).params.acorn
    assert (translated.enable, translated.max_selectivity) == (True, 1.0)
