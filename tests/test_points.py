"""Chunks and codes → points, and back."""

import base64
import json
import uuid
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models
from qdrant_client.conversions.conversion import RestToGrpc

from pplx_vectorstore import Chunk, Document
from pplx_vectorstore.collection import LOSS_FIELD, VECTOR_NAME, Fingerprint
from pplx_vectorstore.equal_norms import equalize_norms, storage_loss
from pplx_vectorstore.errors import AlignmentError, EncodingError
from pplx_vectorstore.points import (
    Vectors,
    chunk_point_id,
    content_hash,
    copy_points,
    derive_point_id,
    equalize_codes,
    estimate_bytes,
    hash_document,
    iter_points,
    point_id_of,
    possible_point_ids,
    read_chunk,
    read_codes,
    read_hit,
    read_stored_codes,
    stored_point_id,
)
from pplx_vectorstore.quantization import norms

SQUARED_NORM = 127**2

FINGERPRINT = Fingerprint(
    model="m",
    revision="1",
    dimension=4,
    quantizer="tanh",
    window_tokens=512,
    min_context=64,
    context_weight=1.0,
    source="m",
    squared_norm=SQUARED_NORM,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def make_points(document, codes, document_hash="h", squared_norm=SQUARED_NORM, tenant=None):
    (vectors,) = equalize_codes([np.asarray(codes, np.int8)], squared_norm)
    point_ids = [chunk_point_id(document, chunk, index, tenant) for index, chunk in enumerate(document.chunks)]
    return list(iter_points(document, document.chunks, vectors, point_ids, document_hash, tenant))


def sent_vector(point):
    """The vector as engines give it back."""
    return {} if point.vector is None else {VECTOR_NAME: point.vector.tolist()}


def codes_of(point, dimension=4, squared_norm=SQUARED_NORM):
    return read_codes(sent_vector(point), point.payload, dimension, squared_norm)


def fields_of(points):
    return [(point.id, sent_vector(point), point.payload) for point in points]


def test_ids_never_change():
    # Ids of points that are already written: a change here orphans every index there is.
    assert derive_point_id("handbook", 0) == "450084db-9f05-5a77-9dbb-e99f0322fe78"
    assert point_id_of("intro") == "322ed363-00a2-5a6c-8eba-17bbf585a188"


@given(TEXTS, st.integers(0, 2**31), st.none() | TEXTS)
def test_ids_are_of_the_standards_version_5(document_id, index, tenant):
    namespace = uuid.UUID("6e1f0a1c-6f4e-5d0b-9a55-70706c785f76")
    named = [document_id, index] if tenant is None else {"tenant": tenant, "of": [document_id, index]}
    name = json.dumps(named, ensure_ascii=False)
    assert derive_point_id(document_id, index, tenant) == str(uuid.uuid5(namespace, name))


@given(TEXTS, st.integers(0, 2**31), TEXTS, st.integers(0, 2**31))
def test_derived_ids_are_uuids_that_differ_where_document_or_index_differ(first, i, second, j):
    one, other = derive_point_id(first, i), derive_point_id(second, j)
    assert uuid.UUID(one).version == 5
    assert (one == other) == ((first, i) == (second, j))


@pytest.mark.parametrize(("one", "other"), [("a", "a,0"), ('a",0', "a"), ("1", "[1]"), ("ä", "a\u0308"), ("a\0", "a")])
def test_ids_that_look_alike_are_not_mixed_up(one, other):
    assert derive_point_id(one, 0) != derive_point_id(other, 0)
    assert point_id_of(one) != point_id_of(other)
    assert point_id_of(one) != derive_point_id(one, 0)


def test_an_id_of_the_caller_or_a_derived_one_finds_its_point():
    derived = derive_point_id("handbook", 3)
    assert possible_point_ids("intro") == [point_id_of("intro")]
    assert derived in possible_point_ids(derived)
    assert point_id_of(derived) in possible_point_ids(derived)


CHUNKS = (Chunk(text="one", start=0, end=3), Chunk(text="two", start=4, end=7, id="x"))


@pytest.mark.parametrize(
    ("document_id", "chunks", "fingerprint"),
    [
        ("e", CHUNKS, FINGERPRINT),
        ("d", CHUNKS[:1], FINGERPRINT),
        ("d", CHUNKS[::-1], FINGERPRINT),
        ("d", (replace(CHUNKS[0], text="One"), CHUNKS[1]), FINGERPRINT),
        ("d", (replace(CHUNKS[0], end=4), CHUNKS[1]), FINGERPRINT),
        ("d", (replace(CHUNKS[0], id="y"), CHUNKS[1]), FINGERPRINT),
        ("d", (*CHUNKS, Chunk(text="")), FINGERPRINT),
        ("d", CHUNKS, replace(FINGERPRINT, model="n")),
        ("d", CHUNKS, replace(FINGERPRINT, revision=None)),
        ("d", CHUNKS, replace(FINGERPRINT, window_tokens=256)),
        ("d", CHUNKS, replace(FINGERPRINT, context_weight=0.5)),
    ],
)
def test_the_hash_changes_with_all_that_the_points_depend_on(document_id, chunks, fingerprint):
    changed = hash_of(chunks, document_id, fingerprint)
    assert changed != hash_of(CHUNKS)
    assert content_hash(changed) != content_hash(hash_of(CHUNKS))


def test_the_hash_tells_metadata_from_content():
    of_chunk = hash_of([replace(CHUNKS[0], metadata={"a": 1}), *CHUNKS[1:]])
    of_document = hash_of(CHUNKS, metadata={"a": 1})
    hashes = {hash_of(CHUNKS), of_chunk, of_document, hash_of(CHUNKS, metadata={"a": 1.0})}
    assert len(hashes) == 4
    assert len({content_hash(one) for one in hashes}) == 1
    assert hash_of(CHUNKS, metadata={"a": 1, "b": 2}) == hash_of(CHUNKS, metadata={"b": 2, "a": 1})


def test_the_hash_does_not_change_with_where_the_model_lies():
    assert hash_of(CHUNKS, fingerprint=replace(FINGERPRINT, source="elsewhere")) == hash_of(CHUNKS)


def test_the_hash_does_not_change_with_the_norm_that_vectors_are_brought_to():
    assert hash_of(CHUNKS, fingerprint=replace(FINGERPRINT, squared_norm=200**2)) == hash_of(CHUNKS)


def test_the_hash_changes_with_vectors_that_came_ready_made():
    vectors = [np.array([[1, 2, 3, 4]] * len(CHUNKS), dtype) for dtype in (np.int8, np.float32)]
    vectors.append(vectors[0] + np.int8(1))
    hashes = {hash_of(CHUNKS, vectors=one) for one in [None, *vectors]}
    assert len({content_hash(one) for one in hashes}) == 4


def test_the_hash_stays_what_it_was():
    """Another would have every document embedded and written anew."""
    chunks = [Chunk(text="eins\0", start=0, end=5), Chunk(text="zwei ü", id="x", metadata={"b": None})]
    vectors = np.arange(8, dtype=np.int8).reshape(2, 4)
    assert hash_of(chunks, metadata={"a": [1, 0.5]}) == "0fd8b30da5119df2b1cd0a86a2dacf8a5b02273550da807c"
    assert (
        hash_of(chunks, metadata={"a": [1, 0.5]}, vectors=vectors) == "7bab2c86468e69a6e5e5ae2c7f48f8965b02273550da807c"
    )
    # Neither the order in memory nor the layout matters.
    assert hash_of(chunks, vectors=np.asfortranarray(vectors)) == hash_of(chunks, vectors=vectors)


@given(st.lists(TEXTS), st.lists(TEXTS))
def test_the_hash_knows_where_chunks_end(first, second):
    hashes = [hash_of([Chunk(text=text) for text in texts]) for texts in (first, second)]
    assert (hashes[0] == hashes[1]) == (first == second)


@pytest.mark.parametrize(
    "between", ["\n1 None None null\n", "\n None None null\n", "\nNone None null\n", "\n"], ids=repr
)
def test_a_chunks_end_cannot_be_forged_in_text(between):
    # What separates two chunks in the hash, spelled out in the text of one.
    assert hash_of([Chunk(text=f"a{between}b")]) != hash_of([Chunk(text="a"), Chunk(text="b")])


def hash_of(chunks, document_id="d", fingerprint=FINGERPRINT, **options):
    document = Document(id=document_id, chunks=list(chunks), **options)
    return hash_document(document, document.chunks, fingerprint)


def test_tenants_have_points_of_their_own():
    document = Document(id="d", chunks=["one", Chunk(text="two", id="mine")])
    codes = np.ones((2, 4), np.int8)
    hash_ = hash_of(document.chunks)
    of_none, of_a, of_b = (make_points(document, codes, hash_, tenant=tenant) for tenant in (None, "a", "b"))
    assert len({point.id for points in (of_none, of_a, of_b) for point in points}) == 6
    assert [point.payload["tenant"] for point in of_a] == ["a", "a"]
    assert "tenant" not in of_none[0].payload
    point_id = stored_point_id(of_a[1].payload, "b")
    moved = copy_points([of_a[1].payload], *equalize_codes([codes[:1]], SQUARED_NORM), [point_id], "b")
    assert fields_of(moved) == fields_of(of_b[1:])


def test_a_copy_has_the_norm_of_its_own_collection():
    document = Document(id="d", chunks=["one", "two"])
    # The second is so much longer than the first collection's norm that its own codes are kept beside it.
    codes = np.array([[3, 4, 0, 0], [-128, -1, 0, 127]], np.int8)
    points = make_points(document, codes, squared_norm=50**2)
    for squared_norm in (50**2, 100**2, 127**2):
        payloads = [point.payload for point in points]
        point_ids = [stored_point_id(payload, None) for payload in payloads]
        copies = list(copy_points(payloads, *equalize_codes([codes], squared_norm), point_ids, None))
        assert fields_of(copies) == fields_of(make_points(document, codes, squared_norm=squared_norm))
        assert [codes_of(one, squared_norm=squared_norm).tolist() for one in copies] == codes.tolist()


@given(text=TEXTS, key=TEXTS)
def test_the_estimate_of_points_bytes_is_no_less_than_what_is_sent(text, key):
    document = Document(id="d", chunks=[text, Chunk(text=key, id=text)], metadata={key: [text, 1.5]})
    points = make_points(document, np.full((2, 4), 127, np.int8), hash_of(document.chunks))
    structs = [models.PointStruct(id=id_, vector=vector, payload=payload) for id_, vector, payload in fields_of(points)]
    assert estimate_bytes(points, 6) >= sum(len(struct.model_dump_json().encode()) for struct in structs)
    assert estimate_bytes(points, 4) >= sum(RestToGrpc.convert_point_struct(struct).ByteSize() for struct in structs)


def test_a_point_holds_all_of_a_chunk():
    document = Document(
        id="d",
        chunks=[Chunk(text="one", start=2, end=5, metadata={"a": 2, "c": [1]}), Chunk(text="two", id="mine")],
        metadata={"a": 1, "b": {"x": None}},
    )
    first, second = make_points(document, [[3, 4, 0, 0], [-80, 0, 0, 60]], squared_norm=50**2)
    assert first.id == derive_point_id("d", 0)
    assert sent_vector(first) == {VECTOR_NAME: [158, 168, 128, 128]}
    assert first.payload == {
        "text": "one",
        "document_id": "d",
        "chunk_index": 0,
        "chunk_count": 2,
        "start": 2,
        "end": 5,
        "document_hash": "h",
        "norm": 5.0,
        "metadata": {"a": 2, "b": {"x": None}, "c": [1]},
    }
    assert second.id == point_id_of("mine")
    assert sent_vector(second) == {VECTOR_NAME: [88, 128, 128, 158]}
    assert second.payload["norm"] == 100.0
    assert second.payload["id"] == "mine"
    assert second.payload["metadata"] == {"a": 1, "b": {"x": None}}


def test_what_the_norm_cannot_tell_of_the_codes_is_kept_beside_it():
    squared_norm = 28**2 * 64
    own = np.random.default_rng(4).integers(-128, 128, size=64).astype(np.int8)
    (point,) = make_points(Document(id="d", chunks=["x"]), own[None], squared_norm=squared_norm)
    assert base64.b64decode(point.payload["own_codes"]) == own.tobytes()
    assert LOSS_FIELD not in point.payload
    stored = read_stored_codes(sent_vector(point), 64).astype(int)
    assert stored @ stored == squared_norm < point.payload["norm"] ** 2
    assert codes_of(point, 64, squared_norm).tolist() == own.tolist()


def test_a_bent_direction_is_told_and_one_that_would_be_lost_is_refused():
    document = Document(id="d", chunks=["straight", "bent"])
    squared_norm = 28**2 * 1024
    rng = np.random.default_rng(3)
    codes = rng.integers(-20, 21, size=(2, 1024)).astype(np.int8)
    codes[1, 7] = 125
    straight, bent = make_points(document, codes, squared_norm=squared_norm)
    assert LOSS_FIELD not in straight.payload
    stored = read_stored_codes(sent_vector(bent), 1024).astype(float)
    cosine = stored @ codes[1] / np.linalg.norm(stored) / np.linalg.norm(codes[1].astype(float))
    assert bent.payload[LOSS_FIELD] == pytest.approx(1 - cosine, abs=1e-6)
    assert 0.001 < 1 - cosine < 0.1
    assert codes_of(bent, 1024, squared_norm).tolist() == codes[1].tolist()

    codes = rng.integers(-1, 2, size=(2, 1024)).astype(np.int8)
    codes[1, 7] = 125
    (vectors,) = equalize_codes([codes], squared_norm)
    with pytest.raises(EncodingError, match=r"vector of chunk 1 of document 'd' .*crest_factor=\d+"):
        vectors.require_directions("d", [0, 1])


def test_the_callers_metadata_is_not_touched():
    shared = {"a": 1}
    chunk = Chunk(text="x", metadata={"b": 2})
    make_points(Document(id="d", chunks=[chunk], metadata=shared), [[1, 0, 0, 0]])
    assert shared == {"a": 1}
    assert chunk.metadata == {"b": 2}


def test_codes_that_have_the_norm_and_others_may_come_together():
    codes = np.array([[127, 0, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [0, -127, 0, 0]], np.int8)
    together = equalize_codes([codes[:1], codes[1:]], SQUARED_NORM)
    for vectors, of_document in zip(together, (codes[:1], codes[1:]), strict=True):
        alone = Vectors(
            of_document,
            equalize_norms(of_document, SQUARED_NORM),
            norms(of_document),
            np.ones(len(of_document), np.bool_),
            storage_loss(of_document, equalize_norms(of_document, SQUARED_NORM), SQUARED_NORM),
        )
        for one, other in zip(vectors, alone, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-15)


def test_a_zero_vector_is_left_out():
    (point,) = make_points(Document(id="d", chunks=[" "]), [[0, 0, 0, 0]])
    assert point.vector is None
    assert point.payload["norm"] == 0.0


@given(st.lists(st.lists(st.integers(-128, 127), min_size=4, max_size=4), max_size=6))
def test_codes_come_back(rows):
    document = Document(id="d", chunks=["x"] * len(rows))
    codes = np.array(rows, np.int8).reshape(len(rows), 4)
    for point, row in zip(make_points(document, codes), codes, strict=True):
        back = codes_of(point)
        assert back.dtype == np.int8
        assert back.tolist() == row.tolist()


@pytest.mark.parametrize("vector", [None, {}, {"other": [1.0]}, []])
def test_a_point_without_codes_reads_as_zeros(vector):
    assert read_codes(vector, {"norm": 0.0}, 3, SQUARED_NORM).tolist() == [0, 0, 0]
    assert read_stored_codes(vector, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("n_codes", [0, 1, 3])
def test_numbers_of_codes_and_chunks_must_agree(n_codes):
    with pytest.raises(AlignmentError, match=f"{n_codes} vectors for 2 chunks of document 'd'"):
        make_points(Document(id="d", chunks=["a", "b"]), np.ones((n_codes, 4)))


def test_many_chunks_keep_their_codes():
    codes = np.random.default_rng(0).integers(-128, 128, size=(600, 4)).astype(np.int8)
    document = Document(id="d", chunks=[str(i) for i in range(600)])
    points = make_points(document, codes)
    assert [point.payload["chunk_index"] for point in points] == list(range(600))
    assert [point.payload["text"] for point in points] == [str(i) for i in range(600)]
    assert np.array_equal(np.stack([codes_of(point) for point in points]), codes)


def test_points_read_back_as_chunks_and_hits():
    document = Document(id="d", chunks=[Chunk(text="one", start=2, end=5, id="mine"), "two"], metadata={"a": 1})
    first, second = make_points(document, [[1, 0, 0, 0]] * 2)
    chunk = read_chunk(first.id, first.payload)
    assert (chunk.id, chunk.text, chunk.start, chunk.end, chunk.chunk_index) == ("mine", "one", 2, 5, 0)
    hit = read_hit(second.id, second.payload, 0.5)
    assert (hit.id, hit.document_id, hit.chunk_count, hit.metadata) == (second.id, "d", 2, {"a": 1})
    assert (hit.start, hit.end, hit.codes) == (None, None, None)
