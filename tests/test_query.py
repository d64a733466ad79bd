"""Search arguments → one request, and dicts → filters. What requests find is in test_store.py."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models

from pplx_vectorstore.collection import VECTOR_NAME
from pplx_vectorstore.errors import InvalidInputError, UnsupportedFilterError
from pplx_vectorstore.quantization import cosine_similarity
from pplx_vectorstore.query import build_filter, build_query, choose_candidates, is_empty


def evaluate(node, variables):
    """Compute a score formula in Python floats."""
    if isinstance(node, str):
        return variables[node]
    if isinstance(node, models.SumExpression):
        return sum(evaluate(inner, variables) for inner in node.sum)
    if isinstance(node, models.MultExpression):
        return math.prod(evaluate(inner, variables) for inner in node.mult)
    if isinstance(node, models.NegExpression):
        return -evaluate(node.neg, variables)
    if isinstance(node, models.DivExpression):
        right = evaluate(node.div.right, variables)
        return evaluate(node.div.left, variables) / right if right else node.div.by_zero_default
    return float(node)


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


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 6, 64, 1024]))
def test_the_formula_turns_euclidean_distance_into_the_cosine(seed, dimension):
    rng = np.random.default_rng(seed)
    query, stored = rng.integers(-128, 128, size=(2, dimension)).astype(np.int8)
    query[0], stored[0] = query[0] or 1, stored[0] or 1
    formula = build_query(query, k=1, candidates=1).query.formula
    variables = {
        "$score": float(np.linalg.norm(query.astype(float) - stored)),
        "norm": float(np.linalg.norm(stored.astype(float))),
    }
    assert evaluate(formula, variables) == pytest.approx(float(cosine_similarity(query, stored[None])[0]), abs=1e-9)


def test_a_norm_of_zero_scores_zero():
    formula = build_query(np.array([3, 4], np.int8), k=1, candidates=1).query.formula
    assert evaluate(formula, {"$score": 5.0, "norm": 0.0}) == 0.0


def test_a_request_ranks_by_bits_then_rescores_by_codes():
    condition = models.Filter(must=[equal("metadata.a", 1)])
    codes = np.array([-128, 0, 127], np.int8)
    request = build_query(codes, k=3, candidates=40, filter=condition, score_threshold=0.5)
    (first,) = request.prefetch
    assert first.query.nearest == [0, 128, 255]
    assert (first.using, first.limit, first.filter) == (VECTOR_NAME, 40, condition)
    assert first.params.hnsw_ef >= 40
    assert not first.params.exact
    quantization = first.params.quantization
    assert (quantization.ignore, quantization.rescore, quantization.oversampling) == (False, True, 1.0)
    assert (request.limit, request.score_threshold, request.with_payload) == (3, 0.5, True)


def test_an_exact_request_uses_neither_bits_nor_graph():
    (first,) = build_query(np.array([1], np.int8), k=1, candidates=5, exact=True).prefetch
    assert first.params.exact
    assert first.params.quantization.ignore


def test_no_filter_stays_none_and_a_ready_filter_passes():
    ready = models.Filter(must_not=[equal("document_id", "a")])
    assert build_filter(None) is None
    assert build_filter({}) is None
    assert build_filter(ready) is ready


@pytest.mark.parametrize(
    ("given_filter", "condition"),
    [
        ({"lang": "en"}, equal("metadata.lang", "en")),
        ({"year": 2024}, equal("metadata.year", 2024)),
        ({"draft": True}, equal("metadata.draft", True)),
        ({"a.b": "x"}, equal('metadata."a.b"', "x")),
        ({"a[0]": "x"}, equal('metadata."a[0]"', "x")),
        ({"a": {"b": {"c": 1}}}, equal("metadata.a.b.c", 1)),
        (
            {"price": 1.5},
            models.FieldCondition(key="metadata.price", range=models.Range(gte=1.5, lte=1.5)),
        ),
        (
            {"lang": ["en", "de"]},
            models.FieldCondition(key="metadata.lang", match=models.MatchAny(any=["en", "de"])),
        ),
        ({"year": [1, 2]}, models.FieldCondition(key="metadata.year", match=models.MatchAny(any=[1, 2]))),
        (
            {"draft": [True, False]},
            models.Filter(should=[equal("metadata.draft", True), equal("metadata.draft", False)]),
        ),
        ({"gone": None}, models.IsEmptyCondition(is_empty=models.PayloadField(key="metadata.gone"))),
    ],
)
def test_a_dict_becomes_conditions_on_metadata(given_filter, condition):
    assert build_filter(given_filter) == models.Filter(must=[condition])


def test_all_entries_of_a_dict_must_match():
    assert build_filter({"a": 1, "b": {"c": "x", "d": False}}) == models.Filter(
        must=[equal("metadata.a", 1), equal("metadata.b.c", "x"), equal("metadata.b.d", False)]
    )


@pytest.mark.parametrize(
    "value",
    [[], [1, "a"], [1, True], [1.5], [None], [[1]], (1,), {1}, math.nan, math.inf, b"x", object(), 2**70, [2**70]],
    ids=repr,
)
def test_values_that_cannot_be_matched_are_refused(value):
    with pytest.raises(UnsupportedFilterError, match="cannot match"):
        build_filter({"a": {"b": value}})


@pytest.mark.parametrize("value", ["\ud800", ["a", "\udfff"]], ids=ascii)
def test_lone_surrogates_are_refused_before_they_reach_the_engine(value):
    with pytest.raises(UnsupportedFilterError):
        build_filter({"a": value})


@pytest.mark.parametrize("key", ["", 'a"b', 1, None, ("a",), "\ud800", "a\\b"], ids=ascii)
def test_keys_that_cannot_be_matched_are_refused(key):
    with pytest.raises(UnsupportedFilterError, match="key"):
        build_filter({key: 1})


@pytest.mark.parametrize("given_filter", ["lang", 1, ["lang"], [("lang", "en")], {"lang"}, True], ids=repr)
def test_a_filter_must_be_a_dict_or_a_filter(given_filter):
    with pytest.raises(UnsupportedFilterError, match="must be a dict"):
        build_filter(given_filter)


def test_an_inner_dict_without_fields_is_refused_rather_than_matching_everything():
    with pytest.raises(UnsupportedFilterError, match="cannot match"):
        build_filter({"a": {}})


def test_a_filter_that_says_nothing_is_told_from_one_that_does():
    condition = equal("metadata.a", 1)
    for empty in (
        models.Filter(),
        models.Filter(must=[], must_not=[models.Filter()]),
        models.Filter(min_should=models.MinShould(conditions=[condition], min_count=0)),
    ):
        assert is_empty(empty)
    for full in (
        models.Filter(should=[condition]),
        models.Filter(min_should=models.MinShould(conditions=[condition], min_count=1)),
    ):
        assert not is_empty(full)
