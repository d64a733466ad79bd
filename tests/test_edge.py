"""What only the embedded engine does: ranking by bits, indexing, folders, locks, translated filters.

The same store on both engines is in test_store.py, killed processes are in test_crash.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from pplx_vectorstore import (
    Chunk,
    Document,
    VectorStore,
    cosine_similarity,
    equalize_norms,
    hamming_distance,
    pack_bits,
)
from pplx_vectorstore.collection import SCHEMA_VERSION, VECTOR_NAME, CollectionConfig
from pplx_vectorstore.engines import shard, shard_files
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.errors import (
    InvalidInputError,
    SchemaMismatchError,
    StoreClosedError,
    StoreError,
    StoreNotFoundError,
    StoreReadOnlyError,
    UnsupportedFilterError,
)
from pplx_vectorstore.operations import access


def new_folder():
    """A new folder, in memory where that is possible: the engine syncs files to disk all the time."""
    in_memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=in_memory if os.access(in_memory, os.W_OK) else None)


@pytest.fixture
def folder():
    with new_folder() as path:
        yield Path(path) / "index"


@pytest.fixture
def rng():
    return np.random.default_rng(20240612)


def clustered_codes(rng, n, dimension, norm_spread=0.0):
    """Codes as a tanh-quantized model gives them, around shared centres, about 30 to a cluster.

    Args:
        norm_spread: Standard deviation of the logarithm of the floats' lengths.
    """
    centres = np.random.default_rng(dimension).normal(size=(100, dimension))
    vectors = centres[rng.integers(100, size=n)] + 0.5 * rng.normal(size=(n, dimension))
    vectors *= np.exp(norm_spread * rng.normal(size=(n, 1)))
    return np.rint(np.tanh(0.4 * vectors) * 127).astype(np.int8)


def distances_by_bits(query, codes, query_encoding):
    """The first stage's distances by brute force, and by how much the engine's may be off."""
    if query_encoding == "binary":
        return hamming_distance(pack_bits(query), pack_bits(codes)), 0.0
    # A differing bit counts as much as the query's component, of which the engine keeps 8 bits; it takes the bits of
    # value - 127, and the query alike.
    weights = np.abs(query.astype(float) + 1)
    return ((codes >= 0) != (query >= 0)) @ weights, weights.max() / 127 * np.sqrt(len(query))


class Indexed:
    """A store next to the codes that it should hold; row i is the chunk of id ``c<i>``."""

    def __init__(self, folder, encoder, config=None):
        self.folder, self.encoder = folder, encoder
        self.store = VectorStore.open(folder, encoder=encoder, config=config)
        self.codes = np.zeros((0, encoder.spec.dimension), np.int8)

    @property
    def stored(self):
        """The codes as they are ranked by."""
        return equalize_norms(self.codes, self.encoder.spec.squared_norm)

    def add(self, codes):
        first = len(self.codes)
        self.codes = np.concatenate([self.codes, codes])
        self.write(range(first, len(self.codes)))

    def write(self, rows):
        self.store.add(
            Document(id=f"d{i}", chunks=[Chunk(text="x", id=f"c{i}")], vectors=self.codes[i : i + 1]) for i in rows
        )

    def replace(self, rows, codes):
        self.codes[rows] = codes
        self.write(rows)

    def reopen(self):
        self.store.close()
        self.store = VectorStore.open(self.folder, encoder=self.encoder)

    def rows(self, query, **options):
        return [int(hit.id[1:]) for hit in self.store.search(query, **options)]

    def recall(self, queries, k=10, gone=(), **options):
        """Share of the k best that were found; any choice among equal scores is right."""
        found = 0
        all_scores = cosine_similarity(queries, self.stored)
        all_scores[:, list(gone)] = -2
        for query, scores in zip(queries, all_scores, strict=True):
            least = np.sort(scores)[-k]
            rows = self.rows(query, k=k, **options)
            assert len(set(rows)) == len(rows) == k
            found += int((scores[rows] >= least - 1e-6).sum())
        return found / (k * len(queries))

    def assert_found(self, rows):
        """Each is the best hit for its own codes, even with few candidates."""
        for row in rows:
            (best,) = self.rows(self.codes[row], k=1, candidates=10)
            assert np.array_equal(self.codes[best], self.codes[row]), row


@pytest.fixture
def by_bits(monkeypatch):
    """Search what is indexed by the bits, as where the codes are too many for memory."""
    monkeypatch.setattr(access, "_CACHED_BYTES", 0)
    monkeypatch.setattr(access, "_FULL_SCAN_BYTES", 0)


@pytest.fixture(params=["64 by codes", pytest.param("384 by codes", marks=pytest.mark.slow), "384 by bits"])
def indexed(request, folder, hash_encoder):
    dimension, _, way = request.param.split()
    if way == "bits":
        request.getfixturevalue("by_bits")
    made = Indexed(folder, hash_encoder(int(dimension)))
    yield made
    made.store.close()


@pytest.fixture
def indexed_by_bits(by_bits, folder, hash_encoder):
    made = Indexed(folder, hash_encoder(384))
    yield made
    made.store.close()


def similar(rng, codes, n):
    """Queries close to some of the codes, as questions are to chunks."""
    chosen = codes[rng.integers(len(codes), size=n)].astype(int)
    return np.clip(chosen + rng.integers(-25, 26, size=chosen.shape), -128, 127).astype(np.int8)


def wait_for_the_index(store):
    while (indexing := shard_of(store)._indexing) is not None:
        assert indexing.ended.wait(60)
        assert indexing.error is None


def shard_of(store):
    return store._client._shard("documents")


# --- recall in every state -----------------------------------------------------------------------------
#
# In a segment that is not indexed the engine's bits are all 1, and ranking by them is arbitrary. What
# follows would find it out: recall would be candidates / points.


def test_recall_from_the_first_add_to_a_reopened_index(indexed, rng):
    codes = clustered_codes(rng, 3000, indexed.codes.shape[1])
    queries = similar(rng, codes, 40)
    sample = range(0, 3000, 60)

    indexed.add(codes)
    assert indexed.recall(queries) >= 0.97
    indexed.assert_found(sample)
    indexed.store.optimize()
    assert indexed.recall(queries) >= 0.97
    indexed.assert_found(sample)
    indexed.reopen()
    assert indexed.recall(queries) >= 0.97
    indexed.assert_found(sample)


@pytest.mark.parametrize("n_new", [1, pytest.param(3, marks=pytest.mark.slow), 50])
def test_points_written_after_indexing_are_found(indexed, rng, n_new):
    dimension = indexed.codes.shape[1]
    indexed.add(clustered_codes(rng, 2000, dimension))
    indexed.store.optimize()
    for _ in range(3):  # the second and third round find leftovers of the one before
        indexed.add(clustered_codes(rng, n_new, dimension))
        new = range(len(indexed.codes) - n_new, len(indexed.codes))
        queries = np.concatenate([similar(rng, indexed.codes, 20), similar(rng, indexed.codes[new], 5)])
        for _ in range(2):
            indexed.assert_found(new)
            assert indexed.recall(queries) >= 0.97
            # Few candidates, and more of them than there are new points, and fewer.
            for candidates in sorted({1, n_new, n_new + 1, n_new + 20}):
                for row in [*new][:10]:
                    (best,) = indexed.rows(indexed.codes[row], k=1, candidates=candidates)
                    assert np.array_equal(indexed.codes[best], indexed.codes[row])
            indexed.store.optimize()


@pytest.mark.parametrize("ending", ["clean", "killed"])
def test_points_written_after_indexing_are_found_after_reopening(indexed, rng, ending):
    dimension = indexed.codes.shape[1]
    indexed.add(clustered_codes(rng, 2000, dimension))
    indexed.store.optimize()
    indexed.add(clustered_codes(rng, 30, dimension))
    queries = similar(rng, indexed.codes, 30)
    indexed.store.close()
    if ending == "killed":
        (indexed.folder / "documents" / "unindexed").unlink()  # written on closing
    indexed.store = VectorStore.open(indexed.folder, encoder=indexed.encoder)
    indexed.assert_found([*range(0, 2000, 100), *range(2000, 2030)])
    assert indexed.recall(queries) >= 0.97
    indexed.add(clustered_codes(rng, 3, dimension))
    indexed.assert_found(range(2000, 2033))
    assert indexed.recall(queries) >= 0.97


def test_updated_points_are_found_by_their_new_codes(indexed, rng):
    dimension = indexed.codes.shape[1]
    indexed.add(clustered_codes(rng, 2000, dimension))
    indexed.store.optimize()
    for n_updated in (1, 40, 300):
        rows = rng.choice(2000, size=n_updated, replace=False)
        old = indexed.codes[rows].copy()
        indexed.replace(rows, clustered_codes(rng, n_updated, dimension))
        for _ in range(2):
            indexed.assert_found(rows[:60])
            assert indexed.recall(np.concatenate([old[:20], similar(rng, indexed.codes, 20)])) >= 0.97
            assert indexed.store.count() == 2000
            indexed.store.optimize()


def test_deleted_points_are_gone_and_the_others_are_found(indexed, rng):
    indexed.add(clustered_codes(rng, 2000, indexed.codes.shape[1]))
    indexed.store.optimize()
    gone = rng.choice(2000, size=900, replace=False)
    assert indexed.store.delete(ids=[f"c{i}" for i in gone]) == 900
    kept = sorted(set(range(2000)) - set(gone.tolist()))
    queries = np.concatenate([similar(rng, indexed.codes, 20), indexed.codes[gone[:10]]])
    for _ in range(2):
        indexed.assert_found(kept[::40])
        assert indexed.recall(queries, gone=gone) >= 0.97
        indexed.store.optimize()
    indexed.reopen()
    assert indexed.recall(queries, gone=gone) >= 0.97


def test_filtered_search_is_as_good_as_both_stages_in_numpy(indexed, rng):
    codes = indexed.codes = clustered_codes(rng, 2400, indexed.codes.shape[1])
    queries = similar(rng, codes, 30)
    documents = [
        Document(id=f"d{i}", chunks=[Chunk(text="x", id=f"c{i}")], metadata={"part": i % 4}, vectors=codes[i : i + 1])
        for i in range(2400)
    ]
    indexed.store.add(documents[:2300])
    indexed.store.optimize()
    indexed.store.add(documents[2300:])
    kept = np.arange(2, 2400, 4)
    others = sorted(set(range(2400)) - set(kept.tolist()))
    best = 0
    stored = indexed.stored[kept]
    for query in queries:
        scores = cosine_similarity(query, stored)
        nearest = np.argsort(hamming_distance(pack_bits(query), pack_bits(stored)), kind="stable")[:100]
        best += int((scores[nearest] >= np.sort(scores)[-10] - 1e-6).sum())
    for _ in range(2):
        assert indexed.recall(queries, gone=others, filter={"part": 2}) >= best / 300 - 0.02
        assert indexed.recall(queries, gone=others, filter={"part": 2}, candidates=400) >= 0.97
        indexed.store.optimize()


@pytest.mark.parametrize("norm_spread", [0.2, 0.5])
def test_search_before_indexing_is_as_good_as_after_where_norms_differ(indexed, rng, norm_spread):
    """Without usable bits Euclid ranks, which is the cosine's order however the model's own norms differ."""
    codes = clustered_codes(rng, 3000, indexed.codes.shape[1], norm_spread)
    queries = similar(rng, codes, 40)
    indexed.add(codes)
    before = indexed.recall(queries)
    indexed.store.optimize()
    after = indexed.recall(queries)
    assert after >= 0.97
    assert before >= max(0.99, after)


def test_indexing_leaves_at_most_what_the_shard_believes(indexed, rng):
    dimension = indexed.codes.shape[1]
    indexed.add(clustered_codes(rng, 500, dimension))
    for n_new in (0, 1, 5, 17, 3, 60, 2, 2, 2, 2):
        if n_new:
            indexed.add(clustered_codes(rng, n_new, dimension))
        indexed.store.optimize()
        info = indexed.store._client.get_collection("documents")
        assert info.points_count == len(indexed.codes)
        unindexed = info.points_count - info.indexed_vectors_count
        assert unindexed <= shard_of(indexed.store)._unindexed <= shard_of(indexed.store)._leftover


def test_a_large_load_is_indexed_while_it_is_written(folder, hash_encoder, rng, monkeypatch):
    monkeypatch.setattr(shard, "_WALKED_BYTES", 500 * 64)
    loaded = Indexed(folder, hash_encoder(64))
    loaded.add(clustered_codes(rng, 3000, 64))
    wait_for_the_index(loaded.store)
    assert loaded.store._client.get_collection("documents").indexed_vectors_count > 0
    queries = similar(rng, loaded.codes, 20)
    loaded.assert_found(range(0, 3000, 100))
    assert loaded.recall(queries) >= 0.97
    loaded.store.close()


def test_closing_leaves_what_is_not_indexed_to_an_opening_that_rests(indexed, rng, monkeypatch):
    n_before = shard_of(indexed.store)._unindexed
    indexed.add(clustered_codes(rng, 1000, indexed.codes.shape[1]))
    indexed.reopen()
    assert shard_of(indexed.store)._unindexed == n_before + 1000
    assert indexed.recall(similar(rng, indexed.codes, 20)) >= 0.97
    monkeypatch.setattr(shard, "_WALKED_BYTES", 500 * 64)
    monkeypatch.setattr(shard, "_SECONDS_AT_REST", 0.1)
    deadline = time.monotonic() + 60
    while shard_of(indexed.store)._unindexed > shard_of(indexed.store)._leftover:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert indexed.store._client.get_collection("documents").indexed_vectors_count > len(indexed.codes) - 20
    assert indexed.recall(similar(rng, indexed.codes, 20)) >= 0.97


def test_closing_after_a_small_write_does_not_forget_that_the_rest_is_indexed(indexed, rng):
    dimension = indexed.codes.shape[1]
    indexed.add(clustered_codes(rng, 2000, dimension))
    indexed.store.optimize()
    indexed.add(clustered_codes(rng, 2, dimension))
    indexed.reopen()
    info = indexed.store._client.get_collection("documents")
    actually = info.points_count - info.indexed_vectors_count
    assert actually <= 2 + shard_of(indexed.store)._leftover
    # Otherwise every search until the next large write ignores the bits of the whole index.
    assert shard_of(indexed.store)._unindexed < 100


# --- by the bits or by the codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [384, 1024])
@pytest.mark.parametrize("query_encoding", ["scalar8bits", "binary"])
def test_an_indexed_search_by_bits_ranks_by_hamming_distance_then_by_cosine(
    by_bits, folder, hash_encoder, rng, dimension, query_encoding
):
    store = Indexed(folder, hash_encoder(dimension), CollectionConfig(query_encoding=query_encoding))
    codes = np.clip(rng.normal(scale=60, size=(1500, dimension)), -127, 127).astype(np.int8)
    store.add(codes)
    store.store.optimize()
    stored = store.stored
    k, same, by_cosine = 20, 0, 0
    for query in similar(rng, codes, 30):
        hits = store.store.search(query, k=k, candidates=k)
        rows = [int(hit.id[1:]) for hit in hits]
        distances, unsure = distances_by_bits(query, stored, query_encoding)
        scores = cosine_similarity(query, stored)
        same += max(distances[rows]) <= sorted(distances)[k - 1] + unsure
        by_cosine += sorted(scores[rows]) == sorted(scores)[-k:]
        np.testing.assert_allclose([hit.score for hit in hits], scores[rows], rtol=0, atol=1e-6)
        assert rows == sorted(rows, key=lambda row: -scores[row])
    assert same >= 28  # the graph may miss one
    assert by_cosine <= 2  # so it was not the codes that chose them
    store.store.close()


def test_more_candidates_find_more(indexed_by_bits, rng):
    indexed = indexed_by_bits
    indexed.add(np.clip(rng.normal(scale=60, size=(2000, 384)), -127, 127).astype(np.int8))
    indexed.store.optimize()
    queries = similar(rng, indexed.codes, 40)
    few, many, everything = (indexed.recall(queries, candidates=n) for n in (20, 300, 2000))
    assert few < many - 0.1
    assert many <= everything == 1.0


def test_few_codes_are_searched_by_themselves(folder, hash_encoder, rng):
    store = Indexed(folder, hash_encoder(384))
    store.add(np.clip(rng.normal(scale=60, size=(2000, 384)), -127, 127).astype(np.int8))
    store.store.optimize()
    queries = similar(rng, store.codes, 40)
    assert {store.store.explain(query).way for query in queries} == {"codes"}
    # A narrow beam along the codes finds what as many candidates by the bits miss.
    assert store.recall(queries, candidates=20) >= 0.9
    store.store.close()


def test_the_bits_are_used_once_no_more_points_lack_them_than_there_are_candidates(indexed_by_bits, rng):
    store = indexed_by_bits.store
    indexed_by_bits.add(clustered_codes(rng, 1000, 384))
    query = indexed_by_bits.codes[0]

    def coverage():
        return tuple(store._client.coverage("documents"))[:2]

    def way(candidates):
        return store.explain(query, k=1, candidates=candidates).way

    assert coverage() == (1000, 1000)
    assert (way(999), way(1000)) == ("codes", "bits")
    store.optimize()
    points, unindexed = coverage()
    assert points == 1000
    assert unindexed <= shard_of(store)._leftover
    assert way(max(1, unindexed)) == "bits"
    indexed_by_bits.add(clustered_codes(rng, 150, 384))
    points, more = coverage()
    assert (points, more) == (1150, unindexed + 150)
    assert (way(more - 1), way(more)) == ("codes", "bits")
    # A change of the payload moves points out of the indexed segment.
    documents = [
        Document(id=f"d{i}", chunks=[Chunk(text="x", id=f"c{i}")], vectors=indexed_by_bits.codes[i : i + 1])
        for i in range(200)
    ]
    store.sync([replace(document, metadata={"label": "new"}) for document in documents])
    assert coverage() == (1150, more + 200)
    store.delete(ids=["c1"])  # upper bounds may stay
    points, unindexed = coverage()
    assert points >= 1149
    assert unindexed >= more + 199


# --- folders and locks ---------------------------------------------------------------------------------


def make_index(folder, encoder):
    with VectorStore.open(folder, encoder=encoder) as store:
        store.add([Document(id="d", chunks=["a", "b"])])


def settings_of(folder):
    return folder / "documents" / "collection.json"


def test_opening_creates_the_folder_with_its_parents(folder, hash_encoder):
    deep = folder / "one" / "two"
    make_index(deep, hash_encoder())
    assert settings_of(deep).is_file()
    with VectorStore.open(str(deep), encoder=hash_encoder(), create=False) as store:
        assert store.count() == 2


def test_opening_without_create_leaves_nothing_behind(folder, hash_encoder):
    with pytest.raises(StoreNotFoundError, match="no collection 'documents'"):
        VectorStore.open(folder, encoder=hash_encoder(), create=False)
    assert not folder.exists()
    make_index(folder, hash_encoder())
    with pytest.raises(StoreNotFoundError, match="no collection 'others'"):
        VectorStore.open(folder, encoder=hash_encoder(), collection="others", create=False)
    assert [path.name for path in folder.iterdir()] == ["documents"]


def test_collections_of_one_folder_are_apart(folder, hash_encoder):
    with (
        VectorStore.open(folder, encoder=hash_encoder(), collection="one") as one,
        VectorStore.open(folder, encoder=hash_encoder(32, name="other"), collection="two") as two,
    ):
        one.add([Document(id="d", chunks=["a"])])
        two.add([Document(id="d", chunks=["b", "c"])])
        assert (one.count(), two.count()) == (1, 2)
    assert EdgeClient(folder).collection_names() == ["one", "two"]


def test_a_folder_of_other_things_is_not_an_index(folder, hash_encoder):
    folder.mkdir()
    (folder / "thesis.docx").write_text("x")
    with pytest.raises(StoreNotFoundError, match=r"not an index: it holds 'thesis\.docx'"):
        VectorStore.open(folder, encoder=hash_encoder())
    assert [path.name for path in folder.iterdir()] == ["thesis.docx"]
    (folder / "thesis.docx").unlink()
    (folder / "photos").mkdir()
    with pytest.raises(StoreNotFoundError, match="it holds 'photos'"):
        VectorStore.open(folder, encoder=hash_encoder())


def test_hidden_files_do_not_matter(folder, hash_encoder):
    folder.mkdir()
    (folder / ".gitignore").write_text("*")
    make_index(folder, hash_encoder())
    with VectorStore.open(folder, encoder=hash_encoder()) as store:
        assert store.count() == 2


def test_a_file_is_not_an_index(folder, hash_encoder):
    folder.write_text("x")
    with pytest.raises(StoreNotFoundError, match="is a file; an index is a folder"):
        VectorStore.open(folder, encoder=hash_encoder())
    assert folder.read_text() == "x"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "-a", "a b", "x" * 129, "ä", 3, None])
def test_names_that_are_no_file_names_are_refused(folder, hash_encoder, name):
    with pytest.raises(InvalidInputError, match="a collection's name must be"):
        VectorStore.open(folder, encoder=hash_encoder(), collection=name)
    assert not folder.exists()


def test_a_killed_process_leaves_no_lock_and_loses_nothing(folder, hash_encoder, tests_folder):
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from hash_encoder import make_encoder\n"
        "from pplx_vectorstore import Document, VectorStore\n"
        "store = VectorStore.open(sys.argv[2], encoder=make_encoder())\n"
        "store.add(Document(id=f'{i}', chunks=[f'{i}']) for i in range(600))\n"
        "store.optimize()\n"
        "store.add(Document(id=f'{i}', chunks=[f'{i}']) for i in range(590, 740))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tests_folder), str(folder)], timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL
    with VectorStore.open(folder, encoder=hash_encoder()) as store:
        assert store.count() == 740
        # 20 candidates are more than the index may lack, and fewer than what it lacks here.
        for i, candidates in [(i, n) for i in (*range(0, 590, 20), *range(590, 740)) for n in (10, 20)]:
            (hit,) = store.search(f"{i}", k=1, candidates=candidates)
            assert (hit.text, hit.score) == (f"{i}", pytest.approx(1, abs=1e-6))


@pytest.mark.parametrize(
    "damage",
    ["", "{", '{"vectors": {', "null", "[]", "{}", '{"vectors": null}', "\0\0\0"],
)
def test_damaged_settings_are_told_apart_from_a_new_index(folder, hash_encoder, damage):
    make_index(folder, hash_encoder())
    settings_of(folder).write_text(damage)
    with pytest.raises(StoreError, match=r"collection\.json is damaged .*new folder"):
        VectorStore.open(folder, encoder=hash_encoder())
    assert settings_of(folder).read_text() == damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda settings: settings.pop("metadata"),
        lambda settings: settings.update(metadata=None),
        lambda settings: settings.update(metadata=[]),
        lambda settings: settings.update(vectors={}),
        lambda settings: settings.update(vectors={"codes": {}}),
        lambda settings: settings.update(vectors={"codes": None}),
        lambda settings: settings["metadata"]["pplx_vectorstore"].pop("dimension"),
        lambda settings: settings["metadata"].update(pplx_vectorstore=3),
    ],
    ids=["no metadata", "null", "list", "no vectors", "no size", "vector null", "no dimension", "no fingerprint"],
)
def test_altered_settings_raise_an_error_of_ours(folder, hash_encoder, damage):
    make_index(folder, hash_encoder())
    altered = json.loads(settings_of(folder).read_text())
    damage(altered)
    settings_of(folder).write_text(json.dumps(altered))
    with pytest.raises(StoreError):
        VectorStore.open(folder, encoder=hash_encoder())


def test_a_missing_shard_is_an_error_and_not_an_empty_index(folder, hash_encoder):
    make_index(folder, hash_encoder())
    shutil.rmtree(folder / "documents" / "shard")
    with pytest.raises(StoreError, match="put a copy of it back, or index into a new folder"):
        VectorStore.open(folder, encoder=hash_encoder())


def test_another_schema_version_is_refused(folder, hash_encoder):
    make_index(folder, hash_encoder())
    altered = json.loads(settings_of(folder).read_text())
    altered["metadata"]["pplx_vectorstore"] |= {"schema": SCHEMA_VERSION + 1, "library": "9.9"}
    settings_of(folder).write_text(json.dumps(altered))
    with pytest.raises(SchemaMismatchError, match=rf"schema version {SCHEMA_VERSION + 1}.*pplx-vectorstore 9\.9"):
        VectorStore.open(folder, encoder=hash_encoder())


def test_every_difference_to_the_collections_model_is_named(folder, hash_encoder):
    make_index(folder, hash_encoder())
    other = hash_encoder(32, name="other", revision="2")
    other.fingerprint = replace(
        other.fingerprint, quantizer="tanh", window_tokens=1024, min_context=1, context_weight=0.5, source="elsewhere"
    )
    with pytest.raises(SchemaMismatchError) as raised:
        VectorStore.open(folder, encoder=other)
    for difference in (
        "model 'hash-encoder' in the collection, 'other' given",
        "revision '1' in the collection, '2' given",
        "dimension 64 in the collection, 32 given",
        "quantizer 'norm' in the collection, 'tanh' given",
        "window_tokens 512 in the collection, 1024 given",
        "min_context 64 in the collection, 1 given",
        "context_weight 1.0 in the collection, 0.5 given",
    ):
        assert difference in str(raised.value)
    assert "elsewhere" not in str(raised.value)
    with VectorStore.open(folder, encoder=hash_encoder()) as store:  # the refused one left no lock
        assert store.count() == 2


def test_a_model_that_only_moved_is_the_same(folder, hash_encoder):
    make_index(folder, hash_encoder())
    moved = hash_encoder()
    moved.fingerprint = replace(moved.fingerprint, source="/elsewhere")
    with VectorStore.open(folder, encoder=moved) as store:
        assert store.count() == 2


def test_a_creation_cut_short_is_cleaned_up(folder, hash_encoder):
    for name in (".creating-old", ".creating-other-process"):
        (folder / name / "shard").mkdir(parents=True)
    os.utime(folder / ".creating-old", (0, 0))
    make_index(folder, hash_encoder())
    # The younger one may be of a process that is creating a collection right now.
    assert sorted(path.name for path in folder.iterdir()) == [".creating-other-process", "documents"]
    assert EdgeClient(folder).collection_names() == ["documents"]


def test_a_collection_appears_whole_or_not_at_all(folder, hash_encoder, monkeypatch):
    def fail(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StoreError, match="no space left"):
        VectorStore.open(folder, encoder=hash_encoder())
    monkeypatch.undo()
    assert list(folder.iterdir()) == []
    make_index(folder, hash_encoder())


def test_payload_indexes_missing_after_a_kill_are_made_on_opening(folder, hash_encoder):
    encoder = hash_encoder()
    from pplx_vectorstore.collection import PAYLOAD_INDEXES, vector_params

    with EdgeClient(folder) as client:  # what a process leaves that is killed right after create_collection
        client.create_collection(
            "documents", vectors_config=vector_params(64), metadata=encoder.fingerprint.to_metadata()
        )
    with VectorStore.open(folder, encoder=encoder) as store:
        assert set(store._client.get_collection("documents").payload_schema) >= set(PAYLOAD_INDEXES)


# --- filters: the same points as QdrantClient(":memory:") ----------------------------------------------

VALUES = [0, 1, 2, -1, 7, "x", "y", "1", "", True, False, 0.5, 1.0, 2.5, None, [], ["x"], ["x", "y"], [1, 2], [True]]
OBJECTS = [{"p": 1, "q": "x"}, {"p": 2, "q": "x"}, {"p": 1, "q": "y"}, {"p": 2}, {}]
N_POINTS = 120


def payloads():
    rng = np.random.default_rng(5)

    def choose(options):
        return options[rng.integers(len(options))]

    for _ in range(N_POINTS):
        payload = {key: choose(VALUES) for key in ("a", "b", "c.d") if rng.random() < 0.8}
        payload["n"] = {"a": choose(VALUES)} if rng.random() < 0.5 else choose(VALUES)
        if rng.random() < 0.7:
            payload["objects"] = [choose(OBJECTS) for _ in range(rng.integers(3))]
        payload["rank"] = float(rng.integers(10)) / 2
        yield payload


def point_id(i):
    return f"00000000-0000-4000-8000-{i:012d}"


@pytest.fixture(scope="module")
def both_clients():
    points = [
        models.PointStruct(id=point_id(i), vector={VECTOR_NAME: [i % 256, 1]}, payload=payload)
        for i, payload in enumerate(payloads())
    ]
    params = {VECTOR_NAME: models.VectorParams(size=2, distance="Euclid", datatype="uint8")}
    with new_folder() as path:
        embedded = EdgeClient(Path(path) / "index")
        memory = QdrantClient(":memory:")
        embedded.create_collection("c", vectors_config=params, metadata={})
        memory.create_collection("c", vectors_config=params)
        for client in (embedded, memory):
            client.upsert("c", points=points)
        yield embedded, memory
        embedded.close()
        memory.close()


KEYS = st.sampled_from(["a", "b", '"c.d"', "n.a", "objects[].p", "objects[].q", "rank", "absent"])
EQUALS = st.sampled_from([0, 1, 2, 7, "x", "y", "1", "", True, False]).map(lambda value: models.MatchValue(value=value))
MATCHES = st.one_of(
    EQUALS,
    EQUALS,
    st.lists(st.sampled_from(["x", "y", "1"]), min_size=1, max_size=3).map(lambda some: models.MatchAny(any=some)),
    st.lists(st.sampled_from([0, 1, 2, 7]), min_size=1, max_size=3).map(lambda some: models.MatchAny(any=some)),
    st.lists(st.sampled_from(["x", "y"]), min_size=1, max_size=2).map(
        lambda some: models.MatchExcept(**{"except": some})
    ),
    st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=2).map(
        lambda some: models.MatchExcept(**{"except": some})
    ),
)
BOUNDS = st.none() | st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 2.5])
RANGES = st.builds(models.Range, gte=BOUNDS, gt=BOUNDS, lte=BOUNDS, lt=BOUNDS)
INNER = st.builds(
    models.Filter,
    must=st.lists(
        st.one_of(
            st.builds(models.FieldCondition, key=st.sampled_from(["p", "q"]), match=MATCHES),
            st.builds(models.FieldCondition, key=st.just("p"), range=RANGES),
        ),
        min_size=1,
        max_size=2,
    ),
)
LEAVES = st.one_of(
    st.builds(models.FieldCondition, key=KEYS, match=MATCHES),
    st.builds(models.FieldCondition, key=KEYS, match=EQUALS),
    st.builds(models.FieldCondition, key=KEYS, range=RANGES),
    KEYS.map(lambda key: models.IsEmptyCondition(is_empty=models.PayloadField(key=key))),
    KEYS.map(lambda key: models.IsNullCondition(is_null=models.PayloadField(key=key))),
    st.lists(st.integers(0, N_POINTS + 5).map(point_id), max_size=40).map(
        lambda ids: models.HasIdCondition(has_id=ids)
    ),
    INNER.map(lambda inner: models.NestedCondition(nested=models.Nested(key="objects", filter=inner))),
)


def filters_over(conditions):
    """Filters of one or two clauses; with more, hardly any point would be left to compare."""
    some = st.lists(conditions, min_size=1, max_size=3)
    # The engine mistakes a min_count above the number of conditions where another clause has ids.
    at_least = some.flatmap(
        lambda chosen: st.builds(models.MinShould, conditions=st.just(chosen), min_count=st.integers(1, len(chosen)))
    )
    clauses = {"must": st.lists(conditions, min_size=1, max_size=2), "should": some, "must_not": some}
    clauses["min_should"] = at_least
    pairs = st.lists(st.sampled_from(sorted(clauses)), min_size=1, max_size=2, unique=True)
    return pairs.flatmap(lambda names: st.builds(models.Filter, **{name: clauses[name] for name in names}))


FILTERS = st.recursive(filters_over(LEAVES), lambda inner: filters_over(LEAVES | inner), max_leaves=6)


def matching(client, given_filter):
    points, after = client.scroll("c", scroll_filter=given_filter, limit=N_POINTS + 10, with_payload=False)
    assert after is None
    return sorted(int(str(point.id)[-12:]) for point in points)


@settings(max_examples=250, deadline=None)
@given(given_filter=FILTERS)
def test_any_filter_keeps_the_same_points_on_both_engines(both_clients, given_filter):
    embedded, memory = both_clients
    expected = matching(memory, given_filter)
    assert matching(embedded, given_filter) == expected
    assert embedded.count("c", count_filter=given_filter, exact=True).count == len(expected)


@pytest.mark.parametrize("value", VALUES[:11], ids=repr)
@pytest.mark.parametrize("key", ["a", "n.a"])
def test_a_value_matches_itself_and_its_type_alone(both_clients, key, value):
    embedded, memory = both_clients
    given_filter = models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=value))])
    expected = matching(memory, given_filter)
    assert expected
    assert matching(embedded, given_filter) == expected


@pytest.mark.parametrize(
    "condition",
    [
        models.FieldCondition(key="a", is_empty=True),
        models.FieldCondition(key="a", is_null=True),
        models.FieldCondition(key="objects", values_count=models.ValuesCount(gte=2)),
        models.HasVectorCondition(has_vector=VECTOR_NAME),
        models.HasIdCondition(has_id=[]),
    ],
    ids=lambda condition: repr(condition)[:40],
)
def test_other_conditions(both_clients, condition):
    embedded, memory = both_clients
    given_filter = models.Filter(must=[condition])
    assert matching(embedded, given_filter) == matching(memory, given_filter)


def test_a_single_condition_need_not_be_in_a_list(both_clients):
    embedded, memory = both_clients
    condition = models.FieldCondition(key="a", match=models.MatchValue(value="x"))
    for place in ("must", "should", "must_not"):
        given_filter = models.Filter(**{place: condition})
        assert matching(embedded, given_filter) == matching(memory, given_filter)


def test_dates_and_places_are_translated(folder):
    with EdgeClient(folder) as client:
        params = {VECTOR_NAME: models.VectorParams(size=2, distance="Euclid", datatype="uint8")}
        client.create_collection("c", vectors_config=params, metadata={})
        days = ["2024-01-01T00:00:00Z", "2024-06-01T12:00:00Z", "2025-01-01T00:00:00Z"]
        towns = [(52.52, 13.4), (48.85, 2.35), (40.71, -74.0)]
        client.upsert(
            "c",
            points=[
                models.PointStruct(
                    id=point_id(i), vector={VECTOR_NAME: [i, 1]}, payload={"day": day, "at": {"lat": lat, "lon": lon}}
                )
                for i, (day, (lat, lon)) in enumerate(zip(days, towns, strict=True))
            ],
        )

        def kept(**condition):
            key = "at" if next(iter(condition)).startswith("geo") else "day"
            return matching(client, models.Filter(must=[models.FieldCondition(key=key, **condition)]))

        assert kept(range=models.DatetimeRange(gte="2024-02-01T00:00:00Z", lt="2025-01-01T00:00:00Z")) == [1]
        assert kept(range=models.DatetimeRange(lte="2024-06-01T14:00:00+02:00")) == [0, 1]
        berlin = models.GeoPoint(lat=52.5, lon=13.4)
        assert kept(geo_radius=models.GeoRadius(center=berlin, radius=20_000)) == [0]
        box = models.GeoBoundingBox(
            top_left=models.GeoPoint(lat=60, lon=0), bottom_right=models.GeoPoint(lat=45, lon=20)
        )
        assert kept(geo_bounding_box=box) == [0, 1]
        corners = [(45, 0), (45, 5), (50, 5), (50, 0), (45, 0)]
        ring = models.GeoLineString(points=[models.GeoPoint(lat=lat, lon=lon) for lat, lon in corners])
        assert kept(geo_polygon=models.GeoPolygon(exterior=ring)) == [1]


def test_conditions_that_the_engine_lacks_are_refused_by_name(both_clients):
    embedded, _ = both_clients

    class Unknown:
        pass

    for given_filter in (
        models.Filter.model_construct(must=[Unknown()], should=None, must_not=None, min_should=None),
        models.Filter(must=[models.FieldCondition.model_construct(**blank_condition(match=Unknown()))]),
    ):
        with pytest.raises(UnsupportedFilterError, match="Unknown"):
            embedded.count("c", count_filter=given_filter)


def blank_condition(**given_fields):
    return dict.fromkeys(models.FieldCondition.model_fields) | {"key": "a"} | given_fields


def test_scrolling_gives_every_point_once(both_clients):
    embedded, _ = both_clients
    seen, offset = [], None
    while True:
        points, offset = embedded.scroll("c", limit=7, offset=offset)
        seen += [point.id for point in points]
        if offset is None:
            break
    assert seen == [point_id(i) for i in range(N_POINTS)]


def test_metadata_is_added_key_by_key(folder, hash_encoder):
    with VectorStore.open(folder, encoder=hash_encoder(64)) as store:
        store.add([Document(id="a", chunks=["one"])])
    with EdgeClient(folder) as client:
        before = client.get_collection("documents").config.metadata
        client.update_collection("documents", metadata={"x": {"y": 1}})
        client.update_collection("documents", metadata={"z": 2})
        assert client.get_collection("documents").config.metadata == {**before, "x": {"y": 1}, "z": 2}
        with pytest.raises(StoreNotFoundError):
            client.update_collection("other", metadata={})
    with VectorStore.open(folder, encoder=hash_encoder(64)) as store:
        assert store.count() == 1
    with EdgeClient(folder, read_only=True) as client, pytest.raises(StoreReadOnlyError):
        client.update_collection("documents", metadata={})
    assert [path.name for path in folder.glob("documents/*.new")] == []


def test_metadata_that_clients_add_at_once_all_stays(folder, hash_encoder, monkeypatch):
    write_safely = shard_files.write_safely
    monkeypatch.setattr(shard_files, "write_safely", lambda *given: time.sleep(0.002) or write_safely(*given))
    with VectorStore.open(folder, encoder=hash_encoder(64)) as store:
        store.add([Document(id="a", chunks=["one"])])
        # Another process has the collection when the threads begin, and adds to it, too.
        other = subprocess.Popen(
            [sys.executable, "-c", ADDS_METADATA, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout.readline() == "ready\n"

        def add(n):
            with EdgeClient(folder) as client:
                for i in range(5):
                    client.update_collection("documents", metadata={f"{n}.{i}": {"is": n}})

        other.stdin.write("go on\n")
        other.stdin.flush()
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(add, range(6)))
        store.add([Document(id="b", chunks=["two"])])
        assert other.communicate(timeout=60)[0] == "done\n"
        assert other.returncode == 0
        with EdgeClient(folder) as client:
            metadata = client.get_collection("documents").config.metadata
        assert {key for key in metadata if "." in key} == {f"{n}.{i}" for n in (*range(6), "other") for i in range(5)}
        store.sync([Document(id="a", chunks=["one", "more"])])
        assert store.count() == 3


ADDS_METADATA = """
import sys, time
from pplx_vectorstore.engines import shard_files
from pplx_vectorstore.engines.edge import EdgeClient
write_safely = shard_files.write_safely
shard_files.write_safely = lambda *given: time.sleep(0.02) or write_safely(*given)
with EdgeClient(sys.argv[1]) as client:
    client.update_collection("documents", metadata={"other.0": {"is": "other"}})
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(1, 5):
        client.update_collection("documents", metadata={f"other.{i}": {"is": "other"}})
print("done", flush=True)
"""


def test_a_collection_whose_name_is_taken_while_it_is_replaced_is_kept(folder, hash_encoder, monkeypatch):
    encoder = hash_encoder(64)
    with VectorStore.open(folder.parent / "another", encoder=encoder) as another:
        another.add([Document(id="other", chunks=["one"])])
    with EdgeClient(folder) as client:
        for name in ("documents", "new"):
            VectorStore(client, name, encoder=encoder).add([Document(id=name, chunks=["one"])])
        old = VectorStore(client, "documents", encoder=encoder)
        rename = Path.rename

        def take_name(path, target):
            if path.name == "new":
                shutil.copytree(folder.parent / "another" / "documents", folder / "documents")
            return rename(path, target)

        with monkeypatch.context() as taken:
            taken.setattr(Path, "rename", take_name)
            with pytest.raises(StoreError, match=r"it is kept as collection 'documents\.kept-\w+'"):
                client.replace_collection("documents", by="new")
        with pytest.raises(StoreClosedError, match="another one put in its place"):
            old.count()
        other = VectorStore(client, "documents", encoder=encoder)
        assert [document.id for document in other.documents()] == ["other"]
        for path in folder.iterdir():
            os.utime(path, (1, 1))
        VectorStore(client, "later", encoder=encoder)  # whoever creates one removes what others have left
        held = {
            name: [one.id for one in VectorStore(client, name, encoder=encoder, create=False).documents()]
            for name in client.collection_names()
        }
        (kept,) = set(held) - {"documents", "new", "later"}
        assert held == {"documents": ["other"], "new": ["new"], "later": [], kept: ["documents"]}
        client.replace_collection("documents", by=kept)
        VectorStore(client, "documents", encoder=encoder).add([Document(id="more", chunks=["two"])])
    with VectorStore.open(folder, encoder=encoder) as store:
        assert {hit.document_id for hit in store.search("one", k=5)} == {"documents", "more"}


def test_a_failure_to_look_at_a_collection_does_not_make_it_gone(folder, hash_encoder, monkeypatch):
    with EdgeClient(folder) as client:
        store = VectorStore(client, encoder=hash_encoder(64))
        store.add([Document(id="a", chunks=["one"])])
        with monkeypatch.context() as failing:
            failing.setattr(
                shard_files, "identity_of", lambda path: (_ for _ in ()).throw(OSError(24, "too many files"))
            )
            assert client.count("documents").count == 1
            assert not client.is_gone("documents")
        assert store.count() == 1
        store.add([Document(id="b", chunks=["one"])])
        (folder / "documents" / "collection.json").rename(folder / "documents" / "kept.json")
        assert client.is_gone("documents")


def test_an_index_is_opened_while_a_collection_is_replaced(folder, hash_encoder, monkeypatch):
    (folder / "documents").mkdir(parents=True)
    with pytest.raises(StoreNotFoundError, match="is not an index: it holds 'documents'"):
        EdgeClient(folder)
    (folder / "documents").rmdir()
    with EdgeClient(folder) as client:
        for name in ("documents", "new"):
            VectorStore(client, name, encoder=hash_encoder(64)).add([Document(id=name, chunks=["one"])])
        iterdir, replaced = Path.iterdir, []

        def replaced_after(path):
            listed = list(iterdir(path))
            if path == folder and not replaced:
                replaced.append(client.replace_collection("documents", by="new"))
            return iter(listed)

        with monkeypatch.context() as replacing:
            replacing.setattr(Path, "iterdir", replaced_after)
            other = VectorStore.open(folder, encoder=hash_encoder(64))
        with other:
            assert replaced
            assert [document.id for document in other.documents()] == ["new"]


def test_a_collection_that_is_replaced_while_metadata_is_added_keeps_its_own(folder, hash_encoder):
    with EdgeClient(folder) as client:
        for n in range(20):
            for name, size in (("documents", 64), ("new", 32)):
                params = {"codes": models.VectorParams(size=size, distance=models.Distance.COSINE)}
                client.create_collection(name, vectors_config=params, metadata={"made": name})
            begun, replaced = threading.Event(), threading.Event()

            def add(begun=begun, replaced=replaced):
                with EdgeClient(folder) as its_client:
                    other = its_client.bound()
                    while not replaced.is_set():
                        other.update_collection("documents", metadata={"of": "old"})
                        begun.set()
                    other.update_collection("documents", metadata={"of": "old"})

            with ThreadPoolExecutor(1) as threads:
                adding = threads.submit(add)
                try:
                    assert begun.wait(20)
                    client.replace_collection("documents", by="new")
                finally:
                    replaced.set()
                with pytest.raises(StoreClosedError, match="another one put in its place"):
                    adding.result()
            config = client.get_collection("documents").config
            assert (config.params.vectors["codes"].size, config.metadata) == (32, {"made": "new"}), n
            client.delete_collection("documents")
