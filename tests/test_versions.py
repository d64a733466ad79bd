"""The store on servers of every supported version: nothing is sent that they do not know, over REST or gRPC.

The servers are those of the other tests, which refuse, ignore and answer as their version does (`qdrant_versions`).
"""

import json

import pytest
from qdrant_client import QdrantClient, models

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.collection import VECTOR_NAME, text_index_params
from pplx_vectorstore.engines.capabilities import Capabilities, Feature
from pplx_vectorstore.errors import UnsupportedServerError
from pplx_vectorstore.qdrant.conversion import as_clients

VERSIONS = ["1.16.3", "1.17.0", "1.18.3", "1.19.0", "1.20.0"]
WAYS = [*(("http", version) for version in VERSIONS), ("grpc", "1.16.3"), ("grpc", "1.19.0")]
DIMENSION = 64

every_version = pytest.mark.parametrize(("engine", "version"), WAYS, indirect=["engine"])


@pytest.fixture
def old(request, engine, version):
    """The server behind `new_store`, of that version."""
    running = request.getfixturevalue("grpc_server").rest if engine == "grpc" else request.getfixturevalue("server")
    running.version = version
    return running


def field(path, **condition):
    return models.FieldCondition(key=path, **condition)


def make_documents(n):
    return [
        Document(
            id=f"d{i}",
            chunks=[f"chunk {j} of document {i}" for j in range(3)],
            metadata={"lang": ["en", "de"][i % 2], "year": 2000 + i, "name": f"Document {i}", "tags": ["all", f"t{i}"]},
        )
        for i in range(n)
    ]


def texts(store, *conditions):
    """The ids of the documents that match."""
    return {chunk.document_id for chunk in store.chunks(models.Filter(must=list(conditions)))}


@every_version
def test_everything_works_that_the_server_can_do(new_store, old, version):
    store, other = (new_store(DIMENSION, index_fields={"lang": "keyword", "year": "integer"}) for _ in range(2))
    store.add(make_documents(8))
    assert store.sync(make_documents(8)).unchanged_documents == 8
    store.add([Document(id="question", chunks=["What is asked?"], metadata={"year": 2100, "name": "question"})])
    hit, *_ = store.search("What is asked?", k=3, filter={"year": {"$gte": 2003}}, context=1)
    assert (hit.document_id, round(hit.score, 6)) == ("question", 1)
    assert len(store.search("chunk", k=4, group_by_document=True, diversity=0.5)) == 4
    assert store.explain("What is asked?", k=2).recall == 1
    assert store.count({"lang": "en"}) == 12
    for condition, expected in (
        (field("metadata.name", match=models.MatchText(text="Document 3")), {"d3"}),
        (field("metadata.name", match=models.MatchPhrase(phrase="Document 3")), {"d3"}),
        (field("metadata.name", match=models.MatchTextAny(text_any="3 4")), {"d3", "d4"}),
        (field("metadata.tags", values_count=models.ValuesCount(gte=2)), {f"d{i}" for i in range(8)}),
        (models.HasVectorCondition(has_vector=VECTOR_NAME), {"question", *(f"d{i}" for i in range(8))}),
        (field("metadata.name", match=models.MatchSubstring(substring="cument 3")), {"d3"}),
        (field("metadata.name", match=models.MatchSubstring(substring="document 3")), set()),
    ):
        assert texts(store, condition) == expected, condition
    for weight in (0.5, 0.7, 1) if Capabilities("server", version).has(Feature.RRF_WEIGHTS) else (0.5, 1):
        assert store.search("What is asked?", k=1, hybrid=True, lexical_weight=weight)[0].document_id == "question"
    assert store.copy_to(other) == other.count() == 25
    assert store.delete(filter={"lang": "en"}) == 12
    assert store.delete(document_ids=["d1", "d2"]) == 3
    assert store.count() == 10
    assert old.unknown == []


@every_version
def test_conditions_that_the_server_does_not_know_are_refused_before_they_are_sent(new_store, old, version):
    """Over gRPC, an older server would leave a slice out, and a deletion by one would delete everything."""
    store = new_store(DIMENSION)
    store.add(make_documents(4))
    knows = Capabilities("server", version).has(Feature.PREFIX_MATCH)
    old.requests.clear()
    slice_ = models.SliceCondition(slice=models.Slice(index=0, total=2))
    for condition in (field("metadata.name", match=models.MatchPrefix(prefix="Document 3")), slice_):
        given = models.Filter(must=[condition])
        if knows and condition is not slice_:  # which the engine behind the server does not know
            assert texts(store, condition) == {"d3"}
        elif not knows:
            for call in (store.count, lambda given: store.delete(filter=given)):
                with pytest.raises(UnsupportedServerError, match=r"needs Qdrant 1\.19 or newer"):
                    call(given)
            with pytest.raises(UnsupportedServerError, match=r"needs Qdrant 1\.19 or newer"):
                store.search("words", filter=given)
    assert knows or old.requests == []
    assert store.count() == 12
    assert old.unknown == []


@every_version
def test_indexes_that_the_server_does_not_know_are_refused_before_anything_is_made(new_store, old, version):
    fields = {"title": text_index_params()}
    if Capabilities("server", version).has(Feature.TEXT_SCORING):
        new_store(DIMENSION, index_fields=fields)
    else:
        with pytest.raises(UnsupportedServerError, match=r"index of field 'metadata\.title' needs Qdrant"):
            new_store(DIMENSION, collection="c", index_fields=fields)
        assert not old.client.collection_exists("c")
    assert old.unknown == []


@pytest.mark.parametrize(("engine", "version"), [("http", "1.16.3"), ("grpc", "1.16.3")], indirect=["engine"])
def test_a_copy_of_what_a_newer_server_has_comes_as_far_as_it_can(new_store, old, version):
    target = new_store(DIMENSION)
    old.version = "1.20.0"
    source = new_store(DIMENSION, collection="newer", index_fields={"lang": "keyword", "name": "text"})
    source.add(make_documents(2))
    old.version = version
    answer = old.answer
    params = {
        "metadata.lang": {"type": "keyword", "memory": "cold", "prefix": True, "enable_hnsw": False},
        "metadata.name": {"type": "text", "scoring": True, "lowercase": False},
    }

    def with_params(method, path, body):
        """What a server tells of indexes, and the engine behind this one does not."""
        status, content = answer(method, path, body)
        if (method, path) == ("GET", "/collections/newer"):
            told = json.loads(content)
            for field, of_it in params.items():
                told["result"]["payload_schema"][field]["params"] = of_it
            content = json.dumps(told).encode()
        elif path.endswith("/index"):
            made.append(json.loads(body))
        return status, content

    made = []
    old.answer = with_params
    assert source.copy_to(target) == 6
    schemas = {one["field_name"]: one["field_schema"] for one in made}
    known = {field: {name: schema.get(name) for name in params[field]} for field, schema in schemas.items()}
    assert known == {
        "metadata.lang": {"type": "keyword", "memory": None, "prefix": None, "enable_hnsw": None},
        "metadata.name": {"type": "text", "scoring": None, "lowercase": False},
    }
    assert old.unknown == []


# --- the server above --------------------------------------------------------------------------------

NEW_CONDITIONS = {
    "MatchPrefix": (field("text", match=models.MatchPrefix(prefix="a")), "1.19.0"),
    "MatchSubstring": (field("text", match=models.MatchSubstring(substring="a")), "1.20.0"),
    "SliceCondition": (models.SliceCondition(slice=models.Slice(index=0, total=2)), "1.19.0"),
}


@pytest.fixture(params=["rest", "grpc"])
def past_the_store(request, grpc_server, hash_encoder):
    """A client of the server that sends whatever it is told to."""
    VectorStore.connect(grpc_server.url, collection="c", encoder=hash_encoder(DIMENSION)).close()
    client = QdrantClient(
        url=grpc_server.url, grpc_port=grpc_server.port, prefer_grpc=request.param == "grpc", check_compatibility=False
    )
    yield client
    client.close()


@pytest.mark.parametrize("name", NEW_CONDITIONS)
def test_the_server_refuses_new_conditions(past_the_store, grpc_server, name):
    condition, since = NEW_CONDITIONS[name]
    rest, over_grpc = grpc_server.rest, past_the_store._client._prefer_grpc
    rest.version = f"1.{int(since[2:4]) - 1}.9"
    rest.client.upsert("c", [models.PointStruct(id=1, vector={}, payload={"text": "b"})])

    alone, within = condition, models.Filter(must_not=[condition])
    for given in (alone, within):

        def count(given=given):
            return past_the_store.count("c", count_filter=models.Filter(must=[given])).count

        if over_grpc and name == "SliceCondition":
            assert count() == 1, "left out, as if nobody had asked for it"
            continue
        said = "Format error in JSON body: Expected some form of condition, which can be a field condition"
        if over_grpc:
            said = "Malformed Match condition"
        elif given is alone and name != "SliceCondition":
            said = "Format error in JSON body: data did not match any variant of untagged enum MatchInterface"
        with pytest.raises(Exception, match=said):
            count()
    assert rest.unknown == [name] * 2


def test_the_server_refuses_new_queries_and_ignores_new_fields(past_the_store, grpc_server):
    rest, over_grpc = grpc_server.rest, past_the_store._client._prefer_grpc
    rest.version = "1.16.0"
    words = models.TextQuery(text="a")
    said = "Query variant is missing" if over_grpc else "Format error in JSON body: Expected some form of vector"
    with pytest.raises(Exception, match=said):
        past_the_store.query_batch_points("c", requests=[models.QueryRequest(query=words, using="text")])
    nearest = models.Prefetch(query=models.NearestQuery(nearest=[128.0] * DIMENSION), using=VECTOR_NAME)
    fused = models.QueryRequest(prefetch=[nearest, nearest], query=models.RrfQuery(rrf=models.Rrf(weights=[2, 1])))
    past_the_store.query_batch_points("c", requests=[fused])
    past_the_store.create_payload_index("c", "title", as_clients(text_index_params()))
    assert rest.unknown == ["TextQuery", "Rrf.weights", "TextIndexParams.enable_hnsw", "TextIndexParams.scoring"]


def test_the_server_refuses_indexes_that_it_would_make_otherwise(past_the_store, grpc_server):
    rest, over_grpc = grpc_server.rest, past_the_store._client._prefer_grpc
    rest.version = "1.18.3"
    code = models.TextIndexParams(type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.CODE)
    none = models.DisabledStemmerParams(type=models.NoStemmer.NONE)
    unstemmed = models.TextIndexParams(type=models.TextIndexType.TEXT, stemmer=none)
    with pytest.raises(Exception, match="unknown tokenizer type" if over_grpc else "enum PayloadFieldSchema"):
        past_the_store.create_payload_index("c", "source", code)
    if over_grpc:
        past_the_store.create_payload_index("c", "title", unstemmed)  # left out, as if nobody had asked for it
    else:
        with pytest.raises(Exception, match="enum PayloadFieldSchema"):
            past_the_store.create_payload_index("c", "title", unstemmed)
    assert rest.unknown == ["code", "DisabledStemmerParams"]


def test_the_server_looks_for_a_text_as_it_stands_before_a_version(server, hash_encoder):
    store = VectorStore.connect(server.url, encoder=hash_encoder(DIMENSION), index_fields={"indexed": "text"})
    store.add(
        Document(id=text, chunks=["text"], metadata={"plain": text, "indexed": text})
        for text in ("red fox", "Fox, red", "fred foxes")
    )
    for version, plain in (("1.20.0", {"red fox", "Fox, red"}), ("1.19.9", {"red fox", "fred foxes"})):
        server.version = version
        assert texts(store, field("metadata.plain", match=models.MatchText(text="red fox"))) == plain
        assert texts(store, field("metadata.indexed", match=models.MatchText(text="red fox"))) == {
            "red fox",
            "Fox, red",
        }
    assert texts(store, field("metadata.plain", match=models.MatchText(text="red"))) == {
        "red fox",
        "Fox, red",
        "fred foxes",
    }
    store.close()


def test_an_old_server_tells_nothing_of_what_came_later(server, hash_encoder):
    server.strict_mode = {"enabled": True, "search_max_batchsize": 2, "max_query_limit": 40}
    store = VectorStore.connect(server.url, collection="c", encoder=hash_encoder(DIMENSION))
    for version, expected in (("1.17.1", 2), ("1.17.0", None)):
        server.version = version
        strict = store._client.get_collection("c").config.strict_mode_config
        assert (strict.search_max_batchsize, strict.max_query_limit) == (expected, 40)
    store.close()


@pytest.mark.parametrize(("engine", "version"), [("http", "1.16.3"), ("http", "1.20.0")], indirect=["engine"])
def test_every_walk_by_the_codes_asks_for_acorn(new_store, old, version):
    """A tenant's searches are filtered, too, if by nothing else."""
    store = new_store(DIMENSION, tenant="a", index_fields={"lang": "keyword"})
    store.add(make_documents(4))
    asked = []
    answer = old.answer

    def note(method, path, body):
        if path.endswith("/query/batch"):
            searches = [search["params"] for search in json.loads(body)["searches"]]
            asked.extend((params.get("acorn"), params["exact"]) for params in searches)
        return answer(method, path, body)

    old.answer = note
    store.search("chunk", k=2)
    assert {hit.metadata["lang"] for hit in store.search("chunk", k=2, filter={"lang": "en"})} == {"en"}
    store.explain("chunk", k=2)
    wanted = {"enable": True, "max_selectivity": 1.0}
    assert asked[:4] == [(wanted, False), (wanted, False), (wanted, False), (None, True)]
    assert old.unknown == []


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_the_table_is_the_servers(qdrant_server_module, engine):
    """What the library takes for a version's is what the server above does: written down twice, of the same source."""
    tables = qdrant_server_module.qdrant_versions
    for feature, since in (
        (Feature.UNLINKED_INDEXES, tables.FIELDS["TextIndexParams"]["enable_hnsw"]),
        (Feature.RRF_WEIGHTS, tables.FIELDS["Rrf"]["weights"]),
        (Feature.MEMORY_PLACEMENT, tables.FIELDS["VectorParams"]["memory"]),
        (Feature.PREFIX_MATCH, tables.MATCHES["MatchPrefix"]),
        (Feature.PREFIX_MATCH, tables.FIELDS["KeywordIndexParams"]["prefix"]),
        (Feature.SUBSTRING_MATCH, tables.MATCHES["MatchSubstring"]),
        (Feature.SLICES, tables.CONDITIONS["SliceCondition"]),
        (Feature.TEXT_SCORING, tables.QUERIES["TextQuery"]),
        (Feature.TEXT_SCORING, tables.FIELDS["TextIndexParams"]["scoring"]),
        (Feature.NESTED_INDEXES, tables.FIELDS["TextIndexParams"]["nested"]),
        (Feature.CODE_TOKENIZER, tables.TOKENIZERS["code"]),
        (Feature.UNSTEMMED_INDEXES, tables.STEMMERS["DisabledStemmerParams"]),
        (Feature.ACORN, tables.FIELDS["SearchParams"]["acorn"]),
        (Feature.IDF_SCOPE, tables.FIELDS["SearchParams"]["idf"]),
        (Feature.SEARCH_BATCH_LIMIT, tables.ANSWERS["strict_mode_config", "search_max_batchsize"]),
    ):
        assert feature.since == since, feature
