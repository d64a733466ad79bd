"""Writing at scale, over real HTTP: bounded requests, parallel upserts, overlap, back-pressure."""

import threading
import time

import numpy as np
import pytest

from pplx_vectorstore import AsyncVectorStore, Document, VectorStore
from pplx_vectorstore.operations import replace, write


def documents(n, chunks=1, text="x"):
    return (Document(id=f"d{i}", chunks=[f"{text} {i} {j}" for j in range(chunks)]) for i in range(n))


class Gauge:
    """How many calls are under way, and the most there were."""

    def __init__(self, engine, verb, seconds):
        self.now = self.most = 0
        self.spans = []
        self._lock = threading.Lock()
        self._call = getattr(engine, verb)
        self._seconds = seconds

    def __call__(self, *arguments, **options):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        start = time.monotonic()
        try:
            time.sleep(self._seconds)
            return self._call(*arguments, **options)
        finally:
            with self._lock:
                self.now -= 1
                self.spans.append((start, time.monotonic()))


def test_requests_are_bounded_in_bytes_and_in_points(server, hash_encoder, monkeypatch):
    monkeypatch.setattr(replace, "_UPSERT_BYTES", 50_000)
    with VectorStore.connect(server.url, encoder=hash_encoder(64)) as store:
        long_texts = [Document(id=f"long{i}", chunks=["ü" * 3000] * 5) for i in range(10)]
        store.add([*documents(300, 3), *long_texts])
        assert store.count() == 950
        upserts = [
            size
            for (method, path), size in zip(server.requests, server.bodies, strict=True)
            if method == "PUT" and path.endswith("/points")
        ]
        assert max(upserts) <= 50_000
        assert len(upserts) < 60  # and not one by one


def test_a_chunk_above_the_bound_goes_alone(server, hash_encoder, monkeypatch):
    monkeypatch.setattr(replace, "_UPSERT_BYTES", 5_000)
    with VectorStore.connect(server.url, encoder=hash_encoder(64)) as store:
        store.add([Document(id="d", chunks=["small", "y" * 20_000, "small too"])])
        assert store.count() == 3


@pytest.mark.parametrize("parallel", [1, 3])
def test_as_many_upserts_as_asked_for_are_under_way_at_once(server, hash_encoder, monkeypatch, parallel):
    monkeypatch.setattr(replace, "_UPSERT_POINTS", 10)
    gauge = Gauge(server.client, "upsert", 0.05)
    monkeypatch.setattr(server.client, "upsert", gauge)
    with VectorStore.connect(server.url, encoder=hash_encoder(64), parallel=parallel) as store:
        store.add(documents(200))
        assert store.count() == 200
    assert gauge.most == parallel
    assert len(gauge.spans) == 20


def test_parallel_upserts_of_an_async_store(server, hash_encoder, monkeypatch, run_async):
    monkeypatch.setattr(replace, "_UPSERT_POINTS", 10)
    gauge = Gauge(server.client, "upsert", 0.05)
    monkeypatch.setattr(server.client, "upsert", gauge)

    async def use():
        async with await AsyncVectorStore.connect(server.url, encoder=hash_encoder(64), parallel=4) as store:
            await store.add(documents(200))
            return await store.count()

    assert run_async(use()) == 200
    assert gauge.most == 4


@pytest.fixture
def slow_encoder(hash_encoder):
    encoder = hash_encoder(64)
    encode = encoder.encode_documents
    encoder.spans = []

    def slowly(texts, **options):
        start = time.monotonic()
        time.sleep(0.1)
        codes = encode(texts, **options)
        encoder.spans.append((start, time.monotonic()))
        return codes

    encoder.encode_documents = slowly
    return encoder


def test_the_next_group_is_embedded_while_the_last_is_written(server, slow_encoder, monkeypatch):
    monkeypatch.setattr(write, "_GROUP_DOCUMENTS", 20)
    gauge = Gauge(server.client, "upsert", 0.1)
    monkeypatch.setattr(server.client, "upsert", gauge)
    with VectorStore.connect(server.url, encoder=slow_encoder) as store:
        store.add(documents(100))
    overlaps = [
        (embedding, writing)
        for embedding in slow_encoder.spans
        for writing in gauge.spans
        if max(embedding[0], writing[0]) < min(embedding[1], writing[1])
    ]
    assert len(overlaps) >= 3
    for number, writing in enumerate(sorted(gauge.spans)):
        assert writing[0] > slow_encoder.spans[number][1]  # no group is written before it is embedded


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_slow_server_is_waited_for(server, hash_encoder, monkeypatch, run_async, asynchronous):
    """However fast documents come, those taken but not written are two groups at most, and one in the making."""
    monkeypatch.setattr(write, "_GROUP_DOCUMENTS", 20)
    server.delay = 0.05
    ahead = []

    def source():
        for number, document in enumerate(documents(400)):
            ahead.append(number - server.client.count("documents").count)
            yield document

    if asynchronous:

        async def use():
            async with await AsyncVectorStore.connect(server.url, encoder=hash_encoder(64)) as store:
                return await store.add(source())

        report = run_async(use())
    else:
        with VectorStore.connect(server.url, encoder=hash_encoder(64)) as store:
            report = store.add(source())
    assert report.documents == 400
    assert max(ahead) <= 3 * 20


def test_memory_of_what_is_on_its_way_does_not_grow(server, hash_encoder, monkeypatch):
    """Objects made for points are gone once they are written."""
    import tracemalloc

    monkeypatch.setattr(write, "_GROUP_DOCUMENTS", 50)
    encoder = hash_encoder(64)
    peaks = []

    def source(n):
        for i in range(n):
            yield Document(id=f"{n} {i}", chunks=["text " * 50] * 4, vectors=np.full((4, 64), 5, np.int8))

    with VectorStore.connect(server.url, encoder=encoder) as store:
        store.add(source(100))
        for n in (200, 1000):
            server.requests.clear()
            server.bodies.clear()
            tracemalloc.start()
            store.add(source(n))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
