"""VectorStore and AsyncVectorStore over gRPC: the same as over REST, also where something fails.

What a store does is tested by the suites that run on every engine, gRPC among them.
"""

import json
import re
import socket
import threading
import time
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from pplx_vectorstore import Chunk, CollectionConfig, Document, VectorStore
from pplx_vectorstore.collection import PAYLOAD_INDEXES
from pplx_vectorstore.engines import retrying
from pplx_vectorstore.errors import (
    InvalidDocumentError,
    InvalidInputError,
    ServerError,
    ServerUnavailableError,
    StoreNotFoundError,
    UnsupportedFilterError,
)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

both = pytest.mark.parametrize("engine", ["grpc", "async-grpc"], indirect=True)
blocking = pytest.mark.parametrize("engine", ["grpc"], indirect=True)


@pytest.fixture
def impatient(monkeypatch):
    """Next to no waiting between tries."""
    monkeypatch.setattr(retrying, "_FIRST_WAIT", 1e-3)


def named(url, port):
    """What an error calls a server, in a pattern."""
    return re.escape(f"{url} (gRPC on port {port})")


@pytest.fixture
def refuse(grpc_server, qdrant_grpc_module):
    """Refuse calls to come: ``refuse(code, words, times=1, method=None, trailers=())``."""

    def add(code, words="words of the server", *, times=1, **options):
        grpc_server.calls.clear()
        grpc_server.refusals.extend([qdrant_grpc_module.Refusal(code, words, **options)] * times)

    return add


def make_document(number):
    chunks = [Chunk(text=f"{number} {part}", metadata={"part": part, "id": f"{number}/{part}"}) for part in range(4)]
    metadata = {
        "year": 2000 + number,
        "size": number / 3,
        "even": number % 2 == 0,
        "lang": ["en", "de", None][number % 3],
        "day": f"2024-06-{1 + number:02}T10:00:00+02:00",
        "inner": {"list": [None, {"é": []}, 2**62, 0.1, 1.0], "none": None},
    }
    return Document(id=f"d{number}", chunks=[*chunks, Chunk(text=" ")], metadata=metadata)


DOCUMENTS = [make_document(number) for number in range(20)]
FILTERS = [
    None,
    {"year": 2003},
    {"year": [2003, 2004, 2005], "even": True},
    {"even": [True, False], "lang": "en"},
    {"lang": None},
    {"lang": {"$ne": "en"}},
    {"lang": {"$exists": True}, "size": {"$gt": 1, "$lte": 4.5}},
    {"size": 1 / 3},
    {"day": {"$gte": "2024-06-05", "$lt": datetime(2024, 6, 11, 8, tzinfo=UTC)}},
    {"inner": {"none": None}, "year": {"$nin": [2001, 2002]}},
    models.Filter(
        should=[
            models.FieldCondition(key="metadata.lang", match=models.MatchExcept(**{"except": ["en"]})),
            models.FieldCondition(key="metadata.inner.list", values_count=models.ValuesCount(gte=5)),
        ],
        must_not=models.FieldCondition(key="text", match=models.MatchTextAny(text_any="3 4")),
        min_should=models.MinShould(
            conditions=[
                models.FieldCondition(key="metadata.year", range=models.Range(gte=2010)),
                models.FieldCondition(key="metadata.part", match=models.MatchValue(value=1)),
            ],
            min_count=1,
        ),
    ),
    models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="metadata.lang"))]),
    models.Filter(must=[models.FieldCondition(key="metadata.lang", match=models.MatchAny(any=[]))]),
]
SEARCHES = [
    {},
    {"k": 40, "candidates": 100},
    {"k": 3, "candidates": 3},
    {"hybrid": True, "k": 100},
    {"group_by_document": 2, "k": 4},
    {"diversity": 0.5},
    {"score_threshold": 0.05, "k": 100},
    {"context": 1},
]


# --- the same as over REST ---------------------------------------------------------------------------


def use(store):
    """Call every verb, and tell what came of it."""
    with store.bulk_load():
        told = [store.add(DOCUMENTS[:10])]
    told.append(store.sync(DOCUMENTS))
    relabelled = Document(id="d3", chunks=DOCUMENTS[3].chunks, metadata={"new": [None, {"deep": None}]})
    told += [store.sync([*DOCUMENTS[:3], relabelled], delete_missing=False), store.count({"new": None})]
    chunks = sorted(hit.id for hit in store.search("3 1", k=100))
    stored = store.get(chunks, with_codes=True)
    told += [stored, [chunk.codes.tolist() for chunk in stored]]
    told += [store.delete(document_ids=["d5", "no such"]), store.delete(filter={"year": {"$gte": 2018}}), store.count()]
    return [*told, sorted(store.documents(), key=lambda document: document.id)]


@both
def test_every_verb_does_over_grpc_what_it_does_over_rest(new_store, grpc_server, hash_encoder, qdrant_grpc_module):
    told = use(new_store())
    assert grpc_server.rest.requests == [], "nothing goes over REST"
    served = {name for methods in qdrant_grpc_module._SERVICES.values() for name in methods}
    assert set(grpc_server.calls) == served
    with VectorStore.connect(grpc_server.url, collection="over-rest", encoder=hash_encoder()) as store:
        assert use(store) == told
    assert grpc_server.rest.requests


@both
@pytest.mark.parametrize("tenant", [None, "acme"])
def test_searches_find_the_same(new_store, grpc_server, hash_encoder, tenant):
    over_grpc = new_store(collection="c", tenant=tenant)
    over_grpc.add(DOCUMENTS)
    if tenant is not None:
        new_store(collection="c", tenant="another").add(DOCUMENTS)
    with VectorStore.connect(grpc_server.url, collection="c", tenant=tenant, encoder=hash_encoder()) as over_rest:
        n_found = []
        for condition in FILTERS:
            assert over_grpc.count(condition) == over_rest.count(condition)
            for options in SEARCHES:
                hits = over_grpc.search("7 2", filter=condition, **options)
                expected = over_rest.search("7 2", filter=condition, **options)
                assert_same_hits(hits, expected)
                n_found.append(len(hits))
        assert_same_explanation(over_grpc.explain("7 2"), over_rest.explain("7 2"))
    assert sum(n > 0 for n in n_found) > 0.7 * len(n_found)


def assert_same_hits(hits, expected):
    """Hits are alike; those of equal scores, which are many in a hybrid search, may come in any order."""
    assert [hit.score for hit in hits] == [hit.score for hit in expected]
    theirs = {hit.id: hit for hit in expected}
    assert len(theirs) == len(hits)
    for hit in hits:
        assert hit == theirs[hit.id]


def assert_same_explanation(one, other):
    assert_same_hits([found.hit for found in one.hits], [found.hit for found in other.hits])
    assert (one.way, one.candidates, one.recall) == (other.way, other.candidates, other.recall)


@blocking
def test_a_collection_is_created_alike(new_store, grpc_server, hash_encoder):
    bodies = []
    answer = grpc_server.rest.answer

    def record(method, path, body):
        if method == "PUT":
            bodies.append((path.partition("/collections/c")[2], json.loads(body)))
        return answer(method, path, body)

    grpc_server.rest.answer = record
    config = CollectionConfig(
        shard_number=3, replication_factor=2, codes_memory="cached", bits_memory="cold", query_encoding="binary"
    )
    kinds = ["keyword", "integer", "float", "bool", "datetime", "uuid", "geo", "text"]
    fields = {f"of {kind}": kind for kind in kinds}
    options = {"encoder": hash_encoder(), "tenant": "acme", "config": config, "index_fields": fields}
    new_store(collection="c1", **options)
    over_grpc, bodies[:] = bodies[:], []
    VectorStore.connect(grpc_server.url, collection="c2", **options).close()
    over_rest = [(path.replace("2", "1", 1), body) for path, body in bodies]
    assert len(over_grpc) == 1 + len(PAYLOAD_INDEXES) + 4 + len(kinds)
    of_text = [body["field_schema"] for _, body in over_grpc if body.get("field_name") in ("text", "words")]
    assert of_text == 2 * [{"type": "text", "tokenizer": "word", "enable_hnsw": False, "scoring": {"type": "bm25"}}]
    assert without_text(over_grpc) == without_text(over_rest)


def without_text(bodies):
    return [(path, body) for path, body in bodies if body.get("field_name") not in ("text", "words")]


@both
def test_texts_larger_than_grpcs_own_bound(new_store):
    store = new_store()
    text = "wörter " * 700_000
    store.add([Document(id="d", chunks=[Chunk(text=text, id="c")])])
    assert [chunk.text for chunk in store.get(["c"])] == [text]
    assert [hit.text for hit in store.search(text)] == [text]


@both
def test_metadata_nests_as_deep_as_messages_do(new_store):
    store = new_store()

    def nested(depth):
        return {"k": nested(depth - 1)} if depth else 1

    store.add([Document(id="d", chunks=["text"], metadata=nested(30))])
    assert store.search("text", k=1)[0].metadata == nested(30)
    with pytest.raises(InvalidInputError, match=r"upsert could not be sent .* over gRPC.*prefer_grpc=False") as caught:
        store.add([Document(id="e", chunks=["text"], metadata=nested(60))])
    assert caught.value.report.documents == 0
    with pytest.raises(InvalidDocumentError):
        Document(id="e", chunks=["text"], metadata=nested(70))


@both
@pytest.mark.parametrize("tenant", [None, "acme"])
def test_what_is_stale_goes_with_the_request_that_writes(new_store, grpc_server, tenant):
    store, other = new_store(collection="c", tenant=tenant), None
    if tenant is not None:
        other = new_store(collection="c", tenant="another")
        other.add(DOCUMENTS[:3])
    store.add(DOCUMENTS[:3])
    grpc_server.calls.clear()
    fewer = Document(id="d1", chunks=["new", Chunk(text="own", id="mine"), ""], metadata=DOCUMENTS[1].metadata)
    assert store.sync([DOCUMENTS[0], fewer, DOCUMENTS[2]]).documents == 1
    assert grpc_server.calls.count("UpdateBatch") == 1
    assert not {"Upsert", "Delete"} & set(grpc_server.calls)
    stored = {document.id: document.chunk_count for document in store.documents()}
    assert stored == {"d0": 5, "d1": 3, "d2": 5}
    assert store.count() == 13
    assert [(chunk.text, chunk.metadata) for chunk in store.get(["mine"])] == [("own", fewer.metadata)]
    assert other is None or other.count() == 15


@both
def test_vectors_come_back_as_they_were_given(new_store, hash_encoder):
    store = new_store(collection="c")
    rng = np.random.default_rng(2)
    codes = rng.integers(-128, 128, size=(600, 64)).astype(np.int8)
    codes[::7] = 0
    chunks = [Chunk(text=f"chunk {i}", id=f"own {i}" if i % 2 else None) for i in range(600)]
    store.add([Document(id="d", chunks=chunks, vectors=codes)])
    found = {chunk.chunk_index: chunk for chunk in store.chunks(with_codes=True)}
    assert len(found) == 600
    for index, row in enumerate(codes):
        assert found[index].codes.tolist() == row.tolist()


@blocking
def test_a_client_of_your_own(new_store, grpc_server, hash_encoder):
    client = QdrantClient(
        url=grpc_server.url, grpc_port=grpc_server.port, prefer_grpc=True, check_compatibility=False, timeout=30
    )
    with VectorStore(client, "c", encoder=hash_encoder()) as store:
        store.add(DOCUMENTS)
        told = sorted((hit.id, hit.metadata["day"]) for hit in store.search("7 2", k=100))
    client.close()
    assert grpc_server.rest.requests == []
    again = new_store(collection="c")
    assert sorted((hit.id, hit.metadata["day"]) for hit in again.search("7 2", k=100)) == told


# --- what fails --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"])
def test_what_may_pass_is_tried_again(new_store, grpc_server, refuse, impatient, code):
    store = new_store(retries=5)
    refuse(grpc.StatusCode[code], times=3, method="Upsert")
    assert store.add(DOCUMENTS[:2]).chunks == 10
    assert grpc_server.calls.count("Upsert") == 4
    refuse(grpc.StatusCode[code], times=5)
    assert store.count() == 10
    assert grpc_server.calls == ["Count"] * 6
    refuse(grpc.StatusCode[code], times=6)
    with pytest.raises(
        ServerUnavailableError,
        match=f"{named(grpc_server.url, grpc_server.port)} gave no answer to count, asked 6 times: {code} words of",
    ):
        store.count()


@both
@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL"])
def test_a_write_that_deletes_too_is_tried_again(new_store, grpc_server, refuse, impatient, code):
    store = new_store(retries=5)
    store.add(DOCUMENTS[:2])
    refuse(grpc.StatusCode[code], times=3, method="UpdateBatch")
    assert store.sync([Document(id="d1", chunks=["new"])]).documents == 1
    assert grpc_server.calls.count("UpdateBatch") == 4
    assert store.count() == 6
    refuse(grpc.StatusCode[code], times=6, method="UpdateBatch")
    with pytest.raises(ServerUnavailableError, match="gave no answer to upsert, asked 6 times"):
        store.sync([Document(id="d0", chunks=["new"])])
    assert store.count() == 6


@both
def test_a_server_says_how_long_to_wait(new_store, grpc_server, refuse, impatient):
    store = new_store(retries=1)
    refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many requests", trailers=(("retry-after", "1"),))
    start = time.monotonic()
    assert store.count() == 0
    assert 1 <= time.monotonic() - start < 3


@both
@pytest.mark.parametrize(
    ("code", "words", "class_", "message"),
    [
        ("INVALID_ARGUMENT", "Wrong input: no", ServerError, "refused count: INVALID_ARGUMENT Wrong input: no"),
        ("INVALID_ARGUMENT", "Index required but not found", UnsupportedFilterError, "index_fields"),
        ("NOT_FOUND", "no collection", StoreNotFoundError, "NOT_FOUND no collection"),
        ("PERMISSION_DENIED", "Invalid API key", ServerError, "give an api_key, or set QDRANT_API_KEY"),
        ("UNAUTHENTICATED", "Must provide an API key", ServerError, "give an api_key"),
        ("FAILED_PRECONDITION", "read-only", ServerError, "refused count: FAILED_PRECONDITION read-only"),
        ("OUT_OF_RANGE", "decoded message length too large", ServerError, "refused count: OUT_OF_RANGE decoded"),
        ("DATA_LOSS", "checksum mismatch", ServerError, "refused count: DATA_LOSS checksum mismatch"),
        ("UNIMPLEMENTED", "", ServerError, "refused count: UNIMPLEMENTED"),
        ("UNKNOWN", "something", ServerError, "refused count: UNKNOWN something"),
        ("CANCELLED", "by the server", ServerError, "refused count: CANCELLED by the server"),
    ],
)
def test_a_refusal_is_final(new_store, grpc_server, refuse, code, words, class_, message):
    store = new_store(retries=5)
    refuse(grpc.StatusCode[code], words, times=2)
    with pytest.raises(class_, match=message) as caught:
        store.count()
    assert type(caught.value) is class_
    assert grpc_server.calls == ["Count"]
    grpc_server.refusals.clear()
    assert store.count() == 0


@both
def test_what_the_engine_refuses_is_told(new_store, grpc_server):
    store = new_store(retries=5)
    grpc_server.calls.clear()
    condition = models.Filter(must=[models.FieldCondition(key='metadata.a"b', match=models.MatchValue(value=1))])
    with pytest.raises(ServerError, match="refused count: INVALID_ARGUMENT Wrong input"):
        store.count(condition)
    assert grpc_server.calls == ["Count"]


@both
def test_a_collection_that_another_made_meanwhile_is_taken(new_store, grpc_server, monkeypatch):
    new_store(collection="c").add(DOCUMENTS[:1])
    exists = grpc_server.rest.client.collection_exists
    answers = [False]
    monkeypatch.setattr(grpc_server.rest.client, "collection_exists", lambda name: (answers or [exists(name)]).pop())
    assert new_store(collection="c").count() == 5
    with pytest.raises(StoreNotFoundError, match="there is no collection 'd'"):
        new_store(collection="d", create=False)


@both
def test_no_answer_in_time(new_store, grpc_server):
    store = new_store(retries=0, timeout=0.5)
    grpc_server.rest.delay = 20
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError, match="gave no answer to upsert, asked once: DEADLINE_EXCEEDED"):
        store.add(DOCUMENTS[:1])
    assert 0.9 < time.monotonic() - start < 4.5, "rounded up to one second"


@both
def test_a_server_that_is_gone(new_store, grpc_server, impatient):
    store = new_store(retries=2)
    grpc_server.stop()
    with pytest.raises(
        ServerUnavailableError,
        match=f"{named(grpc_server.url, grpc_server.port)} gave no answer to count, asked 3 times: ",
    ) as caught:
        store.count()
    message = str(caught.value)
    assert "UNAVAILABLE" in message
    assert f"127.0.0.1:{grpc_server.port}" in message, "which is another port than the URL's"
    assert "Is the address right and the server up?" in message
    assert "\n" not in message


@both
def test_a_server_that_comes_back_is_found_again(new_store, grpc_server, qdrant_grpc_module):
    store = new_store(retries=8)
    store.add(DOCUMENTS[:1])
    grpc_server.stop()
    again = []
    timer = threading.Timer(
        0.7, lambda: again.append(qdrant_grpc_module.GrpcServer(grpc_server.rest, grpc_server.port))
    )
    timer.start()
    assert store.add(DOCUMENTS[1:3]).documents == 2
    timer.join()
    assert store.count() == 15
    again[0].stop()


@both
def test_where_nobody_speaks_grpc(new_store, grpc_server, impatient, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(grpc_server, "url", f"http://127.0.0.1:{port - 1}")
        closing = threading.Thread(target=hang_up, args=(listener,), daemon=True)
        closing.start()
        told = f"{named(grpc_server.url, port)} gave no answer to info, asked 2 times: UNAVA"
        with pytest.raises(ServerUnavailableError, match=told):
            new_store(retries=1)


def hang_up(listener):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


# --- the key -----------------------------------------------------------------------------------------


@both
def test_the_api_key_goes_with_every_call(new_store, grpc_server):
    store = new_store(api_key="a key")
    store.add(DOCUMENTS[:1])
    assert len(grpc_server.metadata) > 8
    assert {metadata.get("api-key") for metadata in grpc_server.metadata} == {"a key"}


@both
@pytest.mark.parametrize("key", ["secret\n", " secret", "secret\0", "sécret", b"secret", 5])
def test_a_key_that_no_header_can_hold_is_refused_and_not_told(new_store, grpc_server, key):
    with pytest.raises(InvalidInputError, match="api_key must be visible ASCII") as caught:
        new_store(api_key=key)
    assert "cret" not in str(caught.value)
    assert grpc_server.calls == []
