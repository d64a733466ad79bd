"""An index that is opened when it is asked for, and again when another takes its place."""

import asyncio
import contextlib
import shutil
import threading

import pytest
from agent_client import ask, lazy_index, talking

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.agents.index import LazyIndex, Place
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.engines.server import make_client
from pplx_vectorstore.errors import StoreClosedError, StoreError, StoreNotFoundError


@pytest.fixture
def encoder(hash_encoder):
    return hash_encoder()


def write(folder, encoder, *ids):
    with VectorStore.open(folder, encoder=encoder) as store:
        store.add([Document(id=one, chunks=[one]) for one in ids])


def test_it_is_opened_once_and_not_before_it_is_there(folder, encoder, monkeypatch):
    opened = []
    init = EdgeClient.__init__
    monkeypatch.setattr(EdgeClient, "__init__", lambda self, *args, **kw: opened.append(1) or init(self, *args, **kw))
    index = lazy_index(folder / "index", encoder)
    assert not opened
    with pytest.raises(StoreNotFoundError, match=r"there is no index 'documents' in .*; make one"), index.reading():
        pass
    assert not (folder / "index").exists()
    with index.writing() as writing:
        writing.store.add([Document(id="one", chunks=["one"])])
    n_opened = len(opened)
    for _ in range(3):
        with index.searching() as searching, index.reading() as reading:
            assert [hit.id for hit in searching.store.search("one")] == [chunk.id for chunk in reading.store.chunks()]
    assert len(opened) == n_opened
    index.close()
    with index.reading() as again:  # a close lets go of what is open, and no more
        assert again.store.count() == 1
    index.close()


def test_what_is_in_use_stays_open_when_another_takes_its_place(folder, encoder):
    write(folder / "index", encoder, "one")
    index = lazy_index(folder / "index", encoder)
    with index.searching() as before:
        shutil.rmtree(folder / "index")
        write(folder / "index", encoder, "two", "three")
        with index.searching() as after:
            assert after.store is not before.store
            assert after.store.count() == 2
        assert before.store.fingerprint == encoder.fingerprint  # open, though its files are gone
    with pytest.raises(StoreClosedError):
        before.store.count()
    with index.searching() as again:
        assert again.store is after.store
        index.close()
        assert again.store.count() == 2
    with pytest.raises(StoreClosedError):
        again.store.count()


def test_a_collection_of_another_model_on_a_server(server, hash_encoder):
    def connect():
        return contextlib.closing(
            make_client(server.url, api_key=None, prefer_grpc=False, timeout=10, asynchronous=False)
        )

    place = Place(name=server.url, collection="docs", tenant=None, folder=None, way_out="make one")
    index = LazyIndex(place, connect, lambda recorded: hash_encoder(recorded.dimension))
    for dimension in (64, 32):
        with VectorStore.connect(server.url, collection="docs", encoder=hash_encoder(dimension)) as store:
            store.add([Document(id="one", chunks=["one"])])
        with index.searching() as searching:
            (hit,) = searching.store.search("one", with_codes=True)
            assert (hit.codes.shape, hit.score) == ((dimension,), pytest.approx(1, abs=1e-3))
        with connect() as client:
            client.delete_collection("docs")
    index.close()


def test_a_folder_that_tells_of_its_removal(folder, encoder):
    write(folder / "index", encoder, "one")
    client = EdgeClient(folder / "index")
    assert not client.is_gone("documents")
    assert client.count("documents").count == 1
    assert not client.is_gone("documents")
    shutil.rmtree(folder / "index")
    assert client.is_gone("documents")
    client.close()


def test_an_error_of_the_engine_leaves_it_usable(folder, encoder, monkeypatch):
    write(folder / "index", encoder, "one")
    index = lazy_index(folder / "index", encoder)
    with index.reading():
        pass
    with monkeypatch.context() as broken:
        broken.setattr(EdgeClient, "get_collection", lambda *_: (_ for _ in ()).throw(StoreError("broken")))
        with pytest.raises(StoreError, match="broken"), index.reading():
            pass
    with index.reading() as reading:
        assert reading.store.count() == 1
    index.close()


@pytest.mark.parametrize("tool", ["search", "index_folder"])
async def test_a_call_in_the_midst_of_which_the_index_is_replaced_is_answered_of_the_new_one(
    folder, encoder, monkeypatch, tool
):
    root = (folder / "project").resolve()
    root.mkdir()
    (root / "one.txt").write_text("one")
    index = lazy_index(root / "index", encoder)
    async with talking(index, allow_write=True, root=root) as client:
        await ask(client, "index_folder")
        (root / "two.txt").write_text("two")
        verb = {"search": "query_batch_points", "index_folder": "upsert"}[tool]
        function, replaced = getattr(EdgeClient, verb), []

        def replaced_before(self, *given, **options):
            if not replaced:
                replaced.append(None)
                with EdgeClient(root / "index") as other:
                    with VectorStore(other, "new", encoder=encoder) as new:
                        new.add([Document(id="other", chunks=["other text"])])
                    other.replace_collection("documents", by="new")
            return function(self, *given, **options)

        monkeypatch.setattr(EdgeClient, verb, replaced_before)
        arguments = {"query": "text"} if tool == "search" else {}
        answer = await ask(client, tool, **arguments)
        assert replaced
        if tool == "search":
            assert [hit["document_id"] for hit in answer["hits"]] == ["other"]
        else:
            assert (answer["new"], answer["chunks"]) == (2, 3)
        assert (await ask(client, "index_folder"))["chunks"] == 3
        (hit, *_) = (await ask(client, "search", query="two"))["hits"]
        assert hit["document_id"] in {"one.txt", "two.txt", "other"}


async def test_writers_take_turns_and_readers_go_on(folder, encoder, monkeypatch):
    root = (folder / "project").resolve()
    root.mkdir()
    for n in range(5):
        (root / f"{n}.txt").write_text(f"text {n}")
    index = lazy_index(root / "index", encoder)
    begun, goes_on = threading.Event(), threading.Event()
    encode = encoder.encode_documents

    def slow(documents, *, progress=None):
        begun.set()
        assert goes_on.wait(20)
        return encode(documents, progress=progress)

    async with talking(index, allow_write=True, root=root) as client:
        await ask(client, "index_folder")
        for n in range(5):
            (root / f"{n}.txt").write_text(f"other {n}")
        monkeypatch.setattr(encoder, "encode_documents", slow)
        writers = [asyncio.create_task(ask(client, "index_folder")) for _ in range(9)]
        assert await asyncio.to_thread(begun.wait, 20)
        (hit, *_) = (await ask(client, "search", query="text 3"))["hits"]
        assert hit["document_id"] == "3.txt"
        assert not any(writer.done() for writer in writers)
        goes_on.set()
        reports = [await writer for writer in writers]
        assert all(report["embedded"] + report["unchanged"] == 5 for report in reports)
        listed = await ask(client, "list_documents")
        assert (listed["total"], {one["chunks"] for one in listed["documents"]}) == (5, {1})
        (hit, *_) = (await ask(client, "search", query="other 3"))["hits"]
        assert hit["text"] == "other 3"
