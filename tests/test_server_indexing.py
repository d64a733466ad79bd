"""What a server indexes when, and which points are searched by their bits, whatever comes before and after."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from forking import run_forked
from qdrant_client import QdrantClient

from pplx_vectorstore import (
    AsyncVectorStore,
    Chunk,
    CollectionConfig,
    Document,
    PrecomputedEncoder,
    VectorStore,
    quantize_to_norm,
)
from pplx_vectorstore.errors import InvalidDocumentError, StoreClosedError, StoreError
from pplx_vectorstore.operations import access, ledger, server_indexing
from pplx_vectorstore.operations.server_indexing import GENERATION_KEY, HOLD_KEY, INDEXED_KEY, host_name
from pplx_vectorstore.quantization import cosine_similarity

DIMENSION = 384
CHUNKS = 5
K = 10
USUAL = 10_000  # kilobytes, the threshold that the server has
SMALL, LARGE = 4_000, 1_000_000  # kilobytes, sizes of segments

http = pytest.mark.parametrize("engine", ["http"], indirect=True)
REMOTE = ["http", *(pytest.param(name, marks=pytest.mark.slow) for name in ("async", "grpc", "async-grpc"))]
remote = pytest.mark.parametrize("engine", REMOTE, indirect=True)
has_server = pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="QDRANT_URL names no server")
REAL = pytest.param("server", marks=[pytest.mark.real_server, has_server])


@pytest.fixture
def encoder():
    return PrecomputedEncoder("made", DIMENSION)


@pytest.fixture
def impatient(monkeypatch):
    """Nobody writes into a generation that has ended; a server of one's own takes a moment to begin to index."""
    monkeypatch.setattr(server_indexing, "GRACE", 2.0 if "QDRANT_URL" in os.environ else 0.0)
    monkeypatch.setattr(access, "GRACE", 60.0)
    monkeypatch.setattr(server_indexing, "LOOK", 0.02)


@pytest.fixture
def large(monkeypatch, impatient):
    """Collections are taken for larger than any memory."""
    monkeypatch.setattr(access, "_CACHED_BYTES", 0)
    monkeypatch.setattr(access, "_FULL_SCAN_BYTES", 0)


@pytest.fixture
def rest_server(engine, request):
    """``rest_server()`` → the server that carries out what is asked over REST or gRPC."""

    def find():
        if engine.endswith("grpc"):
            return request.getfixturevalue("grpc_server").rest
        return request.getfixturevalue("server")

    return find


class Corpus:
    """Documents around some centres, and what is to be stored of them."""

    def __init__(self):
        self._rng = np.random.default_rng(5)
        self._centres = self._rng.normal(size=(40, DIMENSION))
        self.codes, self.metadata = {}, {}

    def make(self, numbers, **metadata):
        documents = []
        for number in numbers:
            vectors = self.near(CHUNKS)
            chunks = [Chunk(text=f"{i} of {number}", id=f"{number}-{i}") for i in range(CHUNKS)]
            documents.append(Document(id=f"d{number}", chunks=chunks, vectors=vectors, metadata=metadata))
            self.codes[number], self.metadata[number] = quantize_to_norm(vectors), metadata
        return documents

    def near(self, n):
        return self._centres[self._rng.integers(len(self._centres), size=n)] + self._rng.normal(size=(n, DIMENSION))

    def check(self, store):
        """Whatever was written is found, and searches find what a comparison with all of it finds."""
        ids = [f"{number}-{i}" for number in self.codes for i in range(CHUNKS)]
        codes = np.concatenate(list(self.codes.values()))
        assert store.count() == len(ids)
        latest = list(self.codes)[-8:]
        for number in latest:
            (hit,) = store.search(self.codes[number][2], k=1)
            assert (hit.id, hit.metadata) == (f"{number}-2", self.metadata[number])
        queries = quantize_to_norm(self.near(20))
        cosines = cosine_similarity(queries, codes)
        found = 0
        for query, row in zip(queries, cosines, strict=True):
            tenth = np.partition(row, -K)[-K]
            of_ids = dict(zip(ids, row, strict=True))
            found += sum(of_ids[hit.id] >= tenth - 1e-9 for hit in store.search(query, k=K))
        assert found >= 0.97 * K * len(queries)


def state_of(store, run_async):
    info = store._client.get_collection(store._session.points.collection)
    return run_async(info) if asyncio.iscoroutine(info) else info


def threshold_of(store, run_async):
    return state_of(store, run_async).config.optimizer_config.indexing_threshold


# --- by the bits, whatever happens -------------------------------------------------------------------


@pytest.mark.parametrize("engine", [*REMOTE, REAL], indirect=True)
def test_searches_are_right_in_every_state_of_a_collection(new_store, encoder, large, run_async):
    store, corpus = new_store(encoder=encoder), Corpus()
    store.add(corpus.make(range(300)))
    assert store.explain(corpus.codes[0][0]).way == "codes"
    corpus.check(store)
    for first in (1000, 2000):
        store.optimize()
        assert store.explain(corpus.codes[0][0]).way == "bits"
        corpus.check(store)
        store.add(corpus.make(range(first, first + 50)))
        corpus.check(store)
        store.sync(corpus.make(range(20, 30)))  # others in their place
        corpus.check(store)
        relabelled = [Document(id="d40", chunks=chunks_of(40), vectors=corpus.codes[40], metadata={"new": first})]
        store.add(relabelled)
        corpus.metadata[40] = {"new": first}
        corpus.codes[40] = corpus.codes.pop(40)  # now the latest
        corpus.check(store)
        gone = range(first // 20, first // 20 + 30)
        store.delete(document_ids=[f"d{number}" for number in gone])
        for number in gone:
            del corpus.codes[number]
        corpus.check(store)
        assert store.explain(corpus.codes[0][0]).way == "bits"
        query = corpus.codes[first + 1][0]
        assert store.search(query, k=3, group_by_document=True)[0].document_id == f"d{first + 1}"
        assert store.search(query, k=3, diversity=0.2)[0].document_id == f"d{first + 1}"
    with store.bulk_load():
        store.add(corpus.make(range(3000, 3030)))
        corpus.check(store)
    corpus.check(store)


def chunks_of(number):
    return [Chunk(text=f"{i} of {number}", id=f"{number}-{i}") for i in range(CHUNKS)]


@http
def test_copies_and_other_programs_find_all_of_it(new_store, encoder, large, server):
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    with store.bulk_load():
        store.add(corpus.make(range(200)))
    store.add(corpus.make(range(500, 520)))
    copied = new_store(encoder=encoder)
    with copied.bulk_load():
        assert store.copy_to(copied) == 220 * CHUNKS
    store.copy_to(copied)  # again, all in a later generation
    corpus.check(copied)
    with VectorStore.connect(server.url, collection="c", encoder=encoder) as another:
        corpus.check(another)
        another.add(corpus.make(range(600, 610)))
    corpus.check(store)


@remote
def test_what_is_written_tells_its_generation(new_store, encoder, large, read_points):
    store, corpus = new_store(encoder=encoder), Corpus()
    store.add(corpus.make(range(5)))
    store.optimize()
    store.add(corpus.make([7]))
    same = Document(id="d3", chunks=chunks_of(3), vectors=corpus.codes[3], metadata={"new": 1})
    store.sync([same])
    generations = {}
    for point in read_points(store):
        generations.setdefault(point.payload["document_id"], set()).add(point.payload["generation"])
    assert generations == {"d0": {1}, "d1": {1}, "d2": {1}, "d3": {2}, "d4": {1}, "d7": {2}}


@remote
def test_a_write_that_outlasts_its_generation_is_done_again(
    new_store, encoder, request, engine, monkeypatch, read_points
):
    """It may come after all of its generation was taken for indexed."""
    store, corpus = new_store(encoder=encoder), Corpus()
    store.add(corpus.make([0]))
    monkeypatch.setattr(access, "GRACE", 0.0)
    server = (
        request.getfixturevalue("grpc_server").rest if engine.endswith("grpc") else request.getfixturevalue("server")
    )
    answer, collection = server.answer, store._session.points.collection
    writes = []

    def end_the_generation_first(method, path, body):
        if method == "PUT" and path.endswith("/points"):
            writes.append(path)
            if len(writes) == 1:
                server.updates.change(collection, None, {GENERATION_KEY: {"current": 2}})
        return answer(method, path, body)

    server.answer = end_the_generation_first
    monkeypatch.setattr(ledger, "_STATE_AGE", 60.0)
    store.add(corpus.make([1]))
    assert len(writes) == 2
    assert {p.payload["document_id"]: p.payload["generation"] for p in read_points(store)} == {"d0": 1, "d1": 2}


@http
def test_of_settlers_that_overlap_none_undoes_what_another_says(new_store, encoder, large, monkeypatch, server):
    """What is written between the end of one and the end of the other is in no generation that is indexed."""
    monkeypatch.setattr(server_indexing, "GRACE", 0.6)
    first, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    first.add(corpus.make(range(200)))
    monkeypatch.setattr(ledger, "_of_servers", {})  # as if of another process
    second = new_store(encoder=encoder, collection="c")
    settlers = [threading.Thread(target=store.optimize) for store in (first, second, second)]
    for number, settler in enumerate(settlers):
        settler.start()
        first.add(corpus.make([1000 + number]))
        time.sleep(0.3)
    for number, settler in enumerate(settlers):
        settler.join()
        second.add(corpus.make(range(2000 + 10 * number, 2010 + 10 * number)))
        corpus.check(first)
    for store in (first, second):
        assert store.explain(corpus.codes[0][0]).way == "bits"
        corpus.check(store)
    metadata = server.updates.metadata_of("c", {})
    assert metadata[GENERATION_KEY]["current"] >= metadata[INDEXED_KEY]["below"] >= 3
    assert not metadata[HOLD_KEY]
    assert server.updates.threshold_of("c") == USUAL


@pytest.mark.parametrize("what", ["threshold", "hold", "generation"])
@http
def test_a_settler_from_whom_something_is_taken_begins_anew(new_store, encoder, large, server, monkeypatch, what):
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    store.add(corpus.make(range(20)))
    status_of, change = server.updates.status_of, server.updates.change
    thresholds, taken = [], []

    def note(name, threshold, metadata, segment_size):
        if threshold is not None:
            thresholds.append(threshold)
        change(name, threshold, metadata, segment_size)

    def take_once(name):
        if GENERATION_KEY in server.updates.metadata_of(name, {}) and not taken:
            taken.append(what)
            if what == "threshold":
                change(name, USUAL, None)
            elif what == "hold":
                change(name, None, {HOLD_KEY: {}})
            else:
                change(name, None, {GENERATION_KEY: {"current": 9}})
        return status_of(name)

    monkeypatch.setattr(server.updates, "change", note)
    monkeypatch.setattr(server.updates, "status_of", take_once)
    store.optimize()
    assert taken == [what]
    assert thresholds == [1, 1, USUAL]
    metadata = server.updates.metadata_of("c", {})
    assert metadata[GENERATION_KEY]["current"] == metadata[INDEXED_KEY]["below"] == (10 if what == "generation" else 3)
    assert not metadata[HOLD_KEY]
    assert server.updates.threshold_of("c") == USUAL


@http
def test_a_key_that_may_only_read_opens_what_was_made_before(new_store, encoder, large, server):
    """There is no index of the generations yet, and it cannot make one."""
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    store.add(corpus.make(range(50)))
    store.optimize()
    server.client._shard("c")  # the collection is there
    answer = server.answer

    def forbid(method, path, body):
        if method in ("PUT", "PATCH"):
            return 403, b'{"status": {"error": "Forbidden: manage access is required"}, "time": 0.0}'
        status, content = answer(method, path, body)
        if (method, path) == ("GET", "/collections/c"):
            told = json.loads(content)
            told["result"]["payload_schema"].pop("generation", None)
            content = json.dumps(told).encode()
        return status, content

    server.answer = forbid
    reader = new_store(encoder=encoder, collection="c")
    corpus.check(reader)
    assert reader.explain(corpus.codes[0][0]).way == "codes"


@http
def test_where_conditions_are_counted_none_is_added(new_store, encoder, large, server):
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    store.add(corpus.make(range(50)))
    store.optimize()
    server.strict_mode = {"enabled": True, "filter_max_conditions": 3}
    strict = new_store(encoder=encoder, collection="c")
    assert strict.explain(corpus.codes[0][0]).way == "codes"
    corpus.check(strict)


# --- bulk loads --------------------------------------------------------------------------------------


@remote
def test_indexing_is_held_back_and_restored(new_store, encoder, impatient, run_async):
    store, corpus = new_store(encoder=encoder), Corpus()
    for numbers in (range(100), range(100, 150)):
        with store.bulk_load():
            assert threshold_of(store, run_async) == 0
            store.add(corpus.make(numbers))
            corpus.check(store)
            assert HOLD_KEY in state_of(store, run_async).config.metadata
        assert threshold_of(store, run_async) == USUAL
        state = state_of(store, run_async)
        assert not state.config.metadata[HOLD_KEY]
        assert (state.status, state.indexed_vectors_count) == ("green", len(corpus.codes) * CHUNKS)
        corpus.check(store)


@remote
def test_an_error_ends_a_load_as_well(new_store, encoder, impatient, run_async):
    store, corpus = new_store(encoder=encoder), Corpus()

    def load():
        store.add(corpus.make(range(50)))
        store.add(["no document"])

    with pytest.raises(InvalidDocumentError), store.bulk_load():
        load()
    state = state_of(store, run_async)
    assert state.config.optimizer_config.indexing_threshold == USUAL
    assert state.indexed_vectors_count == 50 * CHUNKS
    corpus.check(store)


@http
def test_who_lets_others_write_tells_that_it_lives(new_store, encoder, server, impatient, monkeypatch):
    monkeypatch.setattr(server_indexing, "_RENEWAL", 0.0)
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    with VectorStore.connect(server.url, collection="c", encoder=encoder) as other, store.bulk_load() as still_loading:
        told = [server.updates.metadata_of("c", {})[HOLD_KEY]["until"]]
        later = time.time() + 5
        monkeypatch.setattr(server_indexing.time, "time", lambda: later)
        still_loading()
        told.append(server.updates.metadata_of("c", {})[HOLD_KEY]["until"])
        assert told[0] < told[1]
        with other.bulk_load() as joined:
            joined()
        assert server.updates.threshold_of("c") == 0
        other.add(corpus.make(range(10)))
    assert server.updates.threshold_of("c") == USUAL
    corpus.check(store)


def test_a_task_that_lets_others_write_tells_that_it_lives(server, encoder, impatient, run_async, monkeypatch):
    monkeypatch.setattr(server_indexing, "_RENEWAL", 0.0)

    async def scenario():
        async with (
            await AsyncVectorStore.connect(server.url, encoder=encoder) as store,
            store.bulk_load() as still_loading,
        ):
            before = server.updates.metadata_of("documents", {})[HOLD_KEY]["until"]
            later = time.time() + 5
            monkeypatch.setattr(server_indexing.time, "time", lambda: later)
            await still_loading()
            assert server.updates.metadata_of("documents", {})[HOLD_KEY]["until"] > before

    run_async(scenario())


@http
def test_who_interrupts_a_load_waits_for_nothing(new_store, encoder, server, run_async, monkeypatch):
    store = new_store(encoder=encoder)
    monkeypatch.setattr(server.updates, "status_of", lambda name: "yellow")  # for ever
    with pytest.raises(KeyboardInterrupt), store.bulk_load():
        raise KeyboardInterrupt
    assert threshold_of(store, run_async) == USUAL


def test_a_cancelled_task_restores_the_threshold(server, encoder, run_async):
    async def scenario():
        async with await AsyncVectorStore.connect(server.url, encoder=encoder) as store:

            async def load():
                async with store.bulk_load():
                    loading.set()
                    await asyncio.sleep(60)

            loading = asyncio.Event()
            task = asyncio.create_task(load())
            await loading.wait()
            assert server.updates.threshold_of("documents") == 0
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert server.updates.threshold_of("documents") == USUAL

    run_async(scenario())


def test_a_task_that_is_cancelled_while_it_begins_restores_the_threshold(server, encoder, run_async):
    async def scenario(times):
        async with await AsyncVectorStore.connect(server.url, encoder=encoder) as store:
            loading = store.bulk_load()
            task = asyncio.create_task(loading.__aenter__())
            while server.updates.threshold_of("documents") != 0:
                await asyncio.sleep(0)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            with contextlib.suppress(asyncio.CancelledError):
                await task
                await loading.__aexit__(None, None, None)
            await store.optimize()
            assert server.updates.threshold_of("documents") == USUAL
            assert not server.updates.metadata_of("documents", {})[HOLD_KEY]

    for times in (1, 2):
        run_async(scenario(times))


@http
def test_a_store_that_is_closed_in_the_block_says_so(new_store, encoder, server):
    store = new_store(encoder=encoder, collection="c")
    with (
        pytest.raises(StoreClosedError, match=r"closed within bulk_load.*collection next restores it"),
        store.bulk_load(),
    ):
        store.close()
    assert server.updates.threshold_of("c") == 0
    new_store(encoder=encoder, collection="c")
    assert server.updates.threshold_of("c") == USUAL


@http
def test_who_has_opened_before_ends_the_load_of_a_killed_process_too(new_store, encoder, server, monkeypatch):
    monkeypatch.setattr(ledger, "_STATE_AGE", 0.0)
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    for use in (lambda: store.add(corpus.make([1])), lambda: store.search(corpus.codes[1][0]), store.optimize):
        server.updates.change("c", 0, {HOLD_KEY: dead_hold()})
        use()
        assert server.updates.threshold_of("c") == 77


@http
def test_while_another_loads_nothing_is_optimized(new_store, encoder, server):
    store = new_store(encoder=encoder, collection="c")
    hold = {"token": "t", "threshold": 77, "host": "elsewhere x", "pid": 5, "until": time.time() + 99}
    server.updates.change("c", 0, {HOLD_KEY: hold})
    with pytest.raises(StoreError, match=r"a bulk load into 'c' goes on \(process 5 on elsewhere\)"):
        store.optimize()
    with store.bulk_load():  # joins it
        pass
    assert server.updates.threshold_of("c") == 0


@http
def test_an_error_is_told_although_the_server_does_not_get_done(new_store, encoder, server, impatient, monkeypatch):
    store = new_store(encoder=encoder)
    monkeypatch.setattr(server.updates, "status_of", lambda name: "red")
    with pytest.raises(ZeroDivisionError) as caught, store.bulk_load():
        1 / 0  # noqa: B018
    assert "not indexed yet: the server could not index" in caught.value.__notes__[0]


@http
def test_of_two_loads_the_first_restores(new_store, encoder, impatient, run_async):
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    another = new_store(encoder=encoder, collection="c")
    with store.bulk_load():
        with another.bulk_load():
            another.add(corpus.make(range(10)))
        assert threshold_of(store, run_async) == 0
        store.add(corpus.make(range(10, 20)))
    assert threshold_of(store, run_async) == USUAL
    corpus.check(store)


@pytest.mark.parametrize("before", [None, 200_000])
@remote
def test_where_words_are_vectors_segments_stay_small_while_loading(
    new_store, encoder, impatient, rest_server, run_async, before
):
    server = rest_server()
    server.version = "1.18.3"
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    server.updates.change("c", None, None, before)
    for numbers in (range(20), range(10, 30)):
        with store.bulk_load():
            assert server.updates.segment_size_of("c") == SMALL
            store.add(corpus.make(numbers))
        assert server.updates.segment_size_of("c") == (before or LARGE)
        assert threshold_of(store, run_async) == USUAL
        corpus.check(store)
    store.add(corpus.make([5]))
    store.optimize()
    assert server.updates.segment_size_of("c") == (before or LARGE)
    corpus.check(store)


@pytest.mark.parametrize(("version", "text_index"), [("1.18.3", False), ("1.20.1", True)])
@http
def test_where_words_are_no_vectors_the_size_of_segments_stays(
    new_store, encoder, server, impatient, version, text_index
):
    server.version = version
    config = CollectionConfig(text_index=text_index)
    with new_store(encoder=encoder, collection="c", config=config).bulk_load():
        assert (server.updates.threshold_of("c"), server.updates.segment_size_of("c")) == (0, None)
    assert (server.updates.threshold_of("c"), server.updates.segment_size_of("c")) == (USUAL, None)


@http
def test_segments_grow_before_there_are_too_many(new_store, encoder, server, impatient, monkeypatch):
    server.version = "1.18.3"
    monkeypatch.setattr(server_indexing, "_RENEWAL", 0.0)
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    sizes = []
    with store.bulk_load() as still_loading:
        store.add(corpus.make(range(3)))
        sizes.append(server.updates.segment_size_of("c"))
        monkeypatch.setattr(server_indexing, "_MOST_SEGMENTS", 0)
        for _ in range(2):
            still_loading()
            sizes.append(server.updates.segment_size_of("c"))
    assert sizes == [SMALL, 2 * SMALL, 4 * SMALL]
    assert server.updates.segment_size_of("c") == LARGE
    corpus.check(store)


@pytest.mark.parametrize("following", ["open", "optimize", "load"])
@http
def test_who_follows_a_killed_load_restores_the_size_of_segments(new_store, encoder, server, impatient, following):
    server.version = "1.18.3"
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    store.add(corpus.make(range(10)))
    hold = {**dead_hold(), "segment_size": 300_000}
    server.updates.change("c", 0, {HOLD_KEY: hold}, 2 * SMALL)
    if following == "open":
        new_store(encoder=encoder, collection="c")
    elif following == "optimize":
        store.optimize()
    else:
        with store.bulk_load():
            assert server.updates.segment_size_of("c") == SMALL
            store.add(corpus.make(range(5, 15)))
    assert (server.updates.threshold_of("c"), server.updates.segment_size_of("c")) == (77, 300_000)
    corpus.check(store)


@http
def test_a_record_that_another_took_away_does_not_keep_the_settings(new_store, encoder, server, impatient):
    server.version = "1.18.3"
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    with store.bulk_load():
        store.add(corpus.make(range(10)))
        server.updates.change("c", None, {HOLD_KEY: {}})  # by who restored what a killed process had left
        store.add(corpus.make(range(5, 15)))
    assert (server.updates.threshold_of("c"), server.updates.segment_size_of("c")) == (USUAL, LARGE)
    corpus.check(store)


@http
def test_who_ends_what_another_has_ended_leaves_a_new_load_alone(new_store, encoder, server, run_async, monkeypatch):
    store = new_store(encoder=encoder, collection="c")
    change, hold = server.updates.change, dead_hold()
    new = {**hold, "token": "another", "host": "elsewhere", "until": int(time.time()) + 99}

    def begin_one_meanwhile(name, threshold, metadata, segment_size):
        change(name, threshold, metadata, segment_size)
        if threshold == 77 and HOLD_KEY not in (metadata or {}):
            change(name, 0, {HOLD_KEY: new})

    change("c", 0, {HOLD_KEY: hold})
    monkeypatch.setattr(server.updates, "change", begin_one_meanwhile)
    store.close()
    new_store(encoder=encoder, collection="c")  # restores, while another begins
    assert server.updates.threshold_of("c") == 0
    assert server.updates.metadata_of("c", {})[HOLD_KEY] == new


@http
def test_threads_that_write_while_loads_end_leave_nothing_behind(new_store, encoder, server, impatient, monkeypatch):
    monkeypatch.setattr(server_indexing, "_RENEWAL", float("inf"))  # due at each write
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    documents, is_over, errors = corpus.make(range(10)), threading.Event(), []

    def write():
        try:
            while not is_over.is_set():
                store.add(documents)
        except Exception as error:  # noqa: BLE001 - raised in no thread that anybody waits for
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(8):
            with store.bulk_load():
                store.add(documents)
            assert server.updates.threshold_of("c") == USUAL
            assert not server.updates.metadata_of("c", {})[HOLD_KEY]
    finally:
        is_over.set()
        thread.join()
    assert not errors
    assert server.updates.threshold_of("c") == USUAL
    corpus.check(store)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@http
def test_a_forked_process_does_not_hold_what_the_other_held(new_store, encoder, server, impatient):
    store = new_store(encoder=encoder, collection="c")
    with store.bulk_load():
        assert store._session.points._ledger.renewal is not None
        assert run_forked(lambda: store._session.points._ledger.renewal is None) == 1
    assert server.updates.threshold_of("c") == USUAL


@http
def test_a_load_that_another_outlasts_ends_without_a_word(new_store, encoder, server, impatient):
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    with store.bulk_load():
        store.add(corpus.make(range(10)))
        another = {**dead_hold(), "host": "elsewhere", "threshold": USUAL, "until": int(time.time()) + 99}
        server.updates.change("c", None, {HOLD_KEY: another})  # both began at once: the later record stays
    assert server.updates.threshold_of("c") == 0
    assert server.updates.metadata_of("c", {})[HOLD_KEY] == another
    corpus.check(store)


@http
def test_a_load_waits_for_who_has_all_indexed(new_store, encoder, server, impatient, monkeypatch):
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    settling = {**dead_hold(), "host": "elsewhere", "threshold": USUAL, "until": int(time.time()) + 99}
    server.updates.change("c", 1, {HOLD_KEY: settling})
    looks = []

    async def end(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            server.updates.change("c", USUAL, {HOLD_KEY: {}})

    with monkeypatch.context() as patched:
        patched.setattr(store._session.calls, "sleep", end)
        loading = store.bulk_load()
        loading.__enter__()
    assert len(looks) == 3
    assert server.updates.threshold_of("c") == 0
    store.add(corpus.make(range(10)))
    loading.__exit__(None, None, None)
    assert server.updates.threshold_of("c") == USUAL
    corpus.check(store)


@http
def test_who_joins_a_load_and_ends_after_it_waits_for_the_index(new_store, encoder, server, impatient, run_async):
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    another = new_store(encoder=encoder, collection="c")
    first, joined = store.bulk_load(), another.bulk_load()
    first.__enter__()
    joined.__enter__()
    first.__exit__(None, None, None)
    another.add(corpus.make(range(20)))
    joined.__exit__(None, None, None)
    assert threshold_of(store, run_async) == USUAL
    state = state_of(store, run_async)
    assert (state.status, state.config.metadata[HOLD_KEY]) == ("green", {})
    corpus.check(store)


@http
def test_that_one_key_may_only_read_keeps_no_other_from_restoring(new_store, encoder, server, monkeypatch):
    monkeypatch.setattr(ledger, "_STATE_AGE", 0.0)
    reader, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    reader.add(corpus.make(range(10)))
    writer, answer = new_store(encoder=encoder, collection="c"), server.answer

    def forbid(method, path, body):
        if method == "PATCH":
            return 403, b'{"status": {"error": "Forbidden: Global manage access is required"}, "time": 0.0}'
        return answer(method, path, body)

    server.updates.change("c", 0, {HOLD_KEY: dead_hold()})
    server.answer = forbid
    for _ in range(2):
        assert reader.search(corpus.codes[3][0], k=1)
    server.answer = answer
    assert reader.search(corpus.codes[3][0], k=1)
    assert server.updates.threshold_of("c") == 0  # it does not ask again
    assert writer.search(corpus.codes[3][0], k=1)
    assert server.updates.threshold_of("c") == 77


def dead_hold():
    """Return what a process that was killed has left."""
    until = int(time.time()) + 99
    return {"token": "t", "threshold": 77, "host": host_name(), "pid": 2**22 + 1, "until": until}


KILLED = """
import os, signal, sys
import numpy as np
from pplx_vectorstore import Document, PrecomputedEncoder, VectorStore

store = VectorStore.connect(sys.argv[1], encoder=PrecomputedEncoder("made", 384))
with store.bulk_load():
    store.add([Document(id="d", chunks=["a"], vectors=np.random.default_rng(0).normal(size=(1, 384)))])
    print("loading", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_opens_next_ends_the_load_of_a_killed_process(server, encoder, run_async):
    command = [sys.executable, "-c", KILLED, server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "loading\n"
        with VectorStore.connect(server.url, encoder=encoder) as store:  # it is still loading
            assert threshold_of(store, run_async) == 0
        child.communicate("")
    assert child.returncode == -signal.SIGKILL
    assert server.updates.threshold_of("documents") == 0
    with VectorStore.connect(server.url, encoder=encoder) as store:
        assert threshold_of(store, run_async) == USUAL
        assert not state_of(store, run_async).config.metadata[HOLD_KEY]
        assert store.count() == 1
        store.optimize()
        assert state_of(store, run_async).status == "green"


@pytest.mark.parametrize(
    ("host", "pid", "age", "is_abandoned"),
    [
        ("elsewhere", 1, -60, False),
        ("elsewhere", 1, 1, True),
        ("here", "ours", -60, True),  # of which this process knows nothing
        ("here", 1, -60, False),  # somebody's
        ("here", 2**22 + 1, -60, True),  # nobody's
    ],
)
@http
def test_a_load_is_over_when_its_process_is_or_its_time(new_store, encoder, server, host, pid, age, is_abandoned):
    new_store(encoder=encoder, collection="c").close()
    hold = {
        "token": "t",
        "threshold": 77,
        "host": host_name() if host == "here" else host,
        "pid": os.getpid() if pid == "ours" else pid,
        "until": time.time() - age,
    }
    server.updates.change("c", 0, {HOLD_KEY: hold})
    new_store(encoder=encoder, collection="c")
    assert server.updates.threshold_of("c") == (77 if is_abandoned else 0)


@http
def test_a_process_that_loads_for_long_says_that_it_lives(new_store, encoder, server, monkeypatch):
    store, corpus = new_store(encoder=encoder, collection="c"), Corpus()
    with store.bulk_load():
        first = server.updates.metadata_of("c", {})[HOLD_KEY]["until"]
        store.add(corpus.make([1]))
        assert server.updates.metadata_of("c", {})[HOLD_KEY]["until"] == first
        now = time.time() + 120
        monkeypatch.setattr(server_indexing.time, "time", lambda: now)
        store.add(corpus.make([2]))
        assert server.updates.metadata_of("c", {})[HOLD_KEY]["until"] > first + 60
        assert server.updates.threshold_of("c") == 0


@http
def test_a_key_that_may_only_read_opens_all_the_same(new_store, encoder, server):
    new_store(encoder=encoder, collection="c").close()
    hold = {"token": "t", "threshold": 77, "host": "elsewhere", "pid": 1, "until": 0}
    server.updates.change("c", 0, {HOLD_KEY: hold})
    answer = server.answer

    def forbid(method, path, body):
        if method == "PATCH":
            return 403, b'{"status": {"error": "Forbidden: Global manage access is required"}, "time": 0.0}'
        return answer(method, path, body)

    server.answer = forbid
    assert new_store(encoder=encoder, collection="c").count() == 0
    assert server.updates.threshold_of("c") == 0


@http
def test_waiting_ends_when_a_server_neither_works_nor_changes(new_store, encoder, server, impatient, monkeypatch):
    store = new_store(encoder=encoder)
    monkeypatch.setattr(server.updates, "status_of", lambda name: "grey")
    monkeypatch.setattr(server_indexing, "_PATIENCE", 0.2)
    with pytest.raises(StoreError, match=r"does not get done indexing 'test-.*status is grey, with 0 vectors"):
        store.optimize()


@http
def test_a_server_that_works_is_waited_for_however_long_it_takes(new_store, encoder, server, impatient, monkeypatch):
    store = new_store(encoder=encoder)
    asked = []

    def status_of(name):
        asked.append(name)
        return "yellow" if len(asked) < 20 else "green"

    monkeypatch.setattr(server.updates, "status_of", status_of)
    monkeypatch.setattr(server_indexing, "_PATIENCE", 0.0)
    store.optimize()
    assert len(asked) >= 20


@http
def test_a_server_that_was_started_again_is_told_to_optimize(new_store, encoder, server, impatient, monkeypatch):
    store = new_store(encoder=encoder)
    change = server.updates.change
    told = []

    def told_to(name, threshold, metadata, segment_size):
        told.append((threshold, metadata, segment_size))
        change(name, threshold, metadata, segment_size)

    monkeypatch.setattr(server.updates, "status_of", lambda name: "green" if told else "grey")
    monkeypatch.setattr(server.updates, "change", told_to)
    store.optimize()
    assert told == [(USUAL, None, None)]


# --- folders -----------------------------------------------------------------------------------------


def test_a_folder_is_indexed_once_at_the_end(folder, encoder, monkeypatch):
    from pplx_vectorstore.engines import shard

    begun = []
    start = shard.Shard._start_indexing
    monkeypatch.setattr(shard, "_WALKED_BYTES", 20 * DIMENSION)
    monkeypatch.setattr(shard.Shard, "_start_indexing", lambda self: begun.append(1) or start(self))
    corpus = Corpus()
    with VectorStore.open(folder / "index", encoder=encoder) as store:
        for numbers in (range(40), range(40, 80)):
            with store.bulk_load():
                begun.clear()
                for number in numbers:
                    store.add(corpus.make([number]))
                assert begun == []
                corpus.check(store)
            assert begun == [1]
            coverage = store._client.coverage("documents")
            assert coverage.points == len(corpus.codes) * CHUNKS
            assert coverage.unindexed < 10
            corpus.check(store)
        begun.clear()
        store.add(corpus.make(range(100, 300)))
        assert begun, "as it was before"
    corpus_of_all = QdrantClient(":memory:")
    with VectorStore(corpus_of_all, encoder=encoder) as store, store.bulk_load():
        store.add(corpus.make(range(10)))
    assert corpus_of_all.count("documents").count == 10 * CHUNKS
