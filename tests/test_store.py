"""VectorStore on every engine, and AsyncVectorStore on a server: one suite, one fixture.

``QdrantClient(":memory:")`` is numpy: it ranks by the stored codes whatever the quantization settings
say. So all results here are the same on all; what only the embedded engine does is in test_edge.py.
"""

import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from pplx_vectorstore import (
    Chunk,
    Chunker,
    Document,
    Hit,
    PrecomputedEncoder,
    VectorStore,
    cosine_similarity,
    quantize_to_norm,
)
from pplx_vectorstore.equal_norms import squared_norm_of
from pplx_vectorstore.errors import (
    DuplicateDocumentError,
    InvalidDocumentError,
    InvalidInputError,
    SchemaMismatchError,
    StoreClosedError,
    StoreNotFoundError,
)
from pplx_vectorstore.operations import replace, write
from pplx_vectorstore.points import derive_point_id

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")


def as_documents(codes, per_document=7, prefix="c", metadata=None):
    """Rows of codes as documents of some chunks; row i is the chunk of id ``<prefix><i>``."""
    documents = []
    for first in range(0, len(codes), per_document):
        rows = range(first, min(first + per_document, len(codes)))
        chunks = [Chunk(text=f"text {i}", id=f"{prefix}{i}", metadata=metadata(i) if metadata else {}) for i in rows]
        documents.append(
            Document(id=f"{prefix}-document-{first}", chunks=chunks, vectors=codes[rows.start : rows.stop])
        )
    return documents


def random_codes(rng, n, dimension):
    return rng.integers(-128, 128, size=(n, dimension)).astype(np.int8)


def clustered_codes(rng, n, dimension):
    centres = rng.normal(size=(max(1, n // 30), dimension))
    return quantize_to_norm(centres[rng.integers(len(centres), size=n)] + 0.4 * rng.normal(size=(n, dimension)))


def duplicated_codes(rng, n, dimension):
    return random_codes(rng, max(1, n // 5), dimension)[rng.integers(max(1, n // 5), size=n)]


MAKERS = {"random": random_codes, "clustered": clustered_codes, "duplicates": duplicated_codes}


@pytest.fixture
def score_error(as_stored):
    """How far scores may be from exact cosines with codes as they are stored: ``score_error(codes)``.

    Scores take every vector for one of the collection's norm. Whole numbers of a few components cannot always meet it.
    """

    def bound(codes):
        target = squared_norm_of(codes.shape[1])
        missed = np.abs(np.square(as_stored(codes[codes.any(axis=1)]).astype(int)).sum(axis=1) - target)
        # From (|q|² + C² - d²) / (2 |q| C): a query is at least 64 long, the vectors of few components are 127.
        return 1e-6 + 1.5 * missed.max(initial=0) / target

    return bound


@pytest.fixture
def assert_exact(as_stored, score_error):
    """Compare hits to brute force: ``assert_exact(hits, query, codes, k, kept=None, threshold=None)``.

    Over codes as they are stored; among equal scores, any choice is right.
    """

    def check(hits, query, codes, k, kept=None, threshold=None, prefix="c"):
        unsure = score_error(codes)
        scores = cosine_similarity(query, as_stored(codes))
        allowed = codes.any(axis=1) & (np.ones(len(codes), bool) if kept is None else kept)
        if threshold is not None:
            allowed &= scores >= threshold
        expected = np.sort(scores[allowed])[::-1][:k]
        rows = [int(hit.id.removeprefix(prefix)) for hit in hits]
        got = np.array([hit.score for hit in hits])
        assert len(set(rows)) == len(rows) == len(expected)
        assert allowed[rows].all()
        # First: each hit's score is that of its own codes. Then: nothing better was left out.
        np.testing.assert_allclose(got, scores[rows], rtol=0, atol=unsure)
        np.testing.assert_allclose(got, expected, rtol=0, atol=unsure)
        assert (np.diff(got) <= 0).all()

    return check


# --- search is exact ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dimension"),
    [*(("random", dimension) for dimension in (6, 384, 1024, 2560)), ("clustered", 384), ("duplicates", 384)],
)
def test_with_candidates_for_all_points_search_is_brute_force(new_store, assert_exact, rng, kind, dimension):
    codes = MAKERS[kind](rng, 300, dimension)
    codes[codes.any(axis=1) == 0, 0] = 1
    store = new_store(dimension)
    store.add(as_documents(codes))
    queries = [*MAKERS[kind](rng, 4, dimension), codes[0], np.full(dimension, -128, np.int8)]
    for k in (1, 10, 300):
        for query in queries:
            assert_exact(store.search(query, k=k, candidates=300), query, codes, k)


@pytest.mark.parametrize("kind", MAKERS)
def test_search_stays_exact_through_indexing_writing_and_deleting(new_store, assert_exact, rng, kind):
    codes = MAKERS[kind](rng, 1000, 64)
    queries = MAKERS[kind](rng, 2, 64)
    store = new_store(64)

    def check(n, kept=None):
        for query in queries:
            assert_exact(store.search(query, k=10, candidates=1000), query, codes[:n], 10, kept)

    store.add(as_documents(codes[:700]))
    check(700)
    store.optimize()
    check(700)
    store.add(as_documents(codes)[100:])  # 300 points that are not in the index
    check(1000)
    store.delete(ids=[f"c{i}" for i in range(0, 1000, 3)])
    check(1000, np.arange(1000) % 3 != 0)
    store.optimize()
    check(1000, np.arange(1000) % 3 != 0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.integers(-128, 127), min_size=6, max_size=6), min_size=1, max_size=40),
    query=st.lists(st.integers(-128, 127), min_size=6, max_size=6).filter(any),
    k=st.integers(1, 50),
    threshold=st.none() | st.sampled_from([-0.503, 0.001, 0.707]),
)
def test_any_codes_are_found_as_by_brute_force(
    new_store, assert_exact, score_error, as_stored, rows, query, k, threshold
):
    codes, query = np.array(rows, np.int8), np.array(query, np.int8)
    store = new_store(6)
    store.add(as_documents(codes, per_document=3))
    hits = store.search(query, k=k, score_threshold=threshold)
    unsure = 10 * score_error(codes)
    near = threshold is not None and np.abs(cosine_similarity(query, as_stored(codes)) - threshold).min() < unsure
    if not near:  # as close to the threshold, either side is right
        assert_exact(hits, query, codes, k, threshold=threshold)


@pytest.mark.parametrize("optimized", [False, True])
def test_filtered_search_is_exact(new_store, assert_exact, rng, optimized):
    codes = clustered_codes(rng, 600, 64)
    store = new_store(64)
    store.add(as_documents(codes, metadata=lambda i: {"third": i % 3, "name": f"n{i % 50}"}))
    if optimized:
        store.optimize()
    rows = np.arange(600)
    by_filter = [
        ({"third": 1}, rows % 3 == 1),
        ({"name": "n7", "third": 1}, (rows % 50 == 7) & (rows % 3 == 1)),
        (
            models.Filter(
                must_not=[models.FieldCondition(key="metadata.third", match=models.MatchValue(value=1))],
                must=[models.FieldCondition(key="chunk_index", range=models.Range(gte=3))],
            ),
            (rows % 3 != 1) & (rows % 7 >= 3),
        ),
        (
            models.Filter(
                should=[
                    models.FieldCondition(key="document_id", match=models.MatchValue(value="c-document-14")),
                    models.FieldCondition(key="metadata.name", match=models.MatchAny(any=["n1", "n2"])),
                ]
            ),
            (rows // 7 == 2) | np.isin(rows % 50, [1, 2]),
        ),
    ]
    for given_filter, kept in by_filter:
        assert store.count(given_filter) == kept.sum()
        for query in clustered_codes(rng, 3, 64):
            for k in (5, 600):
                hits = store.search(query, k=k, candidates=600, filter=given_filter)
                assert_exact(hits, query, codes, k, kept)


def test_k_beyond_the_number_of_chunks_gives_all_of_them(new_store, assert_exact, rng):
    codes = random_codes(rng, 20, 64)
    store = new_store(64)
    assert store.search(codes[0], k=5) == []
    store.add(as_documents(codes))
    assert_exact(store.search(codes[0], k=1000), codes[0], codes, 20)


def test_scores_below_the_threshold_are_left_out(new_store, assert_exact, rng):
    codes = clustered_codes(rng, 200, 64)
    store = new_store(64)
    store.add(as_documents(codes))
    scores = np.sort(cosine_similarity(codes[0], codes))[::-1]
    threshold = float((scores[19] + scores[20]) / 2)
    assert_exact(store.search(codes[0], k=200, score_threshold=threshold), codes[0], codes, 20)
    assert len(store.search(codes[0], k=5, score_threshold=threshold)) == 5
    assert store.search(codes[0], score_threshold=1.01) == []


def test_a_batch_gives_what_its_queries_give_alone(new_store, rng):
    codes = clustered_codes(rng, 300, 64)
    store = new_store(64)
    store.add(as_documents(codes, metadata=lambda i: {"odd": i % 2}))
    store.add([Document(id="t", chunks=["a text chunk"])])
    queries = [codes[3], "a text chunk", codes[250], "another text", codes[3]]
    options = {"k": 7, "candidates": 50, "filter": {"odd": 1}, "score_threshold": -0.2}
    for kwargs in ({}, options):
        batch = store.search_batch(queries, **kwargs)
        assert [[(hit.id, hit.score) for hit in hits] for hits in batch] == [
            [(hit.id, hit.score) for hit in store.search(query, **kwargs)] for query in queries
        ]
    assert store.search_batch(queries)[1][0].text == "a text chunk"
    assert store.search_batch([]) == []


def test_candidates_for_all_points_stay_exact_after_a_document_shrank(new_store, assert_exact, rng):
    """Engines keep upper bounds of the number of points; what is found must not depend on them."""
    codes = clustered_codes(rng, 300, 64)
    store = new_store(64)
    store.add([Document(id="d", chunks=[Chunk(text="x", id=f"c{i}") for i in range(300)], vectors=codes)])
    store.search(codes[0], k=1, candidates=300)
    store.add([Document(id="d", chunks=[Chunk(text="x", id=f"c{i}") for i in range(200)], vectors=codes[:200])])
    assert_exact(store.search(codes[0], k=10, candidates=250), codes[0], codes[:200], 10)


# --- add and replace ---------------------------------------------------------------------------------


@pytest.fixture
def contents(read_points):
    """Everything in a store: id → (text, document, place, codes, metadata)."""
    return lambda store: _contents(store, read_points(store))


def _contents(store, points):
    ids = [point.payload.get("id") or str(point.id) for point in points]
    return {
        chunk.id: (
            chunk.text,
            chunk.document_id,
            chunk.chunk_index,
            chunk.chunk_count,
            chunk.codes.tobytes(),
            repr(chunk.metadata),
        )
        for chunk in store.get(ids, with_codes=True)
    }


def test_adding_twice_changes_nothing(new_store, contents):
    documents = [Document(id=f"d{i}", chunks=[f"{i} {j}" for j in range(i)], metadata={"i": i}) for i in range(6)]
    store = new_store()
    first = store.add(documents)
    before = contents(store)
    assert store.add(documents) == first
    assert contents(store) == before
    assert len(before) == store.count() == 15


def test_chunks_are_stored_with_the_codes_of_their_document(new_store, hash_encoder):
    encoder = hash_encoder(64)
    store = new_store(encoder=encoder)
    store.add([Document(id="d", chunks=["a", "b"]), Document(id="e", chunks=["b", "a"])])
    expected = encoder.encode_documents([["a", "b"], ["b", "a"]])
    for document_id, codes in zip("de", expected, strict=True):
        got = store.get([derive_point_id(document_id, index) for index in range(2)], with_codes=True)
        assert np.array_equal(np.stack([chunk.codes for chunk in got]), codes)
        assert all(chunk.codes.dtype == np.int8 for chunk in got)


def test_documents_embedded_together_each_keep_their_own_context(new_store, hash_encoder):
    encoder = hash_encoder()
    store = new_store(encoder=encoder)
    given_codes = np.full((1, 64), 7, np.int8)
    store.add(
        [
            Document(id="a", chunks=["x", "y"]),
            Document(id="b", chunks=["x"], vectors=given_codes),
            Document(id="c", chunks=[]),
            Document(id="d", chunks=["x"]),
        ]
    )
    assert encoder.calls == [[["x", "y"], [], ["x"]]]
    expected = {"a": encoder.encode_documents([["x", "y"]])[0][:1], "b": given_codes}
    expected["d"] = encoder.encode_documents([["x"]])[0]
    for document_id, codes in expected.items():
        (chunk,) = store.get([derive_point_id(document_id, 0)], with_codes=True)
        assert np.array_equal(chunk.codes, codes[0])


@pytest.mark.parametrize("optimized", [False, True])
def test_a_document_with_fewer_chunks_leaves_no_stale_one(new_store, optimized):
    store = new_store()
    other = Document(id="other", chunks=["x", "y"])
    store.add([Document(id="d", chunks=["a", "b", "c"]), other])
    if optimized:
        store.optimize()
    store.add([Document(id="d", chunks=["a", "B"])])
    kept = store.get([derive_point_id("d", i) for i in range(3)])
    assert [(chunk.text, chunk.chunk_count) for chunk in kept] == [("a", 2), ("B", 2)]
    assert store.count() == 4
    assert {hit.text for hit in store.search("c", k=100)} == {"a", "B", "x", "y"}


def test_a_document_that_changes_its_chunk_ids_leaves_no_stale_one(new_store):
    store = new_store()
    store.add([Document(id="d", chunks=[Chunk(text="a", id="1"), Chunk(text="b", id="2")])])
    store.add([Document(id="d", chunks=[Chunk(text="a", id="2"), Chunk(text="b", id="3")])])
    assert [(chunk.id, chunk.text) for chunk in store.get(["1", "2", "3"])] == [("2", "a"), ("3", "b")]
    store.add([Document(id="d", chunks=["a", "b"])])
    assert store.get(["1", "2", "3"]) == []
    assert store.count() == 2


@pytest.mark.parametrize("together", [True, False])
def test_two_documents_can_swap_their_contents(new_store, hash_encoder, together):
    store = new_store()
    store.add([Document(id="d", chunks=["a", "b", "c"]), Document(id="e", chunks=["x"])])
    swapped = [Document(id="d", chunks=["x"]), Document(id="e", chunks=["a", "b", "c"])]
    for call in [swapped] if together else [[one] for one in swapped]:
        store.add(call)
    assert store.count() == 4
    (x,) = store.get([derive_point_id("d", 0)], with_codes=True)
    assert (x.text, x.chunk_count) == ("x", 1)
    assert np.array_equal(x.codes, hash_encoder(64).encode_documents([["x"]])[0][0])
    assert [chunk.text for chunk in store.get([derive_point_id("e", i) for i in range(3)])] == ["a", "b", "c"]


@pytest.mark.parametrize("emptied", [{"chunks": []}, {"text": ""}, {"text": " \n "}], ids=repr)
def test_an_emptied_document_vanishes(new_store, emptied):
    store = new_store()
    store.add([Document(id="d", chunks=["a", "b"]), Document(id="e", chunks=["x"])])
    report = store.add([Document(id="d", **emptied)])
    assert (report.documents, report.chunks, report.empty_documents) == (1, 0, ("d",))
    assert store.count() == 1
    assert [hit.document_id for hit in store.search("a", k=10)] == ["e"]


def test_metadata_alone_can_be_replaced(new_store):
    store = new_store()
    store.add([Document(id="d", chunks=["a", "b"], metadata={"v": 1, "old": True})])
    store.add([Document(id="d", chunks=["a", "b"], metadata={"v": 2})])
    assert [chunk.metadata for chunk in store.get([derive_point_id("d", i) for i in range(2)])] == [{"v": 2}] * 2


def test_a_caller_may_change_vectors_alone(new_store):
    store = new_store()
    for value in (5, -9):
        store.add([Document(id="d", chunks=["a"], vectors=np.full((1, 64), value, np.int8))])
        (chunk,) = store.get([derive_point_id("d", 0)], with_codes=True)
        assert (chunk.codes == value).all()
    assert store.count() == 1


def test_a_chunk_that_becomes_blank_loses_its_vector(new_store):
    store = new_store()
    store.add([Document(id="d", chunks=["a", "b"])])
    store.optimize()
    store.add([Document(id="d", chunks=["a", " "])])
    (blank,) = store.get([derive_point_id("d", 1)], with_codes=True)
    assert not blank.codes.any()
    assert [hit.text for hit in store.search("b", k=10)] == ["a"]


@pytest.mark.parametrize("optimized", [False, True])
def test_a_blank_chunk_is_kept_and_never_found(new_store, optimized):
    store = new_store()
    report = store.add([Document(id="d", chunks=["a", "", " \n\t", "b"]), Document(id="e", chunks=["\u2003"])])
    assert (report.documents, report.chunks, report.blank_chunks, report.empty_documents) == (2, 5, 3, ())
    if optimized:
        store.optimize()
    assert store.count() == 5
    ids = [derive_point_id("d", i) for i in range(4)]
    chunks = store.get(ids, with_codes=True)
    assert [chunk.text for chunk in chunks] == ["a", "", " \n\t", "b"]
    assert [bool(chunk.codes.any()) for chunk in chunks] == [True, False, False, True]
    for query in ("a", np.full(64, -128, np.int8)):
        assert {hit.text for hit in store.search(query, k=100)} == {"a", "b"}
        assert {hit.text for hit in store.search(query, k=2, candidates=2)} == {"a", "b"}


def test_zero_codes_that_a_caller_gives_are_never_found(new_store):
    store = new_store()
    codes = np.zeros((3, 64), np.int8)
    codes[1] = -1
    store.add([Document(id="d", chunks=["a", "b", "c"], vectors=codes)])
    assert [hit.text for hit in store.search(codes[1], k=10)] == ["b"]
    assert [hit.text for hit in store.search(-codes[1], k=10)] == ["b"]  # its cosine, -1, is below theirs


def test_a_hit_tells_all_about_its_chunk(new_store):
    store = new_store()
    metadata = {"lang": "en", "nested": {"list": [1, None, {"x": 2.5}]}}
    chunks = [
        Chunk(text="a", start=0, end=1),
        Chunk(text="b", start=2, end=3, id="mine", metadata={"lang": "de", "page": 4}),
    ]
    store.add([Document(id="d", chunks=chunks, metadata=metadata)])
    (mine, derived) = sorted(store.search("b", k=2), key=lambda hit: -hit.chunk_index)
    assert isinstance(mine, Hit)
    assert mine == Hit(
        id="mine",
        score=mine.score,
        text="b",
        document_id="d",
        chunk_index=1,
        chunk_count=2,
        start=2,
        end=3,
        metadata={**metadata, "lang": "de", "page": 4},
    )
    assert (derived.id, derived.metadata, derived.start) == (derive_point_id("d", 0), metadata, 0)
    assert [chunk.text for chunk in store.get([mine.id, derived.id])] == ["b", "a"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-(10**9), 10**9).map(lambda thousandths: thousandths / 1000)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), JSON, max_size=4),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    chunk_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10),
)
def test_metadata_text_and_ids_come_back_verbatim(shared_store, metadata, text, chunk_id):
    document = Document(id="d", chunks=[Chunk(text=text, id=chunk_id)], metadata=metadata)
    shared_store.add([document])
    (chunk,) = shared_store.get([chunk_id])
    assert chunk.text == text
    assert chunk.id == chunk_id
    # repr tells 1 from 1.0 and True, and 0.0 from -0.0; the engine may change the order of keys.
    assert repr(sorted_keys(chunk.metadata)) == repr(sorted_keys(metadata))
    assert shared_store.count() == 1


def test_floats_come_back_to_the_fifteenth_digit(new_store, rng):
    """The embedded engine's JSON reader may miss the last bit of a float of more digits than that."""
    floats = [0.0, -0.0, 1e-320, 1.7976931348623157e308, 0.1, *rng.normal(size=500), *rng.normal(size=500) * 1e-100]
    floats = [float(value) for value in floats]
    store = new_store()
    store.add([Document(id="d", chunks=[Chunk(text="x", id="x")], metadata={"floats": floats})])
    (chunk,) = store.get(["x"])
    assert chunk.metadata["floats"] == pytest.approx(floats, rel=2.0**-51, abs=0)
    short = [round(value, 13) for value in floats[5:505]]
    store.add([Document(id="d", chunks=[Chunk(text="x", id="x")], metadata={"floats": short})])
    assert store.get(["x"])[0].metadata["floats"] == short


def sorted_keys(value):
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def shared_store(new_store):
    """One store for all examples of a property; each replaces the last one's document."""
    return new_store()


def test_texts_are_cut_by_the_stores_chunker(new_store, hash_encoder):
    text = "One two three. Four five six.\n\nSeven eight nine."
    encoder = hash_encoder()
    store = new_store(encoder=encoder, chunker=Chunker(encoder.tokenizer.tokenizer, 4))
    report = store.add([Document(id="d", text=text, metadata={"a": 1})])
    chunks = store.get([derive_point_id("d", i) for i in range(report.chunks)])
    assert report.chunks > 2
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert [chunk.text for chunk in chunks] == encoder.calls[0][0]
    assert all(chunk.metadata == {"a": 1} for chunk in chunks)


def test_float_vectors_are_quantized_as_the_model_is(new_store, rng):
    floats = rng.normal(size=(5, 64))
    store = new_store()
    for dtype in (np.float64, np.float32):
        store.add(
            [Document(id="d", chunks=[Chunk(text="x", id=str(i)) for i in range(5)], vectors=floats.astype(dtype))]
        )
        got = np.stack([chunk.codes for chunk in store.get([str(i) for i in range(5)], with_codes=True)])
        assert np.array_equal(got, quantize_to_norm(floats.astype(dtype)))


def test_a_report_counts_what_was_written(new_store):
    documents = [
        Document(id="a", chunks=["x", " ", "y"]),
        Document(id="b", chunks=[]),
        Document(id="c", text="Some words."),
        Document(id="d", text=""),
    ]
    store = new_store()
    report = store.add(documents)
    assert (report.documents, report.chunks, report.blank_chunks) == (4, 4, 1)
    assert report.empty_documents == ("b", "d")
    nothing = store.add([])
    assert (nothing.documents, nothing.chunks, nothing.blank_chunks, nothing.empty_documents) == (0, 0, 0, ())


def test_progress_is_shown_on_standard_error_alone(new_store, capsys):
    store = new_store()
    report = store.add([Document(id=str(i), chunks=["x"]) for i in range(3)], progress=True)
    assert report.documents == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("as_generator", [False, True])
def test_two_documents_of_one_id_are_refused(new_store, as_generator):
    documents = [Document(id="d", chunks=["a"]), Document(id="e", chunks=["b"]), Document(id="d", chunks=["c"])]
    store = new_store()
    with pytest.raises(DuplicateDocumentError, match="'d' comes twice"):
        store.add(iter(documents) if as_generator else documents)
    assert store.count() == 0


def test_two_chunks_of_one_id_are_refused(new_store):
    same = Chunk(text="a", id="c")
    store = new_store()
    for documents in (
        [Document(id="d", chunks=[same, same])],
        [Document(id="d", chunks=[same]), Document(id="e", chunks=[same])],
    ):
        with pytest.raises(DuplicateDocumentError, match="'c' comes twice"):
            store.add(documents)
    assert store.count() == 0


def test_what_one_iterable_holds_is_written_group_by_group(new_store):
    store = new_store()
    """While one group is embedded, the last is written: what was there before that is complete."""
    n_documents = 2 * write._GROUP_DOCUMENTS + 40
    counts = {}

    def documents():
        for i in range(n_documents):
            counts[i] = store.count()
            yield Document(id=str(i), chunks=[f"{i} a", f"{i} b"])

    report = store.add(documents())
    assert (report.documents, report.chunks, store.count()) == (n_documents, 2 * n_documents, 2 * n_documents)
    assert counts[write._GROUP_DOCUMENTS - 1] == 0
    assert counts[2 * write._GROUP_DOCUMENTS] >= 2 * write._GROUP_DOCUMENTS


def test_large_texts_make_smaller_groups(new_store):
    store = new_store()
    half = store._session.group_characters // 2
    counts = []

    def documents():
        for i in range(7):
            counts.append(store.count())
            yield Document(id=str(i), chunks=[str(i) * half])

    store.add(documents())
    assert counts[:2] == [0, 0]
    assert all(least <= count for count, least in zip(counts, [0, 0, 0, 0, 2, 2, 4], strict=True))
    assert store.count() == 7


def test_groups_before_a_failure_are_written_whole(new_store):
    store = new_store()

    def documents():
        for i in range(write._GROUP_DOCUMENTS + 5):
            yield Document(id=str(i), chunks=["x"])
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.add(documents())
    assert store.count() == write._GROUP_DOCUMENTS
    assert store.add(Document(id=str(i), chunks=["x"]) for i in range(300)).documents == 300
    assert store.count() == 300


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_document_of_more_chunks_than_one_upsert(new_store, rng, extra):
    n_chunks = 2 * replace._UPSERT_POINTS + extra
    codes = random_codes(rng, n_chunks, 64)
    store = new_store()
    store.add([Document(id="d", chunks=[f"{i}" for i in range(n_chunks)], vectors=codes)])
    assert store.count() == n_chunks
    chunks = store.get([derive_point_id("d", i) for i in range(n_chunks)], with_codes=True)
    assert [chunk.text for chunk in chunks] == [f"{i}" for i in range(n_chunks)]
    assert np.array_equal(np.stack([chunk.codes for chunk in chunks]), codes)
    store.add([Document(id="d", chunks=["0"], vectors=codes[:1])])
    assert store.count() == 1


# --- get, delete, count --------------------------------------------------------------------------------


def test_chunks_reads_all_that_match(new_store):
    store = new_store()
    store.add(Document(id=f"d{i}", chunks=["a", "b"], metadata={"i": i}) for i in range(700))
    chunks = list(store.chunks())
    assert {(chunk.document_id, chunk.chunk_index) for chunk in chunks} == {
        (f"d{i}", j) for i in range(700) for j in (0, 1)
    }
    some = {chunk.id: chunk for chunk in store.chunks({"i": {"$gte": 698}}, with_codes=True)}
    assert sorted(chunk.document_id for chunk in some.values()) == ["d698", "d698", "d699", "d699"]
    for stored in store.get(list(some), with_codes=True):
        assert stored == some[stored.id]
        np.testing.assert_array_equal(stored.codes, some[stored.id].codes)
    assert list(store.chunks({"i": 700})) == []


def test_get_keeps_the_order_and_leaves_out_what_is_missing(new_store):
    store = new_store()
    store.add([Document(id="d", chunks=[Chunk(text=text, id=text) for text in "abc"] + ["derived"])])
    derived = derive_point_id("d", 3)
    got = store.get(["c", "missing", derived, "a", derive_point_id("d", 0), "c"])
    assert [chunk.text for chunk in got] == ["c", "derived", "a", "c"]
    assert all(chunk.codes is None for chunk in got)
    assert store.get([]) == []
    assert store.get(["missing"]) == []


def test_an_id_that_looks_like_a_uuid_may_be_the_callers_own(new_store):
    mine = "3F2504E0-4F89-11D3-9A0C-0305E82C3301"
    store = new_store()
    store.add([Document(id="d", chunks=[Chunk(text="a", id=mine), "b"])])
    assert [chunk.id for chunk in store.get([mine])] == [mine]
    assert store.delete(ids=[mine]) == 1
    assert [hit.text for hit in store.search("a", k=5)] == ["b"]


def filled(new_store):
    store = new_store()
    store.add(
        [
            Document(
                id=f"d{i}",
                chunks=[Chunk(text=f"{i}{j}", id=f"{i}{j}") for j in range(3)],
                metadata={"even": i % 2 == 0},
            )
            for i in range(4)
        ]
    )
    return store


def remaining(store):
    return {hit.id for hit in store.search(np.ones(64, np.int8), k=100)}


ALL = {f"{i}{j}" for i in range(4) for j in range(3)}


def test_delete_by_chunk_ids(new_store):
    store = filled(new_store)
    assert store.delete(ids=["00", "11", "missing", "00"]) == 2
    assert remaining(store) == ALL - {"00", "11"}
    assert store.delete(ids=["00"]) == 0


def test_delete_by_document_ids(new_store):
    store = filled(new_store)
    assert store.delete(document_ids=["d1", "missing", "d3"]) == 6
    assert remaining(store) == ALL - {f"{i}{j}" for i in (1, 3) for j in range(3)}


def test_delete_by_filter(new_store):
    store = filled(new_store)
    assert store.delete(filter={"even": True}) == 6
    assert remaining(store) == {f"{i}{j}" for i in (1, 3) for j in range(3)}
    ready = models.Filter(must=[models.FieldCondition(key="chunk_index", match=models.MatchValue(value=0))])
    assert store.delete(filter=ready) == 2
    assert store.count() == 4


@pytest.mark.parametrize("what", ["ids", "document_ids"])
def test_no_ids_delete_nothing(new_store, what):
    store = filled(new_store)
    assert store.delete(**{what: []}) == 0
    assert store.delete(**{what: ["missing"]}) == 0
    assert remaining(store) == ALL


def test_a_field_that_no_chunk_has_matches_nothing(new_store):
    store = filled(new_store)
    for absent in ({"absent": 1}, {"absent": "x"}, {"absent": True}, {"absent": {"x": [1]}}, {"even": {"x": 1}}):
        assert store.search("00", filter=absent) == []
        assert store.count(absent) == 0
        assert store.delete(filter=absent) == 0
    assert remaining(store) == ALL


EMPTY = models.Filter()
EMPTY_FILTERS = {
    "dict": {},
    "Filter": EMPTY,
    "must": models.Filter(must=[]),
    "should": models.Filter(should=[]),
    "must_not": models.Filter(must_not=[]),
    "all three": models.Filter(must=[], should=[], must_not=[]),
    "nested Filter": models.Filter(must=[EMPTY]),
    "nested twice": models.Filter(should=[models.Filter(must=[models.Filter(must=[])])]),
    "min_should": models.Filter(min_should=models.MinShould(conditions=[], min_count=0)),
}


@pytest.mark.parametrize("empty", EMPTY_FILTERS.values(), ids=EMPTY_FILTERS)
def test_an_empty_filter_deletes_nothing_and_raises(new_store, empty):
    store = filled(new_store)
    with pytest.raises(InvalidInputError, match="empty filter"):
        store.delete(filter=empty)
    assert store.count() == 12


@pytest.mark.parametrize(
    "given_arguments",
    [
        {},
        {"ids": ["00"], "document_ids": ["d1"]},
        {"ids": ["00"], "filter": {"even": True}},
        {"document_ids": [], "filter": {"even": True}},
        {"ids": [], "document_ids": [], "filter": {}},
    ],
    ids=repr,
)
def test_delete_needs_exactly_one_of_the_three(new_store, given_arguments):
    store = filled(new_store)
    named = " and ".join(given_arguments) or "none"
    with pytest.raises(InvalidInputError, match=f"exactly one.*{named} came"):
        store.delete(**given_arguments)
    assert store.count() == 12


def test_what_was_deleted_can_be_added_again(new_store, contents):
    store = filled(new_store)
    before = contents(store)
    document = Document(id="d1", chunks=[Chunk(text=f"1{j}", id=f"1{j}") for j in range(3)], metadata={"even": False})
    assert store.delete(document_ids=["d1"]) == 3
    store.optimize()
    store.add([document])
    assert contents(store) == before


FIELDS = [
    {
        "s": "x",
        "i": 1,
        "f": 1.5,
        "b": True,
        "list": ["p", "q"],
        "in": {"deep": {"n": 1}},
        "a.b": "dot",
        "a": {"b": "path"},
    },
    {"s": "y", "i": 2, "f": 2.0, "b": False, "list": ["q"], "in": {"deep": {"n": 2}}, "null": 3},
    {"s": "1", "i": -1, "f": -0.25, "null": None, "list": [], "a": {"b": "dot"}},
    {},
]


@pytest.mark.parametrize(
    ("given_filter", "matches"),
    [
        ({"s": "x"}, {0}),
        ({"s": "X"}, set()),
        ({"s": ["x", "1"]}, {0, 2}),
        ({"i": 1}, {0}),
        ({"i": [2, -1, 7]}, {1, 2}),
        ({"f": 1.5}, {0}),
        ({"f": 2.0}, {1}),
        ({"f": -0.25}, {2}),
        ({"b": True}, {0}),
        ({"b": False}, {1}),
        ({"b": [True]}, {0}),
        ({"b": [True, False]}, {0, 1}),
        ({"i": [1, 2], "b": [False, True]}, {0, 1}),
        ({"list": "q"}, {0, 1}),
        ({"list": ["p", "z"]}, {0}),
        ({"null": None}, {0, 2, 3}),
        ({"list": None}, {2, 3}),
        ({"in": {"deep": {"n": 2}}}, {1}),
        ({"in": {"deep": {"n": None}}}, {2, 3}),
        ({"a.b": "dot"}, {0}),
        ({"a": {"b": "dot"}}, {2}),
        ({"s": "x", "i": 1, "b": True}, {0}),
        ({"s": "x", "i": 2}, set()),
        ({"s": 1}, set()),
        ({"i": "1"}, set()),
        ({"b": 1}, set()),
        ({"i": True}, set()),
        ({}, {0, 1, 2, 3}),
        (None, {0, 1, 2, 3}),
    ],
    ids=repr,
)
def test_dict_filters(new_store, given_filter, matches):
    store = new_store()
    store.add([Document(id=str(i), chunks=["x"], metadata=metadata) for i, metadata in enumerate(FIELDS)])
    assert {int(hit.document_id) for hit in store.search("x", filter=given_filter)} == matches
    assert store.count(given_filter) == len(matches)


# --- lifetime ------------------------------------------------------------------------------------------


def test_a_closed_store_refuses_everything(new_store):
    store = filled(new_store)
    store.close()
    store.close()
    calls = [
        lambda: store.add([Document(id="d", chunks=["x"])]),
        lambda: store.search("x"),
        lambda: store.search_batch(["x"]),
        lambda: store.get(["00"]),
        lambda: store.delete(ids=["00"]),
        lambda: store.count(),
        lambda: store.optimize(),
    ]
    for call in calls:
        with pytest.raises(StoreClosedError, match="closed"):
            call()


def test_a_store_is_a_context_manager(new_store):
    with new_store() as store:
        store.add([Document(id="d", chunks=["x"])])
    with pytest.raises(StoreClosedError):
        store.count()


def test_a_client_that_was_handed_over_stays_open(hash_encoder):
    client = QdrantClient(":memory:")
    store = VectorStore(client, "mine", encoder=hash_encoder())
    store.add([Document(id="d", chunks=["x"])])
    store.close()
    with VectorStore(client, "mine", encoder=hash_encoder(), create=False) as again:
        assert again.count() == 1
    with pytest.raises(StoreNotFoundError, match="no collection 'other'"):
        VectorStore(client, "other", encoder=hash_encoder(), create=False)
    client.close()


def test_a_collection_of_somebody_else_is_refused(hash_encoder):
    client = QdrantClient(":memory:")
    client.create_collection("theirs", vectors_config=models.VectorParams(size=64, distance="Cosine"))
    with pytest.raises(SchemaMismatchError, match="'theirs' was not written by pplx-vectorstore"):
        VectorStore(client, "theirs", encoder=hash_encoder())
    client.close()


def test_another_model_is_refused_on_any_client(hash_encoder):
    client = QdrantClient(":memory:")
    VectorStore(client, "c", encoder=hash_encoder(64, name="first"))
    with pytest.raises(SchemaMismatchError, match="model 'first' in the collection, 'second' given"):
        VectorStore(client, "c", encoder=hash_encoder(64, name="second"))
    client.close()


def test_encoders_of_wrong_shapes_are_refused(new_store, hash_encoder):
    """An encoder is anybody's code, so what it returns is checked before it is stored."""

    class Broken:
        def __init__(self, result):
            self.inner = hash_encoder(64)
            self.result = result
            self.spec, self.tokenizer, self.fingerprint = self.inner.spec, self.inner.tokenizer, self.inner.fingerprint

        def encode_documents(self, documents, *, progress=None):
            return self.result

        encode_queries = None

    from pplx_vectorstore.errors import EncodingError

    one, two = np.ones((1, 64), np.int8), np.ones((2, 64), np.int8)
    for result in ([one], [two, one, one], [one, two], [np.ones((2, 32), np.int8), one], []):
        store = new_store(encoder=Broken(result))
        with pytest.raises((EncodingError, InvalidDocumentError)):
            store.add([Document(id="d", chunks=["a", "b"]), Document(id="e", chunks=["c"])])
        assert store.count() == 0


def test_threads_search_while_one_adds(new_store, rng, monkeypatch):
    from pplx_vectorstore.engines import shard

    monkeypatch.setattr(shard, "_WALKED_BYTES", 400 * 64)
    monkeypatch.setattr(shard, "_SHARE_WHILE_WRITING", 0.05)
    codes = clustered_codes(rng, 1500, 64)
    # Equal vectors could stand for each other.
    codes = np.unique(codes, axis=0)
    documents = as_documents(codes, per_document=5)
    store = new_store(64)
    store.add(documents[:100])
    store.optimize()
    done = threading.Event()
    errors, n_searches = [], [0] * 4

    def search(seed):
        own = np.random.default_rng(seed)
        try:
            while not done.is_set():
                row = int(own.integers(500))
                hits = store.search(codes[row], k=5)
                assert hits[0].id == f"c{row}"
                rows = [int(hit.id[1:]) for hit in hits]
                scores = cosine_similarity(codes[row], codes[rows])
                np.testing.assert_allclose([hit.score for hit in hits], scores, rtol=0, atol=1e-6)
                assert [hit.text for hit in hits] == [f"text {i}" for i in rows]
                assert store.count() >= 500
                n_searches[seed] += 1
                # Threads that never pause keep the interpreter's lock from the one that writes.
                time.sleep(0.001)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        for first in range(100, len(documents), 10):
            store.add(documents[first : first + 10])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert min(n_searches) > 0
    assert store.count() == len(codes)
    for row in range(0, len(codes), 50):
        assert store.search(codes[row], k=1)[0].id == f"c{row}"


@pytest.fixture
def rng():
    return np.random.default_rng(20240611)


def test_threads_that_replace_the_same_documents_leave_one_whole_version(new_store):
    store = new_store()
    start = threading.Barrier(2, timeout=60)

    def replace(version):
        for _ in range(30):
            start.wait()
            store.add([Document(id=str(number), chunks=[f"{version} {number}"] * 2) for number in range(4)])

    threads = [threading.Thread(target=replace, args=(version,)) for version in ("old", "new")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 8


def test_a_blank_chunk_with_a_vector_is_not_found_either(new_store):
    store = new_store()
    dimension = store.fingerprint.dimension
    vectors = np.ones((2, dimension), dtype=np.int8)
    report = store.add([Document(id="d", chunks=[" ", "text"], vectors=vectors)])
    assert report.blank_chunks == 1
    assert [hit.text for hit in store.search(vectors[0], k=5)] == ["text"]
    assert vectors.all(), "the caller's array is left alone"


def test_a_chunk_id_of_another_document_is_refused_and_nothing_is_lost(new_store):
    store = new_store()
    store.add([Document(id="a", chunks=[Chunk(text="one", id="x"), Chunk(text="two", id="y")])])
    with pytest.raises(DuplicateDocumentError, match="chunk id 'x' of document 'b' belongs to document 'a'"):
        store.add([Document(id="b", chunks=[Chunk(text="three", id="x")])])
    assert [chunk.text for chunk in store.get(["x", "y"])] == ["one", "two"]
    store.add([Document(id="a", chunks=[Chunk(text="one again", id="x")])])
    assert [chunk.text for chunk in store.get(["x", "y"])] == ["one again"]


def test_search_stays_exact_after_an_add_that_raised(new_store):
    store = new_store()
    store.add([Document(id=str(number), chunks=["a", "b"]) for number in range(300)])
    store.search("a")

    def broken():
        yield from (Document(id=str(number), chunks=[]) for number in range(256))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.add(broken())
    assert store.count() == 88
    assert {hit.score for hit in store.search("a", k=88, candidates=88)}


def test_a_store_without_a_model_takes_vectors_and_gives_them_back(tmp_path):
    encoder = PrecomputedEncoder("somebody/some-model", 8)
    codes = np.arange(16, dtype=np.int8).reshape(2, 8) - 8
    with VectorStore.open(tmp_path / "index", encoder=encoder) as store:
        store.add([Document(id="d", chunks=["one", "two"], vectors=codes)])
        assert store.search(codes[0], k=1)[0].text == "one"
        for call in (
            lambda: store.search("one"),
            lambda: store.add([Document(id="e", text="text")]),
            lambda: store.add([Document(id="e", chunks=["text"])]),
        ):
            with pytest.raises(InvalidInputError, match="opened without a model"):
                call()
