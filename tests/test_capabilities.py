"""What a server of each version can do, and in which words it is refused."""

import pytest
from qdrant_client import models as of_client

from pplx_vectorstore.collection import own_indexes, tenant_index_params, text_index_params
from pplx_vectorstore.engines.capabilities import MINIMUM, Capabilities, Feature, read_capabilities
from pplx_vectorstore.errors import UnsupportedServerError
from pplx_vectorstore.filter_resolution import resolve_filter
from pplx_vectorstore.filters import build_filter
from pplx_vectorstore.qdrant import models


@pytest.mark.parametrize("feature", Feature)
def test_a_server_has_a_feature_from_its_version_on(feature):
    major, minor, patch = feature.since
    before = f"{major}.{minor}.{patch - 1}" if patch else f"{major}.{minor - 1}.9"
    assert not Capabilities("server", before).has(feature)
    for version in (f"{major}.{minor}.{patch}", f"{major}.{minor}.{patch}-dev", f"{major}.{minor + 1}.0", "2.0.0"):
        assert Capabilities("server", version).has(feature)
    assert Capabilities("server", "master").has(feature), "built from a branch"


def test_each_feature_is_told_apart():
    assert len({feature.words for feature in Feature}) == len(Feature) == len(Feature.__members__)


@pytest.mark.parametrize("version", ["1.15.5", "1.9.7", "0.11.0"])
def test_what_is_older_than_the_oldest_is_refused(version):
    with pytest.raises(
        UnsupportedServerError,
        match=rf"there runs Qdrant {version}; version 1\.16 or newer is needed, for metadata of collections",
    ):
        read_capabilities(version, "there")
    assert MINIMUM.version == "1.16"
    assert read_capabilities("1.16.0", "there") == Capabilities("server", "1.16.0")


def test_what_is_lacking_is_refused_in_words():
    Capabilities("server", "1.20.0").require(Feature.TEXT_SCORING, "hybrid search")
    with pytest.raises(UnsupportedServerError) as caught:
        Capabilities("server", "1.17.0").require(Feature.SEARCH_BATCH_LIMIT, "this", way_out="do that")
    assert str(caught.value) == (
        "this needs Qdrant 1.17.1 or newer, for a limit of searches in one request (search_max_batchsize); this server "
        "is 1.17.0. Upgrade it, or do that"
    )
    with pytest.raises(UnsupportedServerError, match=r"this needs Qdrant 1\.20 .* is 1\.17\.0\. Upgrade it$"):
        Capabilities("server", "1.17.0").require(Feature.SUBSTRING_MATCH, "this")


@pytest.mark.parametrize("kind", ["embedded", "emulation"])
def test_engines_in_this_process_have_what_is_not_of_servers_alone(kind):
    engine = Capabilities(kind)
    engine.require(Feature.TEXT_SCORING, "hybrid search")
    with pytest.raises(UnsupportedServerError, match=r"this needs slices of a collection .*in this process has not"):
        engine.require(Feature.SLICES, "this")


# --- indexes -----------------------------------------------------------------------------------------

KEYWORD = of_client.KeywordIndexType.KEYWORD
TEXT = of_client.TextIndexType.TEXT
NEW_INDEXES = [
    (of_client.KeywordIndexParams(type=KEYWORD, enable_hnsw=False), "1.17", "enable_hnsw", True),
    (
        of_client.FloatIndexParams(type=of_client.FloatIndexType.FLOAT, memory=of_client.Memory.COLD),
        "1.19",
        "memory",
        True,
    ),
    (of_client.KeywordIndexParams(type=KEYWORD, prefix=True), "1.19", "prefix", True),
    (of_client.TextIndexParams(type=TEXT, scoring=True), "1.20", "scoring", True),
    (of_client.KeywordIndexParams(type=KEYWORD, nested="metadata"), "1.20", "nested", False),
    (of_client.TextIndexParams(type=TEXT, tokenizer=of_client.TokenizerType.CODE), "1.20", "tokenizer", False),
    (
        of_client.TextIndexParams(type=TEXT, stemmer=of_client.DisabledStemmerParams(type=of_client.NoStemmer.NONE)),
        "1.19",
        "stemmer",
        False,
    ),
]


@pytest.mark.parametrize(("schema", "since", "name", "can_go"), NEW_INDEXES, ids=[one[2] for one in NEW_INDEXES])
def test_parameters_that_a_server_does_not_know(schema, since, name, can_go):
    newer = Capabilities("server", f"{since}.0")
    older = Capabilities("server", f"1.{int(since[2:]) - 1}.9")
    newer.require_index("metadata.x", schema)
    assert newer.fit_index("metadata.x", schema) is schema
    said = rf"the index of field 'metadata\.x' needs Qdrant {since} or newer, .*leave {name} out of its parameters"
    with pytest.raises(UnsupportedServerError, match=said):
        older.require_index("metadata.x", schema)
    if can_go:
        assert older.fit_index("metadata.x", schema) == type(schema)(type=schema.type)
    else:
        with pytest.raises(UnsupportedServerError, match=said):
            older.fit_index("metadata.x", schema)
    Capabilities("embedded").require_index("metadata.x", schema)


def test_what_every_server_knows_is_left_as_it_is():
    oldest = Capabilities("server", "1.16.0")
    for schema in ("keyword", tenant_index_params(), *own_indexes(without_links=False).values()):
        oldest.require_index("x", schema)
        assert oldest.fit_index("x", schema) is schema
    assert oldest.fit_index("text", text_index_params()) == models.TextIndexParams()


# --- filters -----------------------------------------------------------------------------------------


def field(path, **condition):
    return models.FieldCondition(key=path, **condition)


def on(match, path="metadata.x"):
    """The condition, alone and deep within others."""
    one = field(path, match=match)
    nested = models.Nested(key="metadata.list", filter=models.Filter(must_not=[one.model_copy(update={"key": "x"})]))
    return [
        models.Filter(must=[one]),
        models.Filter(must_not=one),
        models.Filter(min_should=models.MinShould(conditions=[models.Filter(should=[one])], min_count=1)),
        models.Filter(should=[models.NestedCondition(nested=nested)]),
    ]


def resolve(given, version, *, indexes=None, by_index_only=False):
    return resolve_filter(
        given,
        tenant=None,
        indexes=indexes or {},
        by_index_only=by_index_only,
        warned=set(),
        capabilities=Capabilities("server", version),
    )


PART = models.MatchSubstring(substring="a b")


def test_a_part_of_a_text_is_looked_for_in_the_way_that_the_server_knows():
    for given, expected in zip(on(PART), on(models.MatchText(text="a b")), strict=True):
        assert resolve(given, "1.20.0", by_index_only=True) == given
        for version in ("1.16.0", "1.19.5"):
            assert resolve(given, version) == expected
            assert resolve(given, version, indexes={"metadata.x": "keyword"}) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"indexes": {"metadata.x": "text", "metadata.list[].x": "text"}},
            " on a field whose words are indexed, by which an older server finds whole words alone, needs Qdrant "
            "1.20 or newer, .*this server is 1.19.0. Upgrade it, or look for whole words, by MatchText",
        ),
        (
            {"by_index_only": True},
            ", on a server in strict mode, needs Qdrant 1.20 .*an index of type 'text', and look",
        ),
    ],
)
def test_where_that_would_mean_something_else_it_is_refused(options, said):
    for given in on(PART):
        with pytest.raises(UnsupportedServerError, match=rf"filter on .*x: MatchSubstring{said}"):
            resolve(given, "1.19.0", **options)
        assert resolve(given, "1.20.0", **options) == given


def test_conditions_that_an_older_server_does_not_know_are_refused():
    prefix = models.MatchPrefix(prefix="a")
    for given in on(prefix):
        assert resolve(given, "1.19.0") == given
        with pytest.raises(UnsupportedServerError, match=r"filter on .*x: MatchPrefix needs Qdrant 1\.19 or newer"):
            resolve(given, "1.18.3")
    sliced = models.Filter(
        must=[models.Filter(should=[models.SliceCondition(slice=of_client.Slice(index=0, total=2))])]
    )
    assert resolve(sliced, "1.19.0") == sliced
    with pytest.raises(UnsupportedServerError, match=r"a filter with a SliceCondition needs Qdrant 1\.19 or newer"):
        resolve(sliced, "1.18.3")


EVERY_SERVER_KNOWS = [
    *(field("metadata.x", match=match) for match in (models.MatchText(text="a"), models.MatchPhrase(phrase="a b"))),
    field("metadata.x", match=models.MatchTextAny(text_any="a b")),
    field("metadata.x", match=models.MatchExcept(except_=["a"])),
    field("metadata.x", values_count=of_client.ValuesCount(gte=2)),
    field("metadata.x", is_empty=True),
    field("metadata.x", geo_radius=of_client.GeoRadius(center=of_client.GeoPoint(lon=1, lat=2), radius=3)),
    models.HasVectorCondition(has_vector="codes"),
    *build_filter({"x": [1, 2], "y": {"$gte": "2024-05-01"}, "z": None}).must,
]


@pytest.mark.parametrize("one", EVERY_SERVER_KNOWS, ids=lambda one: str(type(getattr(one, "match", one)).__name__))
def test_all_other_conditions_are_left_as_they_are(one):
    given = models.Filter(must=[one])
    assert resolve(given, "1.16.0") == given
