"""sync, documents(), metadata-only changes, reports of failures: on every engine."""

import contextlib

import numpy as np
import pytest

from pplx_vectorstore import Chunk, Document, StoredDocument, SyncReport, VectorStore
from pplx_vectorstore.errors import DuplicateDocumentError, EncodingError, InvalidDocumentError, InvalidInputError
from pplx_vectorstore.operations import replace, write
from pplx_vectorstore.points import derive_point_id
from pplx_vectorstore.qdrant import models as ours


def corpus(n, version=1, **metadata):
    return [
        Document(id=f"d{i}", chunks=[f"{version} text {j} of {i}" for j in range(i % 4 + 1)], metadata=metadata)
        for i in range(n)
    ]


@pytest.fixture
def state(read_points):
    """Everything of a store that a reader could see: payloads and vectors by point id."""

    def read(store):
        points = read_points(store, with_vectors=True)
        return {str(point.id): (point.payload, np.asarray(point.vector.get("codes", [])).tolist()) for point in points}

    return read


def counts(report):
    return {name: getattr(report, f"{name}_documents") for name in ("new", "unchanged", "relabelled", "deleted")} | {
        "embedded": report.documents,
        "chunks": report.chunks,
    }


def none(**given):
    return dict.fromkeys(["new", "unchanged", "relabelled", "deleted", "embedded", "chunks"], 0) | given


def test_a_second_sync_embeds_nothing(new_store, hash_encoder, state):
    encoder = hash_encoder(64)
    store = new_store(encoder=encoder)
    first = store.sync(corpus(10))
    assert counts(first) == none(new=10, embedded=10, chunks=23)
    before, n_calls = state(store), len(encoder.calls)
    again = store.sync(corpus(10))
    assert counts(again) == none(unchanged=10)
    assert len(encoder.calls) == n_calls
    assert state(store) == before
    assert store.sync([]) == SyncReport()


def test_only_what_changed_is_embedded_and_whole(new_store, hash_encoder, state):
    encoder = hash_encoder(64)
    store = new_store(encoder=encoder)
    store.sync(corpus(8))
    n_calls = len(encoder.calls)
    grown = Document(id="d1", chunks=["1 text 0 of 1", "1 text 1 of 1", "and more"])
    shrunk = Document(id="d3", chunks=["1 text 0 of 3"])
    documents = [*corpus(8)[:1], grown, *corpus(8)[2:3], shrunk, *corpus(8)[4:], Document(id="new", chunks=["x"])]
    report = store.sync(documents)
    assert counts(report) == none(new=1, unchanged=6, embedded=3, chunks=5)
    assert encoder.calls[n_calls:] == [[[chunk.text for chunk in one.chunks] for one in (grown, shrunk, documents[-1])]]
    other = new_store(encoder=encoder, collection="other")
    other.add(documents)
    assert state(store) == state(other)


def test_changed_metadata_is_written_without_embedding(new_store, hash_encoder, state):
    encoder = hash_encoder(64)
    store = new_store(encoder=encoder)
    chunked = Document(id="own", chunks=[Chunk(text="a", id="x", metadata={"p": 1}), "b", Chunk(text=" ")])
    store.sync([*corpus(4), chunked])
    n_calls = len(encoder.calls)
    relabelled = Document(
        id="own", chunks=[Chunk(text="a", id="x", metadata={"p": 2}), Chunk(text="b", metadata={"q": [None]}), " "]
    )
    documents = [*corpus(3, lang="en"), *corpus(4)[3:], relabelled]
    report = store.sync(documents)
    assert counts(report) == none(unchanged=1, relabelled=4)
    assert len(encoder.calls) == n_calls
    assert store.count({"lang": "en"}) == 6
    assert [chunk.metadata for chunk in store.get(["x"])] == [{"p": 2}]
    other = new_store(encoder=encoder, collection="other")
    other.add(documents)
    assert state(store) == state(other)
    assert counts(store.sync(documents)) == none(unchanged=5)


def test_vectors_that_came_ready_made_are_compared_too(new_store):
    store = new_store()
    one = np.full((1, 64), 3, np.int8)
    store.sync([Document(id="d", chunks=["a"], vectors=one)])
    assert counts(store.sync([Document(id="d", chunks=["a"], vectors=one.copy())])) == none(unchanged=1)
    assert counts(store.sync([Document(id="d", chunks=["a"], vectors=one + np.int8(1))])) == none(embedded=1, chunks=1)
    assert store.get([derive_point_id("d", 0)], with_codes=True)[0].codes[0] == 4


def test_missing_documents_are_deleted_only_if_asked(new_store):
    store = new_store()
    store.sync(corpus(300))
    assert counts(store.sync(corpus(5))) == none(unchanged=5)
    assert len(list(store.documents())) == 300
    assert counts(store.sync(corpus(5), delete_missing=True)) == none(unchanged=5, deleted=295)
    assert {document.id for document in store.documents()} == {f"d{i}" for i in range(5)}


def test_deleting_what_is_missing_from_nothing_is_refused(new_store):
    store = new_store()
    store.sync(corpus(3))
    with pytest.raises(InvalidInputError, match="would delete every document"):
        store.sync([], delete_missing=True)
    with pytest.raises(InvalidInputError, match="would delete every document"):
        store.sync(iter(()), delete_missing=True)
    assert len(list(store.documents())) == 3


def test_a_document_without_chunks_has_nothing_to_be_changed(new_store):
    store = new_store()
    empty = Document(id="e", chunks=[])
    assert store.sync([empty]) == SyncReport(unchanged_documents=1, empty_documents=("e",))
    store.sync([Document(id="e", chunks=["was here"])])
    report = store.sync([empty])
    assert (report.documents, report.chunks, report.empty_documents) == (1, 0, ("e",))
    assert store.count() == 0


@pytest.mark.parametrize("left", ["half", "mixed", "labels"])
def test_what_an_interrupted_write_left_is_completed(new_store, state, left, monkeypatch):
    store = new_store()
    before = [Document(id="d", chunks=[f"old {i}" for i in range(9)], metadata={"v": 1})]
    after = [Document(id="d", chunks=[f"old {i}" if left == "labels" else f"new {i}" for i in range(6)])]
    if left == "labels":
        after = [Document(id="d", chunks=[f"old {i}" for i in range(9)], metadata={"v": 2})]
    store.sync(before)
    points = type(store._session.points)

    send, set_payloads = points.upsert, points.set_payloads
    monkeypatch.setattr(replace, "_UPSERT_POINTS", 3 if left == "half" else 256)

    async def without_deleting(self, batch, *, stale=None):
        await send(self, batch)
        raise RuntimeError("killed")

    async def some_labels(self, changes):
        for fields, condition in changes:
            ids, content = condition.must
            some = ours.HasIdCondition(has_id=ids.has_id[:4])
            await set_payloads(self, [(fields, ours.Filter(must=[some, content]))])
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        if left != "labels":
            patched.setattr(points, "upsert", without_deleting)
        else:
            patched.setattr(points, "set_payloads", some_labels)
        with pytest.raises(RuntimeError, match="killed"):
            store.sync(after)
    (listed,) = store.documents()
    assert (listed.chunks, listed.chunk_count) == {"half": (3, 6), "mixed": (6, 6), "labels": (9, 9)}[left]
    assert sorted(chunk.chunk_index for chunk in store.chunks()) == list(range(6 if left == "mixed" else 9))
    report = store.sync(after)
    assert report.unchanged_documents == 0
    undisturbed = new_store(collection="other")
    undisturbed.sync(after)
    assert state(store) == state(undisturbed)


def test_another_writers_new_version_is_never_deleted(new_store, monkeypatch):
    """Two processes write one document: the first has looked, written, and not deleted yet."""
    store = new_store(collection="c")
    store.add([Document(id="d", chunks=["old 0", "old 1", "old 2"])])
    points = type(store._session.points)
    upsert = points.upsert
    called = []

    async def interrupted(self, batch, *, stale=None):
        if called:
            await upsert(self, batch, stale=stale)
            return
        called.append(stale)
        await upsert(self, batch)
        theirs = [Document(id="d", chunks=["theirs 0", "theirs 1"])]
        await write.add(store._session, theirs, replace=True, progress=False)
        await self.delete(stale)

    # Another process has a lock of its own.
    monkeypatch.setattr(points, "writing", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(points, "upsert", interrupted)
    store.add([Document(id="d", chunks=["ours 0", "ours 1"])])
    assert [chunk.text for chunk in store.get([derive_point_id("d", i) for i in range(3)])] == ["theirs 0", "theirs 1"]


def test_metadata_is_never_written_to_another_writers_content(new_store, state, monkeypatch):
    store = new_store(collection="c")
    store.sync([Document(id="d", chunks=["one", "two"], metadata={"m": 0})])
    points = type(store._session.points)
    set_payloads = points.set_payloads

    async def late(self, changes):
        changes = list(changes)
        with monkeypatch.context() as unpatched:
            unpatched.setattr(points, "set_payloads", set_payloads)
            unpatched.setattr(points, "writing", lambda self: contextlib.nullcontext())
            await write.add(
                store._session, [Document(id="d", chunks=["theirs", "new"], metadata={})], replace=True, progress=False
            )
        await set_payloads(self, changes)

    monkeypatch.setattr(points, "set_payloads", late)
    ours = [Document(id="d", chunks=["one", "two"], metadata={"m": 1})]
    report = store.sync(ours)
    assert (report.documents, report.relabelled_documents, report.unchanged_documents) == (1, 0, 0)
    undisturbed = new_store(collection="other")
    undisturbed.sync(ours)
    assert state(store) == state(undisturbed)


def test_relabelling_goes_in_requests_of_bounded_size(server, hash_encoder):
    with VectorStore.connect(server.url, encoder=hash_encoder(64)) as store:
        documents = [Document(id=f"d{i}", chunks=["x"]) for i in range(60)]
        store.sync(documents)
        large = [Document(id=f"d{i}", chunks=["x"], metadata={"large": "y" * 200_000}) for i in range(60)]
        assert store.sync(large).relabelled_documents == 60
        assert server.largest_body < 8 * 2**20
        assert store.sync(large).unchanged_documents == 60


# --- reports of failures -------------------------------------------------------------------------------


def test_an_error_tells_what_was_written_before_it(new_store):
    store = new_store()

    def documents():
        yield from corpus(write._GROUP_DOCUMENTS)
        yield Document(id="last", chunks=["x"])
        yield corpus(1)[0]

    with pytest.raises(DuplicateDocumentError) as caught:
        store.add(documents())
    report = caught.value.report
    assert report.documents == write._GROUP_DOCUMENTS == len(list(store.documents()))
    assert report.chunks == store.count()
    assert f"Written before this: documents: {report.documents}, " in caught.value.__notes__[0]

    def broken():
        yield from corpus(2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as foreign:
        store.sync(broken())
    assert "Written before this: documents: 0, chunks: 0. That is kept" in foreign.value.__notes__[0]


def test_a_group_that_cannot_be_embedded_leaves_the_one_before_it(new_store, hash_encoder, monkeypatch):
    encoder = hash_encoder(64)
    store = new_store(encoder=encoder)
    encode, calls = encoder.encode_documents, []

    def fail_later(documents, **options):
        calls.append(documents)
        if len(calls) == 2:
            raise EncodingError("the model gave NaN")
        return encode(documents, **options)

    monkeypatch.setattr(encoder, "encode_documents", fail_later)
    with pytest.raises(EncodingError, match="NaN") as caught:
        store.sync(corpus(2 * write._GROUP_DOCUMENTS))
    assert caught.value.report.new_documents == write._GROUP_DOCUMENTS == len(list(store.documents()))
    assert store.sync(corpus(2 * write._GROUP_DOCUMENTS)).unchanged_documents == write._GROUP_DOCUMENTS


@pytest.mark.parametrize("documents", [None, 5, "text", Document(id="d", chunks=["x"]), {"id": "d"}, [1]], ids=repr)
def test_what_is_no_documents_is_refused(new_store, documents):
    store = new_store()
    with pytest.raises(InvalidDocumentError, match="Document"):
        store.sync(documents)


# --- documents -----------------------------------------------------------------------------------------


def test_documents_are_listed_with_their_chunks(new_store):
    store = new_store()
    assert list(store.documents()) == []
    store.add([*corpus(700), Document(id="own", chunks=[Chunk(text="a", id="x"), Chunk(text="b", id="y")])])
    listed = sorted(store.documents(), key=lambda document: document.id)
    expected = [StoredDocument(id=f"d{i}", chunks=i % 4 + 1, chunk_count=i % 4 + 1) for i in range(700)]
    expected.append(StoredDocument(id="own", chunks=2, chunk_count=2))
    assert listed == sorted(expected, key=lambda document: document.id)


def test_a_document_without_its_first_chunk_is_listed_too(new_store):
    store = new_store()
    store.add(corpus(6))
    store.delete(ids=[derive_point_id("d3", 0), derive_point_id("d5", 1)])
    listed = {document.id: document for document in store.documents()}
    assert len(listed) == 6
    assert (listed["d3"].chunks, listed["d3"].chunk_count) == (3, 4)
    assert (listed["d5"].chunks, listed["d5"].chunk_count) == (1, 2)
    assert store.sync(corpus(6)).documents == 2


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_document_with_two_first_chunks_is_listed_once(new_store, monkeypatch, n):
    store = new_store()
    store.add([Document(id="d", chunks=[Chunk(text="a", id="old"), Chunk(text="b", id="older")])])
    points = type(store._session.points)
    upsert = points.upsert

    async def without_deleting(self, batch, *, stale=None):
        await upsert(self, batch)
        raise RuntimeError("killed")

    new = [Document(id="d", chunks=[Chunk(text=text, id=f"new-{text}") for text in "abcd"[:n]])]
    with monkeypatch.context() as patched:
        patched.setattr(points, "upsert", without_deleting)
        with pytest.raises(RuntimeError, match="killed"):
            store.add(new)
    assert store.count() == 2 + n
    (listed,) = store.documents()
    assert listed.chunks == listed.chunk_count
    texts = [chunk.text for chunk in store.chunks()]
    assert sorted(texts) == sorted("ab" if listed.chunks == 2 else "abcd"[:n])
    assert store.sync(new).documents == 1
    assert store.count() == n
