"""The server over real sockets: who may use it, what it withstands, how it ends."""

import asyncio
import base64
import contextlib
import hmac
import http.client
import importlib.util
import itertools
import json
import logging
import os
import socket
import struct
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.guarded_http.access import choose_access, is_loopback
from pplx_vectorstore.guarded_http.connections import GuardedProtocol
from pplx_vectorstore.serving.server import bind
from pplx_vectorstore.serving.wire import Limits


def load_helper(name):
    """Import a helper module that lies beside this file, under its own name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


served_model = load_helper("served_model")
serve, make_encoder = served_model.serve, served_model.make_encoder

NAME = "pplx-embed-context-v1-0.6b"
KEY = "secret-key-4711"
EMBEDDINGS, CONTEXTUALIZED = "/v1/embeddings", "/v1/contextualizedembeddings"
ROUTES = [
    ("POST", EMBEDDINGS),
    ("POST", CONTEXTUALIZED),
    ("GET", "/v1/models"),
    ("GET", f"/v1/models/{NAME}"),
    ("GET", "/metrics"),
]
ASK = {"model": NAME, "input": "a b c", "dimensions": 128}


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(words=["a", "b", "c"])


@pytest.fixture
def model(encoder):
    """The encoder's token model, whose `before` may be set."""
    yield encoder._model
    encoder._model.before = lambda rows: None


@pytest.fixture(scope="module")
def shared_server(encoder):
    with serve(encoder) as running:
        yield running


@pytest.fixture
def server(shared_server):
    """A server that other tests use too; none leaves anything behind."""
    yield shared_server
    assert settles(lambda: shared_server.service.is_idle)
    assert shared_server.service._scheduler.n_waiting == 0


@contextlib.contextmanager
def held_up(model):
    """Let the model run nothing until `go_on` is set, or the block ends; `begun` tells that a batch waits."""
    gate = types.SimpleNamespace(begun=threading.Event(), go_on=threading.Event())
    model.before = lambda rows: (gate.begun.set(), gate.go_on.wait(60))
    try:
        yield gate
    finally:
        gate.go_on.set()


def count(server, series):
    """Return a counter's value; `series` is its name with its label."""
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    (found,) = [line for line in lines if line.startswith(f"{series} ")]
    return float(found.rpartition(" ")[2])


def settles(condition, seconds=30):
    """Wait until something is so; return whether it is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def post(server, body=None, path=EMBEDDINGS, **options):
    headers = {"Content-Type": "application/json"} | options.pop("headers", {})
    content = json.dumps(ASK | (body or {}))
    return httpx.post(server.url + path, content=content, headers=headers, timeout=60, **options)


@contextlib.contextmanager
def connection(server):
    with socket.create_connection(server.address, timeout=10) as sock:
        yield sock


def head(*lines, host="127.0.0.1", path=EMBEDDINGS, method="POST"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


def request_bytes(body=None, **options):
    content = json.dumps(ASK | (body or {})).encode()
    return head("Content-Type: application/json", f"Content-Length: {len(content)}", **options) + content


def read_answer(sock):
    """Return status, headers and JSON of one answer."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    content = response.read()
    return response.status, response.headers, json.loads(content) if content else None


def is_closed(sock):
    """Whether the server ends the connection, within the socket's time-out."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


# --- who may use it --------------------------------------------------------------------------------------


class TestKey:
    @pytest.fixture
    def server(self, encoder):
        with serve(encoder, api_key=KEY) as running:
            yield running

    @pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/"), ("GET", "/v2"), ("DELETE", EMBEDDINGS)])
    def test_every_route_wants_it(self, server, method, path):
        for headers in ({}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer"}):
            refused = httpx.request(method, server.url + path, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        answered = httpx.request(method, server.url + path, headers={"Authorization": f"Bearer {KEY}"})
        assert answered.status_code != 401

    def test_but_health(self, server):
        assert httpx.get(server.url + "/health").json() == {"status": "ok"}

    def test_two_keys_are_none(self, server):
        two = [("Authorization", "Bearer other"), ("Authorization", f"Bearer {KEY}")]
        assert httpx.get(server.url + "/v1/models", headers=two).status_code == 401

    def test_it_is_compared_in_constant_time_as_bytes(self, server, monkeypatch):
        compared = []

        def compare(given, right):
            compared.append((given, right))
            return compare_digest(given, right)

        compare_digest = hmac.compare_digest
        monkeypatch.setattr(hmac, "compare_digest", compare)
        for key in (KEY.encode(), "kéy".encode("latin-1"), b"x" * 10_000):
            httpx.get(server.url + "/v1/models", headers={b"Authorization": b"Bearer " + key})
        assert [right for _, right in compared] == [KEY.encode()] * 3
        assert all(isinstance(given, bytes) for given, _ in compared)


class TestHost:
    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "localhost@evil.example", "[::2]:80"]
    )
    @pytest.mark.parametrize("path", [EMBEDDINGS, "/v1/models", "/health", "/metrics"])
    def test_a_name_that_somebody_else_leads_here_is_refused(self, server, host, path):
        with connection(server) as sock:
            sock.sendall(head(host=host, path=path, method="GET"))
            status, _, answer = read_answer(sock)
            assert (status, answer["error"]["code"]) == (421, 421)
            assert is_closed(sock)

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:99", "[::1]:8", "[::1]", "localhost."])
    def test_its_own_names_are_right(self, server, host):
        with connection(server) as sock:
            sock.sendall(head(host=host, path="/v1/models", method="GET"))
            assert read_answer(sock)[0] == 200

    def test_none_and_two_are_refused(self, server):
        for lines in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
            with connection(server) as sock:
                sock.sendall(b"GET /v1/models HTTP/1.0\r\n" + lines + b"\r\n")
                assert read_answer(sock)[0] in (400, 421)

    def test_another_name_can_be_allowed(self, encoder):
        with serve(encoder, allowed_hosts=["Embed.Internal"]) as server, connection(server) as sock:
            sock.sendall(head(host="embed.internal:8090", path="/v1/models", method="GET"))
            assert read_answer(sock)[0] == 200

    def test_pages_of_others_are_told_nothing(self, server):
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        preflight = httpx.options(server.url + EMBEDDINGS, headers=asked)
        assert preflight.status_code == 405
        for answer in (preflight, httpx.get(server.url + "/v1/models", headers={"Origin": "https://evil.example"})):
            assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "embed.example"])
def test_other_hosts_need_a_key(host):
    assert not is_loopback(host)
    with pytest.raises(InvalidInputError, match="PPLX_VECTORSTORE_API_KEY"):
        choose_access(host, None)
    assert choose_access(host, KEY).hosts is None
    assert choose_access(host, KEY, ["A"]).hosts == {"a"}


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "line\n"])
def test_keys_that_no_header_can_hold(key):
    with pytest.raises(InvalidInputError, match="printable ASCII"):
        choose_access("127.0.0.1", key)


def test_a_port_that_is_taken_is_said():
    with bind("127.0.0.1", 0) as taken, pytest.raises(InvalidInputError, match="--port"):
        bind("127.0.0.1", taken.getsockname()[1])


# --- what it answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [EMBEDDINGS, CONTEXTUALIZED])
@pytest.mark.parametrize("encoding", ["base64_int8", "base64_binary", "base64", "float", None])
def test_all_formats_on_both_routes(server, encoder, path, encoding):
    nested = path == CONTEXTUALIZED
    body = {"input": [["a b", "c"]] if nested else ["a b", "c"], "encoding_format": encoding, "user": "somebody"}
    answer = post(server, body, path).json()
    rows = answer["data"][0]["data"] if nested else answer["data"]
    codes = encoder.encode_documents([["a b", "c"]] if nested else [["a b"], ["c"]])
    codes = np.concatenate(codes)[:, :128]
    for row, own in zip(rows, codes, strict=True):
        if encoding in (None, "base64_int8"):
            np.testing.assert_array_equal(np.frombuffer(base64.b64decode(row["embedding"]), np.int8), own)
        elif encoding in ("base64", "float"):
            vector = row["embedding"]
            vector = vector if encoding == "float" else np.frombuffer(base64.b64decode(vector), "<f4")
            assert np.dot(vector, own) / np.linalg.norm(own.astype(float)) == pytest.approx(1, abs=1e-5)


class TestUnsetEncoding:
    """With ``--unset-encoding float``: what passes an answer on as it came has vectors of numbers."""

    @pytest.fixture
    def server(self, encoder):
        with serve(encoder, app_options={"unset_encoding": "float"}) as running:
            yield running

    @pytest.fixture
    def vectors(self, encoder):
        codes = np.concatenate(encoder.encode_documents([["a b"], ["c"]])).astype(float)
        return codes / np.linalg.norm(codes, axis=1, keepdims=True)

    @pytest.mark.parametrize(
        "fields",
        # As litellm 1.110 sends it, over openai's client or its own, where the caller sets nothing; and as others do.
        [{}, {"encoding_format": None}, {"encoding_format": "float"}, {"encoding_format": None, "user": "somebody"}],
    )
    def test_clients_that_decode_nothing(self, server, vectors, fields):
        answer = httpx.post(server.url + EMBEDDINGS, json={"model": NAME, "input": ["a b", "c"], **fields}).json()
        assert [entry["index"] for entry in answer["data"]] == [0, 1]
        assert all(type(number) is float for entry in answer["data"] for number in entry["embedding"])
        np.testing.assert_allclose([entry["embedding"] for entry in answer["data"]], vectors, atol=1e-6)

    def test_documents_too(self, server, vectors):
        answer = httpx.post(server.url + CONTEXTUALIZED, json={"model": NAME, "input": [["a b"], ["c"]]}).json()
        found = [entry["data"][0]["embedding"] for entry in answer["data"]]
        np.testing.assert_allclose(found, vectors, atol=1e-6)

    def test_openais_client_as_litellm_calls_it(self, server, vectors):
        """Past what would ask for base64 and decode it."""
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            body = {"model": NAME, "input": ["a b", "c"]}
            answer = client.post("/embeddings", body=body, cast_to=openai.types.CreateEmbeddingResponse)
        np.testing.assert_allclose(np.array([entry.embedding for entry in answer.data], float), vectors, atol=1e-6)

    @pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
    def test_openais_client(self, server, vectors, options):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            found = client.embeddings.create(model=NAME, input=["a b", "c"], **options)
        np.testing.assert_allclose([entry.embedding for entry in found.data], vectors, atol=1e-6)

    def test_who_sets_one_gets_that(self, server, vectors):
        entry = post(server, {"input": "a b", "dimensions": 1024, "encoding_format": "base64_int8"}).json()["data"][0]
        codes = np.frombuffer(base64.b64decode(entry["embedding"]), np.int8).astype(float)
        np.testing.assert_allclose(codes / np.linalg.norm(codes), vectors[0], atol=1e-6)


def test_models(server):
    (listed,) = httpx.get(server.url + "/v1/models").json()["data"]
    assert listed["id"] == f"perplexity-ai/{NAME}"
    assert httpx.get(f"{server.url}/v1/models/{NAME}").json() == listed
    assert httpx.get(f"{server.url}/v1/models/{listed['id']}").json() == listed
    assert httpx.get(f"{server.url}/v1/models/gpt").status_code == 404


def test_metrics_count_what_happened_and_have_no_name_of_a_model(server):
    series = [
        'te_request_count{method="embeddings"}',
        'te_request_success{method="embeddings"}',
        'te_request_failure{err="validation"}',
        "te_request_input_length_sum",
    ]
    before = [count(server, one) for one in series]
    post(server)
    post(server, {"model": 'x"} 1\nte_evil 1'})
    after = [count(server, one) for one in series]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 1, 3]
    text = httpx.get(server.url + "/metrics").text
    assert "evil" not in text
    assert NAME not in text


def test_methods(server):
    refused = httpx.get(server.url + EMBEDDINGS)
    assert (refused.status_code, refused.headers["allow"], refused.json()["error"]["code"]) == (405, "POST", 405)
    assert httpx.get(server.url + "/v1").json()["error"]["code"] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_bodies_of_another_kind(server, headers):
    assert post(server, headers=headers).status_code == 415


def test_a_body_may_come_in_parts(server):
    parts = iter([b'{"model": "%s", ' % NAME.encode(), b'"input": "a b"}'])
    answer = httpx.post(server.url + EMBEDDINGS, content=parts, headers={"Content-Type": "application/json"})
    assert answer.json()["usage"]["total_tokens"] == 2


def test_pipelined_requests_are_answered_in_order(server):
    with connection(server) as sock:
        sock.sendall(b"".join(request_bytes({"input": ["a"] * n}) for n in (3, 1, 2)))
        sock.sendall(head("Connection: close", path="/health", method="GET"))
        answers = b"".join(iter(lambda: sock.recv(65_536), b"")).split(b"HTTP/1.1 200 OK")[1:]
    assert [answer.count(b'"index"') for answer in answers] == [3, 1, 2, 0]


def test_texts_of_no_tokens_have_zero_vectors(server, encoder, monkeypatch):
    monkeypatch.setattr(encoder.tokenizer, "encode", lambda texts: [np.zeros(0, np.int64) for _ in texts])
    assert base64.b64decode(post(server).json()["data"][0]["embedding"]) == bytes(128)


# --- what it withstands ----------------------------------------------------------------------------------


def test_two_lengths_are_refused_and_nothing_behind_them_is_read(server):
    hidden = request_bytes({"input": "c c c"})
    before = count(server, "te_embed_count")
    with connection(server) as sock:
        sock.sendall(
            head("Content-Type: application/json", "Content-Length: 5", "Transfer-Encoding: chunked")
            + b"0\r\n\r\n"
            + hidden
        )
        status, headers, _ = read_answer(sock)
        assert (status, headers["connection"]) == (400, "close")
        assert is_closed(sock)
    assert count(server, "te_embed_count") == before


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    ],
    ids=["TLS", "no version", "negative length", "two lengths", "unknown transfer", "endless field"],
)
def test_what_is_no_request(server, sent):
    with connection(server) as sock:
        sock.sendall(sent if len(sent) > 1000 else sent + b"\r\n\r\n")
        status, _, answer = read_answer(sock)
        assert 400 <= status <= 501
        assert answer["error"]["type"] in ("invalid_request_error", "internal_server_error")
        assert is_closed(sock)
    assert post(server).status_code == 200


def test_many_fields_are_refused(server):
    fields = {f"x-{i}": "1" for i in range(200)}
    assert post(server, headers=fields).status_code == 431
    assert post(server, headers={f"x-{i}": "1" for i in range(30)}).status_code == 200


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_that_is_too_large_is_refused_while_it_is_being_sent(encoder, is_announced):
    with serve(encoder, limits=Limits(body_bytes=100_000)) as server:
        content = b"x" * 1_000_000
        body = content if is_announced else iter([content[:60_000], content[60_000:]])
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(server.url + EMBEDDINGS, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, 413)
        assert settles(lambda: server.service.is_idle)


class TestDeadlines:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(GuardedProtocol, "receive_seconds", 0.5)
        monkeypatch.setattr(GuardedProtocol, "unread_seconds", 0.5)

    @pytest.mark.parametrize(
        "sent",
        [b"", b"POST /v1/emb", head("Content-Length: 9")[:-2], head("Content-Length: 1000") + b"{"],
        ids=["nothing", "half a line", "half a head", "half a body"],
    )
    def test_whoever_stops_sending_is_let_go(self, server, sent):
        with connection(server) as sock:
            started = time.monotonic()
            sock.sendall(sent)
            assert is_closed(sock) or sent.endswith(b"{")  # half a body may be answered by a refusal first
            while not is_closed(sock):
                pass
            assert time.monotonic() - started < 8

    def test_a_byte_now_and_then_does_not_help(self, server):
        with connection(server) as sock, contextlib.suppress(ConnectionError):
            started = time.monotonic()
            sock.sendall(head("Content-Type: application/json", "Content-Length: 1000"))
            while time.monotonic() - started < 8:
                sock.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - started < 5

    def test_the_second_request_of_a_connection_has_its_own(self, server, monkeypatch):
        monkeypatch.setattr(GuardedProtocol, "receive_seconds", 2.0)
        with connection(server) as sock:
            for _ in range(3):
                sock.sendall(request_bytes())
                assert read_answer(sock)[0] == 200
                time.sleep(0.8)
            sock.sendall(head("Content-Length: 9")[:-2])
            assert is_closed(sock)

    @pytest.mark.parametrize(
        "rest", [request_bytes()[:-5], head("Content-Length: 9")[:-2]], ids=["half a body", "half a head"]
    )
    def test_nor_does_a_whole_request_before(self, server, rest):
        with connection(server) as sock:
            sock.sendall(request_bytes() + rest)
            assert read_answer(sock)[0] == 200
            assert is_closed(sock)
        assert settles(lambda: server.service.is_idle)

    def test_a_body_that_was_refused_unread_takes_no_time_from_the_next_request(self, server, monkeypatch):
        """Which begins when more than half of the first one's time is over."""
        monkeypatch.setattr(GuardedProtocol, "receive_seconds", 3.0)
        refused, whole = request_bytes(path="/v2"), request_bytes()
        with connection(server) as sock:
            sock.sendall(refused[:-5])
            assert read_answer(sock)[0] == 404
            sock.sendall(refused[-5:])
            time.sleep(1.8)
            sock.sendall(whole[:-5])
            time.sleep(1.8)
            sock.sendall(whole[-5:])
            assert read_answer(sock)[0] == 200

    def test_a_request_that_is_there_has_no_deadline(self, server, model, monkeypatch):
        monkeypatch.setattr(GuardedProtocol, "receive_seconds", 2.0)
        model.before = lambda rows: time.sleep(2.5)
        assert post(server).status_code == 200

    def test_whoever_does_not_read_is_let_go(self, server):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(server.address)
            before = count(server, "te_embed_success")
            large = {"input": [["a"] * 32] * 50, "dimensions": 1024, "encoding_format": "float"}
            sock.sendall(request_bytes(large, path=CONTEXTUALIZED))
            assert settles(lambda: count(server, "te_embed_success") == before + 1600)
            assert settles(lambda: server.service.is_idle)
            sock.settimeout(10)
            content = bytearray()
            with contextlib.suppress(ConnectionError):
                while part := sock.recv(1_000_000):
                    content += part
        assert content.startswith(b"HTTP/1.1 200")
        assert not content.endswith(b"}")

    def test_whoever_reads_slowly_is_not(self, server, monkeypatch):
        """Although the whole takes longer than nothing may be read."""
        monkeypatch.setattr(GuardedProtocol, "unread_seconds", 2.0)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            sock.connect(server.address)
            large = {"input": [["a"] * 40] * 50, "dimensions": 1024, "encoding_format": "float"}
            sock.sendall(request_bytes(large, path=CONTEXTUALIZED))
            sock.settimeout(10)
            content = bytearray()
            started = time.monotonic()
            while not content.endswith(b'"USD"}}}'):
                part = sock.recv(1_000_000)
                assert part
                content += part
                time.sleep(0.02)
            assert time.monotonic() - started > 3.0
        assert len(json.loads(content.partition(b"\r\n\r\n")[2])["data"]) == 50

    def test_a_thousand_of_them_hold_up_nobody(self, server, monkeypatch):
        monkeypatch.setattr(GuardedProtocol, "receive_seconds", 2.0)
        announcing = ("Content-Type: application/json", "Content-Length: 30000000")
        with contextlib.ExitStack() as stack:
            for i in range(1000):
                sock = stack.enter_context(connection(server))
                sock.sendall([b"", b"POST /v1", head(*announcing) + b"{"][i % 3])
                if i % 100 == 0:
                    assert post(server).status_code == 200
            assert post(server).status_code == 200
            assert settles(lambda: len(server.server.server_state.connections) < 5)


def test_there_is_an_end_to_connections(server, monkeypatch):
    monkeypatch.setattr(GuardedProtocol, "most_connections", 20)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connection(server)) for _ in range(30)]
        assert sum(is_ended(sock) for sock in socks) >= 10
    assert settles(lambda: not server.server.server_state.connections)
    assert post(server).status_code == 200


def is_ended(sock):
    sock.settimeout(0.2)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_client_killed_in_the_middle_of_its_body(server):
    for _ in range(20):
        with connection(server) as sock:
            sock.sendall(head("Content-Type: application/json", "Content-Length: 1000") + b'{"input": "a')
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert settles(lambda: server.service.is_idle)
    assert post(server).status_code == 200


def test_what_waits_of_a_client_that_hung_up_is_dropped(server, model):
    before = count(server, 'te_request_failure{err="disconnected"}')
    long = {"input": [["a " * 3000] for _ in range(20)]}
    with held_up(model) as gate:
        with connection(server) as sock:
            sock.sendall(request_bytes(long, path=CONTEXTUALIZED))
            assert gate.begun.wait(30)
            assert server.service._scheduler.n_waiting == 1
        assert settles(lambda: server.service._scheduler.n_waiting == 0)
        batches = len(model.batches)
    assert settles(lambda: server.service.is_idle)
    assert post(server).status_code == 200
    assert len(model.batches) == batches + 1
    assert count(server, 'te_request_failure{err="disconnected"}') == before + 1


# --- when it is too much ---------------------------------------------------------------------------------


def test_a_full_queue_is_429_with_a_time(server, model):
    before = count(server, 'te_request_failure{err="overloaded"}')
    with ThreadPoolExecutor(1) as pool, held_up(model) as gate:
        first = pool.submit(post, server, {"input": [["a " * 600]]}, CONTEXTUALIZED)
        assert gate.begun.wait(30)
        impatient = {"x-stainless-read-timeout": "0.000001"}
        refused = post(server, {"input": [["a " * 600]]}, CONTEXTUALIZED, headers=impatient)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        gate.go_on.set()
        assert first.result().status_code == 200
    assert settles(lambda: not server.service._scheduler._running)
    again = post(server, {"input": [["a " * 600]]}, CONTEXTUALIZED, headers=impatient)
    assert again.status_code == 200, "an idle server takes any request"
    assert count(server, 'te_request_failure{err="overloaded"}') == before + 1


@pytest.mark.parametrize("patience", ["nonsense", "-3", "nan", "inf", ""])
def test_what_a_client_says_of_its_patience_may_be_nonsense(server, patience):
    assert post(server, headers={"x-stainless-read-timeout": patience}).status_code == 200


def test_bytes_that_are_held_are_bounded(encoder, model):
    with serve(encoder, most_held_bytes=400_000) as server, ThreadPoolExecutor(8) as pool, held_up(model) as gate:
        asked = {"input": ["a"] * 20, "encoding_format": "float", "dimensions": 1024}
        answers = [pool.submit(post, server, asked) for _ in range(8)]
        assert settles(lambda: sum(answer.done() for answer in answers) == 7)
        assert server.service._held_bytes <= 400_000
        gate.go_on.set()
        assert sorted(answer.result().status_code for answer in answers) == [200] + [429] * 7
        assert settles(lambda: server.service.is_idle)
        assert post(server, {"input": ["a"] * 500, "encoding_format": "float", "dimensions": 1024}).status_code == 200


@pytest.fixture
def blending(model):
    """An encoder of a model that has two vectors for a chunk among others: in context and alone."""
    encoder = make_encoder("all-minilm-l6-v2", words=["a", "b", "c"])
    encoder._model.before = lambda rows: model.before(rows)
    return encoder


def test_vectors_in_context_and_alone_are_held_both(blending, model):
    with serve(blending, most_held_bytes=5_000_000) as server, ThreadPoolExecutor(8) as pool, held_up(model) as gate:
        asked = {"model": "all-minilm-l6-v2", "input": [["a"] * 1000], "dimensions": 384}
        answers = [pool.submit(post, server, asked, CONTEXTUALIZED) for _ in range(8)]
        assert settles(lambda: sum(answer.done() for answer in answers) == 7)
        assert 2000 * 384 * 4 < server.service._held_bytes <= 5_000_000
        gate.go_on.set()
        assert sorted(answer.result().status_code for answer in answers) == [200] + [429] * 7


def test_what_was_taken_on_is_not_refused_for_those_that_came_after(blending, model, monkeypatch):
    """Though its chunk turns out to be longer than a window, and so to have more vectors than one."""
    tokenizing, go_on = threading.Event(), threading.Event()
    encode = blending.tokenizer.encode
    text = "a " * 20_000
    plan = blending.plan_rows([1], encode([text]))
    assert len(plan.piece_slots) > 50

    def wait_and_encode(texts):
        tokenizing.set()
        assert go_on.wait(60)
        return encode(texts)

    with serve(blending, most_held_bytes=400_000) as server, ThreadPoolExecutor(1) as pool, held_up(model) as gate:
        monkeypatch.setattr(blending.tokenizer, "encode", wait_and_encode)
        answer = pool.submit(post, server, {"model": "all-minilm-l6-v2", "input": text, "dimensions": 384})
        assert tokenizing.wait(30)
        with contextlib.ExitStack() as stack:
            announced = head("Content-Type: application/json", "Content-Length: 1000")
            for _ in range(30):
                stack.enter_context(connection(server)).sendall(announced + b"{")
            assert settles(lambda: server.service._held_bytes > 400_000 - 16_384), "no room for another"
            held = server.service._held_bytes
            go_on.set()
            assert gate.begun.wait(30)
            more = server.service._held_bytes - held - (len(plan.piece_slots) - 1) * 384 * 4
            assert 0 <= more <= 30, "bytes of the others' bodies"
            gate.go_on.set()
            assert answer.result().status_code == 200


class TestThoseThatComeAtOnce:
    """In one turn of the event loop, so that each finds the room taken that the others are about to leave."""

    ASKED = ASK | {"input": ["a" + " " * 120_000, *["a"] * 19], "encoding_format": "float", "dimensions": 1024}

    async def ask(self, server, patiences):
        transport = httpx.ASGITransport(app=server.app)
        headers = {"Content-Type": "application/json", "Host": httpx.URL(server.url).netloc.decode()}
        async with httpx.AsyncClient(transport=transport, base_url=server.url, headers=headers) as client:
            content = json.dumps(self.ASKED)
            asking = [
                client.post(EMBEDDINGS, content=content, headers={"x-stainless-read-timeout": patience})
                for patience in patiences
            ]
            return await asyncio.gather(*asking)

    def test_one_gets_the_room(self, encoder):
        with serve(encoder, most_held_bytes=450_000) as server:
            answers = asyncio.run(self.ask(server, [""] * 4))
            assert server.service.is_idle
        statuses = [answer.status_code for answer in answers]
        assert 200 in statuses
        assert set(statuses) <= {200, 429}

    def test_nor_for_those_that_the_queue_refuses(self, encoder, model):
        with serve(encoder, most_held_bytes=1_000_000) as server, ThreadPoolExecutor(2) as pool, held_up(model) as gate:
            first = pool.submit(post, server)
            assert gate.begun.wait(30)
            impatient = "0.000001"
            several = pool.submit(asyncio.run, self.ask(server, [impatient, impatient, "", ""]))
            assert settles(lambda: server.service._held_bytes > 900_000), "the patient ones are both taken on"
            gate.go_on.set()
            assert first.result().status_code == 200
            answers = several.result()
        assert [answer.status_code for answer in answers[:2]] == [429, 429]
        assert all("more work than it can do in time" in answer.text for answer in answers[:2])
        assert [answer.status_code for answer in answers[2:]] == [200, 200]


def test_an_answer_is_held_until_its_client_has_read_it(server):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.connect(server.address)
        before = count(server, "te_embed_success")
        large = {"input": [["a"] * 32] * 50, "dimensions": 1024, "encoding_format": "float"}
        sock.sendall(request_bytes(large, path=CONTEXTUALIZED))
        assert settles(lambda: count(server, "te_embed_success") == before + 1600)
        assert not settles(lambda: server.service.is_idle, seconds=0.5)
        sock.settimeout(10)
        read_answer(sock)
        assert settles(lambda: server.service.is_idle)


class TestTooMuchText:
    """Refused when it is certain that it is too much, not when all of it was counted."""

    @pytest.fixture
    def counted(self, encoder, monkeypatch):
        """The characters of each text that was tokenized."""
        seen = []
        encode = encoder.tokenizer.encode

        def count(texts):
            seen.extend(map(len, texts))
            return encode(texts)

        monkeypatch.setattr(encoder.tokenizer, "encode", count)
        return seen

    def test_in_one(self, server, counted):
        refused = post(server, {"input": "a " * 3_000_000})
        assert refused.status_code == 400
        assert "exceeds the maximum of 32000 tokens" in refused.json()["error"]["message"]
        assert sum(counted) < 500_000

    def test_in_many(self, server, counted):
        refused = post(server, {"input": ["a " * 10_000] * 500})
        assert refused.status_code == 400
        assert "exceeds the maximum of 120000 tokens" in refused.json()["error"]["message"]
        assert sum(counted) < 350_000

    def test_long_is_not_much(self, server, counted):
        answer = post(server, {"input": ["a" + " " * 2_000_000 + "b", "b " * 20_000]})
        assert answer.json()["usage"]["total_tokens"] == 20_002
        assert counted[-1] == 40_000


# --- when the model fails --------------------------------------------------------------------------------


class TestFailures:
    def fail(self, error, of_tokens):
        def before(rows):
            if any(len(row) == of_tokens for row in rows):
                raise error

        return before

    def test_a_failing_request_fails_alone(self, server, model, caplog):
        secret = "nobody may read this"
        model.before = self.fail(RuntimeError(secret), 5)
        with ThreadPoolExecutor(20) as pool:
            texts = ["a " * (5 if i == 7 else 6 + i) for i in range(20)]
            answers = list(pool.map(lambda text: post(server, {"input": text}), texts))
        statuses = [answer.status_code for answer in answers]
        assert statuses == [500 if i == 7 else 200 for i in range(20)]
        assert answers[7].json()["error"]["type"] == "internal_server_error"
        assert "x-should-retry" not in answers[7].headers
        assert "RuntimeError" in caplog.text
        assert secret not in caplog.text + answers[7].text

    def test_what_would_fail_again_says_so(self, server, encoder, model, monkeypatch):
        monkeypatch.setattr(model, "pool", lambda rows, spans: np.full((len(rows), 1024), np.nan, np.float32))
        refused = post(server)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (500, "false")
        monkeypatch.undo()
        assert post(server).status_code == 200

    def test_a_model_that_cannot_be_loaded_ends_the_server(self):
        def load():
            raise InvalidInputError("no such model")

        running = served_model.RunningServer(load).start()
        running.thread.join(10)
        assert not running.thread.is_alive()
        assert str(running.error) == "no such model"


def test_logs_hold_no_text_and_no_key(encoder, model, caplog):
    caplog.set_level(logging.DEBUG)
    secret, wrong = "confidential-text", "wrong-key-0815"
    with serve(encoder, api_key=KEY, app_options={"log_requests": True}) as server:
        headers = {"Authorization": f"Bearer {KEY}"}
        post(server, {"input": secret}, headers=headers)
        post(server, {"input": [secret, ""]}, headers=headers)
        post(server, {"input": secret, "model": secret}, headers=headers)
        post(server, {"input": secret}, path=f"/{secret}", headers=headers)
        post(server, {"input": secret}, path=f"{EMBEDDINGS}?key={secret}", headers=headers)
        post(server, {"input": secret}, headers={"Authorization": f"Bearer {wrong}"})
        httpx.request(secret, server.url + EMBEDDINGS, headers=headers)
        model.before = lambda rows: 1 / 0
        post(server, {"input": secret}, headers=headers)
        with connection(server) as sock:
            sock.sendall(f"{secret} {KEY}\r\n\r\n".encode())
            read_answer(sock)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith(("pplx", "uvicorn"))]
    assert any(line.startswith("POST /v1/embeddings 200") for line in lines)
    assert any("ZeroDivisionError" in line for line in lines)
    assert not any(word in line for line in lines for word in (secret, KEY, wrong))


# --- how it begins and ends ------------------------------------------------------------------------------


def test_while_the_model_is_being_loaded(encoder):
    go_on = threading.Event()

    def load():
        go_on.wait(60)
        return encoder

    running = served_model.RunningServer(load).start(wait=False)
    try:
        for answer in (post(running), httpx.get(running.url + "/v1/models"), httpx.get(running.url + "/health")):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
        go_on.set()
        assert settles(lambda: httpx.get(running.url + "/health").status_code == 200)
        assert post(running).status_code == 200
    finally:
        go_on.set()
        running.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the threads of a process apart")
def test_documents_leave_the_cores_to_queries(server):
    def priorities():
        return [os.getpriority(os.PRIO_PROCESS, thread.native_id) for thread in server.service._threads]

    here = os.getpriority(os.PRIO_PROCESS, 0)
    assert settles(lambda: priorities() == [here, min(here + 10, 19)]), "those of short jobs, and of others"


def test_parts_of_an_answer_do_not_wait_for_each_other(server):
    with connection(server) as sock:

        def has_no_delay():
            return any(
                made.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                for made in list(server.server.server_state.connections)
                if made.transport.get_extra_info("peername") == sock.getsockname()
            )

        assert settles(has_no_delay)


def test_what_was_taken_on_is_answered_before_the_end(encoder, model):
    asked = {"input": [["a " * 500] * 3]}
    of_clients = [[] for _ in range(8)]  # their answers' statuses, or how they ended

    def work(statuses):
        was_told = False
        with httpx.Client(timeout=60) as client:
            while True:
                try:
                    headers = {"Content-Type": "application/json"}
                    answer = client.post(running.url + CONTEXTUALIZED, content=json.dumps(ASK | asked), headers=headers)
                except httpx.ConnectError:
                    return  # it does not listen any more
                except httpx.TransportError as error:
                    # A connection that nobody has taken up yet ends with the socket that listens.
                    if not was_told:
                        statuses.append(repr(error))
                    return
                statuses.append(answer.status_code)
                was_told = answer.headers.get("connection") == "close"
                if answer.status_code == 503:
                    time.sleep(0.02)

    threads = [threading.Thread(target=work, args=(statuses,)) for statuses in of_clients]
    with serve(encoder) as running:
        for thread in threads:
            thread.start()
        assert settles(lambda: all(of_clients))
        with held_up(model) as gate:
            assert gate.begun.wait(30)
            running.server.stop()
            assert settles(lambda: running.service.state == "draining")
            refused = post(running, asked, path=CONTEXTUALIZED)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
    for thread in threads:
        thread.join(30)
    statuses = list(itertools.chain(*of_clients))
    assert set(statuses) <= {200, 503}
    success = f'te_request_success{{method="contextualizedembeddings"}} {statuses.count(200)}'
    assert success in running.service.metrics.text().splitlines()


def test_a_request_that_is_half_there_when_the_end_begins_is_answered(encoder):
    running = served_model.RunningServer(lambda: encoder).start()
    whole = request_bytes()
    with connection(running) as sock:
        sock.sendall(whole[:-5])
        assert settles(lambda: not running.service.is_idle)
        running.server.stop()
        assert settles(lambda: running.service.state == "draining")
        sock.sendall(whole[-5:])
        status, headers, _ = read_answer(sock)
        assert (status, headers["connection"]) == (200, "close")
        assert is_closed(sock)
    running.thread.join(30)
    assert not running.thread.is_alive()


def test_an_end_while_the_model_is_being_loaded(encoder):
    go_on = threading.Event()

    def load():
        go_on.wait(60)
        return encoder

    running = served_model.RunningServer(load).start(wait=False)
    try:
        running.server.stop()
        assert settles(lambda: running.service.state == "draining")
    finally:
        go_on.set()
        running.stop()
    assert running.error is None
