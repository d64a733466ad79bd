"""Whatever a server's strict mode forbids, the store does without.

The server of the other tests only tells of its strict mode; here it enforces it, as Qdrant's
``StrictModeVerification`` does: limits of reads, indexes of filters, exact searches (counts
and facets among them), sizes of filters and batches.
"""

import json
import re
import threading

import pytest
from qdrant_client import models
from qdrant_client.http.exceptions import UnexpectedResponse

from pplx_vectorstore import Chunk, Document
from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.engines.calls import BlockingCalls
from pplx_vectorstore.engines.retrying import Retries
from pplx_vectorstore.errors import InvalidInputError, ServerError, StoreError, UnsupportedFilterError
from pplx_vectorstore.operations.prepare import list_tenants

DIMENSION = 64
LIMITS = {
    "unindexed_filtering_retrieve": False,
    "unindexed_filtering_update": False,
    "max_query_limit": 40,
    "search_max_hnsw_ef": 64,
    "search_allow_exact": False,
    "search_max_oversampling": 1.0,
    "search_max_batchsize": 2,
    "upsert_max_batchsize": 16,
    "condition_max_size": 8,
    "filter_max_conditions": 7,
}

# --- the server's part -------------------------------------------------------------------------------

# What an index of each type is good for.
CAPABILITIES = {
    "keyword": {"keyword"},
    "integer": {"integer", "range"},
    "float": {"range"},
    "bool": {"bool"},
    "datetime": {"datetime"},
    "uuid": {"uuid"},
    "text": {"text"},
    "geo": {"geo"},
}
ANY = set().union(*CAPABILITIES.values())
NUMBER = {"integer", "range"}


class Forbidden(Exception):  # noqa: N818 - what the server says
    pass


class StrictMode:
    """Checks requests before a server carries them out.

    Args:
        server: A ``QdrantServer``, whose ``strict_mode`` is what is enforced.
        status: Of refusals.

    Attributes:
        refusals: What was refused, in the server's words.
    """

    def __init__(self, server, status=400):
        self.server, self.status = server, status
        self.refusals = []
        self._answer = server.answer
        self._lock = threading.Lock()
        server.answer = self.answer

    def answer(self, method, path, body):
        match = re.fullmatch(r"/collections/([^/]+)(/.*)?", path)
        if match and self.server.strict_mode and self.server.strict_mode["enabled"]:
            try:
                self._check(match[1], method, match[2] or "", json.loads(body) if body else {})
            except Forbidden as error:
                with self._lock:
                    self.refusals.append(f"{method} {path}: {error}")
                return self.status, json.dumps({"status": {"error": f"Bad request: {error}"}, "time": 0.0}).encode()
        return self._answer(method, path, body)

    def _check(self, collection, method, verb, body):
        if (method, verb) == ("POST", "/points/scroll"):
            self._limit(body.get("limit"), "max_query_limit", "limit")
            self._filter(collection, body.get("filter"), "retrieve")
        elif verb == "/points/count":
            self._filter(collection, body.get("filter"), "retrieve")
            self._exact(body.get("exact", True))
        elif verb == "/facet":
            self._limit(body.get("limit"), "max_query_limit", "limit")
            self._filter(collection, body.get("filter"), "retrieve")
            self._exact(body.get("exact"))
        elif verb == "/points/query/batch":
            self._limit(len(body["searches"]), "search_max_batchsize", "search batch size")
            for search in body["searches"]:
                self._search(collection, search)
        elif (method, verb) == ("PUT", "/points"):
            self._limit(len(body["points"]), "upsert_max_batchsize", "upsert limit")
        elif verb in ("/points/delete", "/points/payload"):
            self._filter(collection, body.get("filter"), "update")
        elif verb == "/points/batch":
            for operation in body["operations"]:
                ((kind, inner),) = operation.items()
                if kind == "upsert":
                    self._limit(len(inner["points"]), "upsert_max_batchsize", "upsert limit")
                else:
                    assert kind in ("set_payload", "delete"), f"{kind} is not checked"
                    self._filter(collection, inner.get("filter"), "update")
        else:  # retrieving by ids has no limit
            assert verb in ("", "/exists", "/index", "/points"), f"{method} {verb} is not checked"

    def _search(self, collection, stage):
        prefetch = stage.get("prefetch") or []
        for inner in prefetch if isinstance(prefetch, list) else [prefetch]:
            self._search(collection, inner)
        self._limit(stage.get("limit"), "max_query_limit", "limit")
        self._filter(collection, stage.get("filter"), "retrieve")
        params = stage.get("params") or {}
        self._exact(params.get("exact"))
        self._limit(params.get("hnsw_ef"), "search_max_hnsw_ef", "hnsw_ef")
        self._limit((params.get("quantization") or {}).get("oversampling"), "search_max_oversampling", "oversampling")
        # A formula would need an index of each field that it reads.
        assert "formula" not in (stage.get("query") or {}), "formulas are not checked here"

    def _limit(self, value, setting, name):
        most = self.server.strict_mode.get(setting)
        if None not in (value, most) and value > most:
            raise Forbidden(
                f'Limit exceeded {value} > {most} for "{name}". Help: Reduce the "{name}" parameter to or below {most}.'
            )

    def _exact(self, exact):
        if exact and self.server.strict_mode.get("search_allow_exact") is False:
            raise Forbidden("Exact search disabled!. Help: Set exact=false.")

    def _filter(self, collection, given, kind):
        leaves = list(conditions(given))
        for key, needed, _ in leaves:
            if needed:
                self._index(collection, key, needed, kind, "filter")
        most = self.server.strict_mode.get("filter_max_conditions")
        if most is not None and len(leaves) > most:
            raise Forbidden(
                f"Filter condition limit reached ({len(leaves)} > {most}). "
                "Help: Reduce the amount of conditions of your filter."
            )
        largest = max((size for _, _, size in leaves), default=0)
        most = self.server.strict_mode.get("condition_max_size")
        if most is not None and largest > most:
            raise Forbidden(
                f"Condition size limit reached ({largest} > {most}). Help: Reduce the size of your condition."
            )

    def _index(self, collection, key, needed, kind, what):
        if self.server.strict_mode.get(f"unindexed_filtering_{kind}") is not False:
            return
        index = self.server.client.get_collection(collection).payload_schema.get(key)
        if index is None or not needed & CAPABILITIES[index.data_type]:
            types = sorted(name for name, good_for in CAPABILITIES.items() if good_for & needed)
            raise Forbidden(
                f'Index required but not found for "{key}" of one of the following types: [{", ".join(types)}]. '
                f"Help: Create an index for this key or use a different {what}."
            )


def conditions(given, prefix=""):
    """Yield a filter's conditions: key, what its index must be good for (None: no index needed), and size."""
    given = given or {}
    clauses = [given.get(name) or [] for name in ("must", "should", "must_not")]
    clauses.append((given.get("min_should") or {}).get("conditions") or [])
    for clause in clauses:
        for condition in clause if isinstance(clause, list) else [clause]:
            if condition.keys() & {"must", "should", "must_not", "min_should"}:
                yield from conditions(condition, prefix)
            elif "nested" in condition:
                nested = condition["nested"]
                yield from conditions(nested["filter"], f"{prefix}{nested['key'].removesuffix('[]')}[].")
            elif "has_id" in condition:
                yield None, None, len(condition["has_id"])
            elif "has_vector" in condition:
                yield None, None, 0
            elif "is_empty" in condition and isinstance(condition["is_empty"], dict):
                yield prefix + condition["is_empty"]["key"], ANY, 0
            elif "is_null" in condition and isinstance(condition["is_null"], dict):
                yield prefix + condition["is_null"]["key"], ANY, 0
            else:
                yield (prefix + condition["key"], *of_field(condition))


def of_field(condition):
    match, range_ = condition.get("match"), condition.get("range")
    if match is not None:
        values = match.get("any") or match.get("except")
        if values is not None:
            return ({"keyword"} if isinstance(values[0], str) else {"integer"}), len(values)
        if "value" in match:
            return {{str: "keyword", bool: "bool", int: "integer"}[type(match["value"])]}, 0
        return {"text"}, 0
    if range_ is not None:
        return ({"datetime"} if any(isinstance(bound, str) for bound in range_.values()) else NUMBER), 0
    raise AssertionError(f"{condition} is not checked")


# --- the store's part --------------------------------------------------------------------------------


@pytest.fixture(params=["http", pytest.param("async", marks=pytest.mark.slow)])
def engine(request):
    """Of `new_store`: stores on the server."""
    return request.param


@pytest.fixture
def strict(server):
    """The server, enforcing what it tells: ``strict(max_query_limit=40)``."""

    def enforce(status=400, **settings):
        server.strict_mode = {"enabled": True, **settings}
        return StrictMode(server, status)

    return enforce


INDEX_FIELDS = {"lang": "keyword", "year": "integer", "author": {"born": "integer"}}
FILTERS = [
    {"lang": "en"},
    {"lang": ["en", "fr"], "year": 2001},
    {"lang": {"$ne": "en"}, "year": {"$gte": 2000, "$lt": 2004}},
    {"year": 2002.0},
    {"author": {"born": {"$in": [1900, 1901]}}},
    {"lang": {"$exists": True}, "year": {"$nin": [2001]}},
    models.Filter(must_not=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="de"))]),
]
OPTIONS = [
    {},
    {"k": 40},
    {"k": 3, "candidates": 40},
    {"hybrid": True},
    {"hybrid": True, "lexical_weight": 1},
    {"hybrid": True, "lexical_weight": 0.2},
    {"group_by_document": True},
    {"group_by_document": 3, "k": 30},
    {"diversity": 0.5, "k": 20},
    {"group_by_document": 2, "diversity": 0.5, "hybrid": True, "context": 2},
    {"context": 3, "k": 40},
    {"score_threshold": 0.1},
]


def make_documents(n, chunks=5, version=""):
    """Documents of some chunks, of which every third has ids of its own."""
    return [
        Document(
            id=f"d{i}",
            chunks=[
                Chunk(text=f"chunk {j} of document {i}{version}", id=f"own {i} {j}" if i % 3 == 0 else None)
                for j in range(chunks)
            ],
            metadata={"lang": ["en", "de", "fr"][i % 3], "year": 2000 + i % 5, "author": {"born": 1900 + i % 4}},
        )
        for i in range(n)
    ]


def live(store, other, folder, *, exact):
    """Call everything that a store can do, with more of everything than the limits allow at once."""
    documents = make_documents(50)
    big = Document(id="big", chunks=[f"part {i} of a long text" for i in range(120)], metadata={"lang": "en"})
    question = Document(id="question", chunks=["What does the question ask?"], metadata={"lang": "en", "year": 2001})
    everything = [*documents, big, question]
    assert store.add(everything).chunks == store.count() == 371
    assert store.sync(everything).unchanged_documents == 52
    changed = [
        *(Document(id=one.id, chunks=one.chunks, metadata={**one.metadata, "year": 2009}) for one in documents[:12]),
        *make_documents(24, version=", again")[12:],
        *documents[24:40],
        big,
        question,
    ]
    report = store.sync(changed, delete_missing=True)
    assert (report.relabelled_documents, report.documents) == (12, 12)
    assert (report.unchanged_documents, report.deleted_documents) == (18, 10)
    sizes = {document.id: (document.chunks, document.chunk_count) for document in store.documents()}
    assert sizes == {one.id: (len(one.chunks),) * 2 for one in changed}

    for given in FILTERS:
        assert 0 < store.count(given) < 321
        assert store.search("some words", filter=given, group_by_document=2, context=1)
    for options in OPTIONS:
        hits = store.search("What does the question ask?", **options)
        assert hits
        if not options.get("hybrid"):
            assert (hits[0].document_id, round(hits[0].score, 6)) == ("question", 1)
        assert all(hit.text in hit.context for hit in hits if "context" in options)
    assert [hits[0].document_id for hits in store.search_batch([question.chunks[0].text] * 5)] == ["question"] * 5
    if exact is True:
        explanation = store.explain("What does the question ask?", k=3)
        assert explanation.hits[0].hit.document_id == "question"
        assert explanation.hits[0].exact_rank == 1
    elif exact is False:
        with pytest.raises(StoreError, match=r"explain needs an exact scan, which .* forbids \(search_allow_exact\)"):
            store.explain("What does the question ask?", k=3)

    ids = [chunk_id for i in range(0, 40, 3) for chunk_id in (f"own {i} {j}" for j in range(5))]
    assert [chunk.id for chunk in store.get(ids, with_codes=True)] == ids
    assert store.delete(ids=[*ids, *ids, "nobody's"]) == 70
    assert store.delete(document_ids=[f"d{i}" for i in range(20)]) == 65
    assert store.delete(filter={"lang": "de"}) == 30
    assert store.count() == 156

    assert store.export_parquet(folder / "file") == 156
    assert other.import_parquet(folder / "file") == other.count() == 156
    assert other.delete(document_ids=[document.id for document in other.documents()]) == 156
    assert store.copy_to(other) == other.count() == 156
    assert len(list(other.documents())) == 9
    store.optimize()


def open_both(new_store, tenants):
    options = {"index_fields": INDEX_FIELDS, "retries": 0}
    if tenants:
        return [new_store(DIMENSION, collection="c", tenant=tenant, **options) for tenant in ("acme", "another")]
    return [new_store(DIMENSION, **options) for _ in range(2)]


@pytest.mark.parametrize(
    ("engine", "tenants"),
    [
        ("async", True),
        pytest.param("http", False, marks=pytest.mark.slow),
        pytest.param("http", True, marks=pytest.mark.slow),
        pytest.param("async", False, marks=pytest.mark.slow),
    ],
    indirect=["engine"],
)
def test_nothing_is_refused(new_store, strict, tmp_path, tenants):
    server = strict(**LIMITS)
    live(*open_both(new_store, tenants), tmp_path, exact=False)
    assert server.refusals == []


# Each alone: what works around one limit must not be what another one forbids.
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("max_query_limit", "search_allow_exact") else pytest.param(name, marks=pytest.mark.slow)
        for name in LIMITS
    ],
)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_nothing_is_refused_whatever_is_limited(new_store, strict, tmp_path, name):
    server = strict(**{name: LIMITS[name]})
    # What an explanation needs of the beam is below.
    exact = {"search_allow_exact": False, "search_max_hnsw_ef": None}.get(name, True)
    live(*open_both(new_store, False), tmp_path, exact=exact)
    assert server.refusals == []


def test_a_copy_replaces_what_is_there(new_store, strict, tmp_path):
    server = strict(**LIMITS)
    store, other = open_both(new_store, False)
    store.add(make_documents(20))
    other.add(make_documents(30, version=", of before", chunks=6))
    assert store.copy_to(other) == 100
    assert other.count() == 100 + 60
    assert {document.chunks for document in other.documents() if int(document.id[1:]) < 20} == {5}
    store.export_parquet(tmp_path / "file")
    other.add(make_documents(30, version=", of before", chunks=6))
    assert other.import_parquet(tmp_path / "file") == 100
    assert other.count() == 160
    assert server.refusals == []


def test_a_search_is_explained_with_a_narrow_beam(new_store, strict):
    server = strict(search_max_hnsw_ef=64)
    store = new_store(DIMENSION, retries=0)
    documents = make_documents(30)
    store.add(documents)
    explanation = store.explain("some words", k=5)
    assert len(explanation.hits) == 5
    assert explanation.hits[0].exact_rank == 1
    assert server.refusals == []


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403])
def test_a_filter_on_a_field_without_an_index_says_what_to_do(new_store, strict, status):
    server = strict(status, unindexed_filtering_retrieve=False, unindexed_filtering_update=False)
    store = new_store(DIMENSION, retries=0)
    store.add(make_documents(3))
    said = r'strict mode, which filters by indexed fields only: .*"metadata\.lang".*Name the field in index_fields'
    for call in (
        lambda: store.search("words", filter={"lang": "en"}),
        lambda: store.search("words", filter={"lang": "en"}, hybrid=True, group_by_document=True),
        lambda: store.explain("words", filter={"lang": "en"}),
        lambda: store.count({"lang": "en"}),
        lambda: store.count({"lang": {"$exists": False}}),
        lambda: store.delete(filter={"lang": "en"}),
    ):
        with pytest.raises(UnsupportedFilterError, match=said):
            call()
    assert len(server.refusals) == 6
    assert store.count() == 15


def test_a_filter_needs_an_index_of_its_kind(new_store, strict):
    strict(unindexed_filtering_retrieve=False)
    store = new_store(DIMENSION, retries=0, index_fields={"year": "keyword"})
    store.add(make_documents(3))
    with pytest.raises(UnsupportedFilterError, match=r"one of the following types: .*integer.*index_fields"):
        store.count({"year": {"$gte": 2001}})


def test_only_deletes_may_need_an_index(new_store, strict):
    strict(unindexed_filtering_update=False)
    store = new_store(DIMENSION, retries=0)
    store.add(make_documents(3))
    assert store.count({"lang": "en"}) == 5
    with pytest.raises(UnsupportedFilterError, match="index_fields"):
        store.delete(filter={"lang": "en"})
    assert store.count() == 15


@pytest.mark.parametrize("later", [False, True])
def test_indexed_fields_can_be_filtered_by(new_store, strict, later):
    server = strict(unindexed_filtering_retrieve=False, unindexed_filtering_update=False)
    if later:
        new_store(DIMENSION, collection="c").add(make_documents(6))
    fields = {"lang": "keyword", "author": {"born": "integer"}}
    store = new_store(DIMENSION, retries=0, collection="c", index_fields=fields)
    store.add(make_documents(6))
    assert {hit.metadata["lang"] for hit in store.search("words", filter={"lang": ["en", "fr"]})} == {"en", "fr"}
    assert store.count({"author": {"born": {"$lt": 1901}}}) == 10
    assert store.delete(filter={"lang": "en", "author": {"born": 1900}}) == 5
    assert store.count() == 25
    assert server.refusals == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": 41}, "k must be at most 40 on this server .strict mode., not 41"),
        ({"candidates": 41}, "candidates must be at most 40 on this server .strict mode., not 41"),
        ({"k": 41, "hybrid": True}, "k must be at most 40"),
        ({"candidates": 1000, "diversity": 0.5}, "candidates must be at most 40"),
        ({"k": 41, "group_by_document": True}, "k must be at most 40"),
        ({"k": 2, "group_by_document": 41}, "group_by_document must be at most 40"),
    ],
)
def test_more_than_the_server_allows_is_refused_before_it_is_sent(new_store, server, strict, options, named):
    strict(max_query_limit=40)
    store = new_store(DIMENSION, retries=0)
    store.add(make_documents(30))
    server.requests.clear()
    with pytest.raises(InvalidInputError, match=named):
        store.search("words", **options)
    if options.keys() <= {"k", "candidates"}:
        with pytest.raises(InvalidInputError, match=named):
            store.explain("words", **options)
    assert server.requests == []
    assert len(store.search("words", k=40, candidates=40)) == 40


def test_a_filter_larger_than_the_server_allows_is_told_in_its_words(new_store, strict):
    strict(condition_max_size=8, filter_max_conditions=7)
    store = new_store(DIMENSION, retries=0)
    with pytest.raises(ServerError, match=r"refused count: 400 .*Condition size limit reached \(9 > 8\)"):
        store.count({"year": list(range(9))})
    with pytest.raises(ServerError, match=r"Filter condition limit reached \(8 > 7\)"):
        store.search("words", filter={f"field {i}": i for i in range(8)})


def test_a_strict_mode_that_is_off_limits_nothing(new_store, server, strict):
    strict(**LIMITS)
    server.strict_mode["enabled"] = False
    store = new_store(DIMENSION, retries=0)
    store.add(make_documents(30))
    assert len(store.search("words", k=100)) == 100
    assert store.explain("words", k=100).recall == 1


@pytest.mark.parametrize("limits", [{"max_query_limit": 5}, {"search_allow_exact": False}], ids=str)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_all_tenants_are_listed(new_store, strict, limits):
    server = strict(**limits)
    names = [f"tenant {i:02}" for i in range(7)]
    for name in names:
        store = new_store(DIMENSION, collection="c", tenant=name)
        store.add(make_documents(1))
    assert run_now(list_tenants(BlockingCalls(store._client, Retries(where=None)), "c")) == names
    assert server.refusals == []


# --- the server above --------------------------------------------------------------------------------

LANG = models.Filter(must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="en"))])
MANY = models.Filter(must=[models.FieldCondition(key="document_id", match=models.MatchAny(any=["d"] * 9))])
EIGHT = models.Filter(should=[models.Filter(must=[MANY.must[0].model_copy() for _ in range(8)])])
NEAREST = models.NearestQuery(nearest=[0.0] * DIMENSION)


def query(**options):
    return {"requests": [models.QueryRequest(query=NEAREST, using="codes", **options)]}


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("scroll", {"limit": 41}, "Limit exceeded 41 > 40"),
        ("scroll", {"scroll_filter": LANG}, "Index required"),
        ("scroll", {"scroll_filter": EIGHT}, "Filter condition limit reached .8 > 7"),
        ("count", {"exact": True}, "Exact search disabled"),
        ("count", {"exact": False, "count_filter": LANG}, "Index required"),
        ("facet", {"key": "document_id", "limit": 41}, "Limit exceeded 41 > 40"),
        ("facet", {"key": "document_id", "exact": True}, "Exact search disabled"),
        ("facet", {"key": "document_id", "facet_filter": MANY}, "Condition size limit reached .9 > 8"),
        ("delete", {"points_selector": models.FilterSelector(filter=LANG)}, "Index required"),
        ("query_batch_points", query(limit=41), "Limit exceeded 41 > 40"),
        ("query_batch_points", query(prefetch=models.Prefetch(query=NEAREST, limit=41)), "Limit exceeded 41 > 40"),
        ("query_batch_points", query(filter=LANG), "Index required"),
        ("query_batch_points", query(params=models.SearchParams(hnsw_ef=65)), "Limit exceeded 65 > 64"),
        ("query_batch_points", query(params=models.SearchParams(exact=True)), "Exact search disabled"),
        ("query_batch_points", {"requests": query()["requests"] * 3}, "Limit exceeded 3 > 2"),
        (
            "upsert",
            {"points": [models.PointStruct(id=i, vector={}, payload={}) for i in range(17)]},
            "Limit exceeded 17 > 16",
        ),
    ],
)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_the_server_enforces_what_it_tells(new_store, strict, verb, options, said):
    server = strict(**LIMITS)
    store = new_store(DIMENSION, collection="c")
    with pytest.raises(UnexpectedResponse, match=said):
        getattr(store._client, verb)("c", **options)
    assert len(server.refusals) == 1
