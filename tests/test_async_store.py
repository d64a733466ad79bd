"""AsyncVectorStore: the same methods as VectorStore, awaited without holding up the loop.

What it does is tested with VectorStore, by the suites that run on every engine.
"""

import asyncio
import inspect
import threading
import time

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient

from pplx_vectorstore import (
    AsyncVectorStore,
    CollectionConfig,
    Document,
    PrecomputedEncoder,
    VectorStore,
    parquet,
    points,
)
from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.engines import upserts
from pplx_vectorstore.engines.calls import BlockingCalls
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.engines.retrying import Retries
from pplx_vectorstore.errors import InvalidInputError, StoreClosedError, StoreNotFoundError
from pplx_vectorstore.operations import finding, manage, pools, search, session, sizes, transfer, write
from pplx_vectorstore.quantization import quantize_tanh


def public_members(cls):
    return {name: value for name, value in inspect.getmembers(cls) if not name.startswith("_")}


def test_both_stores_have_the_same_methods_and_signatures():
    blocking, asynchronous = public_members(VectorStore), public_members(AsyncVectorStore)
    assert blocking.keys() == asynchronous.keys()
    assert inspect.signature(VectorStore) == inspect.signature(AsyncVectorStore)
    for name, ours in blocking.items():
        theirs = asynchronous[name]
        if isinstance(ours, property):
            assert isinstance(theirs, property), name
            continue
        ours_is, theirs_is = inspect.signature(ours), inspect.signature(theirs)
        awaited = str(theirs_is).replace("Async", "").replace("Coroutine[Any, Any, None]", "None")
        assert awaited == str(ours_is), name
        defaults = [[parameter.default for parameter in one.parameters.values()] for one in (ours_is, theirs_is)]
        assert defaults[0] == defaults[1], name
        inner = inspect.unwrap(theirs)  # of a context manager
        assert inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner), name


@pytest.fixture
def documents():
    return [Document(id=f"d{i}", chunks=[f"{i} a", f"{i} b"]) for i in range(20)]


def test_over_the_embedded_engine_everything_runs_in_threads(run_async, folder, hash_encoder, documents):
    async def use():
        encoder = hash_encoder(64)
        async with await AsyncVectorStore.open(folder / "index", encoder=encoder) as store:
            assert (await store.add(documents)).chunks == 40
            assert (await store.sync(documents)).unchanged_documents == 20
            hits = await asyncio.gather(*(store.search(f"{i}", k=3, hybrid=True) for i in range(10)))
            assert [len(found) for found in hits] == [3] * 10
            assert len([document async for document in store.documents()]) == 20
            async with await AsyncVectorStore.open(folder / "index", encoder=encoder) as again:  # the same
                assert await again.count() == 40
            assert await store.delete(document_ids=["d3"]) == 2
            return await store.count()

    assert run_async(use()) == 38
    with VectorStore.open(folder / "index", encoder=hash_encoder(64)) as store:
        assert store.count() == 38


def test_a_client_may_be_handed_over_and_is_verified_on_first_use(run_async, hash_encoder, documents, folder):
    async def use(client):
        store = AsyncVectorStore(client, "c", encoder=hash_encoder(64), create=False)
        with pytest.raises(StoreNotFoundError):
            await store.count()
        store = AsyncVectorStore(client, "c", encoder=hash_encoder(64))
        await asyncio.gather(*(store.count() for _ in range(5)))  # the first of them creates the collection
        await store.add(documents)
        await store.close()
        with pytest.raises(StoreClosedError):
            await store.search("x")
        again = AsyncVectorStore(client, "c", encoder=hash_encoder(64), create=False)
        assert again.tenant is None
        assert again.fingerprint == hash_encoder(64).fingerprint
        return await again.count()

    client = AsyncQdrantClient(":memory:")
    assert run_async(use(client)) == 40
    run_async(client.close())
    with EdgeClient(folder / "index") as client:
        assert run_async(use(client)) == 40


def test_each_store_refuses_the_others_client(hash_encoder):
    client = QdrantClient(":memory:")
    with pytest.raises(InvalidInputError, match="AsyncVectorStore needs an AsyncQdrantClient"):
        AsyncVectorStore(client, encoder=hash_encoder())
    client.close()
    with pytest.raises(InvalidInputError, match="give AsyncQdrantClient to AsyncVectorStore"):
        VectorStore(AsyncQdrantClient(":memory:"), encoder=hash_encoder())


@pytest.mark.parametrize("engine_", ["edge", "http"])
def test_a_slow_model_and_slow_documents_do_not_hold_up_the_loop(run_async, folder, hash_encoder, request, engine_):
    """While a group is read and embedded, other tasks go on: some hundred turns of the loop, not a few."""
    encoder = hash_encoder(64)
    encode = encoder.encode_documents

    def slowly(documents, **options):
        time.sleep(0.3)
        return encode(documents, **options)

    encoder.encode_documents = slowly

    def documents():
        for i in range(3):
            time.sleep(0.1)
            yield Document(id=str(i), chunks=["x"])

    async def use():
        if engine_ == "edge":
            store = await AsyncVectorStore.open(folder / "index", encoder=encoder)
        else:
            store = await AsyncVectorStore.connect(request.getfixturevalue("server").url, encoder=encoder)
        turns = 0

        async def count_turns():
            nonlocal turns
            while True:
                await asyncio.sleep(0.001)
                turns += 1

        counting = asyncio.ensure_future(count_turns())
        await store.add(documents())
        counting.cancel()
        await store.close()
        return turns

    assert run_async(use()) > 50


def test_a_cancelled_add_leaves_a_store_that_works(run_async, server, hash_encoder, documents):
    async def use():
        async with await AsyncVectorStore.connect(server.url, encoder=hash_encoder(64)) as store:
            server.delay = 0.2
            adding = asyncio.ensure_future(store.add(documents))
            await asyncio.sleep(0.1)
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding
            server.delay = 0.0
            await store.sync(documents)
            return await store.count()

    assert run_async(use()) == 40


def test_a_cancelled_write_in_a_thread_never_lands_after_a_newer_one(run_async, folder, hash_encoder, monkeypatch):
    upsert = EdgeClient.upsert

    def slowly(self, collection, points):
        time.sleep(0.3)
        upsert(self, collection, points=points)

    async def use():
        async with await AsyncVectorStore.open(folder / "index", encoder=hash_encoder(64)) as store:
            with monkeypatch.context() as patched:
                patched.setattr(EdgeClient, "upsert", slowly)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(store.add([Document(id="d", chunks=["old 1", "old 2"])]), 0.1)
            await store.add([Document(id="d", chunks=["new"])])
            await asyncio.sleep(0.5)
            return [hit.text for hit in await store.search("x")]

    assert run_async(use()) == ["new"]


def test_stores_of_several_tenants_begin_a_collection_together(run_async, folder, hash_encoder):
    async def use(client):
        stores = [AsyncVectorStore(client, "c", encoder=hash_encoder(64), tenant=tenant) for tenant in "abcdef"]
        return await asyncio.gather(*(store.count() for store in stores))

    for number in range(5):
        with EdgeClient(folder / str(number)) as client:
            assert run_async(use(client)) == [0] * 6


def test_an_operation_over_a_blocking_client_never_waits_for_a_loop():
    async def waits():
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waited for an event loop"):
        run_now(waits())


def test_started_work_runs_beside_and_its_error_is_raised_where_it_is_awaited():
    calls = BlockingCalls(None, Retries(where=None))
    order = []

    async def fail():
        order.append("started")
        raise ValueError("inside")

    async def use():
        work = calls.start(fail())
        with pytest.raises(ValueError, match="inside"):
            await work
        return await calls.start(value())

    async def value():
        return np.int8(5)

    assert run_now(use()) == 5
    assert order == ["started"]


@pytest.mark.parametrize("kind", ["edge", "server", "grpc"])
def test_no_heavy_work_is_done_in_the_event_loop(folder, server, grpc_server, hash_encoder, monkeypatch, kind):
    """Making and reading points, hashing, JSON and Parquet are a thread's work, whatever the method."""
    ran = {}

    def watch(module, name):
        function = getattr(module, name)

        def watched(*arguments, **options):
            ran.setdefault(name, set()).add(threading.get_ident())
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    for module, names in {
        points: ["Point", "equalize_norms", "storage_loss"],
        upserts: ["_struct", "make_message"],
        write: ["hash_document", "quantize"],
        transfer: ["read_codes", "equalize_codes"],
        manage: ["read_codes"],
        parquet: ["_in_order", "stored_point_id", "copy_metadata"],
        parquet.ExportWriter: ["write", "finish"],
    }.items():
        for name in names:
            watch(module, name)
    encoder = PrecomputedEncoder("made", 64)
    vectors = np.random.default_rng(0).normal(size=(4, 64))
    given = [Document(id=f"d{i}", chunks=["a", "b", "c", "d"], vectors=vectors + i) for i in range(30)]

    async def open_store(name):
        if kind == "edge":
            return await AsyncVectorStore.open(folder / name, encoder=encoder)
        url = grpc_server.url if kind == "grpc" else server.url
        return await AsyncVectorStore.connect(url, collection=name, encoder=encoder, prefer_grpc=kind == "grpc")

    async def run():
        async with await open_store("first") as first, await open_store("second") as second:
            await first.add(given)
            await first.sync(given[:20], delete_missing=True)
            assert len([chunk async for chunk in first.chunks(with_codes=True)]) == 80
            assert await first.export_parquet(folder / "all.parquet") == 80
            assert await second.import_parquet(folder / "all.parquet") == 80
            assert await first.copy_to(second) == 80
            assert await second.count() == 80
        return threading.get_ident()

    loop_thread = asyncio.run(run())
    made = "make_message" if kind == "grpc" else "_struct"
    assert ran.keys() >= {"Point", made, "hash_document", "read_codes", "write", "_in_order", "quantize"}
    assert [name for name, threads in ran.items() if loop_thread in threads] == []


@pytest.mark.parametrize("kind", ["edge", "server"])
@pytest.mark.parametrize(
    "options",
    [
        {"k": 20, "context": 2},
        {"k": 20, "with_codes": True},
        {"k": 100},
        {"k": 20, "group_by_document": True},
        {"k": 20, "group_by_document": 2, "diversity": 0.5},
        {"k": 20, "diversity": 0.3},
    ],
)
def test_no_heavy_work_of_a_search_is_done_in_the_event_loop(folder, server, monkeypatch, kind, options):
    """What is computed with more than a few points is a thread's work; of many questions, each slice is few."""
    ran, n_questions = {}, []
    for module, name in [
        (finding, "_score_all"),
        (finding, "_fill_all"),
        (pools, "add_to"),
        (pools, "_choose"),
        (pools, "_within"),
        (search, "_read"),
        (search, "_passage"),
    ]:
        function = getattr(module, name)

        def watched(*arguments, function=function, name=name):
            ran.setdefault(name, set()).add(threading.get_ident())
            return function(*arguments)

        monkeypatch.setattr(module, name, watched)
    find = finding.find

    async def watched_find(session, questions, *arguments, **rest):
        n_questions.append(len(questions))
        return await find(session, questions, *arguments, **rest)

    monkeypatch.setattr(search, "find", watched_find)
    monkeypatch.setattr(session, "_FEW_POINTS", 0)
    vectors = np.random.default_rng(0).normal(size=(60, 5, 64))
    given = [Document(id=f"d{i}", chunks=list("abcde"), vectors=vectors[i]) for i in range(60)]
    queries = list(quantize_tanh(np.random.default_rng(1).normal(size=(70, 64))))

    async def run():
        encoder = PrecomputedEncoder("made", 64)
        if kind == "edge":
            store = await AsyncVectorStore.open(folder, encoder=encoder)
        else:
            store = await AsyncVectorStore.connect(server.url, collection="batch", encoder=encoder)
        async with store:
            await store.add(given)
            together = await store.search_batch(queries, **options)
            assert all(size <= 32 for size in n_questions)
            one_by_one = [await store.search(query, **options) for query in queries[::7]]
        assert [[hit.id for hit in hits] for hits in together[::7]] == [[hit.id for hit in hits] for hits in one_by_one]
        assert all(len(hits) == options["k"] * int(options.get("group_by_document") or 1) for hits in together)
        return threading.get_ident()

    loop_thread = asyncio.run(run())
    assert len(ran) >= 2
    assert [name for name, threads in ran.items() if loop_thread in threads] == []


@pytest.mark.parametrize("options", [{}, {"with_codes": True}, {"hybrid": True, "lexical_weight": 0.3}])
def test_a_large_answer_is_read_in_parts(folder, hash_encoder, monkeypatch, options):
    """An answer of hundreds of long texts would keep an event loop for long; the hits are the same."""
    given = [Document(id=f"d{i}", chunks=[f"bread {i} of rye", f"wine {i} of {i % 7} grapes"]) for i in range(150)]
    n_read = []
    retrieve = EdgeClient.retrieve

    def counted(*arguments, **given):
        records = retrieve(*arguments, **given)
        n_read.append(len(records))
        return records

    monkeypatch.setattr(EdgeClient, "retrieve", counted)
    with VectorStore.open(folder, encoder=hash_encoder(64), config=CollectionConfig(text_index=True)) as store:
        store.add(given)
        n_read.clear()
        whole = store.search("bread of rye", k=40, **options)
        assert n_read == []
        monkeypatch.setattr(sizes, "_MOST_AWAITED", 10 * 4600)
        in_parts = store.search("bread of rye", k=40, **options)
    assert max(n_read) <= 10
    assert sum(n_read) == 40
    assert [(hit.id, hit.score, hit.text) for hit in in_parts] == [(hit.id, hit.score, hit.text) for hit in whole]
    if "with_codes" in options:
        assert all((a.codes == b.codes).all() for a, b in zip(in_parts, whole, strict=True))
