"""The encoder of the hosted service, against a server on loopback that is strict about the protocol."""

import asyncio
import importlib.util
import json
import logging
import os
import pickle
import random
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from forking import run_forked
from typer.testing import CliRunner

from pplx_vectorstore import ApiOptions, AsyncVectorStore, Document, Usage, VectorStore, load_encoder
from pplx_vectorstore.cli import app
from pplx_vectorstore.encoders import api_requests
from pplx_vectorstore.encoders.api import is_of_size
from pplx_vectorstore.encoders.api_requests import (
    Item,
    ItemPlanner,
    Piece,
    decode,
    merge_codes,
    pack_requests,
)
from pplx_vectorstore.encoders.unfinished import Unfinished
from pplx_vectorstore.errors import AlignmentError, ApiError, EncodingError, InvalidInputError, PplxVectorStoreError
from pplx_vectorstore.tokenization import ChunkTokenizer

CONTEXT, SINGLE = "pplx-embed-context-v1-0.6b", "pplx-embed-v1-0.6b"
KEY = "pplx-secret-4711"


def load_module():
    name = "perplexity_server"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


service = load_module()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """The SDK waits half a second and more before it tries again; here, milliseconds."""
    import perplexity._base_client

    monkeypatch.setattr(perplexity._base_client, "INITIAL_RETRY_DELAY", 0.002)
    monkeypatch.delenv("PERPLEXITY_API_KEY", raising=False)
    monkeypatch.delenv("PPLX_API_KEY", raising=False)


@pytest.fixture(scope="module")
def tokenizer(pplx_checkpoint):
    return ChunkTokenizer.from_folder(pplx_checkpoint)


@pytest.fixture
def server(tokenizer):
    def count_tokens(text):
        return len(tokenizer.encode([text])[0])

    with service.PerplexityServer(key=KEY, count_tokens=count_tokens) as running:
        yield running
    assert running.errors == []


@pytest.fixture
def load(server, pplx_checkpoint, run_async):
    """Load an encoder of that server: ``load(model=CONTEXT, concurrency=4, …)``."""
    loaded = []

    def load(model=CONTEXT, *, api_key=KEY, concurrency=4, encoding="int8", timeout=10.0, max_retries=6, **options):
        api = ApiOptions(
            base_url=server.url,
            tokenizer=pplx_checkpoint,
            concurrency=concurrency,
            encoding=encoding,
            timeout=timeout,
            max_retries=max_retries,
        )
        loaded.append(load_encoder(model, backend="api", api_key=api_key, api=api, **options))
        return loaded[-1]

    yield load
    for encoder in loaded:
        encoder.close()
        run_async(encoder.aclose())


@pytest.fixture
def small_requests(monkeypatch):
    """Of a few documents each, so that there are many without much text."""
    monkeypatch.setattr(api_requests, "MOST_REQUEST_TOKENS", 50)


def expected_codes(model, document, dimension, encoding="int8"):
    """What the service gives for each chunk when a chunk's vector depends on its text alone."""
    codes = np.zeros((len(document), dimension), np.int8)
    for row, chunk in zip(codes, document, strict=True):
        if chunk.strip():
            row[:] = service.hash_embed(model, [chunk], dimension)[0]
            if encoding == "binary":
                row[:] = np.where(row >= 0, 1, -1)
    return codes


def make_documents(rng, most_documents=12):
    words = ["alpha", "beta", "γάμμα", "日本", "👩‍👩‍👧", "e\u0301", "<|endoftext|>", "x" * 30]

    def chunk():
        if rng.random() < 0.1:
            return rng.choice(["", " ", "\n\t"])
        return " ".join(rng.choices(words, k=rng.randint(1, 40))) + f" {rng.random()}"

    return [[chunk() for _ in range(rng.randint(0, 8))] for _ in range(rng.randint(0, most_documents))]


class TestWorkloads:
    @pytest.mark.parametrize("asynchronous", [False, True])
    @pytest.mark.parametrize("model", [CONTEXT, SINGLE])
    def test_every_vector_lands_on_its_own_chunk(self, server, load, run_async, model, asynchronous):
        """125 workloads each way: any order of answers, refusals, broken bodies, requests found too large."""
        rng = random.Random(f"{model} {asynchronous}")
        server.limits = service.Limits(documents=512, chunks=200, request_tokens=3000)
        server.faults = service.Faults(rng.random(), 0.25, retry_after="0.01", stall_seconds=0.05)
        settings = [(encoding, dimension) for encoding in ("int8", "binary") for dimension in (None, 128, 500)]
        encoders = [
            (load(model, encoding=encoding, dimensions=dimension, max_retries=20, concurrency=3), encoding)
            for encoding, dimension in settings
        ]

        async def encode_all(work):
            return [await encoder.aencode_documents(documents) for encoder, documents in work]

        for _ in range(25):
            work = [(*rng.choice(encoders), make_documents(rng)) for _ in range(5)]
            calls = [(encoder, documents) for encoder, _, documents in work]
            if asynchronous:
                results = run_async(patiently(encode_all, calls))
            else:
                results = [retry(encoder.encode_documents, documents) for encoder, documents in calls]
            for (encoder, encoding, documents), codes in zip(work, results, strict=True):
                assert len(codes) == len(documents)
                for document, of_document in zip(documents, codes, strict=True):
                    assert of_document.dtype == np.int8
                    expected = expected_codes(model, document, encoder.spec.dimension, encoding)
                    assert (of_document == expected).all()
        assert server.faults.total > 50
        assert set(server.faults.counts) == set(service.ALL_KINDS)
        assert any(request.status == 400 for request in server.requests)  # some were found too large

    def test_context_is_the_whole_document_in_order(self, server, load):
        server.embed = service.context_embed
        documents = [["one", "two", "", "three"], ["two"], ["three", "one"]]
        encoded = load().encode_documents(documents)
        for document, codes in zip(documents, encoded, strict=True):
            sent = [chunk for chunk in document if chunk]
            expected = service.context_embed(CONTEXT, sent, 1024)
            assert (codes[[bool(chunk) for chunk in document]] == expected).all()
        assert not encoded[0][2].any()

    def test_single_models_see_each_chunk_alone(self, server, load):
        server.embed = service.context_embed
        (codes,) = load(SINGLE).encode_documents([["one", "two"]])
        expected = [service.context_embed(SINGLE, [chunk], 1024)[0] for chunk in ("one", "two")]
        assert (codes == expected).all()


def retry(call, documents):
    """Call again where the same request met broken bodies three times in a row, which must end in an error."""
    while True:
        try:
            return call(documents)
        except EncodingError:
            continue


async def patiently(call, work):
    results = []
    for encoder, documents in work:
        while True:
            try:
                results += await call([(encoder, documents)])
                break
            except EncodingError:
                continue
    return results


class TestLimits:
    def test_requests_are_packed_up_to_the_limits_and_none_is_refused(self, server, load):
        """600 documents, 20,000 chunks, 250,000 tokens, and one document of 40,000."""
        rng = random.Random(1)
        documents = [[f"{rng.random()} {'ab ' * rng.randint(1, 6)}" for _ in range(33)] for _ in range(600)]
        documents[7] = ["word " * 50 + str(i) for i in range(800)]
        encoder = load(window_tokens=32_000)
        codes = encoder.encode_documents(documents)
        assert {request.status for request in server.requests} == {200}
        total = sum(request.tokens for request in server.requests)
        assert total > 250_000
        fewest = max(-(-total // 120_000), -(-sum(map(len, documents)) // 16_000))
        assert len(server.requests) <= fewest + 2
        for index in (0, 7, 599):
            assert (codes[index] == expected_codes(CONTEXT, documents[index], 1024)).all()

    def test_long_documents_go_in_windows_with_context(self, server, load):
        encoder = load(window_tokens=400, min_context=50)
        document = [f"{number:03} " + "some words of a long report " * 3 for number in range(120)]
        (codes,) = encoder.encode_documents([document])
        assert (codes == expected_codes(CONTEXT, document, 1024)).all()
        windows = [window for request in server.requests for window in request.documents]
        assert len(windows) > 10
        whole = "".join(document)
        for window in windows:
            joined = "".join(window)
            assert joined in whole  # contiguous, nothing twice, nothing left out
            assert len(encoder.tokenizer.encode([joined])[0]) + len(window) - 1 <= 402
        assert sum(map(len, windows)) > len(document)  # they overlap

    @pytest.mark.parametrize("model", [CONTEXT, SINGLE])
    def test_a_chunk_longer_than_a_window_is_the_mean_of_its_parts(self, server, load, model):
        server.embed = lambda model, document, dimension: np.array(
            [[90 if "a" in text else 10] * dimension for text in document], np.int8
        )
        encoder = load(model, window_tokens=64, min_context=0)
        chunk = "a" * 300 + "b" * 100  # parts of either kind, and one of both
        (codes,) = encoder.encode_documents([[chunk]])
        parts = [text for request in server.requests for document in request.documents for text in document]
        assert sorted("".join(parts)) == sorted(chunk)
        sizes = np.array([len(ids) for ids in encoder.tokenizer.encode(parts)])
        values = np.arctanh(np.array([90 if "a" in part else 10 for part in parts]) / 127)
        assert abs(int(codes[0, 0]) - np.tanh((sizes * values).sum() / sizes.sum()) * 127) < 1.5

    def test_a_document_that_the_service_finds_too_large_goes_in_smaller_windows(self, server, load):
        server.limits = service.Limits(document_tokens=100)
        document = [f"{number} some words" for number in range(100)]
        (codes,) = load().encode_documents([document])
        assert codes.any(axis=1).all()
        answered = [
            text for request in server.requests if request.answered for doc in request.documents for text in doc
        ]
        assert set(document) <= set(answered)

    def test_what_cannot_be_made_smaller_is_an_error(self, server, load):
        server.limits = service.Limits(document_tokens=0)
        with pytest.raises(ApiError, match="too large that cannot be made smaller"):
            load().encode_documents([["some words"]])

    @pytest.mark.parametrize("status", [413, 422])
    def test_other_ways_to_say_too_large(self, server, load, status):
        server.limits, server.too_large_status = service.Limits(request_tokens=50), status
        documents = [["some words here"] for _ in range(20)]
        encoded = load().encode_documents(documents)
        assert all((codes == expected_codes(CONTEXT, documents[0], 1024)).all() for codes in encoded)

    def test_concurrency_is_used_and_capped(self, server, load, run_async, small_requests):
        server.delay = 0.05
        documents = [[f"{number} some words"] for number in range(90)]
        encoder = load(concurrency=3)
        encoder.encode_documents(documents)
        assert server.most_concurrent == 3
        server.most_concurrent = 0
        run_async(encoder.aencode_documents(documents))
        assert server.most_concurrent == 3

    def test_concurrency_is_of_the_encoder_not_of_a_call(self, server, load, run_async):
        server.delay = 0.05
        encoder = load(concurrency=2)

        async def ask():
            await asyncio.gather(*(encoder.aencode_queries([f"question {i}"]) for i in range(8)))

        run_async(ask())
        threads = [threading.Thread(target=encoder.encode_queries, args=([f"question {i}"],)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_concurrent == 2

    def test_connections_of_ended_loops_are_let_go(self, load):
        encoder = load()

        async def ask():
            await encoder.aencode_queries(["question"])
            transport = encoder._of_loops[asyncio.get_running_loop()]
            await transport.client.close()

        for _ in range(3):
            asyncio.run(ask())
        assert len(encoder._of_loops) == 1

    def test_blank_chunks_are_never_sent(self, server, load):
        encoder = load()
        codes = encoder.encode_documents([["", " \n", "\u3000"], [], [""]])
        assert [len(one) for one in codes] == [3, 0, 1]
        assert not any(one.any() for one in codes)
        assert not encoder.encode_queries([" "]).any()
        assert server.requests == []


class TestQueries:
    def test_are_documents_of_one_chunk_in_one_request(self, server, load):
        queries = ["first question", "second", "", "first question"]
        codes = load().encode_queries(queries)
        assert (codes == [expected_codes(CONTEXT, [query], 1024)[0] for query in queries]).all()
        assert [request.documents for request in server.requests] == [[["first question"], ["second"]]]

    def test_cached_ones_ask_nothing(self, server, load, run_async):
        encoder = load(query_cache=2)
        first = encoder.encode_queries(["a", "b"])
        assert (run_async(encoder.aencode_queries(["b", "a"])) == first[::-1]).all()
        assert len(server.requests) == 1
        encoder.encode_queries(["c"])
        encoder.encode_queries(["a"])
        assert len(server.requests) == 2
        encoder.encode_queries(["b"])
        assert len(server.requests) == 3


class TestErrors:
    def test_a_wrong_key(self, load):
        with pytest.raises(ApiError, match="refused the key") as caught:
            load(api_key="pplx-wrong").encode_queries(["question"])
        assert "pplx-wrong" not in str(caught.value)

    def test_no_key(self, load):
        with pytest.raises(InvalidInputError, match="set PERPLEXITY_API_KEY or PPLX_API_KEY"):
            load(api_key=None)
        with pytest.raises(InvalidInputError, match="not blank"):
            load(api_key=" ")

    @pytest.mark.parametrize("key", ["pplx-a\npplx-b", "pplx-é", "export KEY=pplx"])
    def test_a_key_that_is_none(self, load, key):
        with pytest.raises(InvalidInputError, match="more pasted than the key") as caught:
            load(api_key=key)
        assert key not in str(caught.value)

    @pytest.mark.parametrize(
        ("message", "of_size"),
        [
            ("The input has 130000 tokens, which exceeds the maximum of 120000 tokens", True),
            ("Too many documents: at most 512", True),
            ("input is too long", True),
            ("Request entity too large", True),
            ("You exceeded your current quota", False),
            ("Rate limit of tokens exceeded", False),
            ("dimensions must be at most 1024", False),
            ("invalid token in the header", False),
        ],
    )
    def test_which_refusals_are_of_size(self, message, of_size):
        assert is_of_size(message) == of_size

    @pytest.mark.parametrize("name", ["PERPLEXITY_API_KEY", "PPLX_API_KEY"])
    def test_key_of_the_environment(self, load, monkeypatch, name):
        monkeypatch.setenv(name, KEY)
        assert load(api_key=None).encode_queries(["question"]).any()

    @pytest.mark.parametrize("kind", service.RETRIED)
    def test_failures_without_end(self, server, load, kind):
        server.faults = service.Faults(1, 1.0, (kind,), retry_after="0.01", stall_seconds=0.01)
        with pytest.raises(ApiError, match="in 3 tries"):
            load(max_retries=2).encode_queries(["question"])
        assert len(server.requests) == 3

    @pytest.mark.parametrize("kind", service.WRONG_BODIES)
    def test_broken_answers_without_end(self, server, load, kind):
        server.faults = service.Faults(1, 1.0, (kind,))
        error = ApiError if kind == "truncated_body" else EncodingError
        with pytest.raises(error):
            load(max_retries=2).encode_queries(["one question", "and another"])
        assert len(server.requests) == 3

    def test_a_timeout(self, server, load):
        server.delay = 0.5
        with pytest.raises(ApiError, match="no answer in 2 tries"):
            load(timeout=0.05, max_retries=1).encode_queries(["question"])

    def test_nobody_there(self, load):
        encoder = load(max_retries=0)
        encoder._blocking.client.base_url = "http://127.0.0.1:9"
        with pytest.raises(ApiError, match="no answer in 1 tries"):
            encoder.encode_queries(["question"])

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_one_failed_request_ends_the_others(self, server, load, run_async, asynchronous, small_requests):
        server.faults = service.Faults(1, 1.0, ("500",), most=1)
        server.delay = 0.02
        documents = [[f"{number} some words"] for number in range(200)]
        encoder = load(concurrency=2, max_retries=0)
        call = (lambda given: run_async(encoder.aencode_documents(given))) if asynchronous else encoder.encode_documents
        with pytest.raises(ApiError, match="answered 500"):
            call(documents)
        assert 0 < len(server.requests) < 10

    def test_what_connects_while_the_encoder_is_closed_is_closed_too(self, server, load, small_requests, monkeypatch):
        """By the thread that a failed call leaves behind."""
        made, second, closed, lock = [], threading.Event(), threading.Event(), threading.Lock()
        connect = socket.create_connection

        def connect_in_turn(*arguments, **options):
            with lock:
                made.append(connect(*arguments, **options))
                place = len(made)
            if place == 1:
                assert second.wait(30)
            else:
                second.set()
                assert closed.wait(30)
            return made[place - 1]

        monkeypatch.setattr(socket, "create_connection", connect_in_turn)
        server.faults = service.Faults(1, 1.0, ("500",), most=1)
        encoder = load(concurrency=2, max_retries=0)
        with pytest.raises(ApiError, match="answered 500"):
            encoder.encode_documents([[f"{number} some words"] for number in range(200)])
        encoder.close()
        closed.set()
        end = time.monotonic() + 30
        while any(sock.fileno() >= 0 for sock in made) and time.monotonic() < end:
            time.sleep(0.005)
        assert [sock.fileno() for sock in made] == [-1, -1]

    @pytest.mark.parametrize("model", ["all-minilm-l6-v2", "somebody/model", ""])
    def test_models_that_are_not_hosted(self, load, model):
        with pytest.raises(InvalidInputError, match=r"is not hosted; hosted are pplx-embed-context-v1-0\.6b"):
            load(model)

    @pytest.mark.parametrize("name", ["PPLX-Embed-Context-V1-4B", "perplexity-ai/pplx-embed-v1-4b"])
    def test_names_in_any_case(self, load, name):
        assert load(name).spec.dimension == 2560

    @pytest.mark.parametrize(
        ("option", "value"),
        [("device", "cpu"), ("dtype", "float32"), ("context_weight", 0.5), ("batch_tokens", 9), ("onnx_file", "model")],
    )
    def test_options_of_other_backends(self, load, option, value):
        with pytest.raises(InvalidInputError, match=f"{option} is not an option of backend='api'"):
            load(**{option: value})

    @pytest.mark.parametrize("window_tokens", [0, 32_001])
    def test_windows(self, load, window_tokens):
        with pytest.raises(InvalidInputError, match=f"must be from 1 to 32000, not {window_tokens}"):
            load(window_tokens=window_tokens)

    @pytest.mark.parametrize(
        "options",
        [{"concurrency": 0}, {"max_retries": -1}, {"timeout": 0}, {"encoding": "float"}, {"concurrency": True}],
    )
    def test_api_options(self, options):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            ApiOptions(**options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestForked:
    def test_its_connections_and_its_places_are_its_own(self, server, load):
        """All places of the other are taken; the answers to its requests are none of this one's."""
        embed, held, goes_on = server.embed, threading.Semaphore(0), threading.Event()

        def hold(model, document, dimension):
            if "held" in document[0]:
                held.release()
                assert goes_on.wait(60)
            return embed(model, document, dimension)

        def codes_are_right(texts):
            codes = encoder.encode_queries(texts)
            return (codes == expected_codes(SINGLE, texts, 1024)).all()

        server.embed = hold
        encoder, right = load(SINGLE, concurrency=2), []
        assert codes_are_right(["before"])
        threads = [
            threading.Thread(target=lambda n=n: right.append(codes_are_right([f"held {n}"])), daemon=True)
            for n in range(2)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                assert held.acquire(timeout=60)
            assert run_forked(lambda: all(codes_are_right([f"its own {n}"]) for n in range(20))) == 1
        finally:
            goes_on.set()
            for thread in threads:
                thread.join()
        assert right == [True, True]
        assert codes_are_right(["after"])

    def test_what_is_closed_stays_closed(self, load):
        encoder, here = load(SINGLE, max_retries=0), os.getpid()
        encoder.close()

        def ask():
            assert encoder._is_of_the_other == (os.getpid() != here)
            with pytest.raises(ApiError, match="has been closed"):
                encoder.encode_queries(["a"])
            return True

        assert ask()
        assert run_forked(ask) == 1

    def test_a_loop_of_its_own_beside_that_of_the_other(self, server, load, run_async):
        encoder = load(SINGLE)

        async def is_right(text):
            return (await encoder.aencode_queries([text]) == expected_codes(SINGLE, [text], 1024)).all()

        async def of_its_own():
            assert encoder._of_loops == {}
            right = [await is_right(text) for text in ("its own", "and more")]
            await encoder.aclose()
            return all(right)

        assert run_async(is_right("before"))
        assert run_forked(lambda: asyncio.run(of_its_own())) == 1
        assert run_async(is_right("after"))


class TestKeyStaysSecret:
    def test_in_representations_pickles_and_logs(self, server, load, caplog, monkeypatch):
        caplog.set_level(logging.DEBUG)
        encoder = load()
        encoder.encode_queries(["question"])
        server.key = "another"
        with pytest.raises(ApiError) as caught:
            encoder.encode_queries(["another question"])
        pickled = pickle.dumps(encoder)
        assert caught.value.__cause__ is None  # the SDK's error holds the request, and that the key
        for text in (repr(encoder), str(vars(encoder)), repr(encoder.fingerprint), str(caught.value), caplog.text):
            assert KEY not in text
        assert KEY.encode() not in pickled
        with pytest.raises(InvalidInputError, match="set PERPLEXITY_API_KEY"):
            pickle.loads(pickled)
        monkeypatch.setenv("PERPLEXITY_API_KEY", "another")
        restored = pickle.loads(pickled)
        assert restored.fingerprint == encoder.fingerprint
        assert restored.encode_queries(["<|endoftext|>"]).any()
        assert server.requests[-1].documents == [[["<|endoftext|>"][0]]]
        restored.close()


class TestUsage:
    def test_is_added_up(self, server, load):
        encoder = load()
        assert encoder.usage == Usage()
        encoder.encode_documents([["one", "two"], ["three"]])
        encoder.encode_queries(["question"])
        assert encoder.usage.requests == 2
        assert encoder.usage.tokens == server.total_tokens
        assert encoder.usage.cost == pytest.approx(server.total_cost)

    def test_cost_by_the_published_price_where_the_service_does_not_tell(self, server, load):
        server.cost = False
        encoder = load("pplx-embed-context-v1-4b")
        encoder.encode_queries(["question"])
        assert encoder.usage.cost == pytest.approx(server.total_tokens * 0.05 / 1e6)

    def test_is_reported_by_the_store(self, server, load, folder):
        encoder = load()
        with VectorStore.open(folder / "index", encoder=encoder) as store:
            report = store.add([Document(id="a", chunks=["one", "two"]), Document(id="b", text="three")])
            assert report.usage == encoder.usage
            assert report.usage.tokens == server.total_tokens > 0
            assert store.sync([Document(id="a", chunks=["one", "two"])]).usage == Usage()
            assert store.search("two", k=1)[0].text == "two"
            assert encoder.usage.requests == 2

    def test_an_add_that_fails_stores_nothing_of_a_broken_answer(self, server, load, folder):
        with VectorStore.open(folder / "index", encoder=load(max_retries=0)) as store:
            server.faults = service.Faults(3, 1.0, ("missing_item",))
            with pytest.raises(AlignmentError):
                store.add([Document(id="a", chunks=["one", "two"])])
            assert store.count() == 0


def test_an_index_written_locally_can_be_searched_by_the_service(load, folder, pplx_checkpoint):
    """The same model in the same windows: only the revision of its weights is not told."""
    from dataclasses import replace

    hosted = load()
    local = replace(hosted.fingerprint, revision="0123abc", backend="torch")
    local.require_same(hosted.fingerprint, "docs")
    with pytest.raises(PplxVectorStoreError, match="window_tokens 2048"):
        replace(local, window_tokens=2048).require_same(hosted.fingerprint, "docs")


class TestProgress:
    def test_counts_on_through_groups(self, load, monkeypatch, small_requests):
        seen = []
        encoder = load()
        monkeypatch.setattr(type(encoder), "group_characters", 200)
        documents = [[f"{number} some words"] for number in range(60)]
        encoder.encode_documents(documents, progress=lambda done, total: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert all(done <= total * 1.2 for done, total in seen)
        assert seen[-1][0] == seen[-1][1]

    @pytest.mark.parametrize("model", [CONTEXT, SINGLE])
    def test_ends_with_all(self, load, model, small_requests):
        seen = []
        documents = [[f"{number} some words"] for number in range(60)]
        load(model).encode_documents(documents, progress=lambda done, total: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == seen[-1][1]
        assert len(seen) > 5


class TestPacking:
    def test_first_fit_of_the_largest_first(self):
        def item(tokens, texts=1):
            return Item(("t",) * texts, (0,) * texts, (1,) * texts, tokens)

        items = [item(tokens) for tokens in (30_000, 90_000, 60_000, 60_000, 1)]
        packed = pack_requests(items)
        assert [[one.tokens for one in request] for request in packed] == [[90_000, 30_000], [60_000, 60_000], [1]]
        assert len(pack_requests([item(10)] * 1025)) == 3
        assert [len(request) for request in pack_requests([item(10, 9_000)] * 2)] == [1, 1]

    def test_pieces_of_a_slot_are_weighted_by_their_tokens(self):
        one, other = (Piece(1, tokens, np.full(4, code, np.int8)) for tokens, code in ((30, 100), (10, -20)))
        codes = merge_codes([one, other, Piece(0, 5, np.full(4, -128, np.int8))], 3, 4, "int8")
        mean = (30 * np.arctanh(100 / 127) + 10 * np.arctanh(-20 / 127)) / 40
        assert codes[:, 0].tolist() == [-128, round(np.tanh(mean) * 127), 0]
        full = [Piece(0, 1, np.full(4, 127, np.int8))] * 2
        assert (merge_codes(full, 1, 4, "int8") >= 126).all()

    def test_bits_are_least_significant_first(self):
        assert decode("gQ==", 8, "binary").tolist() == [1, -1, -1, -1, -1, -1, -1, 1]
        assert decode("Ag==", 8, "binary").tolist() == [-1, 1, -1, -1, -1, -1, -1, -1]
        assert decode("gH8A/w==", 4, "int8").tolist() == [-128, 127, 0, -1]

    @pytest.mark.parametrize("bad", [None, 5, "not base64!", "gH8A", "é"])
    def test_bad_vectors(self, bad):
        with pytest.raises(EncodingError):
            decode(bad, 4, "int8")

    def test_every_character_is_sent_once(self, tokenizer):
        """Cuts fall between characters, also within those of several tokens."""
        planner = ItemPlanner(tokenizer, None, capacity=7, min_context=0, contextual=True)
        text = "日本語の文章。👩‍👩‍👧‍👦 e\u0301 naïve " * 5
        items = planner.plan([text], 0)
        assert "".join(part for item in items for part in item.texts) == text
        assert len(items) > 5

    def test_as_few_requests_as_first_fit(self):
        """Up to 256 open requests, which is any group of ordinary size."""
        rng = random.Random(4)
        items = [Item(("a",) * rng.randint(1, 600), (), (), rng.randint(1, 4096)) for _ in range(3000)]
        expected, room = [], []
        for item in sorted(items, key=lambda item: -item.tokens):
            fits = (
                i
                for i, (tokens, texts) in enumerate(room)
                if item.tokens <= tokens and len(item.texts) <= texts and len(expected[i]) < 512
            )
            i = next(fits, len(room))
            if i == len(room):
                expected.append([])
                room.append((120_000, 16_000))
            expected[i].append(item)
            room[i] = (room[i][0] - item.tokens, room[i][1] - len(item.texts))
        assert 10 < len(expected) < 256
        assert pack_requests(items) == expected

    @pytest.mark.parametrize("sizes", [[1], [4096], [32_000, 30_000, 200], [70_000, 1]])
    def test_packing_takes_time_as_items_do(self, sizes):
        comparisons = 0

        class Counted(int):
            def __le__(self, other):
                nonlocal comparisons
                comparisons += 1
                return int(self) <= other

        amounts = []
        for n in (6000, 12_000):
            comparisons = 0
            items = [Item(("a",), (i,), (1,), Counted(sizes[i % len(sizes)])) for i in range(n)]
            requests = pack_requests(items)
            amounts.append(comparisons)
            assert sorted(item.slots for request in requests for item in request) == [(i,) for i in range(n)]
            assert all(len(request) <= 512 and sum(item.tokens for item in request) <= 120_000 for request in requests)
        assert amounts[1] < 2.2 * amounts[0]


@pytest.mark.usefixtures("small_requests")
class TestUnfinished:
    @pytest.mark.parametrize("asynchronous", [False, True])
    @pytest.mark.parametrize("encoding", ["int8", "binary"])
    def test_what_was_paid_for_is_not_asked_for_again(self, server, load, run_async, folder, encoding, asynchronous):
        documents = [[f"chunk {i} of {number} and some more words" for i in range(3)] for number in range(20)]
        server.delay = 0.05  # so that what is still to be asked for when one fails is not asked for

        def encode(progress=None):
            encoder = load(concurrency=2, encoding=encoding)
            encoder.unfinished = Unfinished(folder)
            server.requests.clear()
            try:
                if asynchronous:
                    return run_async(encoder.aencode_documents(documents, progress=progress)), encoder
                return encoder.encode_documents(documents, progress=progress), encoder
            finally:
                done.append(len(server.requests))

        class EndedError(Exception):
            pass

        def stop(tokens, of_all):
            told.append(tokens)
            if len(told) == 4:
                raise EndedError

        done, told = [], []
        with pytest.raises(EndedError):
            encode(stop)
        codes, encoder = encode()
        assert encoder.usage.requests == done[1] > 3
        assert done[0] >= 4
        for document, found in zip(documents, codes, strict=True):
            assert np.array_equal(found, expected_codes(CONTEXT, document, 1024, encoding))
        again, encoder = encode()
        assert (done[2], encoder.usage.requests) == (0, 0)
        assert all(np.array_equal(one, other) for one, other in zip(again, codes, strict=True))
        encoder.unfinished.clear()
        encode()
        assert done[3] > done[1]


class TestFromOutside:
    def test_an_async_store_awaits_the_service(self, server, load, folder, run_async):
        server.delay = 0.05
        encoder = load()
        before = set(threading.enumerate())
        threads = set()
        encoder.encode_documents = encoder.encode_queries = lambda *a, **o: pytest.fail("blocks a thread")

        async def use():
            async with await AsyncVectorStore.open(folder / "index", encoder=encoder) as store:
                report = await store.add([Document(id=str(i), chunks=[f"chunk {i}", "other"]) for i in range(5)])
                threads.update(thread.name for thread in set(threading.enumerate()) - before)
                return report, await asyncio.gather(*(store.search(f"chunk {i}", k=1) for i in range(5)))

        report, hits = run_async(use())
        assert [found[0].document_id for found in hits] == [str(i) for i in range(5)]
        assert report.usage.requests == 1
        assert not any(name.startswith("pplx-api") for name in threads)
        assert server.most_concurrent > 1

    def test_the_command_line(self, server, tokenizer, pplx_checkpoint, folder, monkeypatch):
        monkeypatch.setenv("PERPLEXITY_API_KEY", KEY)
        monkeypatch.setenv("PERPLEXITY_BASE_URL", server.url)
        monkeypatch.setattr("pplx_vectorstore.encoders.api.fetch_tokenizer", lambda *_: pplx_checkpoint)
        (folder / "note.txt").write_text("The harbour froze in 1887.", "utf-8")
        monkeypatch.chdir(folder)
        run = CliRunner().invoke
        indexed = run(app, ["index", "note.txt", "--model", CONTEXT, "--backend", "api"])
        assert indexed.exit_code == 0, indexed.output
        tokens = len(tokenizer.encode(["The harbour froze in 1887."])[0])
        expected = f"the hosted model took 1 request, {tokens} tokens, ${tokens * 0.008 / 1e6:.6f}"
        assert expected in indexed.stdout
        found = run(app, ["search", "The harbour froze in 1887.", "--json"])  # by the backend that wrote it
        assert json.loads(found.stdout)[0]["document_id"] == "note.txt"
        assert [request.path for request in server.requests] == [service.CONTEXTUALIZED] * 2
        assert KEY not in indexed.output + found.output + run(app, ["info"]).output
        assert "api" in run(app, ["info"]).stdout
        monkeypatch.delenv("PERPLEXITY_API_KEY")
        refused = run(app, ["search", "harbour"])
        assert refused.exit_code == 2
        assert "set PERPLEXITY_API_KEY or PPLX_API_KEY" in refused.stderr
