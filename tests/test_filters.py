"""Dicts → filters. What they match is in test_store.py, and beside indexes in test_filter_resolution.py."""

import math
from datetime import UTC, date, datetime

import pytest

from pplx_vectorstore.errors import UnsupportedFilterError
from pplx_vectorstore.filters import build_filter, is_empty
from pplx_vectorstore.qdrant import models


def equal(path, value):
    return models.FieldCondition(key=path, match=models.MatchValue(value=value))


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
    [[], [1, "a"], [1, True], [1.5], [None], [[1]], (1,), {1}, math.nan, math.inf, b"x", ..., 2**70, [2**70]],
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


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bound", [2**53, 2.0**53, 2**53 + 1, 2**60, 1e18, 2**63])
def test_bounds_that_stand_for_several_whole_numbers_are_refused(bound, sign):
    for operator in ("$gt", "$gte", "$lt", "$lte"):
        with pytest.raises(UnsupportedFilterError, match=r"compares with .*2\*\*53.*; store smaller ones"):
            build_filter({"n": {operator: sign * bound}})
        with pytest.raises(UnsupportedFilterError, match="2\\*\\*53"):
            build_filter({"n": {"$gt" if operator.startswith("$l") else "$lt": 0, operator: sign * bound}})
    for exact in (2**53 - 1, 2.0**53 - 1, 2**64, 1e300):
        assert build_filter({"n": {"$gt": sign * exact}}).must[0].range.gt == sign * exact


def test_a_float_that_equals_several_whole_numbers_is_refused_and_an_int_is_not():
    with pytest.raises(UnsupportedFilterError, match=r"cannot match 9007199254740992\.0: .*give the int"):
        build_filter({"n": 2.0**53})
    assert build_filter({"n": 2**53}).must == [equal("metadata.n", 2**53)]
    assert build_filter({"n": 1e300}).must[0].range.gte == 1e300


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1990", "the text '1990', which is no date; give the number 1990, or a date such as '2024-05-01'"),
        ("-2.5", "give the number -2.5, or"),
        ("May", "the text 'May', which is no date; give a number, or a date"),
        ("nan", "give a number, or a date"),
        ("", "give a number, or a date"),
    ],
)
def test_a_text_as_a_bound_says_what_to_give(value, said):
    with pytest.raises(UnsupportedFilterError, match=rf"^filter on metadata\.year compares with .*{said}"):
        build_filter({"year": {"$gt": value}})


def test_dates_are_bounds():
    day = datetime(2024, 5, 1, tzinfo=UTC)
    for given in (date(2024, 5, 1), day, "2024-05-01T00:00:00Z", "2024-05-01T02:00:00+02:00"):
        assert build_filter({"day": {"$gte": given}}).must[0].range.gte == day
    with pytest.raises(UnsupportedFilterError, match="must be finite numbers, or all dates"):
        build_filter({"day": {"$gte": day, "$lt": 5}})


def test_none_of_no_ids_says_nothing():
    from pplx_vectorstore.filters import is_empty

    nothing = models.HasIdCondition(has_id=[])
    assert is_empty(models.Filter(must_not=[nothing]))
    assert not is_empty(models.Filter(must=[nothing]))
    assert not is_empty(models.Filter(must_not=[models.HasIdCondition(has_id=["a"])]))
