"""Dicts → filters. What fields match is in test_store.py, and beside indexes in test_filter_resolution.py."""

import math
from datetime import UTC, date, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pplx_vectorstore import Document, VectorStore
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
    for bound in (date(2024, 5, 1), day, "2024-05-01T00:00:00Z", "2024-05-01T02:00:00+02:00"):
        assert build_filter({"day": {"$gte": bound}}).must[0].range.gte == day
    with pytest.raises(UnsupportedFilterError, match="must be finite numbers, or all dates"):
        build_filter({"day": {"$gte": day, "$lt": 5}})


def test_none_of_no_ids_says_nothing():
    from pplx_vectorstore.filters import is_empty

    nothing = models.HasIdCondition(has_id=[])
    assert is_empty(models.Filter(must_not=[nothing]))
    assert not is_empty(models.Filter(must=[nothing]))
    assert not is_empty(models.Filter(must_not=[models.HasIdCondition(has_id=["a"])]))


# --- filters joined --------------------------------------------------------------------------------------------


def test_joined_filters_become_clauses():
    a, b = models.Filter(must=[equal("metadata.a", 1)]), models.Filter(must=[equal("metadata.b", 2)])
    joined = {"c": 3, "$or": [{"a": 1}, {"b": 2}], "$not": {"a": 1}, "$and": [{"b": 2}]}
    assert build_filter(joined) == models.Filter(
        must=[
            equal("metadata.c", 3),
            models.Filter(should=[a, b]),
            models.Filter(must_not=[a]),
            models.Filter(must=[b]),
        ]
    )


@pytest.mark.parametrize("operator", ["$and", "$or"])
@pytest.mark.parametrize("value", [[], {}, {"a": 1}, "a", None, ({"a": 1},)], ids=repr)
def test_and_and_or_need_a_list(operator, value):
    with pytest.raises(UnsupportedFilterError, match=rf"\{operator} needs a list of filters"):
        build_filter({operator: value})


@pytest.mark.parametrize(
    "joined", [{"$not": {}}, {"$not": [{"a": 1}]}, {"$or": [{"a": 1}, {}]}, {"$and": [1]}], ids=repr
)
def test_what_is_joined_says_something(joined):
    with pytest.raises(UnsupportedFilterError, match="joins filters that say something"):
        build_filter(joined)


def test_operators_at_the_wrong_place_are_named_with_the_right_one():
    with pytest.raises(UnsupportedFilterError, match=r"\$gte.*within a field, as in"):
        build_filter({"$or": [{"$gte": 1}]})
    for operator in ("$or", "$and", "$not"):
        with pytest.raises(UnsupportedFilterError, match="stand around whole filters"):
            build_filter({"year": {operator: [1]}})


def nested(levels):
    given_filter = {"i": 1}
    for _ in range(levels):
        given_filter = {"$not": {"$not": given_filter}}
    return given_filter


VALUES = {
    "s": st.sampled_from(["x", "y", ""]),
    "i": st.integers(-2, 2),
    "f": st.sampled_from([-0.5, 0.5, 1.0]),
    "b": st.booleans(),
    "list": st.lists(st.sampled_from(["p", "q"]), max_size=2),
}
METADATA = st.fixed_dictionaries({}, optional={name: st.none() | value for name, value in VALUES.items()})
FIELDS = st.one_of(
    *(st.fixed_dictionaries({name: st.none() | value}) for name, value in VALUES.items() if name != "list"),
    st.fixed_dictionaries({"list": st.sampled_from(["p", "q", ["p", "q"]])}),
    st.fixed_dictionaries({"i": st.lists(st.integers(-2, 2), min_size=1, max_size=2)}),
    st.fixed_dictionaries({"i": st.sampled_from([{"$gt": 0}, {"$lte": 1, "$gte": 0}, {"$ne": 1}, {"$nin": [0, 1]}])}),
    st.fixed_dictionaries({"f": st.sampled_from([{"$lt": 0.5}, {"$gte": 0.5}])}),
    st.fixed_dictionaries({"s": st.sampled_from([{"$exists": True}, {"$exists": False}, {"$ne": "x"}])}),
)
JOINED = st.recursive(
    FIELDS,
    lambda parts: st.one_of(
        st.fixed_dictionaries({"$not": parts}),
        st.fixed_dictionaries({"$or": st.lists(parts, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$and": st.lists(parts, min_size=1, max_size=3)}),
        st.tuples(parts, parts).map(lambda two: {**two[0], **two[1]}),
    ),
    max_leaves=6,
)


def holds(given_filter, metadata):
    """What the language says, in Python."""
    joins = {
        "$not": lambda part: not holds(part, metadata),
        "$or": lambda parts: any(holds(part, metadata) for part in parts),
        "$and": lambda parts: all(holds(part, metadata) for part in parts),
    }
    return all(
        joins[key](value) if key in joins else field_holds(value, metadata.get(key))
        for key, value in given_filter.items()
    )


def field_holds(condition, stored):
    values = stored if isinstance(stored, list) else [] if stored is None else [stored]
    compare = {
        "$gt": lambda bound: any(value > bound for value in values),
        "$gte": lambda bound: any(value >= bound for value in values),
        "$lt": lambda bound: any(value < bound for value in values),
        "$lte": lambda bound: any(value <= bound for value in values),
        "$ne": lambda other: not field_holds(other, stored),
        "$nin": lambda others: not field_holds(others, stored),
        "$exists": lambda wanted: bool(values) == wanted,
    }
    if isinstance(condition, dict):
        return all(compare[operator](value) for operator, value in condition.items())
    if condition is None:
        return not values
    wanted = condition if isinstance(condition, list) else [condition]
    return any(type(value) is type(one) and value == one for value in values for one in wanted)


@pytest.fixture(scope="module")
def notes(tmp_path_factory, hash_encoder):
    folder = tmp_path_factory.mktemp("notes")
    with VectorStore.open(folder / "index", encoder=hash_encoder(64), index_fields={"i": "integer"}) as store:
        yield store


@settings(max_examples=35, suppress_health_check=[HealthCheck.too_slow])
@given(stored=st.lists(METADATA, min_size=1, max_size=6), asked=st.lists(JOINED, min_size=1, max_size=6))
def test_joined_filters_match_what_the_language_says(notes, stored, asked):
    ids = [str(i) for i in range(6)]
    notes.delete(document_ids=ids)
    held = dict(zip(ids, stored, strict=False))
    notes.add(Document(id=id_, chunks=["text"], metadata=metadata) for id_, metadata in held.items())
    for given_filter in asked:
        expected = {id_ for id_, metadata in held.items() if holds(given_filter, metadata)}
        assert {chunk.document_id for chunk in notes.chunks(given_filter)} == expected, given_filter


def test_the_deepest_filter_is_answered_and_a_deeper_one_refused(notes):
    notes.delete(document_ids=[str(i) for i in range(6)])
    notes.add([Document(id="0", chunks=["text"], metadata={"i": 1}), Document(id="1", chunks=["text"])])
    assert notes.count(nested(16)) == 1
    assert notes.count({"$not": nested(15)}) == 1
    with pytest.raises(UnsupportedFilterError, match="more than 32 levels"):
        notes.count({"$not": nested(16)})
