"""Replacing documents: what comes of it depends on the documents alone, not on how, when and with what they come."""

import asyncio
import itertools
import threading

import numpy as np
import pytest

from pplx_vectorstore import AsyncVectorStore, Chunk, Document, EncodedQuery, PrecomputedEncoder, VectorStore
from pplx_vectorstore.errors import DuplicateDocumentError
from pplx_vectorstore.operations import write
from pplx_vectorstore.points import derive_point_id


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def group_size(request, monkeypatch):
    monkeypatch.setattr(write, "_GROUP_DOCUMENTS", request.param)


IN_GROUPS_OF = pytest.mark.parametrize("group_size", [1, 2, 256], indirect=True)


def orders(documents, engine):
    """Yield all orders, or two where a store takes longer."""
    documents = list(documents)
    yield from itertools.permutations(documents) if engine == "edge" else [documents, documents[::-1]]


def own(document_id, *ids, **options):
    """A document of chunks that have ids of their own, which are their texts too, with the document's id."""
    return Document(id=document_id, chunks=[Chunk(text=f"{id_} of {document_id}", id=id_) for id_ in ids], **options)


def contents(store):
    """What is stored: document → its chunks' texts, in order; everything that must agree is checked."""
    found = {}
    for chunk in store.chunks():
        found.setdefault(chunk.document_id, []).append(chunk)
    listed = {document.id: document for document in store.documents()}
    assert listed.keys() == found.keys()
    for document_id, chunks in found.items():
        chunks.sort(key=lambda chunk: chunk.chunk_index)
        assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
        assert {chunk.chunk_count for chunk in chunks} == {len(chunks)}
        assert (listed[document_id].chunks, listed[document_id].chunk_count) == (len(chunks), len(chunks))
    assert store.count() == sum(map(len, found.values()))
    return {document_id: [chunk.text for chunk in chunks] for document_id, chunks in found.items()}


# --- what is given is copied ------------------------------------------------------------------------------


def test_one_dict_one_list_and_one_array_may_serve_for_all_documents(new_store, rng):
    dimension = 64
    store = new_store(dimension, encoder=PrecomputedEncoder("made", dimension))
    floats = rng.normal(size=(600, 2, dimension)).astype(np.float32)

    def documents():
        metadata, inner, chunks, vectors = {}, {}, [], np.empty((2, dimension), np.float32)
        for number in range(600):
            inner["number"] = number
            metadata.update(number=number, inner=inner)
            chunks[:] = [f"{number} a", Chunk(text=f"{number} b", metadata=inner)]
            vectors[:] = floats[number]
            yield Document(id=f"d{number}", chunks=chunks, metadata=metadata, vectors=vectors)

    assert store.sync(documents()).new_documents == 600
    for number, hits in enumerate(
        store.search_batch([EncodedQuery("", codes) for codes in _codes(store, floats)], k=1)
    ):
        assert [hit.text for hit in hits] == [f"{number} a"]
        assert hits[0].metadata == {"number": number, "inner": {"number": number}}
        assert hits[0].score > 0.999
    assert store.sync(documents()).unchanged_documents == 600


def _codes(store, floats):
    from pplx_vectorstore import quantize_to_norm

    return quantize_to_norm(floats[:, 0], store.fingerprint.squared_norm)


def test_a_document_does_not_change_with_what_it_was_made_of():
    metadata, vectors = {"a": [1, {"b": 2}]}, np.ones((1, 4), np.int8)
    document = Document(id="d", chunks=[Chunk(text="x", metadata=metadata)], metadata=metadata, vectors=vectors)
    query = EncodedQuery("x", vectors[0])
    metadata["a"][1]["b"] = 3
    metadata["c"] = 4
    vectors[:] = 9
    assert document.metadata == document.chunks[0].metadata == {"a": [1, {"b": 2}]}
    assert document.vectors.tolist() == [[1, 1, 1, 1]]
    assert query.codes.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        document.vectors[0] = 2


# --- ids that move ----------------------------------------------------------------------------------------

BEFORE = [own("a", "1", "2"), own("b", "3", "4"), own("c", "5")]
MOVES = {
    "to an earlier one": [own("a", "1", "2", "4"), own("b", "3")],
    "to a later one": [own("a", "1"), own("b", "2", "3", "4")],
    "both ways": [own("a", "1", "4"), own("b", "2", "3")],
    "round": [own("a", "5", "1"), own("b", "2", "3"), own("c", "4")],
    "all to a new one": [own("a"), own("b", "3"), own("new", "2", "4", "1")],
}


@IN_GROUPS_OF
@pytest.mark.parametrize("verb", ["add", "sync", "sync whole"])
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.usefixtures("group_size")
def test_a_chunks_id_moves_to_another_document_in_any_order(new_store, move, verb, engine):
    after = {document.id: document for document in MOVES[move]}
    kept = [document for document in BEFORE if document.id not in after]
    expected = {
        document.id: [chunk.text for chunk in document.chunks]
        for document in [*after.values(), *kept]
        if document.chunks
    }
    for number, order in enumerate(orders(after.values(), engine)):
        store = new_store(collection=f"c{number}")
        store.add(BEFORE)
        if verb == "add":
            store.add(order)
        elif verb == "sync":
            store.sync(order)
        else:
            store.sync([*order, *kept], delete_missing=True)
        assert contents(store) == expected
        report = store.sync([*order, *kept])
        assert report.documents == 0
        if number == 0:
            copy = new_store(collection="copy")
            assert store.copy_to(copy) == store.count()
            assert contents(copy) == expected


@IN_GROUPS_OF
@pytest.mark.usefixtures("group_size")
def test_a_chunks_id_is_not_taken_from_a_document_that_stays(new_store):
    store = new_store()
    store.add(BEFORE)
    with pytest.raises(
        DuplicateDocumentError, match="chunk id '3' of document 'new' belongs to document 'b'"
    ) as caught:
        store.sync([own("new", "3"), own("a", "1"), own("other", "6")])
    assert caught.value.report.documents == 2
    kept = {"b": ["3 of b", "4 of b"], "c": ["5 of c"]}
    assert contents(store) == {"a": ["1 of a"], "other": ["6 of other"], **kept}
    # Where all others go, it is free.
    store.sync([own("new", "3"), own("a", "1")], delete_missing=True)
    assert contents(store) == {"new": ["3 of new"], "a": ["1 of a"]}


@IN_GROUPS_OF
@pytest.mark.parametrize("verb", ["add", "sync"])
@pytest.mark.usefixtures("group_size")
def test_nothing_is_taken_from_a_document_whose_new_version_is_refused(new_store, verb, engine):
    after = [own("a", "1", "3"), own("new", "2"), own("newer", "4", "6"), own("free", "7")]
    for number, order in enumerate(orders(after, engine)):
        store = new_store(collection=f"c{number}")
        store.add(BEFORE)
        with pytest.raises(DuplicateDocumentError, match="belongs to document 'b'"):
            getattr(store, verb)(order)
        expected = {document.id: [chunk.text for chunk in document.chunks] for document in [*BEFORE, after[3]]}
        assert contents(store) == expected


# --- copies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["copy", "import"])
def test_what_the_source_no_longer_has_goes_from_the_copy(new_store, tmp_path, way):
    store, other = new_store(collection="from"), new_store(collection="to")

    def move():
        if way == "copy":
            return store.copy_to(other)
        store.export_parquet(tmp_path / "all.parquet")
        return other.import_parquet(tmp_path / "all.parquet")

    store.add([own("d", "open", "secret", "more"), Document(id="e", chunks=["x", "y", "z"])])
    other.add([own("theirs", "stays")])
    assert move() == 6
    store.delete(ids=["secret"])
    store.delete(ids=[derive_point_id("e", 1)])
    assert move() == 4
    assert other.get(["secret"]) == []
    assert "secret of d" not in [hit.text for hit in other.search("secret of d", k=10)]
    found = {(chunk.document_id, chunk.text) for chunk in other.chunks()}
    assert found == {("d", "open of d"), ("d", "more of d"), ("e", "x"), ("e", "z"), ("theirs", "stays of theirs")}
    # Edited, cut short, moved and relabelled since; then again, which changes nothing.
    store.sync([own("d", "more", metadata={"label": 1}), Document(id="e", chunks=["z"]), own("f", "open", "secret")])
    for _ in range(2):
        assert move() == 4
        assert contents(other) == {**contents(store), "theirs": ["stays of theirs"]}
        assert {chunk.metadata["label"] for chunk in other.chunks() if chunk.document_id == "d"} == {1}


@pytest.mark.parametrize("way", ["copy", "import"])
def test_a_copy_takes_no_chunk_from_a_document_that_the_source_lacks(new_store, tmp_path, way):
    store, other = new_store(collection="from"), new_store(collection="to")
    store.add([Document(id="first", chunks=["x"]), own("d", "1", "2")])
    other.add([own("theirs", "2", "3"), own("d", "0")])
    before = contents(other)
    store.export_parquet(tmp_path / "all.parquet")
    with pytest.raises(DuplicateDocumentError, match="chunk id '2' of document 'd' belongs to document 'theirs'"):
        store.copy_to(other) if way == "copy" else other.import_parquet(tmp_path / "all.parquet")
    assert contents(other) == before


# --- together ---------------------------------------------------------------------------------------------


def versions(count):
    """A document in versions of different lengths."""
    return [Document(id="d", chunks=[f"{i} of {version}" for i in range(3 + version)]) for version in range(count)]


def test_stores_of_one_client_write_one_after_the_other(new_store, hash_encoder, engine):
    """Whoever is last: the document is of one version, and pieces have places of their own."""
    if engine.startswith("async"):
        pytest.skip("tasks of one loop: the next test")
    first = new_store(collection="shared")
    # Of a server, clients are many.
    others = new_store(collection="shared")._client if engine in ("http", "grpc") else first._client
    stores = [first, VectorStore(others, first._session.points.collection, encoder=hash_encoder(64))]
    made = versions(8)
    for round_ in range(4):
        start = threading.Barrier(2, timeout=60)

        def work(number, start=start, round_=round_):
            start.wait()
            for version in made[number::2]:
                stores[number].add([version])
                piece = [Chunk(text=f"{round_} {version.chunks[-1].text}", id=f"{round_}-{version.chunks[-1].text}")]
                stores[number].add([Document(id="pieces", chunks=piece)], replace=False)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = {chunk.text for chunk in stores[0].chunks() if chunk.document_id == "d"}
        assert texts in [{chunk.text for chunk in version.chunks} for version in made]
        places = sorted(chunk.chunk_index for chunk in stores[1].chunks() if chunk.document_id == "pieces")
        assert places == list(range(8 * (round_ + 1)))


@pytest.mark.parametrize("kind", ["edge", "server"])
def test_blocking_and_awaited_stores_of_one_collection_take_turns(folder, server, hash_encoder, kind):
    made = versions(8)

    async def run(asynchronous, blocking):
        assert await asynchronous.count() == blocking.count() == 0
        assert asynchronous._session.points._ledger is blocking._session.points._ledger

        async def awaited():
            for version in made[::2]:
                await asynchronous.add([version])

        def blocked():
            for version in made[1::2]:
                blocking.add([version])

        for _ in range(4):
            await asyncio.gather(awaited(), asyncio.to_thread(blocked), awaited())
            texts = {chunk.text async for chunk in asynchronous.chunks()}
            assert texts in [{chunk.text for chunk in version.chunks} for version in made]

    async def over_server():
        async with await AsyncVectorStore.connect(server.url, encoder=hash_encoder(64)) as asynchronous:
            with VectorStore.connect(server.url, encoder=hash_encoder(64)) as blocking:
                await run(asynchronous, blocking)

    async def over_edge():
        with VectorStore.open(folder / "index", encoder=hash_encoder(64)) as blocking:
            await run(AsyncVectorStore(blocking._client, encoder=hash_encoder(64)), blocking)

    asyncio.run(over_edge() if kind == "edge" else over_server())
