"""k documents whenever k match, however many chunks crowd them out; numpy is the oracle, on every engine."""

import itertools
import json
import math

import numpy as np
import pytest

from pplx_vectorstore import Document, VectorStore, cosine_similarity
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.errors import StoreError
from pplx_vectorstore.operations import access, pools
from pplx_vectorstore.operations.access import Limits
from pplx_vectorstore.operations.finding import Scored, SearchOptions

DIMENSION = 64


class Corpus:
    """Documents of chunks, one of which says only what it is.

    Args:
        query: int8, (dimension,): what large documents are near to.
        large: Chunks of each document that crowds the others out: near-identical, and near the query.
        n_small: Documents of two chunks far from it.
    """

    def __init__(self, query, large, n_small, seed=0):
        rng = np.random.default_rng(seed)
        self.query = query
        self.codes, self.places = [], []

        def add(name, rows):
            self.codes.append(rows)
            self.places += [(name, chunk) for chunk in range(len(rows))]

        for number, n in enumerate(large):
            add(f"large{number}", self._near(rng, n, [3, 4, 5, 6, 7][number % 5]))
        for number in range(n_small):
            add(f"small{number}", rng.integers(-100, 101, size=(2, len(query))).astype(np.int8))
        self.codes = np.concatenate(self.codes)

    def _near(self, rng, n, spread):
        rows = self.query.astype(np.int16) + rng.integers(-spread, spread + 1, size=(n, len(self.query)))
        return np.clip(rows, -127, 127).astype(np.int8)

    def fill(self, store):
        rows = {}
        for row, (name, _) in enumerate(self.places):
            rows.setdefault(name, []).append(row)
        store.add(
            Document(
                id=name,
                chunks=[f"word of {name} {i}" for i in range(len(own))],
                vectors=self.codes[own],
                metadata={"even": int(name[-1]) % 2 == 0},
            )
            for name, own in rows.items()
        )
        return store

    def best(self, stored, k, most, *, threshold=-1.0, keep=lambda name: True, query=None):
        """The groups that a search should return: (document, score) of each hit, best first."""
        scores = cosine_similarity(self.query if query is None else query, stored)
        groups = {}
        for row in np.argsort(-scores, kind="stable"):
            name, _ = self.places[row]
            if scores[row] >= threshold and keep(name):
                groups.setdefault(name, []).append((name, scores[row]))
        return [hit for group in list(groups.values())[:k] for hit in group[:most]]


def agree(hits, expected):
    """Compare documents and scores; of chunks at one cosine, to 32 bits, either may come first."""
    assert [hit.document_id for hit in hits] == [name for name, _ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], rtol=0, atol=1e-6)
    assert len({hit.id for hit in hits}) == len(hits)


@pytest.fixture(scope="module")
def query():
    return np.random.default_rng(11).integers(-100, 101, size=DIMENSION).astype(np.int8)


@pytest.fixture(scope="module")
def crowded(query):
    """Three documents of many near-identical chunks beside twelve small ones."""
    return Corpus(query, [300, 260, 220], 12)


@pytest.fixture
def filled(new_store, crowded):
    return crowded.fill(new_store(DIMENSION))


@pytest.mark.parametrize(
    ("engine", "n"),
    [
        ("edge", 7_000),
        pytest.param("edge", 25_000, marks=pytest.mark.slow),
        pytest.param("http", 7_000, marks=pytest.mark.slow),
    ],
    indirect=["engine"],
)
def test_one_document_of_thousands_of_chunks_hides_no_other(new_store, query, as_stored, n):
    corpus = Corpus(query, [n], 12)
    store = corpus.fill(new_store(DIMENSION))
    stored = as_stored(corpus.codes)
    for k in (2, 10, 13):
        agree(store.search(query, k=k, group_by_document=True), corpus.best(stored, k, 1))
    agree(store.search(query, k=20, group_by_document=3), corpus.best(stored, 20, 3))


def test_several_crowd_the_others_out(filled, crowded, as_stored):
    stored = as_stored(crowded.codes)
    for k, most in itertools.product([1, 3, 4, 15, 50], [1, 2, 5, 400]):
        agree(filled.search(crowded.query, k=k, group_by_document=most), crowded.best(stored, k, most))


def test_the_candidates_may_be_as_few_as_the_documents(filled, crowded, as_stored):
    hits = filled.search(crowded.query, k=15, candidates=15, group_by_document=4)
    agree(hits, crowded.best(as_stored(crowded.codes), 15, 4))


def test_with_a_filter(filled, crowded, as_stored):
    hits = filled.search(crowded.query, k=15, group_by_document=2, filter={"even": True})
    expected = crowded.best(as_stored(crowded.codes), 15, 2, keep=lambda name: int(name[-1]) % 2 == 0)
    assert len(expected) == 2 * 8
    agree(hits, expected)


def test_with_a_threshold(filled, crowded, as_stored):
    stored = as_stored(crowded.codes)
    for threshold in (0.95, 0.05, 0.0, -0.3):
        hits = filled.search(crowded.query, k=15, group_by_document=2, score_threshold=threshold)
        expected = crowded.best(stored, 15, 2, threshold=threshold)
        assert min(abs(score - threshold) for _, score in expected) > 1e-6
        agree(hits, expected)


def test_a_batch_of_questions_of_which_only_some_are_crowded(filled, crowded, as_stored):
    stored = as_stored(crowded.codes)
    queries = [crowded.query, crowded.codes[-1], crowded.codes[100], crowded.codes[-9]]
    found = filled.search_batch(queries, k=6, group_by_document=3)
    for one, hits in zip(queries, found, strict=True):
        agree(hits, crowded.best(stored, 6, 3, query=one))


def test_of_a_tenant(new_store, crowded, as_stored):
    own = crowded.fill(new_store(DIMENSION, tenant="one", collection="c"))
    if hasattr(own, "_client") and isinstance(own._client, EdgeClient):
        other = VectorStore(own._client, "c", encoder=own._session.encoder, tenant="other")
    else:
        other = new_store(DIMENSION, tenant="other", collection="c")
    other.add([Document(id=f"x{i}", chunks=["a"] * 3, vectors=crowded.codes[:3]) for i in range(30)])
    agree(own.search(crowded.query, k=15, group_by_document=2), crowded.best(as_stored(crowded.codes), 15, 2))
    assert {hit.document_id[0] for hit in other.search(crowded.query, k=50, group_by_document=True)} == {"x"}


def test_after_deletes(filled, crowded, as_stored):
    filled.delete(document_ids=["large1", "small3", "small4"])
    ids = [hit.id for hit in filled.search(crowded.query, k=150)]
    gone = {(hit.document_id, hit.chunk_index) for hit in filled.get(ids)}
    filled.delete(ids=ids)
    stored = as_stored(crowded.codes)
    left = [
        row
        for row, place in enumerate(crowded.places)
        if place not in gone and place[0] not in ("large1", "small3", "small4")
    ]
    rest = Corpus.__new__(Corpus)
    rest.query, rest.places = crowded.query, [crowded.places[row] for row in left]
    agree(filled.search(crowded.query, k=15, group_by_document=2), rest.best(stored[left], 15, 2))


def test_nothing_matches(filled, crowded):
    assert filled.search(crowded.query, group_by_document=True, filter={"even": "neither"}) == []
    assert filled.search(crowded.query, group_by_document=2, score_threshold=1.0) == []


@pytest.mark.parametrize("engine", ["edge"], indirect=True)
def test_by_bits(new_store, as_stored, monkeypatch):
    """Near-identical chunks have the same bits; the best of a document is found all the same."""
    monkeypatch.setattr(access, "_FULL_SCAN_BYTES", 0)
    query = np.random.default_rng(12).integers(-100, 101, size=1024).astype(np.int8)
    corpus = Corpus(query, [700, 500], 12)
    store = corpus.fill(new_store(1024))
    store.optimize()
    assert store.explain(query, k=10).way == "bits"
    for k, most in [(2, 1), (14, 1), (14, 2), (30, 5)]:
        agree(store.search(query, k=k, group_by_document=most), corpus.best(as_stored(corpus.codes), k, most))


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_walk_through_the_graph_may_end_too_early(new_store, server, crowded, as_stored):
    """As it does on Qdrant's engine where most of what it leads through is deleted or filtered out."""
    store = crowded.fill(new_store(DIMENSION))
    answer = server.answer
    early = []

    def end_early(method, path, body):
        status, content = answer(method, path, body)
        if path.endswith("/query/batch"):
            searches, result = json.loads(body)["searches"], json.loads(content)
            for search, found in zip(searches, result["result"], strict=True):
                if "must_not" in (search.get("filter") or {}) and not search["params"]["exact"]:
                    early.append(len(found["points"]))
                    found["points"] = found["points"][:1]
            content = json.dumps(result).encode()
        return status, content

    server.answer = end_early
    expected = crowded.best(as_stored(crowded.codes), 15, 2)
    agree(store.search(crowded.query, k=15, group_by_document=2), expected)
    assert max(early) > 1
    hits = store.search(crowded.query, k=15, group_by_document=2, diversity=0.3)
    assert len({hit.document_id for hit in hits}) == 15


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["edge"], indirect=True)
def test_a_large_graph_of_which_much_is_deleted(new_store):
    query = np.random.default_rng(3).integers(-100, 101, size=2560).astype(np.int8)
    corpus = Corpus(query, [300] * 40, 40)
    store = corpus.fill(new_store(2560))
    store.optimize()
    store.delete(document_ids=[f"large{i}" for i in range(20)])
    for more in (0, 1, 5, 10, 20, 40):
        hits = store.search(query, k=60 + more, candidates=60 + more, group_by_document=True)
        assert len({hit.document_id for hit in hits}) == len(hits) == 60


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_server_that_lets_few_documents_be_passed_by(new_store, server, crowded, as_stored):
    server.strict_mode = {"enabled": True, "condition_max_size": 2, "filter_max_conditions": 3, "max_query_limit": 60}
    store = crowded.fill(new_store(DIMENSION))
    agree(store.search(crowded.query, k=15, group_by_document=2), crowded.best(as_stored(crowded.codes), 15, 2))
    server.strict_mode["filter_max_conditions"] = 2  # and one is the tenant's
    store = VectorStore.connect(server.url, collection=store._session.points.collection, encoder=store._session.encoder)
    with pytest.raises(StoreError, match=r"3 documents fill all 60 candidates, .* ask for fewer than k=15 documents"):
        store.search(crowded.query, k=15, candidates=60, group_by_document=2)
    store.close()


# --- diversity, and words ------------------------------------------------------------------------------


@pytest.mark.parametrize("diversity", [0, 0.3, 1])
def test_diversity_chooses_among_as_many_documents(filled, crowded, as_stored, diversity):
    stored = as_stored(crowded.codes)
    hits = filled.search(crowded.query, k=15, group_by_document=2, diversity=diversity)
    names = [hit.document_id for hit in hits]
    assert sorted(names) == sorted(name for name, _ in crowded.best(stored, 15, 2))
    assert len({hit.id for hit in hits}) == 30
    assert names == [name for name in dict.fromkeys(names) for _ in range(2)], "those of a document stand together"
    if diversity == 0:
        agree(hits, crowded.best(stored, 15, 2))
    rows = [crowded.places.index((hit.document_id, hit.chunk_index)) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], cosine_similarity(crowded.query, stored)[rows], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"lexical_weight": 0.2}, {"lexical_weight": 1}, {"diversity": 0.3}], ids=str)
def test_hybrid_finds_as_many_documents_with_scores_that_go_on_falling(filled, crowded, options):
    options = {"hybrid": True, "group_by_document": 2, **options}
    hits = filled.search("word of large0", k=15, **options)
    names = [hit.document_id for hit in hits]
    assert sorted(names) == sorted(2 * sorted(set(names)))
    assert len(set(names)) == 15
    assert len({hit.id for hit in hits}) == 30
    assert all(hit.score > 0 and math.isfinite(hit.score) for hit in hits)
    if "diversity" not in options:
        best = [hit.score for hit in hits[::2]]
        assert best == sorted(best, reverse=True)
        assert all(first.score >= second.score for first, second in zip(hits[::2], hits[1::2], strict=True))
        for least in best[2:12:3]:
            kept = filled.search("word of large0", k=15, score_threshold=least, **options)
            assert min(hit.score for hit in kept) >= least


def test_a_pool_of_many_rounds_stays_as_small_as_one_search():
    """Each choice by diversity costs a pass over it."""
    options = SearchOptions(k=10, group_by_document=1, diversity=0.5)
    pool = pools.Pool()
    for number in range(9):
        found = [
            Scored(f"{number} {i}", 0.9 - number / 100 - i / 1e5, {"document_id": f"d{number}"}, None)
            for i in range(100)
        ]
        assert pools.add_to(pool, found, options, 100, Limits())
    assert len(pool.points) == 90
    assert [len(points) for points in pool.documents.values()] == [10] * 9
    assert [point.id for point in pool.documents["d3"]] == [f"3 {i}" for i in range(10)]


# --- while others write --------------------------------------------------------------------------------


class Deleting(EdgeClient):
    """The embedded engine, with another who deletes what was just found, before it is read."""

    deletions = ()

    def retrieve(self, collection_name, ids, **options):
        if self.deletions:
            name, *self.deletions = self.deletions
            self.store.delete(document_ids=[name])
        return super().retrieve(collection_name, ids, **options)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_what_is_deleted_meanwhile_leaves_no_gap(folder, hash_encoder, crowded, as_stored, n):
    with Deleting(folder / "index") as client:
        store = crowded.fill(VectorStore(client, encoder=hash_encoder(DIMENSION)))
        expected = [name for name, _ in crowded.best(as_stored(crowded.codes), 15, 1)]
        client.store = store
        client.deletions = expected[:n]
        hits = [hit.document_id for hit in store.search(crowded.query, k=4, group_by_document=True)]
        if n < 3:
            assert hits == expected[n : n + 4]
        else:  # it is not searched for ever
            assert hits == expected[3:6]
