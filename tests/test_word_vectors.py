"""Hybrid search on servers that have no BM25 over text: the same meaning, whatever comes before and after."""

import functools
import math
import os
import time

import pytest

from pplx_vectorstore import CollectionConfig, Document, VectorStore
from pplx_vectorstore.engines.capabilities import Feature
from pplx_vectorstore.errors import SchemaMismatchError, StoreError, UnsupportedServerError
from pplx_vectorstore.lexical import count_words, normalize_words
from pplx_vectorstore.operations import ledger
from pplx_vectorstore.operations.word_vectors import AVERAGE_KEY

DIMENSION = 64
BY_WORDS = {"hybrid": True, "lexical_weight": 1}

OLD = [("http", "1.16.3"), ("http", "1.18.3"), ("http", "1.19.0")]
SLOW = [pytest.param(engine, "1.18.3", marks=pytest.mark.slow) for engine in ("async", "grpc", "async-grpc")]
has_server = pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="QDRANT_URL names no server")
REAL = pytest.param("server", "its own", marks=[pytest.mark.real_server, has_server])
on_old_servers = pytest.mark.parametrize(("engine", "version"), [*OLD, *SLOW, REAL], indirect=["engine"])
over_http = pytest.mark.parametrize(("engine", "version"), [("http", "1.18.3")], indirect=["engine"])

WORDS = ["harbour", "ferry", "ice", "march", "letter", "clock", "rope", "bridge", "storm", "keeper", "cook", "ship"]


@pytest.fixture(autouse=True)
def old(request, engine, version):
    """The server behind `new_store`, of that version; None for the one that QDRANT_URL names."""
    if engine == "server":
        yield None
        return
    if engine.endswith("grpc"):
        running = request.getfixturevalue("grpc_server").rest
    else:
        running = request.getfixturevalue("server")
    running.version = version
    yield running
    assert running.unknown == []


def make_documents(n, version=0):
    """Documents of which each has its own word, many common ones, and some in scripts without spaces."""
    documents = []
    for i in range(n):
        chunks = [
            " ".join(WORDS[(i * 5 + j * 7 + place * (1 + version)) % len(WORDS)] for place in range(4 + (i + j) % 9))
            for j in range(4)
        ]
        chunks[1] += f" number{i} v{version}"
        chunks[2] += f" 机器学习第{i}章 cafe\u0301 Ｆｕｌｌ{i}"
        documents.append(Document(id=f"d{i}", chunks=chunks, metadata={"lang": ["en", "de"][i % 2]}))
    return documents


def bm25(documents, question):
    """Scores of all chunks that have some of the question's words: id → score."""
    texts = {
        (document.id, i): normalize_words(chunk.text).lower().split()
        for document in documents
        for i, chunk in enumerate(document.chunks)
    }
    average = sum(map(len, texts.values())) / len(texts)
    scores = {}
    for word in set(normalize_words(question).lower().split()):
        holders = [place for place, words in texts.items() if word in words]
        rarity = math.log(1 + (len(texts) - len(holders) + 0.5) / (len(holders) + 0.5))
        for place in holders:
            times = texts[place].count(word)
            length = 1.2 * (0.25 + 0.75 * len(texts[place]) / average)
            scores[place] = scores.get(place, 0) + rarity * times * 2.2 / (times + length)
    return scores


def places(hits):
    return [(hit.document_id, hit.chunk_index) for hit in hits]


def check(store, documents, *, rel=0.02):
    """Searches by words find what BM25 finds, and hybrid ones what both rankings fuse to."""
    for question in ("ferry number7 rope", "学习", "café bridge", "Full11 clock", "absent"):
        expected = bm25(documents, question)
        hits = store.search(question, k=400, candidates=400, **BY_WORDS)
        found = dict(zip(places(hits), (hit.score for hit in hits), strict=True))
        assert found.keys() == expected.keys()
        assert all(found[place] == pytest.approx(score, rel=rel) for place, score in expected.items())
    (hit,) = store.search("number7", k=1, hybrid=True)
    assert (hit.document_id, hit.chunk_index) == ("d7", 1)


@on_old_servers
def test_words_rank_as_in_an_index_of_the_text_whatever_happens(new_store, engine):
    store, documents = new_store(DIMENSION), make_documents(20)
    store.add(documents)
    check(store, documents)
    # A real server counts what was replaced or deleted until it has optimized that away.
    check_after = functools.partial(check, rel=0.5 if engine == "server" else 0.02)
    documents[3:6] = make_documents(6, version=1)[3:6]
    store.sync(documents)  # edited
    check_after(store, documents)
    relabelled = Document(id="d8", chunks=documents[8].chunks, metadata={"lang": "fr"})
    store.sync([*documents[:8], relabelled, *documents[9:]])
    assert {hit.document_id for hit in store.search("ferry", k=50, filter={"lang": "fr"}, **BY_WORDS)} <= {"d8"}
    documents += make_documents(24)[20:]
    store.add(documents[20:])
    store.delete(document_ids=["d0", "d21"])
    documents = [document for document in documents if document.id not in ("d0", "d21")]
    check_after(store, documents)
    for hit in store.search("ferry", k=5, hybrid=True, filter={"lang": "en"}, with_codes=True):
        assert hit.metadata == {"lang": "en"}
        assert hit.codes.shape == (DIMENSION,)
    grouped = store.search("harbour ferry", k=6, group_by_document=1, **BY_WORDS)
    assert len({hit.document_id for hit in grouped}) == 6
    best = store.search("number9 ferry", k=3, **BY_WORDS)
    assert places(best)[0] == ("d9", 1)
    kept = store.search("number9 ferry", k=3, score_threshold=best[0].score - 1e-6, **BY_WORDS)
    assert places(kept) == [("d9", 1)]
    batch = store.search_batch(["number9", "学习", "number2"], k=2, hybrid=True)
    assert [places(hits)[0][0] for hits in batch][::2] == ["d9", "d2"]


@on_old_servers
def test_rankings_have_their_shares(new_store):
    store = new_store(DIMENSION)
    store.add(make_documents(20))
    assert places(store.search("number3", k=1, hybrid=True, lexical_weight=0)) == places(store.search("number3", k=1))
    if not store._session.points.capabilities.has(Feature.RRF_WEIGHTS):
        with pytest.raises(UnsupportedServerError, match=r"lexical_weight=0\.9 needs Qdrant 1\.17.*give 0\.5, 0 or 1"):
            store.search("number3", hybrid=True, lexical_weight=0.9)
    else:
        assert places(store.search("number3", k=1, hybrid=True, lexical_weight=0.9)) == [("d3", 1)]


@on_old_servers
def test_copies_between_both_kinds_are_searched_alike(new_store, folder, hash_encoder, blocking):
    store, documents = new_store(DIMENSION), make_documents(20)
    store.add(documents)
    with VectorStore.open(folder / "local", encoder=hash_encoder(DIMENSION)) as local:
        if isinstance(store, blocking):
            local.add(documents)
        else:
            store.copy_to(local)
            again = new_store(DIMENSION)
            assert local.copy_to(again) == local.copy_to(again) == 80
            check(again, documents)
        for question in ("ferry number7 rope", "学习", "café bridge", "Full11 clock"):
            theirs = store.search(question, k=400, candidates=400, **BY_WORDS)
            ours = local.search(question, k=400, candidates=400, **BY_WORDS)
            assert sorted(places(ours)) == sorted(places(theirs))


@over_http
def test_tenants_find_their_own_words(new_store):
    documents = make_documents(12)
    stores = [new_store(DIMENSION, collection="c", tenant=tenant) for tenant in ("a", "b")]
    stores[0].add(documents[:6])
    stores[1].add(documents[6:])
    for store, own in zip(stores, (documents[:6], documents[6:]), strict=True):
        hits = store.search("ferry", k=100, candidates=100, **BY_WORDS)
        assert set(places(hits)) == bm25(own, "ferry").keys()


@over_http
def test_the_average_length_is_recorded_once_there_are_enough(new_store, old, monkeypatch):
    def recorded():
        return old.updates.metadata_of("c", {}).get(AVERAGE_KEY)

    def another_process():
        monkeypatch.setattr(ledger, "_of_servers", {})
        return new_store(DIMENSION, collection="c")

    documents = make_documents(40)
    texts = [normalize_words(chunk.text) for document in documents for chunk in document.chunks]
    average = sum(map(count_words, texts)) / len(texts)
    for i in range(15):
        assert recorded() is None
        another_process().add(documents[i : i + 1])
    another_process().add(documents[15:17])
    assert recorded() == {"average": pytest.approx(average, rel=0.1)}
    before = recorded()
    another_process().add(Document(id=f"l{i}", chunks=["long " * 500]) for i in range(100))
    assert recorded() == before
    new_store(DIMENSION, collection="many").add(documents)  # in one request
    assert old.updates.metadata_of("many", {})[AVERAGE_KEY] == {"average": pytest.approx(average, abs=0.05)}


@pytest.mark.parametrize(("engine", "version"), [OLD[1], SLOW[0]], indirect=["engine"])
@pytest.mark.parametrize("at_once", [True, False])
def test_vectors_are_made_with_one_average(new_store, old, monkeypatch, at_once):
    monkeypatch.setattr("pplx_vectorstore.operations.replace._UPSERT_POINTS", 20)  # several requests under way
    documents, answer = make_documents(41), old.answer

    def delay(method, path, body):
        if method == "PUT" and path.startswith("/collections/c/points"):
            time.sleep(0.1)
        return answer(method, path, body)

    old.answer = delay
    store = new_store(DIMENSION, collection="c")
    if at_once:
        store.add(documents)
    else:
        for document in documents[:20]:
            store.add([document])
        store.add(documents[20:])
    averages = [average for _, average in old.words["c"]._of.values()]
    recorded = old.updates.metadata_of("c", {})[AVERAGE_KEY]["average"]
    usual = 0 if at_once else 60  # before there were 64
    assert averages.count(pytest.approx(recorded)) == 41 * 4 - usual
    assert averages.count(160) == usual


@over_http
def test_a_key_for_points_alone_writes_all_the_same(new_store, old):
    documents, answer = make_documents(30), old.answer

    def forbid(method, path, body):
        if method == "PATCH":
            return 403, b'{"status": {"error": "Forbidden: Global access is required"}, "time": 0.0}'
        return answer(method, path, body)

    store = new_store(DIMENSION, collection="c")
    old.answer = forbid
    store.add(documents)
    store.delete(document_ids=["d3"])
    store.add(documents[5:8])
    assert AVERAGE_KEY not in old.updates.metadata_of("c", {})
    assert {average for _, average in old.words["c"]._of.values()} != {160}
    check(store, [document for document in documents if document.id != "d3"])


@over_http
def test_a_collection_without_them_says_how_to_have_them(new_store, hash_encoder, server):
    config = CollectionConfig(text_index=False)
    store = new_store(DIMENSION, collection="plain", config=config)
    store.add(make_documents(3))
    assert server.words == {}
    with pytest.raises(StoreError, match=r"no vectors of its words.*Qdrant 1\.18\.3 ranks.*copy it into a new"):
        store.search("ferry", hybrid=True)
    new_store(DIMENSION, collection="plain", config=CollectionConfig(text_index=True))  # which it cannot have
    copied = new_store(DIMENSION, collection="copied")
    store.copy_to(copied)
    assert places(copied.search("number2", k=1, **BY_WORDS)) == [("d2", 1)]


@over_http
def test_a_server_that_was_upgraded_goes_on_with_them(new_store, old, sent_indexes):
    documents = make_documents(20)
    new_store(DIMENSION, collection="c").add(documents)
    old.version = "1.20.0"
    store = new_store(DIMENSION, collection="c", config=CollectionConfig(text_index=True))
    documents += make_documents(22)[20:]
    store.add(documents[20:])
    assert not {"text", "words"} & set(sent_indexes())
    old.version = "1.19.0"  # whose words are made in another way than those of 1.18, and are the same
    check(new_store(DIMENSION, collection="c"), documents)


@pytest.fixture
def sent_indexes(server):
    """``sent_indexes()`` → the fields of collection "c" that have an index."""
    return lambda: server.client.get_collection("c").payload_schema


@over_http
def test_a_collection_that_lost_them_is_refused(new_store, old):
    new_store(DIMENSION, collection="c")
    del old.words["c"]
    with pytest.raises(SchemaMismatchError, match="no sparse vector 'bm25'"):
        new_store(DIMENSION, collection="c")
