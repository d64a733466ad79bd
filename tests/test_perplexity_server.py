"""The Perplexity server of other tests is stricter than the protocol that test_api_contract has, and fails as told."""

import asyncio
import base64
import contextlib
import http.client
import importlib.util
import itertools
import json
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import perplexity
import pytest
from perplexity import AsyncPerplexity, Perplexity
from perplexity.types import ContextualizedEmbeddingCreateResponse


def load_helper(name):
    """Import a helper module that lies beside this file, under its own name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


perplexity_server = load_helper("perplexity_server")
Faults, Limits, PerplexityServer = (
    perplexity_server.Faults,
    perplexity_server.Limits,
    perplexity_server.PerplexityServer,
)
hash_embed, context_embed = perplexity_server.hash_embed, perplexity_server.context_embed

V1, V1_LARGE = "pplx-embed-v1-0.6b", "pplx-embed-v1-4b"
CONTEXT, CONTEXT_LARGE = "pplx-embed-context-v1-0.6b", "pplx-embed-context-v1-4b"
PATHS = dict.fromkeys((V1, V1_LARGE), perplexity_server.EMBEDDINGS)
PATHS |= dict.fromkeys((CONTEXT, CONTEXT_LARGE), perplexity_server.CONTEXTUALIZED)
KEY = {"Authorization": "Bearer test-key"}
TEXTS = ["grüne Wiesen", "文字 and words", "words, words 🦉", 'tab\t"quote" \\ \u2028', "one"]
DOCUMENTS = [TEXTS[:3], TEXTS[3:], ["one"], ["one", "one"]]
TOKENS = sum(len(text.split()) for text in TEXTS)


@contextlib.contextmanager
def serving(**options):
    with PerplexityServer(**options) as server:
        yield server
    assert server.errors == []


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def client(server):
    with Perplexity(api_key="test-key", base_url=server.url, max_retries=0) as made:
        yield made


def connect(server):
    return contextlib.closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10))


def post(server, body, path=perplexity_server.EMBEDDINGS, headers=KEY, method="POST"):
    """Return status, header, and content of the answer on a connection of its own; the body is JSON or bytes."""
    with connect(server) as connection:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def ask(server, input_, model=V1, **fields):
    """Return status and JSON of the answer."""
    status, _, content = post(server, {"input": input_, "model": model, **fields}, PATHS[model])
    return status, json.loads(content)


def decode(embedding):
    return np.frombuffer(base64.b64decode(embedding, validate=True), dtype=np.int8)


def by_index(entries):
    """Return the embeddings in the order of their indices, which must be 0, 1, 2, …"""
    found = {entry.index: entry.embedding for entry in entries}
    assert len(found) == len(entries)
    return [decode(found[index]) for index in range(len(entries))]


# --- it answers as the protocol says --------------------------------------------------------------------


def test_answers_have_all_their_fields(server):
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    embedding = base64.b64encode(hash_embed(CONTEXT, ["a b"], 128)).decode()
    entry = {"object": "embedding", "index": 0, "embedding": embedding}
    cost = {"input_cost": 2 * 0.008 / 1e6, "total_cost": 2 * 0.008 / 1e6, "currency": "USD"}
    expected = {
        "object": "list",
        "data": [{"object": "list", "index": 0, "data": [entry]}],
        "model": CONTEXT,
        "usage": {**usage, "cost": cost},
    }
    assert ask(server, [["a b"]], CONTEXT, dimensions=128) == (200, expected)
    server.cost = False
    assert ask(server, [["a b"]], CONTEXT, dimensions=128) == (200, {**expected, "usage": usage})


def test_a_code_of_zero_is_a_set_bit(server):
    server.embed = lambda model, document, dimensions: np.zeros((len(document), dimensions), dtype=np.int8)
    _, answer = ask(server, "a", dimensions=128, encoding_format="base64_binary")
    assert base64.b64decode(answer["data"][0]["embedding"]) == b"\xff" * 16


def test_what_vectors_depend_on():
    codes = hash_embed(V1, ["a", "b", "a"], 256)
    assert (codes.dtype, codes.shape) == (np.int8, (3, 256))
    assert (codes[0] == codes[2]).all()
    assert (codes[0] != codes[1]).any()
    assert (hash_embed(V1_LARGE, ["a"], 256) != codes[0]).any()
    assert -127 == hash_embed(V1, TEXTS, 2560).min() < hash_embed(V1, TEXTS, 2560).max() == 127

    inside = context_embed(CONTEXT, ["a", "b", "a"], 256)
    assert (context_embed(CONTEXT, ["a", "b", "a"], 256) == inside).all()
    others = [context_embed(CONTEXT, ["a", "b", "c"], 256), context_embed(CONTEXT_LARGE, ["a", "b", "a"], 256)]
    rows = np.concatenate([inside, *others])
    assert len(np.unique(rows, axis=0)) == 9


def orders(seed):
    with serving(shuffle_seed=seed) as server:
        answers = [ask(server, DOCUMENTS, CONTEXT, dimensions=128)[1] for _ in range(5)]
    inner = [[chunk["index"] for chunk in entry["data"]] for answer in answers for entry in answer["data"]]
    return [[entry["index"] for entry in answer["data"]] for answer in answers] + inner


def test_entries_are_never_in_the_order_of_their_indices():
    drawn = orders(1)
    assert all(order != sorted(order) for order in drawn if len(order) > 1)
    assert len({tuple(order) for order in drawn if len(order) == 4}) > 1
    assert orders(1) == drawn != orders(2)


def test_tokens_and_cost_add_up(server, client):
    models = [V1, V1_LARGE, CONTEXT, CONTEXT_LARGE]
    prices = [0.004, 0.03, 0.008, 0.05]
    tokens, costs = 0, []
    for (model, price), words in zip(zip(models, prices, strict=True), (1, 20, 300, 4000), strict=True):
        text = "word " * words
        create = (
            client.embeddings.create if model.startswith("pplx-embed-v1") else client.contextualized_embeddings.create
        )
        usage = create(input=[text] if PATHS[model] == "/v1/embeddings" else [[text]], model=model).usage
        assert usage.prompt_tokens == usage.total_tokens == words
        assert usage.cost.input_cost == usage.cost.total_cost == pytest.approx(price * words / 1e6)
        assert usage.cost.currency == "USD"
        tokens, costs = tokens + words, [*costs, usage.cost.total_cost]
    assert ask(server, "")[0] == 400
    assert server.total_tokens == tokens == 4321
    assert server.total_cost == pytest.approx(sum(costs))
    assert server.total_cost == pytest.approx((1 * 0.004 + 20 * 0.03 + 300 * 0.008 + 4000 * 0.05) / 1e6)


def test_tokens_are_counted_as_it_is_told(server):
    server.count_tokens = len
    assert ask(server, ["abc", "de"])[1]["usage"]["total_tokens"] == 5


# --- it refuses what other servers answer ----------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer other"}, {"Authorization": "test-key"}])
def test_without_the_key_nothing_is_answered(server, headers):
    status, _, content = post(server, {"input": "a", "model": V1}, headers=headers)
    assert (status, json.loads(content)["error"]["type"]) == (401, "authentication_error")
    assert [(request.status, request.documents) for request in server.requests] == [(401, [])]
    assert server.total_tokens == server.total_cost == 0


def chunks(*counts):
    """Documents with these numbers of chunks."""
    return [["a"] * count for count in counts]


def words(*counts):
    """Texts with these numbers of words."""
    return ["a " * count for count in counts]


def test_what_is_refused_is_recorded_with_its_tokens(server):
    server.too_large_status = 413
    status, answer = ask(server, ["a " * 32_001])
    assert (status, answer["error"]["code"]) == (413, 413)
    assert (server.requests[0].status, server.total_tokens, server.requests[0].tokens) == (413, 0, 32_001)


def test_limits_can_be_others():
    limits = Limits(
        documents=2, chunks=3, request_tokens=5, document_tokens=4, min_dimensions=8, max_dimensions_0_6b=16
    )
    with serving(limits=limits, too_large_status=413) as server:
        statuses = [
            ask(server, documents, CONTEXT)[0]
            for documents in (chunks(1, 2), chunks(1, 3), chunks(1, 1, 1), [["a b c d"], ["a"]], [["a b c d"], ["a b"]])
        ]
        assert statuses == [200, 400, 400, 200, 413]
        assert ask(server, [["a b c d e"]], CONTEXT)[0] == 413
        assert [ask(server, "a", dimensions=n)[0] for n in (7, 8, 16, 17)] == [400, 200, 200, 400]
        assert len(decode(ask(server, "a")[1]["data"][0]["embedding"])) == 16
    with pytest.raises(ValueError, match="400 or 413"):
        PerplexityServer(too_large_status=500)


REFUSED = {
    "a model of the other route": (400, V1, {"input": "a", "model": CONTEXT}),
    "an encoding of other servers": (400, V1, {"input": "a", "encoding_format": "float"}),
    "a field of other services": (422, V1, {"input": "a", "user": "u"}),
    "dimensions null": (422, V1, {"input": "a", "dimensions": None}),
    "encoding null": (422, V1, {"input": "a", "encoding_format": None}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(server, name):
    expected, model, fields = REFUSED[name]
    status, _, content = post(server, {"model": model, **fields}, PATHS[model])
    error = json.loads(content)["error"]
    assert (status, error["code"], error["type"]) == (expected, expected, "invalid_request_error")
    assert error["message"]
    assert not any(word in error["message"] for word in ("token", "exceed", "large", "size"))
    assert [(request.status, request.tokens) for request in server.requests] == [(expected, 0)]


def test_a_body_without_its_length_is_refused(server):
    with connect(server) as connection:
        # Of the body, nothing: it is not waited for.
        connection.request("POST", "/v1/embeddings", headers={**KEY, "Transfer-Encoding": "chunked"})
        response = connection.getresponse()
        assert (response.status, response.headers["Connection"]) == (411, "close")
        response.read()
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "error"), [(400, perplexity.BadRequestError), (413, perplexity.APIStatusError)], ids=str
)
def test_the_sdk_raises_what_is_refused(server, client, status, error):
    server.too_large_status, server.limits = status, Limits(request_tokens=3)
    with pytest.raises(error, match="exceeds the maximum of 3 tokens") as caught:
        client.embeddings.create(input="a b c d", model=V1)
    assert caught.value.status_code == caught.value.body["error"]["code"] == status
    with pytest.raises(perplexity.UnprocessableEntityError):
        client.embeddings.create(input="a", model=V1, extra_body={"user": "u"})


def test_failures_of_its_own_are_kept():
    with PerplexityServer(embed=lambda model, document, dimensions: np.zeros((1, dimensions))) as server:
        status, answer = ask(server, "a")
        assert (status, answer["error"]["type"]) == (500, "internal_server_error")
        assert "float64 (1, 1024) for 1 × 1024" in answer["error"]["message"]
        assert server.requests[0].status == 500
        (error,) = server.errors
        assert error.startswith("Traceback")


# --- connections -----------------------------------------------------------------------------------------


def test_a_connection_is_kept(server):
    body = json.dumps({"input": TEXTS, "model": V1})
    server.faults = Faults(1, 1.0, ["503", "429", "malformed_json", "html", "no_index"], most=5)
    with connect(server) as connection:
        connection.connect()
        first = connection.sock
        for path, headers in itertools.product(["/v1/embeddings", "/other"], [KEY, {}] * 5):
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            assert len(response.read()) == int(response.headers["Content-Length"])
            assert connection.sock is first
    assert server.faults.total == 5
    assert [request.status for request in server.requests].count(401) == 5


def test_requests_are_counted_while_they_are_handled(server):
    for _ in range(3):
        ask(server, "a")
    assert server.most_concurrent == 1
    together = threading.Barrier(5, timeout=20)

    def embed(model, document, dimensions):
        together.wait()
        return hash_embed(model, document, dimensions)

    server.embed = embed
    threads = [threading.Thread(target=ask, args=(server, "a")) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most_concurrent == 5
    assert server.total_tokens == 8


def test_a_slow_server_is_slow_to_answer_but_not_to_refuse():
    with serving(delay=0.2) as server:
        start = time.monotonic()
        assert ask(server, "a")[0] == 200
        assert time.monotonic() - start >= 0.2
        server.delay = 30
        start = time.monotonic()
        assert ask(server, "")[0] == 400
        assert fail(server, "503")[0] == 503
        assert time.monotonic() - start < 10


def test_a_client_that_waits_in_turn_is_never_counted_twice(server):
    turn = threading.Semaphore(2)

    def work():
        with connect(server) as connection:
            for _ in range(25):
                with turn:
                    connection.request("POST", "/v1/embeddings", json.dumps({"input": "a", "model": V1}), KEY)
                    connection.getresponse().read()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most_concurrent <= 2
    assert server.total_tokens == 100


def test_close_ends_a_stall():
    server = PerplexityServer(faults=Faults(1, 1.0, ["stall"], stall_seconds=60))
    with (
        Perplexity(api_key="test-key", base_url=server.url, max_retries=0, timeout=0.1) as client,
        pytest.raises(perplexity.APITimeoutError),
    ):
        client.embeddings.create(input="a", model=V1)
    while not server.requests:
        time.sleep(0.01)
    with connect(server) as idle:
        idle.request("GET", "/")
        idle.getresponse().read()
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 5
        assert idle.sock.recv(1) == b""
    assert server.errors == []
    assert [(request.status, request.fault) for request in server.requests] == [(0, "stall"), (404, None)]
    assert not [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def test_a_client_that_hangs_up_is_no_failure_of_the_server(server):
    host, port = urlsplit(server.url).netloc.split(":")
    for sent in (b"POST /v1/emb", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"):
        for linger in (0, 1):  # with RST and with FIN
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)
                time.sleep(0.02)  # until it is read
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))
    assert ask(server, "a")[0] == 200
    assert len(server.requests) == 1


# --- it fails as it is told to -------------------------------------------------------------------------


def fail(server, kind, input_=TEXTS, model=V1, **options):
    """Return status, headers, and content of an answer with a fault."""
    server.faults = Faults(1, 1.0, [kind], most=1, **options)
    answer = post(server, {"input": input_, "model": model, "dimensions": 128}, PATHS[model])
    assert (server.faults.counts, server.faults.total) == ({kind: 1}, 1)
    assert server.requests[-1].fault == kind
    assert server.requests[-1].status == answer[0]
    assert not server.requests[-1].answered
    return answer


@pytest.mark.parametrize(
    ("kind", "status", "after"), [("429", 429, "7"), ("429_bare", 429, None), ("500", 500, None), ("503", 503, None)]
)
def test_a_status_may_fail_a_request(server, kind, status, after):
    found, headers, content = fail(server, kind, retry_after="7")
    assert (found, headers["Retry-After"]) == (status, after)
    assert json.loads(content)["error"]["code"] == status
    assert ask(server, TEXTS)[0] == 200
    assert server.total_tokens == TOKENS


def test_a_reset_is_no_answer(server):
    with pytest.raises(ConnectionResetError):
        fail(server, "reset")
    assert (server.requests[0].status, server.requests[0].fault) == (0, "reset")


def test_a_stall_holds_the_connection_and_closes_it(server):
    start = time.monotonic()
    with pytest.raises(http.client.RemoteDisconnected):
        fail(server, "stall", stall_seconds=0.2)
    assert time.monotonic() - start >= 0.2
    assert (server.requests[0].status, server.requests[0].fault) == (0, "stall")


def test_a_body_may_be_cut_off(server):
    with pytest.raises(http.client.IncompleteRead) as caught:
        fail(server, "truncated_body")
    assert caught.value.partial
    assert caught.value.expected > 0
    assert (server.requests[0].status, server.total_tokens) == (200, 0)


def test_a_body_may_be_malformed(server):
    status, headers, content = fail(server, "malformed_json")
    assert (status, headers["Content-Type"], headers["Content-Length"]) == (200, "application/json", str(len(content)))
    with pytest.raises(json.JSONDecodeError):
        json.loads(content)


def test_a_body_may_be_a_page(server):
    status, headers, content = fail(server, "html")
    assert (status, headers.get_content_type()) == (200, "text/html")
    assert content.startswith(b"<!doctype html>")


def test_a_body_may_have_no_data(server):
    for input_, model in ((TEXTS, V1), (DOCUMENTS, CONTEXT)):
        status, _, content = fail(server, "empty_data", input_, model)
        assert (status, json.loads(content)["data"]) == (200, [])


def indices(kind, server, input_, model):
    """The indices at each level of 24 answers with this fault: of documents or texts, and of each document's chunks."""
    outer, inner = [], []
    for _ in range(24):
        status, _, content = fail(server, kind, input_, model)
        answer = json.loads(content)
        assert (status, answer["usage"]["total_tokens"]) == (200, server.requests[-1].tokens)
        outer.append([entry.get("index") for entry in answer["data"]])
        inner += [[chunk.get("index") for chunk in entry["data"]] for entry in answer["data"] if "data" in entry]
    return outer, inner


WRONG_INDICES = {
    "missing_item": lambda found, n: len(found) == n - 1,
    "duplicate_index": lambda found, n: len(found) == n and len(set(found)) == n - 1 and set(found) < set(range(n)),
    "index_out_of_range": lambda found, n: len(found) == n and len(set(found) & {-1, n}) == 1,
    "no_index": lambda found, n: len(found) == n and found.count(None) == 1,
}


@pytest.mark.parametrize("kind", WRONG_INDICES)
def test_indices_may_be_wrong(server, kind):
    wrong = WRONG_INDICES[kind]
    outer, inner = indices(kind, server, TEXTS, V1)
    assert all(wrong(found, 5) for found in outer)
    assert not inner

    outer, inner = indices(kind, server, [["a", "b", "c"]] * 4, CONTEXT)
    wrong_outside = sum(wrong(found, 4) for found in outer)
    wrong_inside = sum(wrong(found, 3) for found in inner)
    assert wrong_outside + wrong_inside == 24
    assert wrong_outside > 3 < wrong_inside
    if kind == "index_out_of_range":
        assert {-1, 4} < set(itertools.chain(*outer))
        assert {-1, 3} < set(itertools.chain(*inner))


def test_a_single_entry_is_spoiled_too(server):
    def entries(kind):
        return json.loads(fail(server, kind, ["a"])[2])["data"]

    assert entries("missing_item") == []
    assert [entry["index"] for entry in entries("duplicate_index")] == [0, 0]
    assert entries("index_out_of_range")[0]["index"] in (-1, 1)
    assert "index" not in entries("no_index")[0]


@pytest.mark.parametrize(("input_", "model"), [(TEXTS, V1), (DOCUMENTS, CONTEXT)])
def test_embeddings_may_be_wrong(server, input_, model):
    def embeddings(kind):
        entries = json.loads(fail(server, kind, input_, model)[2])["data"]
        entries = [chunk for entry in entries for chunk in entry.get("data", [entry])]
        return [entry["embedding"] for entry in entries]

    lengths = sorted(len(decode(embedding)) for embedding in embeddings("wrong_length"))
    assert (lengths[0], set(lengths[1:])) == (127, {128})
    (bad,) = (embedding for embedding in embeddings("bad_base64") if "*" in embedding)
    for strictly in (False, True):
        with pytest.raises(ValueError, match=r"base64|padding|characters"):
            base64.b64decode(bad, validate=strictly)


def test_invalid_requests_meet_no_faults(server):
    server.faults = Faults(1, 1.0)
    statuses = [
        post(server, {"input": "a", "model": V1}, headers={})[0],
        post(server, {"input": "a", "model": V1}, "/v1/other")[0],
        post(server, {"input": "", "model": V1})[0],
        post(server, words(32_001)[0].encode())[0],
    ]
    assert statuses == [401, 404, 400, 400]
    assert server.faults.total == 0


def test_faults_follow_their_seed_and_their_rate():
    def draw(seed, **options):
        faults = Faults(seed, 0.25, **options)
        return [faults.choose() for _ in range(2000)], faults

    chosen, faults = draw(3)
    assert chosen == draw(3)[0] != draw(4)[0]
    assert 400 < faults.total < 600
    assert set(faults.counts) == set(perplexity_server.ALL_KINDS)
    assert sum(kind is not None for kind in chosen) == faults.total
    assert draw(3, most=5)[1].total == 5
    with pytest.raises(ValueError, match="unknown"):
        Faults(1, 1.0, ["earthquake"])


# What the SDK raises with max_retries=0 and the cause of that, or, of what it takes for an answer, the type.
SDK = {
    "429": (perplexity.RateLimitError, None),
    "429_bare": (perplexity.RateLimitError, None),
    "500": (perplexity.InternalServerError, None),
    "503": (perplexity.InternalServerError, None),
    "reset": (perplexity.APIConnectionError, httpx.ReadError),
    "stall": (perplexity.APIConnectionError, httpx.RemoteProtocolError),
    "truncated_body": (perplexity.APIConnectionError, httpx.RemoteProtocolError),
    "malformed_json": (json.JSONDecodeError, None),  # of all failures the one that the SDK does not wrap
    "html": str,
    "missing_item": ContextualizedEmbeddingCreateResponse,
    "duplicate_index": ContextualizedEmbeddingCreateResponse,
    "index_out_of_range": ContextualizedEmbeddingCreateResponse,
    "no_index": ContextualizedEmbeddingCreateResponse,
    "wrong_length": ContextualizedEmbeddingCreateResponse,
    "bad_base64": ContextualizedEmbeddingCreateResponse,
    "empty_data": ContextualizedEmbeddingCreateResponse,
}


def test_every_kind_is_tested():
    assert set(SDK) == set(perplexity_server.ALL_KINDS)


@pytest.mark.parametrize("kind", SDK)
@pytest.mark.parametrize("which", [Perplexity, AsyncPerplexity])
def test_what_the_sdk_makes_of_a_fault(server, kind, which):
    server.faults = Faults(1, 1.0, [kind], most=1, stall_seconds=0.05)

    async def create():
        client = which(api_key="test-key", base_url=server.url, max_retries=0)
        try:
            result = client.contextualized_embeddings.create(input=DOCUMENTS, model=CONTEXT)
            return await result if which is AsyncPerplexity else result
        finally:
            closed = client.close()
            if which is AsyncPerplexity:
                await closed

    if isinstance(SDK[kind], type):
        assert type(asyncio.run(create())) is SDK[kind]
        return
    class_, cause = SDK[kind]
    with pytest.raises(class_) as caught:
        asyncio.run(create())
    assert type(caught.value) is class_
    assert type(caught.value.__cause__) is (cause or type(None))


def test_many_threads_and_faults_leave_no_error_of_the_servers_own(server):
    server.faults = Faults(9, 0.5, stall_seconds=0.01)
    server.embed = context_embed
    answered, unexpected = [], []

    def work(row):
        with Perplexity(api_key="test-key", base_url=server.url, max_retries=0) as client:
            for i in range(20):
                try:
                    create = client.contextualized_embeddings.create
                    create(input=[["a", f"{row} {i}"], ["b"]], model=CONTEXT, dimensions=128)
                    answered.append(row)
                except (perplexity.APIError, json.JSONDecodeError):
                    pass
                except Exception as error:  # noqa: BLE001 - reported by the assertion below
                    unexpected.append(error)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    assert len(server.requests) == 80
    assert server.faults.total == sum(request.fault is not None for request in server.requests)
    assert server.total_tokens == 4 * (80 - server.faults.total)
    assert len(answered) > 80 - server.faults.total
