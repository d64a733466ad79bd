import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn, node_to_metadata_dict
from llama_index.vector_stores.pplx_vectorstore.filters import build_filter

from pplx_vectorstore.collection import metadata_path
from pplx_vectorstore.errors import UnsupportedFilterError

OP = FilterOperator

# --- the oracle: LlamaIndex's filtering in memory -----------------------------------------------------------


def matches_in_memory(node, filters):
    """Filter as LlamaIndex does in memory, which knows no nesting: each filter by it, the tree here.

    Where it cannot compare two types, nothing matches.
    """
    if not filters.filters:
        return True
    metadata = node_to_metadata_dict(node, remove_text=True)
    results = []
    for one in filters.filters:
        if isinstance(one, MetadataFilters):
            results.append(matches_in_memory(node, one))
            continue
        fn = build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[one]))
        try:
            results.append(fn(node.node_id))
        except TypeError:
            results.append(False)
    if filters.condition == FilterCondition.OR:
        return any(results)
    if filters.condition == FilterCondition.NOT:
        return not any(results)
    return all(results)


KEYS = ["lang", "a.b", "größe", "_x", 'key with "quotes"'[:8]]
TEXTS = ["", "a", "b", "ab", "xaby", "Ab", "ä€", "1", "None", "2024-01-01"]
NUMBERS = [-1, 0, 1, 2, 1.0, 0.5, -0.0, 1e20, 2**53 + 1, 2**60]
BOUNDS = [number for number in NUMBERS if abs(number) < 2**53 or abs(number) > 2**63] + [2**53 - 1]
scalars = st.sampled_from([*TEXTS, *NUMBERS])
stored_values = st.one_of(
    st.none(),
    scalars,
    st.booleans(),
    st.lists(st.sampled_from(TEXTS), max_size=3),
    st.lists(st.sampled_from(NUMBERS[:6]), max_size=3),
    st.just({"inner": 1}),  # whose keys only memory takes for elements
)
nodes_strategy = st.lists(st.dictionaries(st.sampled_from(KEYS), stored_values, max_size=4), min_size=1, max_size=8)
lists_of_one_type = st.one_of(
    st.lists(st.sampled_from(TEXTS[1:]), min_size=1, max_size=3),
    st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.5, 1.0, 3.5]), min_size=1, max_size=3),
)


@st.composite
def single_filters(draw):
    operator = draw(st.sampled_from(sorted(set(OP) - {OP.TEXT_MATCH_INSENSITIVE})))
    if operator in (OP.IN, OP.NIN, OP.ANY, OP.ALL):
        value = draw(lists_of_one_type)
    elif operator in (OP.GT, OP.GTE, OP.LT, OP.LTE):
        value = draw(st.sampled_from(BOUNDS))
    elif operator == OP.TEXT_MATCH:
        value = draw(st.sampled_from(TEXTS[1:]))
    elif operator == OP.CONTAINS:
        value = draw(st.sampled_from([*TEXTS[1:], *NUMBERS]))
    else:
        value = draw(st.one_of(st.none(), scalars))
    return MetadataFilter(key=draw(st.sampled_from(KEYS)), value=value, operator=operator)


filter_trees = st.recursive(
    single_filters(),
    lambda inner: st.builds(
        MetadataFilters,
        filters=st.lists(inner, max_size=3),
        condition=st.sampled_from([None, *FilterCondition]),
    ),
    max_leaves=6,
).map(lambda one: one if isinstance(one, MetadataFilters) else MetadataFilters(filters=[one]))


def make_nodes(metadatas):
    return [
        TextNode(id_=str(i), text=f"text {i}", metadata=metadata, embedding=[float(i + 1)] * 64)
        for i, metadata in enumerate(metadatas)
    ]


@pytest.fixture
def shared_store(open_store):
    return open_store()


@settings(
    max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(metadatas=nodes_strategy, trees=st.lists(filter_trees, min_size=1, max_size=6))
def test_the_store_filters_as_memory_does(shared_store, metadatas, trees):
    nodes = make_nodes(metadatas)
    shared_store.clear()
    shared_store.add(nodes)
    for tree in trees:
        expected = {node.node_id for node in nodes if matches_in_memory(node, tree)}
        assert {node.node_id for node in shared_store.get_nodes(filters=tree)} == expected


KINDS = ["keyword", "float", "integer", "bool", "datetime", "uuid", "text", "geo"]
ID = "6e1f0a1c-6f4e-5d0b-9a55-70706c785f76"
with_ids = st.one_of(stored_values, st.sampled_from([ID, ID.upper(), [ID], 2.5]))


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(values=st.lists(with_ids, min_size=1, max_size=8), asked=st.lists(single_filters(), min_size=1, max_size=4))
@pytest.mark.parametrize("place", ["embedded"], indirect=True)
def test_an_index_changes_nothing(indexed_store, values, asked):
    nodes = make_nodes([dict.fromkeys(KINDS, value) for value in values])
    indexed_store.clear()
    indexed_store.add(nodes)
    of_ids = [MetadataFilter(key="", value=ID, operator=operator) for operator in (OP.EQ, OP.NE, OP.CONTAINS)]
    for kind in KINDS:
        for given_filter in (*asked, *of_ids):
            tree = MetadataFilters(filters=[given_filter.model_copy(update={"key": kind})])
            try:
                found = {node.node_id for node in indexed_store.get_nodes(filters=tree)}
            except UnsupportedFilterError as error:
                refused = str(error)
                assert kind == "datetime"
                assert "keeps dates alone" in refused
            else:
                assert found == {node.node_id for node in nodes if matches_in_memory(node, tree)}, kind


@pytest.fixture
def indexed_store(open_store):
    """A store with an index of each kind."""
    return open_store(index_fields={kind: kind for kind in KINDS})


def one(operator, value, key="lang"):
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


@pytest.mark.parametrize(
    ("operator", "value", "said"),
    [
        (OP.TEXT_MATCH_INSENSITIVE, "a", "TEXT_MATCH_INSENSITIVE with 'a': Qdrant cannot express it"),
        (OP.EQ, ["a"], r"EQ with \['a'\]: lists are not compared; use IN, ANY or ALL"),
        (OP.NE, ["a"], "NE with"),
        (OP.IN, "a", "IN with 'a': its value must be a list"),
        (OP.NIN, None, "NIN with None: its value must be a list"),
        (OP.ALL, [], "ALL with"),
        (OP.CONTAINS, None, "CONTAINS with None"),
        (OP.TEXT_MATCH, "", "every text has the empty one as a part"),
        (OP.TEXT_MATCH, 3, "TEXT_MATCH with 3"),
        (OP.GT, "zebra", "GT with 'zebra': Qdrant orders numbers and dates, not texts; give a number, or a date"),
        (OP.GT, "1990", "GT with '1990': Qdrant orders numbers and dates, not texts; give the number 1990, or a date"),
        (OP.GTE, "20240101", "GTE with '20240101': Qdrant orders numbers and dates, .* in the forms 2024-05-01,"),
        (OP.GTE, "2024-W01-1", "in the forms"),
        (OP.LT, "2024-01-01T10", "in the forms"),
        (OP.LT, "2024-01-01T10:00+02:00", "in the forms"),
        (OP.LT, "2024-02-30", "in the forms"),
        (OP.LT, float("inf"), "bounds must be finite"),
        (OP.LTE, None, "LTE with None"),
        (OP.LTE, 2**53, r"LTE with 9007199254740992: Qdrant compares numbers as 64-bit floats.*store smaller ones"),
        (OP.GT, -(2**60), "GT with -1152921504606846976: Qdrant compares"),
        (OP.LT, 1e17, "LT with 1e.17: Qdrant compares"),
        (
            OP.EQ,
            2.0**53,
            r"EQ with 9007199254740992\.0: in Qdrant, this float equals several .*give the int",
        ),
        (OP.NIN, [1.0, 2.0**60], "NIN with"),
    ],
)
def test_what_qdrant_cannot_express_is_refused_by_key_and_operator(operator, value, said):
    with pytest.raises(UnsupportedFilterError, match=f"^filter on 'lang': .*{said}"):
        build_filter(one(operator, value))
    nested = MetadataFilters(filters=[one(operator, value)], condition=FilterCondition.NOT)
    with pytest.raises(UnsupportedFilterError, match=r"^filter on 'lang'"):
        build_filter(nested)


def test_dates_are_compared_as_dates(open_store):
    store = open_store()
    days = ["2024-01-31", "2024-02-01", "2024-02-01T12:00:00+00:00", "no date", 20240201]
    store.add(make_nodes([{"lang": day} for day in days]))
    assert {node.node_id for node in store.get_nodes(filters=one(OP.GTE, "2024-02-01"))} == {"1", "2"}
    assert {node.node_id for node in store.get_nodes(filters=one(OP.LT, "2024-02-01"))} == {"0"}


@pytest.mark.parametrize(
    "date",
    [
        "2024-02-01",
        "2024-02-01T00:00",
        "2024-02-01 00:00",
        "2024-02-01T00:00:00",
        "2024-02-01 00:00:00.000",
        "2024-02-01T00:00:00Z",
        "2024-02-01T02:00:00+02:00",
        "2024-02-01T02:00:00+0200",
        "2024-02-01T02:00:00+02",
    ],
)
def test_a_date_that_may_be_a_bound_may_be_stored(open_store, date):
    store = open_store()
    store.add(make_nodes([{"lang": date}]))
    for operator in (OP.GTE, OP.LTE):
        assert len(store.get_nodes(filters=one(operator, date))) == 1
        assert len(store.get_nodes(filters=one(operator, "2024-02-01"))) == 1


def test_no_filters_match_everything(open_store):
    store = open_store()
    store.add(make_nodes([{}, {"lang": "en"}]))
    assert build_filter(None) is build_filter(MetadataFilters(filters=[])) is None
    assert len(store.get_nodes(filters=MetadataFilters(filters=[]))) == 2


@settings(max_examples=200)
@given(tree=filter_trees, kind=st.sampled_from(["keyword", "integer", "bool", "text"]))
def test_strict_mode_is_asked_for_indexed_fields_alone(tree, kind):
    with contextlib.suppress(UnsupportedFilterError):  # CONTAINS with a text
        translated = build_filter(tree, indexes={metadata_path(key): kind for key in KEYS})
        assert translated is None or "[]" not in {key[-2:] for key in _keys(translated.model_dump())}


def _keys(part):
    """Yield the fields that a dumped filter names."""
    if isinstance(part, dict):
        if isinstance(part.get("key"), str):
            yield part["key"]
        part = list(part.values())
    for inner in part if isinstance(part, list) else []:
        yield from _keys(inner)
