"""Perplexity's embeddings on 127.0.0.1: the protocol and its limits, taken at their word, and what can go wrong.

It answers ``client.embeddings.create`` and ``client.contextualized_embeddings.create`` of the SDK. ::

    with PerplexityServer() as server, Perplexity(api_key="test-key", base_url=server.url) as client:
        server.faults = Faults(seed=1, rate=0.2)
        ...
        server.faults = None
    assert not server.errors

Whatever a client may not rely on differs from what it might expect: the entries of an answer are never in the
order of their indices, and names that the protocol does not know are refused.
"""

import base64
import contextlib
import hashlib
import json
import math
import os
import random
import socket
import socketserver
import struct
import sys
import threading
import traceback
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

EMBEDDINGS = "/v1/embeddings"
CONTEXTUALIZED = "/v1/contextualizedembeddings"
# USD per million tokens.
PRICES = {
    EMBEDDINGS: {"pplx-embed-v1-0.6b": 0.004, "pplx-embed-v1-4b": 0.03},
    CONTEXTUALIZED: {"pplx-embed-context-v1-0.6b": 0.008, "pplx-embed-context-v1-4b": 0.05},
}

RETRIED = ("429", "429_bare", "500", "503", "reset", "stall")
WRONG_BODIES = (
    "malformed_json",
    "truncated_body",
    "missing_item",
    "duplicate_index",
    "index_out_of_range",
    "no_index",
    "wrong_length",
    "bad_base64",
    "empty_data",
    "html",
)
ALL_KINDS = (*RETRIED, *WRONG_BODIES)

_REFUSALS = {
    "429": (429, "Too many requests: injected"),
    "429_bare": (429, "Too many requests: injected"),
    "500": (500, "Internal server error: injected"),
    "503": (503, "Service unavailable: injected"),
}
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_HTML = b"<!doctype html><html><head><title>One moment, please</title></head><body></body></html>"
_LINGER_NOT = struct.pack("ii", 1, 0)


def hash_embed(model, document, dimensions):
    """Embed each chunk by a hash of the model's name and of the chunk, whatever stands beside it.

    Args:
        model: Name.
        document: Its chunks.
        dimensions: Of the vectors. With fewer, they are the first components of those with more.

    Returns:
        int8 array of shape ``(len(document), dimensions)``, from -127 to 127.
    """
    return _codes([json.dumps([model, chunk]) for chunk in document], dimensions)


def context_embed(model, document, dimensions):
    """Embed each chunk by a hash of the model's name, of the whole document, and of the chunk's place in it.

    Arguments and result are those of `hash_embed`.
    """
    context = hashlib.sha256(json.dumps([model, document]).encode()).hexdigest()
    return _codes([f"{context} {place}" for place in range(len(document))], dimensions)


def _codes(texts, dimensions):
    drawn = b"".join(hashlib.shake_256(text.encode()).digest(dimensions) for text in texts)
    codes = np.frombuffer(drawn, dtype=np.int8).reshape(len(texts), dimensions)
    return np.maximum(codes, -127)  # the models' own codes do not reach -128 either


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most.

    Attributes:
        documents: Documents a request, or texts where each is embedded on its own.
        chunks: Chunks a request, of all documents together.
        request_tokens: Tokens a request.
        document_tokens: Tokens a document or text.
        min_dimensions: The least that ``dimensions`` may be.
        max_dimensions_0_6b: The most that it may be with a model of 0.6b, and what it is when it is not given.
        max_dimensions_4b: The same with a model of 4b.
    """

    documents: int = 512
    chunks: int = 16_000
    request_tokens: int = 120_000
    document_tokens: int = 32_000
    min_dimensions: int = 128
    max_dimensions_0_6b: int = 1024
    max_dimensions_4b: int = 2560


@dataclass
class Request:
    """A request as the server saw it.

    Attributes:
        path: Where it went.
        model: As asked for, or "" if the request was refused before that was known.
        documents: The chunks of each document; a text is a document of one chunk. Empty as with `model`.
        tokens: In all documents; 0 while they are not counted.
        status: HTTP status of the answer; 0 as long as there is none, so for ever after a "reset" or "stall".
        fault: The kind of fault that it met, or None.
        headers: Values by name in lower case.
    """

    path: str
    model: str = ""
    documents: list[list[str]] = field(default_factory=list)
    tokens: int = 0
    status: int = 0
    fault: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def answered(self):
        """Whether it got what it asked for, as far as the server can tell."""
        return self.status == 200 and self.fault is None

    @property
    def cost(self):
        """USD, answered or not."""
        return self.tokens * PRICES[self.path][self.model] / 1e6 if self.tokens else 0.0


class Faults:
    """Which requests fail, and how. Only those fail that are valid.

    Args:
        seed: Of the choices, which follow the order in which requests arrive.
        rate: Share of the requests that fail, 0 to 1.
        kinds: Some of `ALL_KINDS`. Of `RETRIED`, which may be answered later, "429_bare" comes without
            Retry-After, "reset" closes the connection with RST and "stall" after `stall_seconds` with FIN, both
            without an answer. `WRONG_BODIES` have status 200: "malformed_json" ends too early and
            "truncated_body" before the end that Content-Length told, "missing_item" lacks one entry,
            "duplicate_index" has two with one index, of "index_out_of_range" one index is negative or too large,
            of "no_index" one is absent, with "wrong_length" one embedding is a byte short, "bad_base64" has a
            character in it that is none of base64, "empty_data" has no entries, "html" is a page. Entries are
            those of ``data`` or, where these are documents, in about half of the cases one document's chunks.
        most: Faults after which there are no more.
        retry_after: The header's value with a "429", in seconds.
        stall_seconds: How long a stall holds the connection.

    Attributes:
        counts: Faults injected so far, by kind.
    """

    def __init__(self, seed, rate, kinds=ALL_KINDS, *, most=None, retry_after="0.05", stall_seconds=1.0):
        if unknown := set(kinds) - set(ALL_KINDS):
            raise ValueError(f"unknown kinds of faults: {sorted(unknown)}")
        self.kinds = tuple(kinds)
        self.rate, self.most = rate, most
        self.retry_after, self.stall_seconds = retry_after, stall_seconds
        self.counts = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def total(self):
        return self.counts.total()

    def choose(self):
        """Return the fault of this request, or None."""
        with self._lock:
            if self.most is not None and self.total >= self.most:
                return None
            if self._random.random() >= self.rate:
                return None
            kind = self._random.choice(self.kinds)
            self.counts[kind] += 1
            return kind


class PerplexityServer:
    """The server; it listens from its construction until `close`.

    Args:
        key: The API key that requests must have.
        count_tokens: Number of tokens in a text. It may be called by several threads at once, as may `embed`.
        embed: ``(model, document, dimensions)`` → int8 array of shape ``(len(document), dimensions)``, as
            `hash_embed` or `context_embed`.
        limits: What is refused.
        shuffle_seed: Of the order of the entries in answers, and of which of them a fault is about.
        faults: None for none.
        delay: Seconds by which each answer of status 200 is late.
        too_large_status: HTTP status where there are too many tokens: 400 or 413.
        cost: Whether answers tell what they cost.

    All but `shuffle_seed` are attributes too, and may be replaced at any time.

    Attributes:
        url: Where it listens; the SDK's ``base_url``.
        requests: A `Request` for each in order of arrival, refused ones too.
        most_concurrent: The largest number of requests that were handled at once: from when all of a request was
            there until just before its answer. A request is handled also while its client no longer waits.
        errors: Tracebacks of the server's own failures; a test that is through should find none.
    """

    def __init__(
        self,
        *,
        key="test-key",
        count_tokens=lambda text: len(text.split()),
        embed=hash_embed,
        limits=Limits(),
        shuffle_seed=0,
        faults=None,
        delay=0.0,
        too_large_status=400,
        cost=True,
    ):
        if too_large_status not in (400, 413):
            raise ValueError(f"too_large_status must be 400 or 413, not {too_large_status}")
        self.key, self.count_tokens, self.embed = key, count_tokens, embed
        self.limits, self.faults, self.delay = limits, faults, delay
        self.too_large_status, self.cost = too_large_status, cost
        self.requests, self.errors = [], []
        self.most_concurrent = 0
        self.stopping = threading.Event()
        self._concurrent = 0
        self._random = random.Random(shuffle_seed)
        self._lock = threading.Lock()
        self._listener = _Listener(self)
        self.url = "http://{}:{}".format(*self._listener.server_address)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def total_tokens(self):
        """Tokens of the requests that were answered, those with a fault not among them."""
        return sum(request.tokens for request in list(self.requests) if request.answered)

    @property
    def total_cost(self):
        """USD for `total_tokens`."""
        return math.fsum(request.cost for request in list(self.requests) if request.answered)

    def close(self):
        """Hang up on everybody, also in the middle of a request."""
        self.stopping.set()
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
        self._listener.hang_up()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def reply(self, method, path, headers, body):
        """Carry a request out, and fail it if that is its fate.

        Args:
            method: Of HTTP.
            path: With the query string, if there is one.
            headers: Values by name in lower case.
            body: Bytes.

        Returns:
            The `_Reply` to send.
        """
        request = Request(path, headers=headers)
        with self._lock:
            self.requests.append(request)
            self._concurrent += 1
            self.most_concurrent = max(self.most_concurrent, self._concurrent)
        try:
            reply = self._reply(method, request, body)
        except _RefusalError as refusal:
            reply = _error(*refusal.args)
        except Exception:  # noqa: BLE001 - whatever it is, the client gets an answer
            error = traceback.format_exc()
            self.errors.append(error)
            reply = _error(500, error.splitlines()[-1])
        with self._lock:
            self._concurrent -= 1
        request.status = reply.status
        return reply

    def _reply(self, method, request, body):
        if method != "POST" or request.path not in PRICES:
            raise _RefusalError(404, f"Not found: {method} {request.path}")
        if request.headers.get("authorization") != f"Bearer {self.key}":
            raise _RefusalError(401, "Invalid API key")
        dimensions, encoding_format = self._read(request, body)
        faults = self.faults
        kind = request.fault = faults and faults.choose()
        if kind in _REFUSALS:
            return _error(*_REFUSALS[kind], {"Retry-After": faults.retry_after} if kind == "429" else {})
        if kind == "reset":
            return _Reply(reset=True)
        if kind == "stall":
            self.stopping.wait(faults.stall_seconds)
            return _Reply()
        answer = self._answer(request, dimensions, encoding_format)
        if self.delay:
            self.stopping.wait(self.delay)
        if kind == "html":
            return _Reply(200, _HTML, {"Content-Type": "text/html; charset=utf-8"})
        content = _to_json(answer)
        if kind == "malformed_json":
            content = content[: len(content) // 2]
        return _Reply(200, content, cut=len(content) // 2 if kind == "truncated_body" else None)

    def _read(self, request, body):
        """Refuse the request or fill its record in; return its dimensions and its encoding_format."""
        try:
            content = json.loads(body.decode())
        except (ValueError, RecursionError):  # a ValueError too for whole numbers of thousands of digits
            raise _RefusalError(400, "The body is not valid JSON") from None
        _require(422, type(content) is dict, "The body must be a JSON object")
        unknown = sorted(content.keys() - {"input", "model", "dimensions", "encoding_format"})
        _require(422, not unknown, f"Unknown fields: {unknown}")
        for name in ("input", "model"):
            _require(422, name in content, f"{name} is required")

        model, limits = content["model"], self.limits
        _require(422, type(model) is str, "model must be a string")
        _require(400, model in PRICES[request.path], f"Invalid model {model!r}")
        most = limits.max_dimensions_4b if model.endswith("-4b") else limits.max_dimensions_0_6b
        dimensions = content.get("dimensions", most)
        _require(422, type(dimensions) is int, "dimensions must be an integer")
        allowed = f"dimensions must be from {limits.min_dimensions} to {most} with {model}"
        _require(400, limits.min_dimensions <= dimensions <= most, allowed)
        encoding_format = content.get("encoding_format", "base64_int8")
        _require(422, type(encoding_format) is str, "encoding_format must be a string")
        _require(400, encoding_format in _ENCODINGS, f"encoding_format must be one of {list(_ENCODINGS)}")
        documents = _documents(request.path, content["input"])
        request.model, request.documents = model, documents

        _require(400, documents, "input must not be empty")
        _require(400, all(documents), "input must not have an empty document")
        chunks = [chunk for document in documents for chunk in document]
        _require(400, all(chunk.strip() for chunk in chunks), "input must not have an empty or blank string")
        _require(400, all(map(_is_unicode, chunks)), "input must be valid Unicode")
        _require(400, len(documents) <= limits.documents, f"input must have at most {limits.documents} items")
        _require(400, len(chunks) <= limits.chunks, f"input must have at most {limits.chunks} chunks in all")
        counts = [sum(map(self.count_tokens, document)) for document in documents]
        request.tokens = sum(counts)
        for what, count, most in (
            (f"Item {counts.index(max(counts))} of the input", max(counts), limits.document_tokens),
            ("The input", request.tokens, limits.request_tokens),
        ):
            message = f"{what} has {count} tokens, which exceeds the maximum of {most} tokens"
            _require(self.too_large_status, count <= most, message)
        return dimensions, encoding_format

    def _answer(self, request, dimensions, encoding_format):
        """Return the answer's JSON, with what the request's fault makes of it."""
        documents = []
        for chunks in request.documents:
            codes = np.asarray(self.embed(request.model, chunks, dimensions))
            if codes.dtype != np.int8 or codes.shape != (len(chunks), dimensions):
                raise ValueError(f"embed returned {codes.dtype} {codes.shape} for {len(chunks)} × {dimensions}")
            documents.append([_ENCODINGS[encoding_format](row) for row in codes])
        if request.path == CONTEXTUALIZED:
            data = [
                {"object": "list", "index": index, "data": _embeddings(vectors)}
                for index, vectors in enumerate(documents)
            ]
        else:
            data = _embeddings([vector for (vector,) in documents])

        with self._lock:
            chance = random.Random(self._random.getrandbits(64))
        _spoil(request.fault, data, chance)
        for entries in (data, *(entry["data"] for entry in data if "data" in entry)):
            _shuffle(entries, chance)
        usage = {"prompt_tokens": request.tokens, "total_tokens": request.tokens}
        if self.cost:
            usage["cost"] = {"input_cost": request.cost, "total_cost": request.cost, "currency": "USD"}
        return {"object": "list", "data": data, "model": request.model, "usage": usage}


@dataclass
class _Reply:
    """What goes back: an answer, after `cut` bytes of which the server hangs up, or (status 0) none at all."""

    status: int = 0
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False


class _RefusalError(Exception):
    """Has the HTTP status and the message as its arguments."""


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, owner):
        self.owner = owner
        self._connections = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks for a host name, perhaps of the network

    def process_request(self, request, client_address):
        args = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=args, daemon=True)
        self._connections[thread] = request
        thread.start()

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._connections[threading.current_thread()]

    def hang_up(self):
        for thread, request in list(self._connections.items()):
            with contextlib.suppress(OSError):  # it is closed already
                request.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # clients may go away
            self.owner.errors.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self):
        size = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (size.isascii() and size.isdecimal()):
            self.close_connection = True  # where the next request begins is unknown
            self._send(_error(411, "Content-Length is required", {"Connection": "close"}))
            return
        body = self.rfile.read(int(size))
        if len(body) < int(size):
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.owner.reply(self.command, self.path, headers, body)
        if reply.cut is not None or not reply.status:
            self.close_connection = True
        if reply.status:
            self._send(reply)
        elif reply.reset:
            self._reset()

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815 - the base class's names

    def _send(self, reply):
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content[: reply.cut])

    def _reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        os.close(self.connection.detach())  # the server's own way would begin with FIN

    def log_message(self, format, *args):  # noqa: A002 - the base class's name for it
        pass


# --- what requests say -----------------------------------------------------------------------------------


def _require(status, condition, message):
    if not condition:
        raise _RefusalError(status, message)


def _documents(path, content):
    """Return the chunks of each document in a request's ``input``, which is still unchecked."""
    if path == CONTEXTUALIZED:
        lists = type(content) is list and all(type(document) is list for document in content)
        fits = lists and all(type(chunk) is str for document in content for chunk in document)
        _require(422, fits, "input must be an array of arrays of strings")
        return content
    texts = [content] if type(content) is str else content
    fits = type(texts) is list and all(type(text) is str for text in texts)
    _require(422, fits, "input must be a string or an array of strings")
    return [[text] for text in texts]


def _is_unicode(text):
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        return False
    return True


# --- what answers say ------------------------------------------------------------------------------------


def _base64(codes):
    return base64.b64encode(codes.tobytes()).decode()


_ENCODINGS = {
    "base64_int8": _base64,
    "base64_binary": lambda codes: _base64(np.packbits(codes >= 0, bitorder="little")),
}


def _embeddings(vectors):
    return [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]


def _spoil(kind, data, chance):
    """Make an answer's ``data`` wrong, if the kind of fault is one of those that are about it."""
    if kind == "empty_data":
        data.clear()
        return
    if kind in ("wrong_length", "bad_base64"):
        entry = chance.choice(data)
        entry = chance.choice(entry["data"]) if "data" in entry else entry
        right = entry["embedding"]
        if kind == "bad_base64":
            entry["embedding"] = f"*{right[1:]}"
        else:
            entry["embedding"] = base64.b64encode(base64.b64decode(right)[:-1]).decode()
        return
    entries = data
    if "data" in data[0] and chance.random() < 0.5:
        entries = chance.choice(data)["data"]
    entry = chance.choice(entries)
    if kind == "missing_item":
        entries.remove(entry)
    elif kind == "duplicate_index" and len(entries) == 1:
        entries.append(dict(entry))
    elif kind == "duplicate_index":
        entry["index"] = chance.choice([other["index"] for other in entries if other is not entry])
    elif kind == "index_out_of_range":
        entry["index"] = chance.choice([-1, len(entries)])
    elif kind == "no_index":
        del entry["index"]


def _shuffle(entries, chance):
    """Bring the entries into any order but the one that they have."""
    order = list(range(len(entries)))
    while len(order) > 1 and order == sorted(order):
        chance.shuffle(order)
    entries[:] = [entries[place] for place in order]


def _error(status, message, headers=()):
    type_ = _TYPES.get(status, "invalid_request_error" if status < 500 else "internal_server_error")
    error = {"message": message, "type": type_, "code": status, "param": None}
    return _Reply(status, _to_json({"error": error}), dict(headers))


def _to_json(value):
    return json.dumps(value).encode()
