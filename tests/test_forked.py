"""Processes that are forked in the midst of something: each goes on with files, turns and connections of its own.

Several processes on one folder are in test_turns.py, the encoder of the hosted service in test_api_encoder.py.
"""

import asyncio
import contextlib
import itertools
import os
import subprocess
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from forking import beside_a_forked_process, run_forked
from qdrant_client import QdrantClient

from pplx_vectorstore import Document, VectorStore
from pplx_vectorstore.encoders.query_cache import QueryCache
from pplx_vectorstore.engines import calls, indexing
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.engines.server import is_of_another_process
from pplx_vectorstore.errors import StoreClosedError
from pplx_vectorstore.forked import renew_when_forked
from pplx_vectorstore.shared_store import SharedStore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

DIMENSION = 64


@pytest.fixture
def encoder(hash_encoder):
    return hash_encoder(DIMENSION)


@pytest.fixture
def index(folder):
    return folder / "index"


@contextlib.contextmanager
def busy(*works):
    """Have threads that do these again and again within the block; what they raise is raised at its end."""
    over, errors = threading.Event(), []

    def go_on(work):
        try:
            while not over.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=go_on, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def made(name, chunks=2):
    return Document(id=name, chunks=[f"{i} of {name}" for i in range(chunks)])


# --- the embedded engine ---------------------------------------------------------------------------------------------


def moved(index, store):
    index.rename(index.with_name("elsewhere"))
    return index.with_name("elsewhere")


def behind_a_link(index, store):
    return index


def named_by_another_process(index, store):
    with EdgeClient(index) as other:
        (index / "documents").rename(index / "new")
        assert other.collection_names() == ["new"]
        (index / "new").rename(index / "other")
        (index / "other").rename(index / "documents")
    return index


@pytest.mark.parametrize("happens", [moved, behind_a_link, named_by_another_process])
def test_it_keeps_nothing_of_the_other_locked_wherever_the_folder_is(folder, index, encoder, happens):
    if happens is behind_a_link:
        index.mkdir()
        (folder / "large disk").mkdir()
        with VectorStore.open(folder / "large disk", encoder=encoder) as store:
            store.add([made("one")])
        (index / "documents").symlink_to(folder / "large disk" / "documents")
    with VectorStore.open(index, encoder=encoder) as store:
        store.add([made("one")])
        now_at = happens(index, store)
        with beside_a_forked_process():
            store.close()
            with VectorStore.open(now_at, encoder=encoder, timeout=10) as again:
                again.add([made("two")])
                assert {document.id for document in again.documents()} == {"one", "two"}


def test_it_does_not_wait_for_threads_that_it_does_not_have(index, encoder):
    """Some of the times, another thread is in the midst of whatever has a lock."""
    with VectorStore.open(index, encoder=encoder) as store:
        store.add([made("one")])
    numbers = itertools.count()

    def open_and_close():
        with VectorStore.open(index, encoder=encoder) as store:
            assert store.count() >= 2

    def read():
        with VectorStore.open(index, encoder=encoder, read_only=True) as store:
            assert store.count() >= 2

    def write():
        with VectorStore.open(index, encoder=encoder) as store:
            store.add([made(f"of a thread {next(numbers) % 5}")])

    kept = VectorStore.open(index, encoder=encoder)
    with kept._client._lock, kept._client._creating:
        assert run_forked(lambda: kept._client.delete_collection("none") or kept.count() >= 2) == 1

    def use():
        kept.add([made("of the other")])
        return "of the other" in {document.id for document in kept.documents()}

    with busy(open_and_close, read, write):
        for _ in range(30):
            assert run_forked(lambda: True) == 1
        assert run_forked(use) == 1
    assert {"one", "of the other"} <= {document.id for document in kept.documents()}
    kept.close()


def test_it_is_not_forked_while_a_program_is_started(index, encoder, monkeypatch):
    begun, popen = threading.Event(), subprocess.Popen

    def start_slowly(*arguments, **options):
        process = popen(*arguments, **options)
        begun.set()
        time.sleep(0.3)
        return process

    with VectorStore.open(index, encoder=encoder) as store:
        store.add([made(f"{number}", 50) for number in range(4)])
        of_process = store._client._shard("documents")
        monkeypatch.setattr(indexing.subprocess, "Popen", start_slowly)
        optimizing = threading.Thread(target=store.optimize)
        optimizing.start()
        assert begun.wait(20)
        running = of_process._indexing
        assert run_forked(lambda: running._process.stdin.closed and running._process.stderr.closed) == 1
        optimizing.join()
        assert store._client.coverage("documents").unindexed < 200


def test_a_bulk_load_of_the_other_is_none_of_it(index, encoder):
    with VectorStore.open(index, encoder=encoder) as store, contextlib.ExitStack() as loading:
        loading.enter_context(store.bulk_load())
        of_process = store._client._shard("documents")
        store.add([made("one", 100)])

        def end_and_load():
            loading.close()
            assert not of_process._holds
            assert store._client.coverage("documents").unindexed == 100
            with store.bulk_load():
                assert len(of_process._holds) == 1
                store.add([made("two", 100)])
            assert store._client.coverage("documents").unindexed < 100
            return not of_process._holds

        assert run_forked(end_and_load) == 1
        assert len(of_process._holds) == 1
        store.add([made("three", 100)])
        assert store._client.coverage("documents").unindexed >= 100
        loading.close()
        assert store._client.coverage("documents").unindexed < 100
        assert store.count() == 300


def test_it_does_not_end_what_the_other_pins(index, encoder):
    with VectorStore.open(index, encoder=encoder) as store:
        store.add([made("one")])
        pinned = []
        store._client.pin("documents", pinned=pinned)
        of_process = store._client._shard("documents")

        def unpin():
            store._client.unpin("documents", pinned=pinned)
            return not of_process._pins

        assert run_forked(unpin) == 1
        assert len(of_process._pins) == 1
        store._client.unpin("documents", pinned=pinned)
        with beside_a_forked_process():  # the turn goes from hand to hand again
            assert run_forked(lambda: store.count() == 2) == 1
            assert store.count() == 2


def test_copies_of_the_other_are_closed_in_it(index, encoder):
    with VectorStore.open(index, encoder=encoder) as store:
        store.add([made("one")])
    with VectorStore.open(index, encoder=encoder, read_only=True) as reader:
        assert reader.count() == 2
        root = reader._client._shard("documents")._private_copy._root

        def files_of_the_copy():
            paths = []
            for name in os.listdir("/dev/fd"):
                with contextlib.suppress(OSError):
                    paths.append(os.readlink(f"/dev/fd/{name}"))
            return sum(str(root) in path for path in paths)

        assert files_of_the_copy() > 0
        assert run_forked(files_of_the_copy) == 0
        assert reader.count() == 2


def test_coroutines_that_wrote_in_the_other_write_in_it(index, encoder):
    shared = SharedStore(folder=index, url=None, client=None, encoder=encoder)
    asyncio.run(shared.writing.add([made("one")]))

    def write():
        asyncio.run(shared.writing.add([made("two")]))
        return shared.store.count() == 4

    assert run_forked(write) == 1
    asyncio.run(shared.writing.add([made("three")]))
    assert shared.store.count() == 6
    shared.close()


# --- servers ---------------------------------------------------------------------------------------------------------


def test_it_has_connections_of_its_own_to_a_server(server, encoder):
    with VectorStore.connect(server.url, encoder=encoder) as store:
        store.add([replace(made(f"{n}"), metadata={"number": n}) for n in range(100)])

        def read(numbers):
            for n in numbers:
                assert {chunk.text for chunk in store.chunks({"number": n})} == {f"0 of {n}", f"1 of {n}"}
            return True

        client = store._client
        of_the_other = client._client

        def connect_and_read():
            assert is_of_another_process(client)  # until it is used: it may have been forked for something else
            assert client._client is of_the_other
            assert read(range(50, 100))
            assert not is_of_another_process(client)
            assert client._client is not of_the_other
            return run_forked(lambda: is_of_another_process(client) and read([3, 4]))

        numbers = itertools.cycle(range(50))
        with busy(lambda: read([next(numbers)])):
            for _ in range(2):
                assert run_forked(connect_and_read) == 1
        assert client._client is of_the_other
        assert run_forked(lambda: store.close() is None) == 1
        assert run_forked(lambda: store.add([made("of the other")]).chunks == 2) == 1
        assert store.count() == 202
        store.close()

        def use_what_is_closed():
            with pytest.raises(StoreClosedError):
                store.count()
            return True

        assert run_forked(use_what_is_closed) == 1


def test_coroutines_that_read_from_a_server(server, encoder):
    shared = SharedStore(folder=None, url=server.url, client=None, encoder=encoder)
    shared.store.add([made("one")])

    async def count():
        try:
            return await (await shared.reading()).count()
        finally:
            await shared.adisconnect()

    assert asyncio.run(count()) == 2
    with shared._reading._lock:
        assert run_forked(lambda: asyncio.run(count()) == 2) == 1
    assert asyncio.run(count()) == 2
    shared.close()


def test_connecting_is_tried_again(server, encoder, monkeypatch):
    with VectorStore.connect(server.url, encoder=encoder) as store:
        store.add([made("one")])

        def fail_and_count():
            with monkeypatch.context() as failing:
                failing.setattr(QdrantClient, "__init__", lambda *_, **__: (_ for _ in ()).throw(OSError("too many")))
                for _ in range(2):
                    with pytest.raises(OSError, match="too many"):
                        store.count()
            return store.count() == 2

        assert run_forked(fail_and_count) == 1


def test_a_client_in_memory_is_copied(encoder):
    with VectorStore(QdrantClient(":memory:"), encoder=encoder) as store:
        store.add([made("one")])

        def add():
            store.add([made("two")])
            return store.count() == 4

        with calls._turns.of(store._client):
            assert run_forked(add) == 1
        assert store.count() == 2


def test_a_bulk_load_into_a_server_goes_on_when_it_ends_it(server, encoder):
    with VectorStore.connect(server.url, encoder=encoder) as store, contextlib.ExitStack() as loading:
        loading.enter_context(store.bulk_load())
        assert server.updates.threshold_of("documents") == 0
        assert run_forked(lambda: loading.close() or True) == 1
        assert server.updates.threshold_of("documents") == 0
        store.add([made("one")])
        loading.close()
        assert server.updates.threshold_of("documents") > 0


# --- what else has locks ---------------------------------------------------------------------------------------------


def test_a_cache_of_queries_is_nobodys():
    cache = QueryCache(4, DIMENSION)
    codes = np.ones((1, DIMENSION), np.int8)

    def look():
        found, missing = cache.lookup(["a"])
        return (cache.join(["a"], found, missing, codes[: len(missing)]) == 1).all()

    assert look()
    with cache._lock:
        assert run_forked(look) == 1


def test_whatever_fails_all_else_is_made_anew():
    class Owner:
        renewed = 0

        def renew(self):
            self.renewed += 1

        def fail(self):
            raise RuntimeError("it cannot be made anew")

    owners = [Owner() for _ in range(3)]
    renew_when_forked(owners[0], Owner.renew)
    renew_when_forked(owners[1], Owner.fail)
    renew_when_forked(owners[2], Owner.renew)
    assert run_forked(lambda: [owner.renewed for owner in owners] == [1, 0, 1]) == 1
    assert [owner.renewed for owner in owners] == [0, 0, 0]
