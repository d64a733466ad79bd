"""No secret in any attribute of any error, in any representation, in any log record or warning."""

import asyncio
import contextlib
import copy
import functools
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import httpx
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient

from pplx_vectorstore import ApiOptions, AsyncVectorStore, Document, VectorStore, load_encoder
from pplx_vectorstore.engines.server import make_client
from pplx_vectorstore.errors import ApiError, InvalidInputError, PplxVectorStoreError, ServerError
from pplx_vectorstore.redaction import redact, without_password
from pplx_vectorstore.shared_store import SharedStore

SECRET = "sesame-4711-that-nobody-may-see"


@pytest.fixture
def keeps_silent(find_secret, caplog, capfd):
    """Check an error, and all that was said meanwhile: ``keeps_silent(error)``."""
    caplog.set_level(logging.DEBUG)

    def check(error):
        assert find_secret(error, SECRET) == []
        assert find_secret(copy.copy(error), SECRET) == []
        assert SECRET.encode() not in pickle.dumps(error)
        assert SECRET not in caplog.text + "".join(capfd.readouterr())

    return check


# --- the search itself: it finds what is hidden --------------------------------------------------------


def with_note():
    error = ValueError("words")
    error.add_note(f"the key was {SECRET}")
    return error


def with_attribute():
    error = ValueError("words")
    error.request = httpx.Request("GET", "http://host", headers={"api-key": SECRET})
    return error


def chained(suppressed):
    try:
        try:
            raise with_attribute()
        except ValueError as error:
            if suppressed:
                raise KeyError("words") from None
            raise KeyError("words") from error
    except KeyError as error:
        return error


def of_encoding():
    try:
        f"{SECRET}é".encode("ascii")
    except UnicodeEncodeError as error:
        error.reason = "words"
        return error


HIDDEN = {
    "argument": lambda: ValueError("words", {"key": [SECRET]}),
    "bytes": lambda: ValueError(SECRET.encode()),
    "note": with_note,
    "request of an attribute": with_attribute,
    "cause": lambda: chained(suppressed=False),
    "context": lambda: chained(suppressed=True),
    "object of an encoding": of_encoding,
    "group": lambda: ExceptionGroup("words", [with_attribute()]),
    "partial": lambda: ValueError(functools.partial(print, key=SECRET)),
    "closure": lambda: ValueError((lambda key: lambda: key)(SECRET)),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_search_finds_what_is_hidden(find_secret, name):
    assert find_secret(HIDDEN[name](), SECRET)
    assert not find_secret(HIDDEN[name](), "another")


# --- a Qdrant server -----------------------------------------------------------------------------------

connected = pytest.mark.parametrize("engine", ["http", "async", "grpc", "async-grpc"], indirect=True)
over_rest = pytest.mark.parametrize("engine", ["http", "async"], indirect=True)
over_grpc = pytest.mark.parametrize("engine", ["grpc", "async-grpc"], indirect=True)


def operations(store):
    yield lambda: store.count()
    yield lambda: store.search("words")
    yield lambda: store.add([Document(id="d", chunks=["words"])])


def fail(store, kind=PplxVectorStoreError):
    """Call what fails; return the errors."""
    errors = []
    for operation in operations(store):
        with pytest.raises(kind) as caught:
            operation()
        errors.append(caught.value)
    return errors


QUOTING = json.dumps({"status": {"error": f"the key {SECRET} is wrong"}, "time": 0.0}).encode()
ANSWERS = {
    **{f"status {status}": (status, QUOTING) for status in (400, 401, 403, 404, 409, 413, 429, 500, 502, 503, 507)},
    "page": (200, f"<html>{SECRET}</html>".encode()),
    "refused by a page": (403, f"<html>{SECRET}</html>".encode()),
    "other JSON": (200, b'{"result": {"number": 1}, "status": "ok", "time": 0.0}'),
    "cut off": (200, b'{"result": {"cou'),
    "redirect": (302, b""),
}


@over_rest
@pytest.mark.parametrize("name", ANSWERS)
def test_of_an_answer(new_store, server, keeps_silent, name):
    store = new_store(api_key=SECRET, retries=0)
    server.answer = lambda *request: ANSWERS[name]
    for error in fail(store):
        keeps_silent(error)


@over_rest
@pytest.mark.parametrize("kind", ["reset_before", "truncated", "truncated_json", "429", "429_bare", "stall_before"])
def test_of_a_connection_that_breaks(new_store, server, qdrant_server_module, keeps_silent, kind):
    store = new_store(api_key=SECRET, retries=0, timeout=1)
    server.faults = qdrant_server_module.Faults(1, 1.0, [kind], stall_seconds=1.3)
    with pytest.raises(ServerError) as caught:
        store.count()
    keeps_silent(caught.value)


@over_rest
def test_of_several_tries(new_store, server, qdrant_server_module, keeps_silent):
    store = new_store(api_key=SECRET, retries=2)
    server.faults = qdrant_server_module.Faults(1, 1.0, ["429"])
    for error in fail(store):
        keeps_silent(error)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("prefer_grpc", [False, True])
def test_of_nobody_there(run_async, hash_encoder, keeps_silent, asynchronous, prefer_grpc):
    options = {"encoder": hash_encoder(64), "api_key": SECRET, "retries": 0, "prefer_grpc": prefer_grpc}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://me:{SECRET}@127.0.0.1:{free.getsockname()[1]}/?key={SECRET}"
        with pytest.raises(PplxVectorStoreError) as caught:
            run_async(AsyncVectorStore.connect(url, **options)) if asynchronous else VectorStore.connect(url, **options)
    keeps_silent(caught.value)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("prefer_grpc", [False, True])
@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\0"])
def test_of_a_client_whose_key_cannot_be_sent(grpc_server, run_async, keeps_silent, asynchronous, prefer_grpc, key):
    """It would be quoted, logged, or taken for a failure that may pass."""
    make, store = (AsyncQdrantClient, AsyncVectorStore) if asynchronous else (QdrantClient, VectorStore)
    with pytest.warns(UserWarning, match="insecure connection"):
        client = make(grpc_server.url, api_key=key, prefer_grpc=prefer_grpc, check_compatibility=False)
    with pytest.raises(InvalidInputError, match="api_key must be visible ASCII") as caught:
        store(client)
    run_async(client.close()) if asynchronous else client.close()
    assert grpc_server.rest.requests == grpc_server.calls == []
    keeps_silent(caught.value)


@over_grpc
@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name not in ("OK", "CANCELLED")])
def test_of_a_call_that_is_refused(new_store, grpc_server, qdrant_grpc_module, keeps_silent, code):
    store = new_store(api_key=SECRET, retries=0)
    words = f"the key {SECRET} is wrong"
    grpc_server.refusals.extend([qdrant_grpc_module.Refusal(code, words, trailers=(("echo", SECRET),))] * 9)
    for error in fail(store):
        keeps_silent(error)


@over_grpc
def test_of_no_answer_in_time_over_grpc(new_store, grpc_server, keeps_silent):
    store = new_store(api_key=SECRET, retries=0, timeout=1)
    answer = grpc_server.rest.answer
    done = threading.Event()
    grpc_server.rest.answer = lambda *request: done.wait(5) and answer(*request)
    with pytest.raises(ServerError) as caught:
        store.count()
    grpc_server.rest.answer = answer
    done.set()
    keeps_silent(caught.value)


@pytest.mark.parametrize("engine", ["async"], indirect=True)
def test_of_a_task_that_is_cancelled(new_store, server, qdrant_server_module, run_async, keeps_silent):
    store = new_store(api_key=SECRET)
    server.faults = qdrant_server_module.Faults(1, 1.0, ["stall_before"], stall_seconds=1.0)

    async def cancel():
        task = asyncio.ensure_future(store._store.count())
        while not server.faults.total:
            await asyncio.sleep(0.01)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            return error

    error = run_async(cancel())
    assert isinstance(error, asyncio.CancelledError)
    keeps_silent(error)


@connected
def test_of_what_a_store_looks_like(new_store, find_secret):
    store = new_store(api_key=SECRET)
    itself = store if isinstance(store, VectorStore) else store._store
    shown = [itself, vars(itself), itself._session, itself._client, vars(itself._session.calls)]
    assert find_secret([repr(one) for one in shown], SECRET) == []
    assert find_secret(itself._client.init_options, SECRET), "there it is, or it would not be sent"


def test_of_a_store_that_is_shared(server, hash_encoder, run_async, find_secret):
    shared = SharedStore(folder=None, url=server.url, client=None, api_key=SECRET, encoder=hash_encoder(64))
    assert run_async(_count(shared)) == 0
    assert find_secret([repr(shared), repr(vars(shared)), repr(vars(shared._reading))], SECRET) == []
    shared.close()
    with pytest.raises(InvalidInputError, match="api_key is an option of a store with url=") as caught:
        SharedStore(folder="folder", url=None, client=None, api_key=SECRET)
    assert find_secret(caught.value, SECRET) == []


async def _count(shared):
    store = await shared.reading()
    try:
        return await store.count()
    finally:
        await shared.adisconnect()


# --- addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:6333", "http://localhost:6333"),
        (f"http://user:p@{SECRET}@host:6333", "http://host:6333"),
        (f"http://user:{SECRET}/{SECRET}@host:6333/path", "http://host:6333/path"),
        (f"http://user:{SECRET}?{SECRET}#{SECRET}@host", "http://host"),
        (f"https://{SECRET}@host/", "https://host/"),
        (f"https://host/path?api_key={SECRET}", "https://host/path"),
        (f"https://host#{SECRET}", "https://host"),
        (f"https://user:{SECRET}\n@host", "https://host"),
        (f"//user:{SECRET}@host", "//host"),
        (f"user:{SECRET}@host:6333", "host:6333"),
        (f":{SECRET}@host/path", "host/path"),
        ("a folder@home/#1?", "a folder@home/#1?"),
        ("./a:b/c@d", "./a:b/c@d"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_url(url, shown):
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        f"user:{SECRET}@host:6333",
        f"htp://user:{SECRET}@host:6333",
        f" http://user:{SECRET}@host:6333",
        f"http:/user:{SECRET}@host:6333",
        f"http:///user:{SECRET}@host",
        f"http://user:{SECRET}@host:port",
        f"http://user:{SECRET}@host:99999",
        f"http://user:x/{SECRET}@host",
        f"http://[user:{SECRET}@host",
        f"http://user:{SECRET}@two words",
        f"http://user:{SECRET}\u2100@host",
        f"http://host:port?key={SECRET}",
        f"http://user:{SECRET}@host".encode(),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_of_a_url_that_is_none(find_secret, url, asynchronous):
    with pytest.raises(InvalidInputError) as caught:
        make_client(url, api_key=SECRET, prefer_grpc=False, timeout=1, asynchronous=asynchronous)
    assert find_secret(caught.value, SECRET) == []


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}é", SECRET.encode(), [SECRET]])
def test_of_a_key_that_cannot_be_sent(find_secret, key):
    with pytest.raises(InvalidInputError, match="api_key must be visible ASCII") as caught:
        make_client("http://host", api_key=key, prefer_grpc=False, timeout=1, asynchronous=False)
    assert find_secret(caught.value, SECRET) == []


def test_of_two_secrets_one_may_be_part_of_the_other():
    assert redact(f"{SECRET} and sesame", ["sesame", SECRET]) == "*** and ***"


def test_other_headers_of_a_client_are_secrets_too(server, hash_encoder, keeps_silent):
    client = QdrantClient(
        server.url, headers={"authorization": f"Bearer {SECRET}", "x": "1"}, check_compatibility=False
    )
    with contextlib.closing(client):
        store = VectorStore(client, encoder=hash_encoder(64), retries=0)
        quoting = json.dumps({"status": {"error": f"1 wrong: Bearer {SECRET}"}}).encode()
        server.answer = lambda *request: (403, quoting)
        with pytest.raises(ServerError, match=r"\(403 1 wrong: \*\*\*\)") as caught:
            store.count()
    keeps_silent(caught.value)


# --- the hosted service --------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(respond):
    """A server that answers every POST with what ``respond(key)`` writes: bytes of a whole HTTP response."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(respond(self.headers["Authorization"]))
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def quoting(status):
    """An answer that quotes the key which came."""

    def respond(key):
        body = json.dumps({"error": {"message": f"wrong: {key}", "type": key}}).encode()
        return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    return respond


REPLIES = {
    **{f"status {status}": quoting(status) for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503)},
    "page": lambda key: f"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{key}".encode()[:-1],
    "refused by a page": lambda key: f"HTTP/1.1 403 X\r\nConnection: close\r\n\r\n<html>{key}</html>".encode(),
    "nothing": lambda key: b"",
    "no HTTP": lambda key: key.encode(),
    "cut off": lambda key: b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"data": [',
    "broken JSON": lambda key: (
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"data": '
    ),
    "broken gzip": lambda key: b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab",
    "other JSON": lambda key: b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    "redirect": lambda key: b"HTTP/1.1 302 X\r\nLocation: ftp://host\r\nContent-Length: 0\r\n\r\n",
}


@pytest.fixture
def load(pplx_checkpoint, run_async):
    """Load an encoder of a service at an address: ``load(url, timeout=10)``."""
    loaded = []

    def load(url, *, api_key=SECRET, timeout=10.0):
        api = ApiOptions(base_url=url, tokenizer=pplx_checkpoint, timeout=timeout, max_retries=0)
        loaded.append(load_encoder("pplx-embed-context-v1-0.6b", backend="api", api_key=api_key, api=api))
        return loaded[-1]

    yield load
    for encoder in loaded:
        encoder.close()
        run_async(encoder.aclose())


def ask(encoder, run_async, asynchronous):
    return run_async(encoder.aencode_queries(["words"])) if asynchronous else encoder.encode_queries(["words"])


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", REPLIES)
def test_of_a_reply_of_the_service(load, run_async, keeps_silent, name, asynchronous):
    with answering(REPLIES[name]) as url:
        encoder = load(url)
        with pytest.raises(PplxVectorStoreError) as caught:
            ask(encoder, run_async, asynchronous)
    keeps_silent(caught.value)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_of_a_service_that_is_not_there_or_does_not_answer(load, run_async, keeps_silent, asynchronous):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ApiError, match="gave no answer") as caught:
            ask(load(url), run_async, asynchronous)
        keeps_silent(caught.value)
        silent.listen()
        with pytest.raises(ApiError, match="gave no answer") as caught:
            ask(load(url, timeout=0.2), run_async, asynchronous)
        keeps_silent(caught.value)


@pytest.mark.parametrize("key", [f"{SECRET} {SECRET}", f"{SECRET}é", f"{SECRET}\n{SECRET}", SECRET.encode(), [SECRET]])
def test_of_a_key_that_is_none(load, find_secret, key):
    with pytest.raises(InvalidInputError, match="key") as caught:
        load("http://127.0.0.1:1", api_key=key)
    assert find_secret(caught.value, SECRET) == []


def test_of_what_an_encoder_looks_like(load, find_secret):
    encoder = load("http://127.0.0.1:1")
    shown = [encoder, vars(encoder), encoder._blocking.client, vars(encoder._blocking), encoder.fingerprint]
    assert find_secret([repr(one) for one in shown], SECRET) == []
    assert SECRET.encode() not in pickle.dumps(encoder)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_of_a_key_where_none_is_needed(find_secret, backend):
    with pytest.raises(InvalidInputError, match="api_key is not an option") as caught:
        load_encoder("all-minilm-l6-v2", backend=backend, api_key=SECRET)
    assert find_secret(caught.value, SECRET) == []


ADDRESSES = [f"http://me:{SECRET}@host", f"http://host/?key={SECRET}", f"http://me:{SECRET}/@host", SECRET.encode()]


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_with_a_secret_is_refused_where_it_would_be_logged(find_secret, url):
    with pytest.raises(InvalidInputError, match=r"base_url must be an address .* without user, password") as caught:
        ApiOptions(base_url=url)
    assert find_secret(caught.value, SECRET) == []


def test_an_address_of_the_environment_too(load, find_secret, monkeypatch):
    monkeypatch.setenv("PERPLEXITY_BASE_URL", ADDRESSES[0])
    with pytest.raises(InvalidInputError, match="PERPLEXITY_BASE_URL must be an address") as caught:
        load(None)
    assert find_secret(caught.value, SECRET) == []
    load("http://127.0.0.1:1")  # where it is not asked


# --- the hub -------------------------------------------------------------------------------------------

FETCH = """
import http.server, os, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        tokens.append(self.headers["Authorization"])
        self.send_response(401)
        self.send_header("X-Error-Message", "words of the hub")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *arguments):
        pass

tokens = []
hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=hub.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_address[1]}"
secret = os.environ["HF_TOKEN"]
sys.path.insert(0, sys.argv[1])
from secrets_search import find_secret
from pplx_vectorstore.encoders.checkpoints import fetch_tokenizer
from pplx_vectorstore.errors import UnknownModelError
try:
    fetch_tokenizer("organisation/name")
except UnknownModelError as error:
    print(f"Bearer {secret}" in tokens, find_secret(error, secret))
"""


def test_of_the_token_of_the_hub(tests_folder, tmp_path):
    settings = {"HF_TOKEN": SECRET, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", FETCH, str(tests_folder)]
    ran = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    assert ran.stdout == "True []\n"
    assert SECRET not in ran.stderr
