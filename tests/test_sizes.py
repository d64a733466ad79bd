"""No request, and no answer, is larger than a server takes, whatever was asked for at once."""

import contextlib

import numpy as np
import pytest
from qdrant_client import QdrantClient

from pplx_vectorstore import Document
from pplx_vectorstore.filters import build_filter
from pplx_vectorstore.operations import sizes
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.qdrant.conversion import as_clients
from pplx_vectorstore.query import QueryVector, Ranking, build_query, map_stages

DIMENSION = 64
MIB = 2**20


@pytest.fixture(params=["http", pytest.param("async", marks=pytest.mark.slow)])
def engine(request):
    """Of `new_store`: stores on the server."""
    return request.param


@pytest.fixture
def answers(server):
    """Sizes of the server's answers, by path."""
    seen = {}
    answer = server.answer

    def record(method, path, body):
        status, content = answer(method, path, body)
        seen.setdefault(path.rpartition("/")[2], []).append(len(content))
        return status, content

    server.answer = record
    return seen


@pytest.fixture
def narrow(monkeypatch):
    """A server that takes and gives little at once, so that a little is too much."""
    monkeypatch.setattr(sizes, "_MOST_REQUEST", 64 * 1024)
    monkeypatch.setattr(sizes, "_MOST_ANSWER", 64 * 1024)


def random_codes(n, dimension=DIMENSION):
    return np.random.default_rng(5).integers(-100, 101, size=(n, dimension)).astype(np.int8)


def fill(store, n=60, text="words"):
    codes = random_codes(3 * n)
    store.add(
        Document(id=f"d{i}", chunks=[f"{text} {i} {j}" for j in range(3)], vectors=codes[3 * i : 3 * i + 3])
        for i in range(n)
    )
    return store


SEARCHES = {
    "plain": {},
    "words": {"text": "fällt 🙂 '\"" * 20},
    "filtered": {"filter": build_filter({"lang": ["é" * 9, "b" * 99], "n": {"$gte": 3}})},
    "both": {"text": "words", "filter": build_filter({"ids": [f"{i:032}" for i in range(500)]})},
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("dimension", [8, 384, 2560])
@pytest.mark.parametrize("tenant", [False, True])
def test_the_estimate_is_an_upper_bound(server, name, dimension, tenant):
    vector = QueryVector.of(random_codes(1, dimension)[0], 900**2)
    requests = [
        build_query(vector, Ranking(candidates=100, by_bits=by_bits), k=10, **SEARCHES[name]) for by_bits in (0, 1)
    ]
    if tenant:
        own = models.FieldCondition(key="tenant", match=models.MatchValue(value="acme"))
        requests = [
            map_stages(
                one, lambda stage: stage.model_copy(update={"filter": models.Filter(must=[own, stage.filter or own])})
            )
            for one in requests
        ]
    server.answer = lambda *request: (200, b'{"result": [{"points": []}, {"points": []}], "status": "ok", "time": 0}')
    with contextlib.closing(QdrantClient(url=server.url, check_compatibility=False)) as client:
        client.query_batch_points("c", as_clients(requests))
    estimate = sum(sizes._query_bytes(one, {}) for one in requests)
    assert server.largest_body <= estimate <= 3 * server.largest_body + 4000


def test_a_batch_is_cut_by_its_bytes_and_finds_the_same(new_store, server, monkeypatch):
    store = fill(new_store(DIMENSION))
    queries = list(random_codes(400))
    options = {"k": 3, "filter": {"lang": {"$nin": ["x" * 30] * 20}}}
    expected = store.search_batch(queries, **options)
    server.bodies.clear()
    monkeypatch.setattr(sizes, "_MOST_REQUEST", 64 * 1024)
    assert store.search_batch(queries, **options) == expected
    assert 10 < len(server.bodies) < 50
    assert server.largest_body < 64 * 1024


def test_a_search_that_is_too_large_by_itself_goes_alone(new_store, server, narrow):
    store = fill(new_store(DIMENSION))
    many = {"lang": {"$nin": [f"{i:090}" for i in range(1000)]}}
    assert [len(hits) for hits in store.search_batch(list(random_codes(3)), k=4, filter=many)] == [4, 4, 4]
    assert server.largest_body > 64 * 1024


@pytest.mark.parametrize("options", [{}, {"with_codes": True}, {"diversity": 0.5}, {"group_by_document": 2}], ids=str)
def test_answers_of_searches_are_bounded(new_store, answers, narrow, options):
    store = fill(new_store(DIMENSION), text="long " * 400)
    found = store.search_batch(list(random_codes(40)), k=5, **options)
    assert all(len({hit.document_id for hit in hits}) == 5 or "group_by_document" not in options for hits in found)
    assert {len(hits) >= 5 for hits in found} == {True}
    assert max(answers["batch"]) < 2 * 64 * 1024
    assert len(answers["batch"]) > 2


def test_pages_and_lots_of_ids_are_bounded(new_store, answers, narrow, tmp_path):
    store = fill(new_store(DIMENSION), text="long " * 2000)
    assert store.export_parquet(tmp_path / "file") == 180
    ids = [hit.id for hit in store.search(random_codes(1)[0], k=180)]
    # What comes is expected to be like what came: only the first page could not know.
    pages = answers["scroll"]
    assert max(pages[1:]) < 2 * 64 * 1024
    assert len(pages) > 20
    answers.clear()
    assert len(store.get(ids, with_codes=True)) == 180
    assert max(answers["points"]) < 2 * 64 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_more_than_a_server_takes_is_sent_in_parts(new_store, server, hash_encoder):
    store = new_store(2560)
    codes = random_codes(120, 2560)
    store.add(Document(id=f"d{i}", chunks=["a", "b"], vectors=codes[2 * i : 2 * i + 2]) for i in range(60))
    server.bodies.clear()
    queries = [codes[i % 120] for i in range(2300)]
    found = store.search_batch(queries, k=1)
    assert [hits[0].document_id for hits in found] == [f"d{i % 120 // 2}" for i in range(2300)]
    assert sum(server.bodies) > 16 * MIB > server.largest_body
    server.bodies.clear()
    found = store.search_batch(list(codes[:60]), k=50, candidates=50, group_by_document=2)
    assert {len(hits) for hits in found} == {100}
    assert sum(server.bodies) > 20 * MIB
    assert server.largest_body < 16 * MIB


def test_the_server_itself_takes_no_more(server):
    import httpx

    answer = httpx.post(f"{server.url}/collections/c/points/count", content=b" " * (32 * MIB + 1))
    assert answer.status_code == 400
    assert "larger than allowed (limit: 33554432 bytes)" in answer.json()["status"]["error"]
