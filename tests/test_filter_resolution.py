"""A filter matches the same with and without an index, on the real engine; and ids and keys of Qdrant's own filters."""

import datetime
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import models

from pplx_vectorstore import Chunk, Document, VectorStore
from pplx_vectorstore.collection import INDEX_TYPES
from pplx_vectorstore.errors import SchemaMismatchError, UnsupportedFilterError
from pplx_vectorstore.filter_resolution import FIELDS, resolve_filter
from pplx_vectorstore.filters import build_filter
from pplx_vectorstore.points import derive_point_id, point_id_of
from pplx_vectorstore.qdrant import models as ours
from pplx_vectorstore.qdrant.conversion import as_ours

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

# --- with an index and without ---------------------------------------------------------------------------------

ID = "6e1f0a1c-6f4e-5d0b-9a55-70706c785f76"
SPELLINGS = [ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}"]
DAYS = [
    "2024-05-01",
    "2024-05-01 00:00",
    "2024-05-01T00:00",
    "2024-05-01T00:00:00",
    "2024-05-01T00:00:00Z",
    "2024-05-01T02:00:00+02:00",
    "2024-05-01T00:00:00.123456789Z",
    "20240501",
]
LARGE = [2**53, 2**53 + 1, 2**53 + 2, float(2**53), 2**63 - 1, -(2**63)]
NUMBERS = [0, 1, 2, -1, 2.0, 2.5, -0.0, 0.0, 1e300, 5e-324, *LARGE]
TEXTS = ["", "a", "A", "a b c", "2", "2.5", "true", "a\x00b", "é", "e\u0301", *SPELLINGS, *DAYS]
SINGLE = [None, True, False, *NUMBERS, *TEXTS]
LISTS = [
    [],
    [None],
    [[2]],
    [1, "a"],
    [2.5, 2],
    [2.5, 3.5],
    [True, 2],
    [ID, 2],
    ["a", ID.upper()],
    ["2024-05-01", ID],
    [{"in": 2}, 2],
    [None, 2],
]
STORED = [*SINGLE, *LISTS, {}, {"in": 2}, {"lon": 1.0, "lat": 2.0}]
MISSING = object()
DAY = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)

WITHOUT = "without"
BOUNDS = [0, 2, 2.5, -1, 2**53 - 1, 1e300, -1e300, "2024-05-01", DAY]
CONDITIONS = [
    *(value for value in SINGLE if not (isinstance(value, float) and 2**53 <= abs(value) <= 2**63)),
    *([value] for value in (0, 2, 2**53 + 1, "a", ID, True)),
    [1, 2],
    [True, False],
    ["a", ID, "2"],
    SPELLINGS,
    list(range(-50, 50)),
    *({operator: bound} for operator in ("$gt", "$gte", "$lt", "$lte") for bound in BOUNDS),
    {"$gte": 0, "$lt": 2.5},
    {"$gte": DAY, "$lte": DAY},
    {"$exists": True},
]


def field(path, **options):
    return models.FieldCondition(key=path, **options)


OF_QDRANT = {
    "text": lambda path: field(path, match=models.MatchText(text="a")),
    "text any": lambda path: field(path, match=models.MatchTextAny(text_any="a")),
    "substring": lambda path: field(path, match=models.MatchSubstring(substring="a")),
    "prefix": lambda path: field(path, match=models.MatchPrefix(prefix="a")),
    "except texts": lambda path: field(path, match=models.MatchExcept(**{"except": ["a", ID]})),
    "except numbers": lambda path: field(path, match=models.MatchExcept(**{"except": [2]})),
    "values": lambda path: field(path, values_count=models.ValuesCount(gte=2)),
    "null": lambda path: models.IsNullCondition(is_null=models.PayloadField(key=path)),
    "is empty": lambda path: field(path, is_empty=True),
    "of elements": lambda path: field(f"{path}[]", match=models.MatchValue(value=2)),
    "range of elements": lambda path: field(f"{path}[]", range=models.Range(gte=2)),
    "quoted path": lambda path: field(path.replace(".", '."') + '"', range=models.Range(gte=2)),
    "place": lambda path: field(
        path, geo_radius=models.GeoRadius(center=models.GeoPoint(lon=1.0, lat=2.0), radius=10.0)
    ),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, hash_encoder):
    """A store whose documents have one value in fields with every kind of index, and in one without."""
    fields = {kind: kind for kind in INDEX_TYPES}
    folder = tmp_path_factory.mktemp("mixed")
    with VectorStore.open(folder / "index", encoder=hash_encoder(64), index_fields=fields) as store:
        store.add(
            Document(
                id=str(i),
                chunks=["text"],
                metadata={} if value is MISSING else dict.fromkeys([WITHOUT, *INDEX_TYPES], value),
            )
            for i, value in enumerate([*STORED, MISSING])
        )
        yield store


def matching(store, condition):
    return {chunk.document_id for chunk in store.chunks(condition)}


def compared(store, make):
    """Return the kinds of index with which a condition is refused; with all others, it matches the same."""
    expected = matching(store, make(WITHOUT))
    refused = set()
    for kind in INDEX_TYPES:
        try:
            found = matching(store, make(kind))
        except UnsupportedFilterError:
            refused.add(kind)
        else:
            assert found == expected, kind
    return refused


def can_be_refused(condition):
    """Which indexes may refuse: those of dates cannot compare numbers, those of numbers no dates."""
    one = next(iter(condition.values())) if isinstance(condition, dict) else condition
    if isinstance(condition, dict) and isinstance(one, (str, datetime.datetime)):
        return {"integer", "float"}
    if isinstance(one, float) or (isinstance(condition, dict) and type(one) is int):
        return {"datetime"}
    return set()


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("condition", CONDITIONS, ids=repr)
def test_an_index_changes_nothing(mixed, condition, negated):
    def make(kind):
        given_filter = build_filter({kind: condition})
        return ours.Filter(must_not=[given_filter]) if negated else given_filter

    assert compared(mixed, make) == can_be_refused(condition)


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("name", OF_QDRANT)
def test_an_index_changes_nothing_of_qdrants_own_conditions(mixed, name, negated):
    def make(kind):
        one = OF_QDRANT[name](f"metadata.{kind}")
        return models.Filter(must_not=[one]) if negated else models.Filter(must=[one])

    refused = {"quoted path": {"datetime"}, "except texts": {"keyword", "uuid"}, "except numbers": {"keyword", "uuid"}}
    assert compared(mixed, make) == refused.get(name, set())


def test_the_same_after_the_index_is_built(mixed):
    before = [matching(mixed, {"integer": one}) for one in ({"$gte": 2}, 2, 2.5)]
    mixed.optimize()
    assert [matching(mixed, {"integer": one}) for one in ({"$gte": 2}, 2, 2.5)] == before
    for condition in (ID, 2, [1, 2], {"$lt": 2.5}, True):
        assert compared(mixed, lambda kind, one=condition: build_filter({kind: one})) == can_be_refused(condition)


def test_what_is_refused_names_the_index_and_the_way_out(mixed):
    said = (
        r"^filter on metadata\.datetime cannot be answered: the field's index, of type 'datetime', keeps dates alone.*"
        r"Delete the index .* of type 'float'$"
    )
    with pytest.raises(UnsupportedFilterError, match=said):
        mixed.count({"datetime": {"$gt": 2}})
    with pytest.raises(UnsupportedFilterError, match=r"metadata\.float .*keeps numbers alone.* of type 'datetime'$"):
        mixed.delete(filter={"float": {"$gt": DAY}})
    for name in ("search", "explain"):
        with pytest.raises(UnsupportedFilterError, match="keeps dates alone"):
            getattr(mixed, name)("words", filter={"datetime": 2.5})


stored_numbers = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-4, 4),
    # The engine may read a float of many digits with another last bit than its index.
    st.integers(-(10**10), 10**10).map(lambda quarters: quarters / 4),
    st.sampled_from([*NUMBERS, *(2**53 + i for i in range(-3, 4)), -(2**53) - 1]),
)
bounds = st.one_of(
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.integers(-4, 4),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda bound: not 2**53 <= abs(bound) <= 2**63),
)
COMPARE = {"$gt": "__gt__", "$gte": "__ge__", "$lt": "__lt__", "$lte": "__le__"}


@pytest.fixture(scope="module")
def numbers_store(tmp_path_factory, hash_encoder):
    fields = {"indexed": "integer"}
    folder = tmp_path_factory.mktemp("numbers")
    with VectorStore.open(folder / "index", encoder=hash_encoder(64), index_fields=fields) as store:
        yield store


@settings(max_examples=35, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(stored_numbers, min_size=1, max_size=8), asked=st.lists(bounds, min_size=1, max_size=3))
def test_numbers_are_compared_as_python_does(numbers_store, values, asked):
    store = numbers_store
    ids = [str(i) for i in range(8)]
    store.delete(document_ids=ids)
    store.add(
        Document(id=id_, chunks=["text"], metadata={"plain": value, "indexed": value})
        for id_, value in zip(ids, values, strict=False)
    )
    held = dict(zip(ids, values, strict=False))
    for name in ("plain", "indexed"):
        for bound in asked:
            for operator, compare in COMPARE.items():
                expected = {id_ for id_, value in held.items() if _is_true(value, compare, bound)}
                assert matching(store, {name: {operator: bound}}) == expected, (name, operator, bound)
        for value in held.values():
            equal = {id_ for id_, other in held.items() if other == value}
            if isinstance(value, int):
                equal = {id_ for id_ in equal if isinstance(held[id_], int)}
            elif 2**53 <= abs(value) <= 2**63:
                continue
            assert matching(store, {name: value}) == equal, (name, value)


def _is_true(value, compare, bound):
    result = getattr(value, compare)(bound)
    if result is NotImplemented:  # int with float: Python asks the other side
        swapped = {"__gt__": "__lt__", "__ge__": "__le__", "__lt__": "__gt__", "__le__": "__ge__"}[compare]
        result = getattr(bound, swapped)(value)
    return result


# --- indexes of others -----------------------------------------------------------------------------------------


def index_of_others(server, name, kind):
    server.client.create_payload_index("c", f"metadata.{name}", kind)


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_an_index_of_integers_that_others_made_is_asked_only_what_it_can_answer(new_store, server):
    new_store(collection="c").add([Document(id="d", chunks=["text"], metadata={"year": 2021})])
    index_of_others(server, "year", "integer")
    store = new_store(collection="c")
    said = r"metadata\.year .* 'integer', keeps whole numbers alone: it would leave out 2\.5.* of type 'float'"
    for condition in ({"$gte": 2020}, 2021, [2021], {"$ne": 2021}, 2.5):
        with pytest.raises(UnsupportedFilterError, match=said):
            store.count({"year": condition})
    assert store.count({"year": 2021.0}) == store.count({"year": {"$exists": True}}) == 1
    assert store.count({"year": "2021"}) == 0
    with pytest.raises(SchemaMismatchError, match=r"of type integer, and float is needed\. Delete them"):
        new_store(collection="c", index_fields={"year": "integer"})


@pytest.mark.parametrize("engine", ["edge"], indirect=True)
def test_an_index_made_by_another_store_of_the_client_is_heeded(new_store, hash_encoder):
    store = new_store(collection="c")
    store.add([Document(id="d", chunks=["text"], metadata={"n": 2})])
    assert store.count({"n": {"$gte": 2}}) == 1
    VectorStore(store._client, "c", encoder=hash_encoder(64), index_fields={"n": "datetime"})
    with pytest.raises(UnsupportedFilterError, match="keeps dates alone"):
        store.count({"n": {"$gte": 2}})


INDEXES = {"metadata.n": "float", "metadata.i": "integer", "metadata.u": "uuid", "metadata.k": "keyword"}


def resolve(given_filter, *, indexes=INDEXES, by_index_only=True, tenant=None, warned=None):
    options = {"indexes": indexes, "by_index_only": by_index_only, "tenant": tenant}
    return resolve_filter(as_ours(given_filter), warned=set() if warned is None else warned, **options)


def test_where_a_server_filters_by_index_alone_conditions_are_those_that_an_index_answers():
    def within(path, value):
        return field(f"metadata.{path}", range=models.Range(gte=value, lte=value))

    for given_filter, expected in (
        ({"n": 2}, [models.Filter(should=[within("n", 2)])]),
        ({"n": [2, 3]}, [models.Filter(should=[within("n", 2), within("n", 3)])]),
        ({"i": 2}, build_filter({"i": 2}).must),
        ({"u": ID}, build_filter({"u": ID}).must),
        ({"k": ID}, build_filter({"k": ID}).must),
    ):
        assert resolve(build_filter(given_filter)).must == as_ours(expected)
    with pytest.raises(UnsupportedFilterError, match=r"2\*\*53 or more, .*strict mode.* 'keyword'"):
        resolve(build_filter({"n": 2**60}))
    with pytest.raises(UnsupportedFilterError, match="it would leave out"):
        resolve(build_filter({"i": {"$gt": 2}}))
    excepted = models.Filter(must=[field("metadata.k", match=models.MatchExcept(**{"except": ["a"]}))])
    assert resolve(excepted) == as_ours(excepted)


# --- ids -------------------------------------------------------------------------------------------------------


def having(*ids):
    return models.HasIdCondition(has_id=list(ids))


def add_two(store):
    chunks = [Chunk(text="own", id="own"), Chunk(text="another", id="another")]
    store.add([Document(id="d", chunks=chunks), Document(id="e", chunks=["derived 0", "derived 1"])])


@pytest.mark.parametrize("tenant", [None, "acme"])
def test_ids_are_those_of_chunks_wherever_they_stand(new_store, tenant):
    store = new_store(tenant=tenant)
    add_two(store)
    derived = derive_point_id("e", 1, tenant)
    for given_filter, texts in (
        (models.Filter(must=[having("own")]), {"own"}),
        (models.Filter(must=having("own")), {"own"}),
        (models.Filter(should=[having("own"), having(derived)]), {"own", "derived 1"}),
        (models.Filter(must_not=[having("own", derived)]), {"another", "derived 0"}),
        (models.Filter(must=[models.Filter(must_not=[models.Filter(should=[having("own")])])]), None),
        (models.Filter(min_should=models.MinShould(conditions=[having("own"), having("x")], min_count=1)), {"own"}),
        (models.Filter(must=[having(uuid.UUID(derived))]), {"derived 1"}),
        (models.Filter(must=[having()]), set()),
        (models.Filter(must=[having("nobody's")]), set()),
    ):
        expected = {"another", "derived 0", "derived 1"} if texts is None else texts
        assert {chunk.text for chunk in store.chunks(given_filter)} == expected
        assert store.count(given_filter) == len(expected)
        assert {hit.text for hit in store.search("words", filter=given_filter)} == expected
        assert {one.hit.text for one in store.explain("words", filter=given_filter).hits} == expected
    assert store.delete(filter=models.Filter(must=[having("own", derived)])) == 2
    assert {chunk.text for chunk in store.chunks()} == {"another", "derived 0"}


@pytest.mark.parametrize("engine", ["edge"], indirect=True)
def test_ids_of_another_tenant_match_nothing(new_store, hash_encoder):
    store = new_store(collection="c", tenant="acme")
    other = VectorStore(store._client, "c", encoder=hash_encoder(64), tenant="other")
    for one in (store, other):
        add_two(one)
    theirs = derive_point_id("e", 0, "other")
    assert store.delete(filter=models.Filter(must=[having(theirs, point_id_of("own", "other"))])) == 0
    assert store.delete(filter=models.Filter(must=[having("own")])) == 1
    assert (store.count(), other.count()) == (3, 4)


@pytest.mark.parametrize("id_", [7, 0, "\ud800"], ids=ascii)
def test_what_is_no_chunks_id_is_refused(new_store, id_):
    store = new_store()
    add_two(store)
    condition = models.HasIdCondition.model_construct(has_id=["own", id_])
    nested = models.Filter(must_not=[models.Filter(should=[condition])])
    for call in (
        lambda: store.count(nested),
        lambda: store.delete(filter=nested),
        lambda: list(store.chunks(nested)),
        lambda: store.search("words", filter=nested),
    ):
        with pytest.raises(UnsupportedFilterError, match=r"^HasIdCondition holds .* no chunk.s id; ids are str"):
            call()
    assert store.count() == 4


def test_nested_objects_keep_their_conditions(new_store):
    store = new_store()
    prices = [[{"price": 2.5, "kind": "a"}], [{"price": 1, "kind": "a"}, {"price": 3, "kind": "b"}]]
    store.add(Document(id=str(i), chunks=["text"], metadata={"items": items}) for i, items in enumerate(prices))
    inner = models.Filter(
        must=[field("price", range=models.Range(gte=2)), field("kind", match=models.MatchValue(value="a"))]
    )
    nested = models.NestedCondition(nested=models.Nested(key="metadata.items", filter=inner))
    assert matching(store, models.Filter(must=[nested])) == {"0"}
    large = models.Filter(must=[field("price", range=models.Range(gte=2**60))])
    with pytest.raises(UnsupportedFilterError, match=r"2\*\*53"):
        store.count(
            models.Filter(must=[models.NestedCondition(nested=models.Nested(key="metadata.items", filter=large))])
        )


def test_what_came_is_not_changed():
    given_filter = models.Filter(
        must=[having("own"), field("metadata.n", match=models.MatchValue(value=2))],
        should=[models.Filter(must_not=[having("own")])],
    )
    before = given_filter.model_copy(deep=True)
    assert resolve(given_filter, tenant="acme") != before
    assert given_filter == before


# --- keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("page_content", r"no chunk has the field 'page_content' .*: use 'text'$"),
        ("doc_id", "use 'document_id'$"),
        ("lang", r"metadata are below 'metadata': use 'metadata\.lang'$"),
        ("a.b", r"""use 'metadata\.a\.b', or 'metadata\."a\.b"' where the dot is the key's own$"""),
        ('"a.b"', r"""use 'metadata\."a\.b"'$"""),
        ("tags[]", r"use 'metadata\.tags\[\]'$"),
        ("metadatas.lang", r"use 'metadata\.metadatas\.lang'"),
    ],
)
def test_a_key_that_no_chunk_has_is_warned_of_once(new_store, key, said):
    store = new_store()
    store.add([Document(id="d", chunks=["text"], metadata={"lang": "en"})])
    for condition in (
        field(key, match=models.MatchValue(value="en")),
        models.IsEmptyCondition(is_empty=models.PayloadField(key=key)),
        models.IsNullCondition(is_null=models.PayloadField(key=key)),
        models.NestedCondition(
            nested=models.Nested(key=key, filter=models.Filter(must=[field("x", match=models.MatchValue(value=1))]))
        ),
    ):
        given_filter = models.Filter(must=[models.Filter(should=[condition])])
        with pytest.warns(UserWarning, match=said) as warned:
            resolve(given_filter, indexes={})
        assert len(warned) == 1
    with pytest.warns(UserWarning, match=said) as warned:
        store.count(given_filter)
    assert "pplx_vectorstore" not in Path(warned[0].filename).parent.parts[-2:]  # the caller's line is named
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.count(given_filter) == 0  # said before
        store.count(models.Filter(must=[field("metadata.other", match=models.MatchValue(value=1))]))


def test_the_fields_are_those_of_points(new_store, read_points):
    """Every field that a payload may have, and none besides."""
    store = new_store(tenant="acme")
    # Of large norm and one tall component, so that own codes and a loss are stored.
    codes = np.random.default_rng(3).integers(-8, 8, (1, 64)).astype(np.int8)
    codes[0, 0] = 40
    chunk = Chunk(text="text", id="own", start=0, end=4)
    store.add([Document(id="d", chunks=[chunk], vectors=codes)])
    (point,) = read_points(store)
    assert point.payload.keys() <= FIELDS
    assert FIELDS - point.payload.keys() <= {"own_codes", "loss", "words", "generation"}
