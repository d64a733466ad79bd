"""Documents that come piece by piece: ``add(..., replace=False)``, on every engine."""

import threading

import numpy as np
import pytest
from qdrant_client import QdrantClient

from pplx_vectorstore import Chunk, Document, VectorStore
from pplx_vectorstore.errors import DuplicateDocumentError, InvalidDocumentError, InvalidInputError
from pplx_vectorstore.points import point_id_of


def piece(texts, document="d", **options):
    return Document(id=document, chunks=[Chunk(text=text, id=f"{document}:{text}") for text in texts], **options)


def places(store, document="d"):
    """Text → (number, count) of a document's chunks."""
    found = store.search_batch([np.ones(64, np.int8)], k=100, candidates=1000, filter=None)[0]
    return {hit.text: (hit.chunk_index, hit.chunk_count) for hit in found if hit.document_id == document}


def test_pieces_stand_after_each_other_and_keep_their_own_context(new_store, hash_encoder):
    store = new_store()
    store.add([piece("ab"), piece("x", "other")], replace=False)
    store.add([piece("cde"), piece("y", "new")], replace=False)
    assert places(store) == {text: (i, 2 if text in "ab" else 5) for i, text in enumerate("abcde")}
    assert places(store, "other") == {"x": (0, 1)}
    codes = {chunk.text: chunk.codes for chunk in store.get([f"d:{text}" for text in "abcde"], with_codes=True)}
    expected = hash_encoder(64).encode_documents([list("ab"), list("cde")])
    np.testing.assert_array_equal([codes[text] for text in "abcde"], np.concatenate(expected))
    (hit,) = store.search(codes["c"], k=1, context=1)
    assert hit.context == "b\n\nc\n\nd"
    assert {one.id: (one.chunks, one.chunk_count) for one in store.documents()} == {
        "d": (5, 2),  # not whole: nobody has embedded it so
        "other": (1, 1),
        "new": (1, 1),
    }


def test_adding_a_piece_again_changes_nothing_but_its_vectors(new_store):
    store = new_store()
    store.add([piece("abcd")], replace=False)
    store.add([piece("c")], replace=False)
    assert places(store) == {text: (i, 4) for i, text in enumerate("abcd")}
    assert store.sync([piece("abcd")]).documents == 1, "c was embedded by itself"
    store.add([piece("dcba")], replace=False)  # all there is, in another order
    assert places(store) == {text: (i, 4) for i, text in enumerate("dcba")}
    assert store.count() == 4


def test_numbers_after_a_gap(new_store):
    store = new_store()
    store.add([piece("abcdefghij")], replace=False)
    store.delete(ids=[f"d:{text}" for text in "abcdefg"])
    store.add([piece("kl")], replace=False)
    assert {text: place for text, (place, _) in places(store).items()} == {"h": 7, "i": 8, "j": 9, "k": 10, "l": 11}


def test_pieces_need_ids(new_store):
    store = new_store()
    with pytest.raises(InvalidDocumentError, match="chunk 1 of document 'd' has no id; with replace=False"):
        store.add([Document(id="d", chunks=[Chunk(text="a", id="1"), "b"])], replace=False)
    assert store.count() == 0


def test_a_chunk_moves_to_the_document_that_brings_its_id(new_store):
    store = new_store()
    store.add([Document(id="one", chunks=[Chunk(text="old", id="x"), Chunk(text="stays", id="y")])])
    moved = Document(id="two", chunks=[Chunk(text="new", id="x")])
    with pytest.raises(DuplicateDocumentError, match="belongs to document 'one'"):
        store.add([moved])
    store.add([moved], replace=False)
    assert [(chunk.text, chunk.document_id) for chunk in store.get(["x", "y"])] == [("new", "two"), ("stays", "one")]


def test_a_chunk_is_addressed_by_a_derived_id_too(new_store):
    store = new_store()
    store.add([Document(id="d", chunks=["a", "b", "c"])])
    derived = next(hit.id for hit in store.search(np.ones(64, np.int8)) if hit.text == "b")
    changed = Chunk(text="changed", id=derived)
    for document, place in (("d", (1, 3)), ("elsewhere", (0, 1))):
        store.add([Document(id=document, chunks=[changed])], replace=False)
        (stored,) = store.get([derived])
        assert (stored.id, stored.text, stored.document_id) == (derived, "changed", document)
        assert (stored.chunk_index, stored.chunk_count) == place
        assert store.count() == 3


def test_sync_makes_a_document_of_pieces_whole(new_store, hash_encoder):
    store = new_store()
    whole = piece("abc")
    store.add([piece("ab")], replace=False)
    store.add([piece("cz")], replace=False)
    assert store.sync([whole]).documents == 1
    codes = [chunk.codes for chunk in store.get(["d:a", "d:b", "d:c", "d:z"], with_codes=True)]
    np.testing.assert_array_equal(codes, hash_encoder(64).encode_documents([list("abc")])[0])
    store.add([whole], replace=False)
    assert store.sync([whole]).unchanged_documents == 1


def test_a_document_without_chunks_leaves_what_is_stored(new_store):
    store = new_store()
    store.add([piece("ab")])
    report = store.add([Document(id="d", chunks=[])], replace=False)
    assert report.empty_documents == ("d",)
    assert places(store) == {"a": (0, 2), "b": (1, 2)}


def test_threads_that_extend_one_document_number_its_chunks_once(new_store):
    store = new_store()
    threads = [
        threading.Thread(
            target=lambda own=number: [store.add([piece([f"{own}.{i}"])], replace=False) for i in range(8)]
        )
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(place for place, _ in places(store).values()) == list(range(24))


def test_what_was_written_beside_others_is_not_whole_without_them(new_store, hash_encoder):
    store = new_store()
    store.add([piece("abc")])
    store.add([piece("xyz")], replace=False)
    store.delete(ids=["d:a", "d:b", "d:c"])
    assert places(store) == {"x": (3, 6), "y": (4, 6), "z": (5, 6)}
    assert store.sync([piece("xyz")]).documents == 1
    assert places(store) == {"x": (0, 3), "y": (1, 3), "z": (2, 3)}
    assert store.sync([piece("xyz")]).unchanged_documents == 1


def test_chunks_that_move_count_where_they_go(new_store):
    store = new_store()
    store.add([piece("xyz")])
    moved = Document(id="other", chunks=[Chunk(text="x", id="d:x")])
    store.add([moved, piece("w")], replace=False)
    assert places(store) == {"y": (1, 3), "z": (2, 3), "w": (3, 3)}
    assert places(store, "other") == {"x": (0, 1)}


def test_a_chunk_with_an_id_of_its_own_is_not_mistaken_for_a_derived_one(new_store):
    store = new_store()
    store.add([Document(id="d", chunks=[Chunk(text="a", id="x")])])
    store.add([Document(id="e", chunks=[Chunk(text="b", id=point_id_of("x"))])], replace=False)
    assert [chunk.text for chunk in store.get(["x", point_id_of("x")])] == ["a", "b"]


def test_two_stores_share_a_client_in_memory(hash_encoder):
    client = QdrantClient(":memory:")
    stores = [VectorStore(client, encoder=hash_encoder(64), tenant=name) for name in ("ann", "bob")]
    threads = [
        threading.Thread(
            target=lambda own=store: [own.add([piece([str(i)])], replace=False) or own.search("x") for i in range(40)]
        )
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.count() for store in stores] == [40, 40]


def test_replace_is_true_or_false(new_store):
    with pytest.raises(InvalidInputError, match="replace must be True or False, not 'no'"):
        new_store().add([], replace="no")


def test_tenants_extend_documents_of_their_own(new_store):
    store = new_store(tenant="a", collection="shared")
    store.add([piece("ab")], replace=False)
    store.add([piece("c")], replace=False)
    assert places(store) == {"a": (0, 2), "b": (1, 2), "c": (2, 3)}


@pytest.mark.parametrize(
    "options", [{}, {"group_by_document": True}, {"diversity": 0.5}, {"context": 1}, {"hybrid": True}]
)
def test_hits_bring_their_codes_on_request(new_store, hash_encoder, options):
    store = new_store()
    chunks = ["one common", "two common", " ", "three common"]
    store.add([Document(id="d", chunks=chunks), Document(id="e", chunks=["common"])])
    expected = dict(zip(chunks, hash_encoder(64).encode_documents([chunks])[0], strict=True))
    hits = store.search("common", k=5, with_codes=True, **options)
    assert any(hit.document_id == "d" for hit in hits)
    for hit in hits:
        if hit.document_id == "d":
            np.testing.assert_array_equal(hit.codes, expected[hit.text])
            assert hit.codes.dtype == np.int8
    assert {hit.codes is None for hit in store.search("common", k=5, **options)} == {True}
