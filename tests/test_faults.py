"""Real HTTP faults between a store and its server: nothing is lost, nothing doubled, nothing stale."""

import logging
import random
import socket
import threading
import time
import traceback
from collections import Counter

import pytest

from pplx_vectorstore import AsyncVectorStore, Chunk, Document, VectorStore
from pplx_vectorstore.engines import retrying
from pplx_vectorstore.errors import (
    InvalidInputError,
    ServerError,
    ServerUnavailableError,
    StoreError,
    StoreNotFoundError,
)
from pplx_vectorstore.operations import replace, write
from pplx_vectorstore.points import join_metadata

N_RUNS = 5  # on each client
N_FAULTS = 100  # in each run at least: 1,000 in all

QUICK = (
    "reset_before",
    "reset_after",
    "429",
    "429_bare",
    "500",
    "500_after",
    "503",
    "truncated",
    "truncated_json",
)
STALLS = ("stall_before", "stall_after")
LOST_ANSWERS = ("reset_after", "500_after", "truncated", "truncated_json")


@pytest.fixture(params=["http", "async"])
def engine(request):
    """VectorStore.connect and AsyncVectorStore.connect."""
    return request.param


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retrying, "_FIRST_WAIT", 0.0005)
    monkeypatch.setattr(retrying, "_LONGEST_WAIT", 0.004)


@pytest.fixture
def small_requests(monkeypatch):
    """Groups of few documents and upserts of few points, so that a few documents take many requests."""
    monkeypatch.setattr(write, "_GROUP_DOCUMENTS", 4)
    monkeypatch.setattr(replace, "_UPSERT_POINTS", 4)


class Dealt:
    """Faults of given kinds on a share of the requests: each once, in random order.

    Args:
        kinds: A kind may come several times.
        seed: Of the order and of the requests that are hit.
        rate: Share of the requests, 0 to 1.
        then: Kinds to go on with, round by round, when all have had their turn.
        but: Paths that are spared.
    """

    stall_seconds = 1.3  # the client's shortest timeout is 1 s
    retry_after = "0"

    def __init__(self, kinds, seed, rate, then=(), but=()):
        self._random = random.Random(seed)
        self._left = self._random.sample(kinds, len(kinds))
        self._rate, self._then, self._but = rate, then, but
        self._lock = threading.Lock()
        self.counts = Counter()

    def choose(self, path):
        with self._lock:
            self._left = self._left or self._random.sample(self._then, len(self._then))
            if not self._left or path in self._but or self._random.random() >= self._rate:
                return None
            self.counts[self._left[-1]] += 1
            return self._left.pop()


class Nth:
    """One fault: of the request of that number, from 0, or of the first to a path."""

    retry_after = "0"

    def __init__(self, kind, number=None, path=None):
        self.kind, self.number, self.path = kind, number, path
        self.injected = 0
        self._lock = threading.Lock()
        self._seen = 0

    def choose(self, path):
        with self._lock:
            hit = not self.injected and (path == self.path or self._seen == self.number)
            self._seen += 1
            self.injected += hit
            return self.kind if hit else None


def document(number, version):
    """A document in one of its versions; how they differ depends on its number."""
    n_chunks = (number * 7 + version * 3) % 6
    id_ = f"d{number}"
    match number % 5:
        case 1:  # only metadata change, of the document and of a chunk
            chunks = [Chunk(text=f"part {i} of {number}", metadata={"edition": version} if i else {}) for i in range(3)]
            return Document(id=id_, chunks=chunks, metadata={"version": version, "kind": "relabelled"})
        case 2:  # chunks with ids of their own, some of which go on to other places
            chunks = [Chunk(text=f"note {i} of {number}", id=f"n{number}-{i + version}") for i in range(n_chunks)]
            return Document(id=id_, chunks=chunks, metadata={"kind": "notes"})
        case 3:
            return Document(id=id_, chunks=["always", "the same", f"as {number}"], metadata={"kind": "unchanged"})
    # Grows, shrinks, or loses all its chunks; one takes several upserts.
    n_chunks *= 4 if number == 5 else 1
    return Document(id=id_, chunks=[f"chunk {i} of {number} in version {version}" for i in range(n_chunks)])


def use(store):
    """Write, search and delete in every way; return everything that the store told."""
    first, second, third = ([document(number, version) for number in range(16)] for version in (1, 2, 3))
    return [
        store.add(first[:13]),
        sorted(store.documents(), key=lambda stored: stored.id),
        store.count(),
        store.search("part 1 of 6", k=5),
        store.sync(second[2:], delete_missing=True),
        store.search("note 0 of 7", k=4, group_by_document=True),
        store.count({"kind": "notes"}),
        store.delete(document_ids=["d4", "d5", "d3", "other"]),
        store.add(third[:9]),
        store.search("chunk 2 of 9 in version 2", k=3, filter={"kind": {"$ne": "notes"}}, context=1),
        store.delete(ids=["n2-4", "n7-5", "other"]),
        store.delete(filter={"kind": "unchanged"}),
        sorted(store.documents(), key=lambda stored: stored.id),
        store.sync(third, delete_missing=True),
        store.sync(third),
        store.search("as 8", k=3, diversity=0.4),
        store.get(["n2-3", "n2-4", "n12-3"]),
        store.count(),
    ]


def read(client, collection):
    """Everything in a collection, past the store: point id → (payload, vector).

    Without the generation, which only a server has.
    """
    points, after = client.scroll(collection, limit=100_000, with_payload=True, with_vectors=True)
    assert after is None
    for point in points:
        point.payload.pop("generation", None)
    return {point.id: (point.payload, point.vector) for point in points}


def of_document(contents, document_id):
    return {id_: point for id_, point in contents.items() if point[0]["document_id"] == document_id}


def assert_holds(contents, documents):
    """The contents are these documents' chunks, each once."""
    chunks = {
        (document.id, i): (chunk.text, join_metadata(document, chunk))
        for document in documents
        for i, chunk in enumerate(document.chunks)
    }
    stored = [payload for payload, _ in contents.values()]
    assert len(stored) == len(chunks)
    assert {
        (payload["document_id"], payload["chunk_index"]): (payload["text"], payload["metadata"]) for payload in stored
    } == chunks


@pytest.fixture
def undisturbed(folder, hash_encoder):
    """The embedded engine: ``undisturbed(work)`` → what `work(store)` returned, and the contents after it."""

    def run(work):
        with VectorStore.open(folder / "undisturbed", encoder=hash_encoder()) as store:
            return work(store), read(store._client, "documents")

    return run


def test_every_kind_of_fault_is_injected(qdrant_server_module):
    assert {*QUICK, *STALLS} == set(qdrant_server_module.ALL_KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("run", range(N_RUNS))
@pytest.mark.usefixtures("small_requests")
def test_faults_leave_no_trace(new_store, server, undisturbed, run):
    told, contents = undisturbed(use)
    assert_holds(contents, [document(number, 3) for number in range(16)])
    stalls = STALLS * 3 if run == 0 else ()  # each waits for the client's timeout
    store = new_store(collection="documents", retries=60, timeout=1 if stalls else 60)
    server.faults = Dealt(QUICK * 8 + stalls, seed=run, rate=0.55, then=QUICK)
    assert use(store) == told
    counts = server.faults.counts
    assert counts.total() >= N_FAULTS
    assert min(counts[kind] for kind in QUICK) >= 8
    assert [counts[kind] for kind in stalls] == [3] * len(stalls)
    assert read(server.client, "documents") == contents


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["add", "sync"])
@pytest.mark.usefixtures("small_requests")
def test_a_call_that_failed_tells_what_is_written_and_is_completed_by_another(
    new_store, server, undisturbed, engine, operation
):
    """Without retries, each request of the call fails once, in another run of it."""
    old, new = (
        [document(number, version) for number in numbers] for version, numbers in ((1, range(9)), (2, range(2, 12)))
    )

    def change(store):
        return store.add(new) if operation == "add" else store.sync(new, delete_missing=True)

    def begin(store):
        return store.sync(old, delete_missing=True)

    _, expected_before = undisturbed(begin)
    changed, expected = undisturbed(change)
    assert_holds(expected, [*old[:2], *new] if operation == "add" else new)
    store = new_store(collection="documents", retries=0)
    begin(store)
    n_before = len(server.requests)
    assert change(store) == changed
    n_requests = len(server.requests) - n_before
    assert n_requests >= 20
    reported = set()
    for number in range(n_requests):
        begin(store)
        assert read(server.client, "documents") == expected_before
        server.faults = Nth(QUICK[(number + (engine == "async")) % len(QUICK)], number)
        with pytest.raises(ServerUnavailableError) as caught:
            change(store)
        assert server.faults.injected == 1
        report = caught.value.report
        handled = report.documents + (
            report.unchanged_documents + report.relabelled_documents if operation == "sync" else 0
        )
        found = read(server.client, "documents")
        for one in new[:handled]:
            assert of_document(found, one.id) == of_document(expected, one.id)
        # Whatever is there is of the old or the new version, each point once; unchanged documents are whole.
        for id_, point in found.items():
            assert point in (expected_before.get(id_), expected.get(id_))
        for one in (one for one in old if one in new):
            assert of_document(found, one.id) == of_document(expected, one.id)
        reported.add(handled)
        change(store)
        assert read(server.client, "documents") == expected
    # Only sync has something left to do when all is written: to delete.
    assert reported == ({0, 4, 8} if operation == "add" else {0, 4, 8, 10})


# --- opening -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOST_ANSWERS)
def test_a_collection_whose_creation_was_not_answered_is_taken_as_it_is(new_store, server, undisturbed, kind):
    server.faults = Nth(kind, path="/collections/documents")
    store = new_store(collection="documents", retries=1)
    assert server.faults.injected == 1
    assert server.requests.count(("PUT", "/collections/documents")) == 2
    told, contents = undisturbed(use)
    assert use(store) == told
    assert read(server.client, "documents") == contents


@pytest.mark.parametrize("kind", QUICK)
def test_the_first_request_of_all_is_tried_again(new_store, server, kind):
    server.faults = Nth(kind, path="/")
    assert new_store(retries=1).count() == 0
    assert server.faults.injected == 1


@pytest.mark.parametrize("seed", range(4))
def test_opening_under_faults(new_store, server, undisturbed, seed):
    server.faults = Dealt(QUICK * 2, seed, rate=0.7, but=("/",))
    store = new_store(collection="documents", retries=50)
    assert server.faults.counts.total() >= len(QUICK)
    server.faults = None

    def schema_of(client):
        info = client.get_collection("documents")
        fields = {field: index.data_type for field, index in info.payload_schema.items()}
        return fields, info.config.metadata, info.config.params.vectors, info.points_count

    expected, _ = undisturbed(lambda store: schema_of(store._client))
    expected[0]["generation"] = "integer"  # only a server has it
    assert schema_of(server.client) == expected
    assert store.count() == 0


# --- what is tried again -------------------------------------------------------------------------------

OPERATIONS = (
    lambda store: store.add([Document(id="d", chunks=["a", Chunk(text="b", id="b")])]),
    lambda store: store.sync([Document(id="d", chunks=["a"])]),
    lambda store: store.search("a"),
    lambda store: store.delete(document_ids=["d"]),
    lambda store: list(store.documents()),
    lambda store: store.get(["b"]),
)
REFUSALS = {
    400: (ServerError, "refused"),
    401: (ServerError, "api_key"),
    403: (ServerError, "api_key"),
    404: (StoreNotFoundError, "404"),
    409: (ServerError, "refused"),
    413: (ServerError, "refused"),
    422: (ServerError, "refused"),
    501: (ServerError, "refused"),
    507: (ServerError, "refused"),
}


@pytest.fixture
def answer_with(server, monkeypatch):
    """Make the server answer everything with a status: ``answer_with(403)``."""
    content = b'{"status": {"error": "words of the server"}, "time": 0.0}'
    return lambda status: monkeypatch.setattr(server, "answer", lambda method, path, body: (status, content))


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_final(new_store, server, answer_with, status):
    store = new_store(retries=3)
    answer_with(status)
    class_, words = REFUSALS[status]
    for operation in OPERATIONS:
        n_before = len(server.requests)
        with pytest.raises(class_, match=words) as caught:
            operation(store)
        assert len(server.requests) == n_before + 1
        assert type(caught.value) is class_
        assert "words of the server" in str(caught.value)
        assert server.url in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_as_often_as_was_said(new_store, server, answer_with, status):
    store = new_store(retries=3)
    answer_with(status)
    for operation in OPERATIONS:
        n_before = len(server.requests)
        with pytest.raises(ServerUnavailableError, match=rf"4 times: {status} words of the server\. "):
            operation(store)
        assert len(server.requests) == n_before + 4


def test_the_server_says_how_long_to_wait(new_store, server):
    store = new_store(retries=1)
    server.faults = Nth("429", number=0)
    server.faults.retry_after = "1"
    start = time.monotonic()
    assert store.count() == 0
    assert 1 <= time.monotonic() - start < 30
    assert server.faults.injected == 1


# --- no server at all ----------------------------------------------------------------------------------


@pytest.fixture
def connect(engine, hash_encoder, run_async):
    """``connect(url, **options)``, with either client."""

    def run(url, **options):
        if engine == "async":
            return run_async(AsyncVectorStore.connect(url, encoder=hash_encoder(), **options))
        return VectorStore.connect(url, encoder=hash_encoder(), **options)

    return run


@pytest.fixture
def nowhere():
    """A URL at which nothing listens, nor will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(("retries", "tries"), [(0, "asked once"), (2, "asked 3 times")])
def test_an_unreachable_server_is_named_with_the_way_out(connect, nowhere, retries, tries):
    with pytest.raises(ServerUnavailableError) as caught:
        connect(nowhere, retries=retries)
    message = str(caught.value)
    assert message.startswith(f"{nowhere} gave no answer to info, {tries}: ConnectError: ")
    assert "Is the address right and the server up?" in message


def test_a_server_that_comes_back_is_found_again(new_store, server):
    """Every connection is reset for a while, those that the client keeps open too."""
    store = new_store(retries=50)
    store.add([document(0, 1)])
    server.faults = Dealt(["reset_before"] * 20, seed=0, rate=1.0)
    assert store.count() == len(document(0, 1).chunks)
    assert server.faults.counts.total() == 20


# --- the key -------------------------------------------------------------------------------------------

KEY = "key-that-nobody-else-may-see"


def assert_is_silent(error):
    told = "".join(traceback.format_exception(error)) + repr(error) + str(error) + repr(error.__cause__)
    assert KEY not in told


@pytest.mark.parametrize("by_variable", [False, True])
def test_the_key_is_sent_and_never_told(
    new_store, connect, nowhere, qdrant_server_module, answer_with, monkeypatch, caplog, capfd, by_variable
):
    caplog.set_level(logging.DEBUG)
    keys = []
    handler = qdrant_server_module._Handler
    parse = handler.parse_request

    def keep_key(self):
        parsed = parse(self)
        keys.append(self.headers.get("api-key"))
        return parsed

    monkeypatch.setattr(handler, "parse_request", keep_key)
    options = {"retries": 1}
    if by_variable:
        monkeypatch.setenv("QDRANT_API_KEY", KEY)
    else:
        options["api_key"] = KEY
    with pytest.raises(ServerUnavailableError) as caught:
        connect(nowhere, **options)
    assert_is_silent(caught.value)
    store = new_store(**options)
    for status in (400, 401, 403, 404, 429, 500):
        answer_with(status)
        with pytest.raises(StoreError) as caught:
            store.count()
        assert_is_silent(caught.value)
    itself = store if isinstance(store, VectorStore) else store._store
    assert KEY not in repr(itself) + repr(vars(itself)) + repr(itself._session)
    assert set(keys) == {KEY}
    assert KEY not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY}\0"])
def test_a_key_that_no_header_can_hold_is_not_told_either(connect, server, key):
    """A key read of a file often ends with a line end; the client quotes it."""
    with pytest.raises(InvalidInputError, match="api_key") as caught:
        connect(server.url, api_key=key, retries=1)
    assert_is_silent(caught.value)
