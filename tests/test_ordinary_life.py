"""What searches find after the first write: edits, new labels, deletions, copies, reopening, indexed or not.

The right answer is numpy's: the cosine of the query with what is stored, over what is there.
"""

import numpy as np
import pytest

from pplx_vectorstore import (
    Document,
    PrecomputedEncoder,
    VectorStore,
    cosine_similarity,
    equalize_norms,
    quantize_to_norm,
)
from pplx_vectorstore.equal_norms import squared_norm_of
from pplx_vectorstore.errors import EncodingError, InvalidInputError
from pplx_vectorstore.operations import access
from pplx_vectorstore.operations.manage import BENT
from pplx_vectorstore.quantization import quantize_tanh

K = 10
CHUNKS = 3_000
PER_DOCUMENT = 10
DIMENSION = 384


EACH_WAY = pytest.mark.parametrize(
    ("engine", "way"),
    [("edge", "codes"), ("edge", "bits"), pytest.param("http", "bits", marks=pytest.mark.slow)],
    indirect=True,
)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def clustered(rng, n, dimension=DIMENSION):
    """Vectors around centres that are the same each time: questions are of what is stored."""
    centres = np.random.default_rng(5).normal(size=(60, dimension))
    return centres[rng.integers(60, size=n)] + 0.9 * rng.normal(size=(n, dimension))


class Library:
    """A store, and beside it a plain dict of what it is to hold: document id → (metadata, vectors)."""

    def __init__(self, store):
        self.store = store
        self.held = {}

    def sync(self, changed):
        self.held |= changed
        return self.store.sync(
            Document(id=id_, chunks=[f"{id_} {i}" for i in range(len(vectors))], vectors=vectors, metadata=metadata)
            for id_, (metadata, vectors) in changed.items()
        )

    def relabel(self, share, label):
        ids = sorted(self.held)[: round(share * len(self.held))]
        report = self.sync({id_: ({"label": label}, self.held[id_][1]) for id_ in ids})
        assert report.relabelled_documents == len(ids)

    def delete(self, ids):
        self.store.delete(document_ids=ids)
        for id_ in ids:
            del self.held[id_]

    def reopen(self, folder):
        self.store.close()
        self.store = VectorStore.open(folder)

    def recall(self, queries):
        """Share of numpy's ten best that a search finds; scores and order are checked on the way."""
        names = [(id_, i) for id_, (_, vectors) in self.held.items() for i in range(len(vectors))]
        codes = np.concatenate([vectors for _, vectors in self.held.values()])
        exact = cosine_similarity(queries, equalize_norms(codes, squared_norm_of(codes.shape[1])))
        place = {name: column for column, name in enumerate(names)}
        found = 0
        for hits, cosines in zip(self.store.search_batch(list(queries), k=K), exact, strict=True):
            columns = [place[hit.document_id, hit.chunk_index] for hit in hits]
            assert len(set(columns)) == K
            scores = [hit.score for hit in hits]
            np.testing.assert_allclose(scores, cosines[columns], rtol=0, atol=1e-5)
            assert scores == sorted(scores, reverse=True)
            assert all(hit.metadata == self.held[hit.document_id][0] for hit in hits)
            found += int(np.count_nonzero(cosines[columns] >= np.partition(cosines, -K)[-K] - 1e-6))
        return found / (K * len(queries))


def documents_of(codes, prefix="document"):
    return {
        f"{prefix}-{first:05}": ({"label": "new"}, codes[first : first + PER_DOCUMENT])
        for first in range(0, len(codes), PER_DOCUMENT)
    }


@pytest.fixture
def way(request, monkeypatch):
    """How the embedded engine searches what is indexed: by the codes, as always where they are few, or by the bits."""
    if request.param == "bits":
        monkeypatch.setattr(access, "_CACHED_BYTES", 0)
        monkeypatch.setattr(access, "_FULL_SCAN_BYTES", 0)
    return request.param


@pytest.fixture
def library(new_store, rng):
    """3,000 chunks of a model of its own, indexed."""
    codes = quantize_tanh(0.1 * clustered(rng, CHUNKS))
    library = Library(new_store(DIMENSION, encoder=PrecomputedEncoder("made", DIMENSION, quantizer="tanh")))
    library.sync(documents_of(codes))
    library.store.optimize()
    return library


@pytest.fixture
def queries(rng):
    return quantize_tanh(0.1 * clustered(rng, 60))


@EACH_WAY
@pytest.mark.parametrize("share", [0.05, pytest.param(0.5, marks=pytest.mark.slow), 1.0])
def test_new_labels_leave_what_is_found_as_good_as_it_was(library, queries, share, way, engine, folder):
    before = library.recall(queries)
    assert before >= 0.97
    if engine == "edge":
        assert library.store.explain(queries[0]).way == way
    library.relabel(share, "other")
    assert library.recall(queries) >= 0.99
    assert library.store.explain(queries[0]).way == "codes" or engine == "http"
    library.relabel(share, "third")
    assert library.recall(queries) >= 0.99
    if engine == "edge":
        library.reopen(folder / "index-0")
        assert library.recall(queries) >= min(before, 0.99)
        library.store.optimize()
        assert library.recall(queries) >= min(before, 0.99)
        library.store.close()


@EACH_WAY
def test_deleting_most_leaves_the_rest_as_findable(library, queries, way, engine, folder):
    library.delete(sorted(library.held)[: round(0.8 * len(library.held))])
    assert library.store.count() == CHUNKS / 5
    assert library.recall(queries) >= 0.99
    if engine == "edge":
        library.reopen(folder / "index-0")
        assert library.recall(queries) >= 0.99
        library.store.close()


@pytest.mark.slow
def test_an_index_from_which_much_is_deleted_is_built_anew(folder, rng):
    """Of more codes than are compared as a whole; each time as good as a fresh index of what is left."""
    dimension = 1024
    codes = quantize_tanh(0.1 * clustered(rng, 13_000, dimension))
    queries = quantize_tanh(0.1 * clustered(rng, 60, dimension))
    encoder = PrecomputedEncoder("made", dimension, quantizer="tanh")
    library = Library(VectorStore.open(folder / "index", encoder=encoder))
    library.sync(documents_of(codes))
    library.store.optimize()

    def fresh():
        with VectorStore.open(folder / f"fresh-{len(library.held)}", encoder=encoder) as store:
            other = Library(store)
            other.sync(library.held)
            store.optimize()
            return other.recall(queries)

    def check():
        recall = library.recall(queries)
        assert recall >= fresh() - 0.01
        return recall

    assert check() >= 0.9
    order = rng.permutation(sorted(library.held)).tolist()
    for share in (0.3, 0.3, 0.5):  # of what is left
        library.delete([order.pop() for _ in range(round(share * len(order)))])
        check()
    library.relabel(0.4, "other")
    library.delete([order.pop() for _ in range(len(order) // 5)])
    check()
    library.reopen(folder / "index")
    check()
    # Before the index is built anew, and after a process was killed there, nothing is missed either.
    shard = library.store._client._shard("documents")
    shard.optimize()
    shard.optimize = lambda: None
    library.sync(documents_of(codes))
    del shard.optimize
    library.store.optimize()
    shard.optimize = lambda: None
    library.delete([id_ for number, id_ in enumerate(sorted(library.held)) if number % 10])
    assert shard.coverage().is_worn
    assert library.recall(queries) == 1.0
    library.store.close()


@EACH_WAY
def test_overwriting_is_found_at_once(library, queries, way, engine, rng, folder):
    ids = sorted(library.held)[::2]
    new = quantize_tanh(0.1 * clustered(rng, PER_DOCUMENT * len(ids)))
    library.sync({id_: ({"label": "edited"}, of) for id_, of in zip(ids, np.split(new, len(ids)), strict=True)})
    assert library.recall(queries) >= 0.99
    library.relabel(0.3, "after")
    library.delete(ids[:20])
    assert library.recall(queries) >= 0.99
    if engine == "edge":
        library.reopen(folder / "index-0")
        assert library.recall(queries) >= 0.98
        library.store.close()


@EACH_WAY
def test_a_trickle_of_small_writes_keeps_recall(library, queries, way, engine, rng):
    for turn in range(12):
        new = quantize_tanh(0.1 * clustered(rng, PER_DOCUMENT))
        library.sync(documents_of(new, f"trickle-{turn}"))
        library.relabel(0.01, f"turn {turn}")
        library.delete(sorted(library.held)[-1:])
        assert library.recall(queries[:8]) >= 0.97
    library.store.optimize()
    assert library.recall(queries) >= 0.97


def test_before_indexing_the_order_is_numpys_whatever_the_norms(new_store, rng):
    dimension = 128
    n = 1_500
    vectors = clustered(rng, n, dimension) * rng.uniform(1, 8, size=(n, 1))
    vectors[::40, 3] += 4 * np.abs(vectors[::40]).mean(axis=1)  # outliers, of about five times the root mean square
    codes = np.clip(np.rint(1.5 * vectors), -127, 127).astype(np.int8)
    library = Library(new_store(dimension, encoder=PrecomputedEncoder("made", dimension)))
    library.sync(documents_of(codes))
    questions = np.clip(np.rint(4 * clustered(rng, 200, dimension)), -127, 127).astype(np.int8)
    assert library.recall(questions) == 1.0
    batch = library.store.search_batch(list(questions), k=K)
    alone = [library.store.search(question, k=K) for question in questions[:20]]
    assert [[hit.id for hit in hits] for hits in batch[:20]] == [[hit.id for hit in hits] for hits in alone]


def test_codes_come_back_byte_for_byte_by_every_way(new_store, rng, tmp_path):
    dimension = 256
    n = 1_000
    scales = 0.115 * rng.uniform(0.8, 1.15, size=(n, 1))
    codes = quantize_tanh(scales * rng.normal(size=(n, dimension)))
    codes[1] = 0  # a blank chunk has no vector
    codes[2] = rng.integers(-128, 128, size=dimension)  # a norm above C
    codes[3, 5] = 127  # an outlier, which is clipped
    texts = ["text" if row.any() else " " for row in codes]
    encoder = PrecomputedEncoder("made", dimension, quantizer="tanh")
    first, copied, imported = (new_store(dimension, encoder=encoder) for _ in range(3))
    report = first.add([Document(id="d", chunks=texts, vectors=codes)])
    assert (report.blank_chunks, report.bent_chunks) == (1, 1)
    first.optimize()
    first.sync([Document(id="d", chunks=texts, vectors=codes, metadata={"label": "new"})])
    first.copy_to(copied)
    copied.export_parquet(tmp_path / "all.parquet")
    imported.import_parquet(tmp_path / "all.parquet")
    for store in (first, copied, imported):
        chunks = sorted(store.chunks(with_codes=True), key=lambda chunk: chunk.chunk_index)
        np.testing.assert_array_equal(np.stack([chunk.codes for chunk in chunks]), codes)
        (got,) = store.get([chunks[7].id], with_codes=True)
        np.testing.assert_array_equal(got.codes, codes[7])
        (hit,) = store.search(codes[3], k=1, with_codes=True)
        assert hit.chunk_index == 3
        np.testing.assert_array_equal(hit.codes, codes[3])
        # Nothing finds the blank chunk, whose vector would be as near to everything as anything.
        assert 1 not in {hit.chunk_index for hit in store.search(codes[0], k=n)}
        assert store.count() == n


def test_a_direction_is_never_bent_without_a_word(new_store, rng):
    dimension = 384
    vectors = rng.normal(size=(30, dimension))
    vectors[:, 9] = 0
    vectors[:10, 9] = 6.5  # clipped, at the cost of two thousandths
    encoder = PrecomputedEncoder("made", dimension)
    store = new_store(dimension, encoder=encoder)
    report = store.sync([Document(id="a", chunks=["x"] * 30, vectors=vectors)])
    assert report.bent_chunks == 10
    assert store.count(BENT) == 10

    vectors[4, 9] = 30
    with pytest.raises(EncodingError, match=r"chunk 4 of document 'b' .* crest_factor=\d+, and index into a new"):
        store.sync([Document(id="b", chunks=["x"] * 30, vectors=vectors)])
    assert store.count() == 30

    wide = new_store(dimension, encoder=PrecomputedEncoder("made", dimension, crest_factor=17))
    report = wide.sync([Document(id="b", chunks=["x"] * 30, vectors=vectors)])
    assert report.bent_chunks == 0
    (hit,) = wide.search(np.eye(dimension, dtype=np.int8)[9], k=1)
    assert hit.chunk_index == 4

    with pytest.raises(EncodingError, match="chunk 4 of document 'b'"):
        wide.copy_to(store)
    with pytest.raises(InvalidInputError, match="tanh, norm, sign, not 'absmax'"):
        PrecomputedEncoder("made", dimension, quantizer="absmax")
    coarse = new_store(dimension, encoder=PrecomputedEncoder("made", dimension, crest_factor=40))
    report = coarse.sync([Document(id="c", chunks=["x"] * 30, vectors=rng.normal(size=(30, dimension)))])
    assert report.bent_chunks > 0  # nothing is clipped, but all are coarse


def test_a_query_is_compared_as_it_is_however_far_its_components_stand_out(new_store, rng):
    codes = quantize_tanh(0.1 * clustered(rng, 300, 256))
    library = Library(new_store(256, encoder=PrecomputedEncoder("made", 256, quantizer="tanh")))
    library.sync(documents_of(codes))
    axes = np.eye(256, dtype=np.int8)[:20]
    assert library.recall(axes) == 1.0
    assert library.recall(-128 * axes.astype(np.int16).astype(np.int8)) == 1.0


@EACH_WAY
def test_a_write_between_the_choice_and_the_search_does_no_harm(library, queries, way, engine, monkeypatch):
    points = library.store._session.points
    query = points.query

    async def after_a_write(requests):
        if library.held["document-00000"][0]["label"] == "new":
            monkeypatch.setattr(points, "query", query)
            library.relabel(1.0, "meanwhile")
        return await query(requests)

    monkeypatch.setattr(points, "query", after_a_write)
    assert library.recall(queries) >= 0.99


def test_the_least_score_cuts_where_the_scores_say(new_store, rng):
    codes = quantize_tanh(0.1 * clustered(rng, 400, 128))
    library = Library(new_store(128, encoder=PrecomputedEncoder("made", 128, quantizer="tanh")))
    library.sync(documents_of(codes))
    for query in quantize_tanh(0.1 * clustered(rng, 10, 128)):
        hits = library.store.search(query, k=50)
        for least in (hits[20].score, hits[20].score + 1e-4, -1.0, 0.0, 1.0, 2.0):
            some = library.store.search(query, k=50, score_threshold=least)
            assert [hit.id for hit in some] == [hit.id for hit in hits if hit.score >= least]
    (same,) = library.store.search(codes[3], k=1, score_threshold=0.99)
    assert same.document_id == "document-00000"


def test_a_vector_is_found_by_itself_with_its_own_score_as_the_least(new_store, rng):
    for dimension in (128, 1024):
        codes = quantize_to_norm(rng.normal(size=(40, dimension)))
        store = new_store(dimension, encoder=PrecomputedEncoder("made", dimension))
        store.add([Document(id="a", chunks=["x"] * 40, vectors=codes)])
        for row in range(0, 40, 8):
            (hit,) = store.search(codes[row], k=1)
            assert (hit.score, hit.chunk_index) == (1.0, row)
            least = cosine_similarity(codes[row], codes)
            assert [one.chunk_index for one in store.search(codes[row], score_threshold=1.0)] == [row]
            several = store.search(codes[row], k=40, score_threshold=float(np.sort(least)[-5]))
            assert len(several) == 5
