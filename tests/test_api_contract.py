"""What every server of the embeddings API does: the stand-in of the hosted service, and ``pplx-vectorstore serve``."""

import asyncio
import base64
import contextlib
import http.client
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import perplexity
import pytest
from perplexity import AsyncPerplexity, Perplexity

from pplx_vectorstore.quantization import pack_bits


def load_helper(name):
    """Import a helper module that lies beside this file, under its own name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


perplexity_server, served_model = load_helper("perplexity_server"), load_helper("served_model")

V1, V1_LARGE = "pplx-embed-v1-0.6b", "pplx-embed-v1-4b"
CONTEXT, CONTEXT_LARGE = "pplx-embed-context-v1-0.6b", "pplx-embed-context-v1-4b"
PATHS = dict.fromkeys((V1, V1_LARGE), "/v1/embeddings")
PATHS |= dict.fromkeys((CONTEXT, CONTEXT_LARGE), "/v1/contextualizedembeddings")
KEY = {"Authorization": "Bearer test-key", "Content-Type": "application/json"}
TEXTS = ["grüne Wiesen", "文字 and words", "words, words 🦉", 'tab\t"quote" \\ \u2028', "one"]
DOCUMENTS = [TEXTS[:3], TEXTS[3:], ["one"], ["one", "one"]]
TOKENS = sum(len(text.split()) for text in TEXTS)


class StandIn:
    """One server for all models."""

    has_price = True

    def __init__(self):
        self._server = perplexity_server.PerplexityServer(embed=perplexity_server.context_embed)

    def url(self, model):
        return self._server.url

    def expected(self, model, document, dimensions):
        return perplexity_server.context_embed(model, document, dimensions)

    def close(self):
        self._server.close()
        assert self._server.errors == []


class Serve:
    """A server for each model, started when it is asked for."""

    has_price = False

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self._encoders, self._servers = {}, {}

    def url(self, model):
        if model not in self._servers:
            words = [word for text in TEXTS for word in text.split()]
            encoder = self._encoders[model] = served_model.make_encoder(model, words)
            self._servers[model] = self._stack.enter_context(served_model.serve(encoder, api_key="test-key"))
        return self._servers[model].url

    def expected(self, model, document, dimensions):
        self.url(model)
        return self._encoders[model].encode_documents([document])[0][:, :dimensions]

    def close(self):
        self._stack.close()


@pytest.fixture(params=[StandIn, Serve], ids=["stand-in", "serve"], scope="module")
def target(request):
    running = request.param()
    yield running
    running.close()


@pytest.fixture
def client(target):
    """Make a client of the SDK for a model's server."""
    with contextlib.ExitStack() as stack:

        def make(model, *, api_key="test-key"):
            return stack.enter_context(Perplexity(api_key=api_key, base_url=target.url(model), max_retries=0))

        yield make


def connect(target, model):
    return contextlib.closing(http.client.HTTPConnection(urlsplit(target.url(model)).netloc, timeout=30))


def post(target, body, model=V1, path=None, headers=KEY, method="POST"):
    """Return status, header, and content of the answer on a connection of its own; the body is JSON or bytes."""
    with connect(target, model) as connection:
        content = body if isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path or PATHS[model], content, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def ask(target, input_, model=V1, **fields):
    """Return status and JSON of the answer."""
    status, _, content = post(target, {"input": input_, "model": model, **fields}, model)
    return status, json.loads(content)


def by_index(entries):
    """Return the embeddings in the order of their indices, which must be 0, 1, 2, …"""
    found = {entry.index: entry.embedding for entry in entries}
    assert len(found) == len(entries)
    return [
        np.frombuffer(base64.b64decode(found[index], validate=True), dtype=np.int8) for index in range(len(entries))
    ]


# --- it answers as the protocol says --------------------------------------------------------------------


@pytest.mark.parametrize(("model", "dimensions"), [(V1, 1024), (V1_LARGE, 2560)])
def test_texts_are_embedded_one_by_one(target, client, model, dimensions):
    response = client(model).embeddings.create(input=TEXTS, model=model)
    assert (response.object, response.model) == ("list", model)
    assert {entry.object for entry in response.data} == {"embedding"}
    for text, row in zip(TEXTS, by_index(response.data), strict=True):
        np.testing.assert_array_equal([row], target.expected(model, [text], dimensions))
    assert response.usage.prompt_tokens == response.usage.total_tokens == TOKENS


def test_one_text_needs_no_list(target, client):
    (entry,) = client(V1).embeddings.create(input=TEXTS[0], model=V1).data
    np.testing.assert_array_equal(by_index([entry]), target.expected(V1, TEXTS[:1], 1024))


@pytest.mark.parametrize(("model", "dimensions"), [(CONTEXT, 1024), (CONTEXT_LARGE, 2560)])
def test_chunks_are_embedded_in_their_document(target, client, model, dimensions):
    response = client(model).contextualized_embeddings.create(input=DOCUMENTS, model=model)
    assert (response.object, response.model) == ("list", model)
    assert {entry.object for entry in response.data} == {"list"}
    found = {entry.index: by_index(entry.data) for entry in response.data}
    assert sorted(found) == list(range(len(DOCUMENTS)))
    for index, document in enumerate(DOCUMENTS):
        np.testing.assert_array_equal(found[index], target.expected(model, document, dimensions))
    assert (found[0][0] != target.expected(model, DOCUMENTS[0][:1], dimensions)[0]).any(), "context must show"
    assert response.usage.total_tokens == TOKENS + 3


def test_answers_have_all_their_fields(target):
    embedding = base64.b64encode(target.expected(CONTEXT, ["one"], 128)).decode()
    entry = {"object": "embedding", "index": 0, "embedding": embedding}
    price = 0.008 / 1e6 if target.has_price else 0.0
    cost = {"input_cost": price, "total_cost": price, "currency": "USD"}
    expected = {
        "object": "list",
        "data": [{"object": "list", "index": 0, "data": [entry]}],
        "model": CONTEXT,
        "usage": {"prompt_tokens": 1, "total_tokens": 1, "cost": cost},
    }
    assert ask(target, [["one"]], CONTEXT, dimensions=128) == (200, expected)


@pytest.mark.parametrize("dimensions", [128, 131, 1024])
def test_bits_are_signs_with_the_least_significant_first(target, client, dimensions):
    options = {"model": V1, "dimensions": dimensions, "encoding_format": "base64_binary"}
    rows = by_index(client(V1).embeddings.create(input=TEXTS, **options).data)
    for text, row in zip(TEXTS, rows, strict=True):
        codes = target.expected(V1, [text], dimensions)[0]
        np.testing.assert_array_equal(row.view(np.uint8), pack_bits(codes, "little"))
    first = rows[0].view(np.uint8)[0]
    assert [bool(first >> bit & 1) for bit in range(8)] == list(target.expected(V1, TEXTS[:1], 8)[0] >= 0)


def test_fewer_dimensions_are_the_first_of_more(client):
    create = client(V1).embeddings.create
    long, short = (by_index(create(input=TEXTS, model=V1, dimensions=n).data) for n in (1024, 200))
    np.testing.assert_array_equal(np.stack(long)[:, :200], np.stack(short))


def test_the_async_client_gets_the_same(target):
    async def gather():
        url = target.url(CONTEXT)
        async with AsyncPerplexity(api_key="test-key", base_url=url, max_retries=0) as client:
            create = client.contextualized_embeddings.create
            return await asyncio.gather(*(create(input=[[text]], model=CONTEXT, dimensions=128) for text in TEXTS * 4))

    answers = asyncio.run(gather())
    rows = np.concatenate([by_index(answer.data[0].data) for answer in answers])
    expected = np.concatenate([target.expected(CONTEXT, [text], 128) for text in TEXTS * 4])
    np.testing.assert_array_equal(rows, expected)


# --- it refuses what the protocol does not allow ---------------------------------------------------------


@pytest.mark.parametrize("given", [None, "Bearer other", "test-key", "Bearer test-key2", "Bearer tést-key"])
@pytest.mark.parametrize("path", sorted(set(PATHS.values())))
def test_without_the_key_nothing_is_answered(target, path, given):
    headers = {"Content-Type": "application/json"} | ({} if given is None else {"Authorization": given})
    status, _, content = post(target, {"input": "a", "model": V1}, path=path, headers=headers)
    assert (status, json.loads(content)["error"]["type"]) == (401, "authentication_error")


def test_the_sdk_knows_what_a_wrong_key_is(client):
    with pytest.raises(perplexity.AuthenticationError):
        client(V1, api_key="other").embeddings.create(input="a", model=V1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/embeddings"),
        ("PUT", "/v1/contextualizedembeddings"),
        ("POST", "/v1/embeddings/"),
        ("POST", "/embeddings"),
        ("DELETE", "/"),
    ],
)
def test_other_routes_are_not_found(target, method, path):
    status, _, content = post(target, {"input": "a", "model": V1}, path=path, method=method)
    assert status == json.loads(content)["error"]["code"]
    assert status in ((404, 405) if path in PATHS.values() else (404,))


def chunks(*counts):
    """Documents with these numbers of chunks."""
    return [["a"] * count for count in counts]


def words(*counts):
    """Texts with these numbers of words."""
    return ["a " * count for count in counts]


FITS = {
    "texts": (V1, ["a"] * 512, {}),
    "documents": (CONTEXT, chunks(*[1] * 512), {}),
    "chunks": (CONTEXT, chunks(15_999, 1), {}),
    "tokens of texts": (V1, words(*[30_000] * 4), {}),
    "tokens of documents": (CONTEXT, [words(20_000, 10_000)] * 4, {}),
    "tokens of a text": (V1_LARGE, words(32_000), {}),
    "tokens of a document": (CONTEXT_LARGE, [words(16_000, 16_000)], {}),
    "least dimensions": (V1, "a", {"dimensions": 128}),
    "most dimensions": (V1, "a", {"dimensions": 1024}),
    "most dimensions in context": (CONTEXT, [["a"]], {"dimensions": 1024}),
    "most dimensions of 4b": (V1_LARGE, "a", {"dimensions": 2560}),
    "most dimensions in context of 4b": (CONTEXT_LARGE, [["a"]], {"dimensions": 2560}),
}
EXCEEDS = {
    "texts": (V1, ["a"] * 513, {}, "at most 512"),
    "documents": (CONTEXT, chunks(*[1] * 513), {}, "at most 512"),
    "chunks": (CONTEXT, chunks(15_999, 2), {}, "at most 16000"),
    "least dimensions": (V1, "a", {"dimensions": 127}, "from 128 to 1024"),
    "most dimensions": (V1, "a", {"dimensions": 1025}, "from 128 to 1024"),
    "most dimensions in context": (CONTEXT, [["a"]], {"dimensions": 1025}, "from 128 to 1024"),
    "most dimensions of 4b": (V1_LARGE, "a", {"dimensions": 2561}, "from 128 to 2560"),
    "most dimensions in context of 4b": (CONTEXT_LARGE, [["a"]], {"dimensions": 2561}, "from 128 to 2560"),
}
TOO_LARGE = {
    "tokens of texts": (V1, words(*[30_000] * 4, 1), "has 120001 tokens, which exceeds the maximum of 120000 tokens"),
    "tokens of documents": (CONTEXT, [words(20_000, 10_000)] * 4 + [["a"]], "exceeds the maximum of 120000 tokens"),
    "tokens of a text": (V1_LARGE, words(1, 32_001), "Item 1 of the input has 32001 tokens"),
    "tokens of a document": (CONTEXT_LARGE, [words(16_000, 16_001)], "exceeds the maximum of 32000 tokens"),
}


def test_every_limit_is_tested_on_both_sides():
    assert set(FITS) == {*EXCEEDS, *TOO_LARGE}


@pytest.mark.parametrize("name", FITS)
def test_a_request_at_a_limit_is_answered(target, name):
    model, input_, fields = FITS[name]
    least = {} if "dimensions" in name else {"dimensions": 128, "encoding_format": "base64_binary"}
    status, answer = ask(target, input_, model, **least, **fields)
    assert (status, len(answer["data"])) == (200, 1 if isinstance(input_, str) else len(input_))


@pytest.mark.parametrize("name", EXCEEDS)
def test_a_request_beyond_a_limit_is_refused(target, name):
    model, input_, fields, message = EXCEEDS[name]
    status, answer = ask(target, input_, model, **fields)
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (400, 400, "invalid_request_error")
    assert message in answer["error"]["message"]
    assert "token" not in answer["error"]["message"]


@pytest.mark.parametrize("name", TOO_LARGE)
def test_too_many_tokens_are_refused_as_that(target, client, name):
    model, input_, message = TOO_LARGE[name]
    status, answer = ask(target, input_, model)
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (400, 400, "invalid_request_error")
    assert message in answer["error"]["message"]
    route = client(model).embeddings if PATHS[model] == "/v1/embeddings" else client(model).contextualized_embeddings
    with pytest.raises(perplexity.BadRequestError, match="exceeds the maximum of"):
        route.create(input=input_, model=model)


REFUSED = {
    "no input": (400, V1, {"input": []}),
    "no documents": (400, CONTEXT, {"input": []}),
    "an empty document": (400, CONTEXT, {"input": [["a"], []]}),
    "an empty text": (400, V1, {"input": ["a", ""]}),
    "an empty string": (400, V1, {"input": ""}),
    "an empty chunk": (400, CONTEXT, {"input": [["a", ""]]}),
    "a blank text": (400, V1, {"input": ["a", " \n\t\u2003"]}),
    "half a surrogate pair": (400, V1, {"input": "a\ud83e"}),
    "another model": (400, V1, {"input": "a", "model": "pplx-embed-v2"}),
    "a v1 model in context": (400, V1, {"input": [["a"]]}),
    "another encoding": (400, V1, {"input": "a", "encoding_format": "base32"}),
    "an unknown field": (422, V1, {"input": "a", "truncate": True}),
    "input missing": (422, V1, {}),
    "input of numbers": (422, V1, {"input": [1]}),
    "input null": (422, V1, {"input": None}),
    "texts within lists": (422, V1, {"input": [["a"]]}),
    "texts without lists": (422, CONTEXT, {"input": ["a"]}),
    "one string in context": (422, CONTEXT, {"input": "a"}),
    "a chunk of another type": (422, CONTEXT, {"input": [["a", None]]}),
    "model of another type": (422, V1, {"input": "a", "model": 1}),
    "dimensions as text": (422, V1, {"input": "a", "dimensions": "128"}),
    "dimensions as float": (422, V1, {"input": "a", "dimensions": 128.0}),
    "dimensions as bool": (422, V1, {"input": "a", "dimensions": True}),
    "encoding as a number": (422, V1, {"input": "a", "encoding_format": 1}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(target, name):
    expected, model, fields = REFUSED[name]
    path = "/v1/contextualizedembeddings" if name == "a v1 model in context" else None
    status, _, content = post(target, {"model": model, **fields}, model, path)
    error = json.loads(content)["error"]
    assert (status, error["code"], error["type"]) == (expected, expected, "invalid_request_error")
    assert error["message"]
    assert "param" in error
    assert not any(word in error["message"] for word in ("exceed", "large", "size"))


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, b""), (400, b'{"input": "a'), (400, b'{"input": "\xff"}'), (400, b"[" * 200_000), (422, b"[]"), (422, b"1")],
)
def test_malformed_bodies(target, status, body):
    assert post(target, body)[0] == status


def test_huge_numbers(target):
    body = b'{"input": "a", "model": "%s", "dimensions": %s}'
    assert post(target, body % (V1.encode(), b"9" * 100))[0] in (400, 422)
    assert post(target, body % (V1.encode(), b"9" * 100_000))[0] in (400, 422)
    assert ask(target, "a", dimensions=128)[0] == 200


def test_a_model_is_required(target):
    assert post(target, {"input": "a"})[0] == 422


def test_the_sdk_raises_what_is_refused(client):
    with pytest.raises(perplexity.UnprocessableEntityError):
        client(V1).embeddings.create(input="a", model=V1, extra_body={"truncate": True})


# --- connections -----------------------------------------------------------------------------------------


def test_a_connection_is_kept(target):
    body = json.dumps({"input": TEXTS, "model": V1})
    with connect(target, V1) as connection:
        connection.connect()
        first = connection.sock
        without_key = {"Content-Type": "application/json"}
        for path, headers in itertools.product(["/v1/embeddings", "/other"], [KEY, without_key] * 3):
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            assert len(response.read()) == int(response.headers["Content-Length"])
            assert connection.sock is first
