"""Connecting to a server: what is sent to make a collection, and what is refused of one that exists.

Every test looks at the requests as they arrive at the server.
"""

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from pplx_vectorstore import AsyncVectorStore, CollectionConfig, Document, VectorStore
from pplx_vectorstore.collection import (
    GENERATION_FIELD,
    LOSS_FIELD,
    METADATA_KEY,
    PAYLOAD_INDEXES,
    VECTOR_NAME,
    text_index_params,
    vector_params,
)
from pplx_vectorstore.engines.server import describe, make_client
from pplx_vectorstore.errors import (
    InvalidInputError,
    SchemaMismatchError,
    ServerError,
    ServerUnavailableError,
    StoreNotFoundError,
    UnsupportedServerError,
)
from pplx_vectorstore.operations import access, ledger
from pplx_vectorstore.operations.server_indexing import GENERATION_KEY, INDEXED_KEY

TEXT_INDEX = {"type": "text", "scoring": True, "enable_hnsw": False}
DIMENSION = 64


@dataclasses.dataclass
class Request:
    method: str
    path: str
    headers: dict
    body: dict | None


STEMMED_BY_NOBODY = {"stemmer": {"type": "none"}, "stopwords": {"custom": []}}
SERVER_INDEXES = {**PAYLOAD_INDEXES, GENERATION_FIELD: "integer"}


@pytest.fixture
def sent(server):
    """The requests, in order of arrival."""
    requests = []
    here = threading.local()
    answer = server.answer

    class Handler(server._listener.RequestHandlerClass):
        def _serve(self):
            here.headers = dict(self.headers)
            super()._serve()

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - the base class's names

    def record(method, path, body):
        requests.append(Request(method, path, here.headers, json.loads(body) if body else None))
        return answer(method, path, body)

    server.answer = record
    server._listener.RequestHandlerClass = Handler
    return requests


@pytest.fixture
def change_answers(server):
    """Answer some requests otherwise: ``change_answers(method, path, lambda answer: …)``, on status 200."""

    def install(method, path, change):
        answer = server.answer

        def changed(*request):
            status, content = answer(*request)
            if request[:2] == (method, path) and status == 200:
                content = json.dumps(change(json.loads(content))).encode()
            return status, content

        server.answer = changed

    return install


@pytest.fixture(params=["http", "async"])
def engine(request):
    """Of `new_store`: ``VectorStore.connect`` or ``AsyncVectorStore.connect`` to the server."""
    return request.param


@pytest.fixture
def connect(engine, run_async, blocking, hash_encoder):
    """Connect to any address: ``connect(url, **options)``, without another try."""
    opened = []

    def connect(url, **options):
        options = {"encoder": hash_encoder(DIMENSION), "retries": 0, **options}
        if engine == "async":
            opened.append(blocking(run_async(AsyncVectorStore.connect(url, **options)), run_async))
        else:
            opened.append(VectorStore.connect(url, **options))
        return opened[-1]

    yield connect
    for store in opened:
        store.close()


def created(sent):
    """The body of the request that made the collection."""
    (body,) = [one.body for one in sent if one.method == "PUT" and one.path.count("/") == 2]
    return body


def indexed(sent):
    """The indexes that were asked for, by field."""
    return {one.body["field_name"]: one.body["field_schema"] for one in sent if one.path.endswith("/index")}


# --- address, key and time ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "variable", "header"),
    [
        ("from the argument", None, "from the argument"),
        (None, "from the environment", "from the environment"),
        ("from the argument", "from the environment", "from the argument"),
        (None, None, None),
        ("", "", None),
    ],
)
def test_the_api_key_goes_with_every_request(new_store, sent, monkeypatch, argument, variable, header):
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("QDRANT_API_KEY", variable)
    store = new_store(DIMENSION, api_key=argument)
    store.add([Document(id="d", chunks=["text"])])
    assert store.search("text")
    assert len(sent) > 8
    assert {request.headers.get("api-key") for request in sent} == {header}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_key_that_is_not_accepted_is_told(connect, server, status):
    refusal = {"status": {"error": "Must provide an API key or an Authorization bearer token"}, "time": 0.0}
    server.answer = lambda *request: (status, json.dumps(refusal).encode())
    with pytest.raises(ServerError, match=rf"{status} Must provide an API key.*give an api_key, or set QDRANT_API_KEY"):
        connect(server.url, api_key="wrong")
    assert len(server.requests) == 1, "it is not asked again"


def test_no_answer_in_time_is_a_failure(connect, server, qdrant_server_module):
    server.faults = qdrant_server_module.Faults(
        seed=1, rate=1, kinds=["stall_before"], stall_seconds=20, everything=True
    )
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError, match="gave no answer to info, asked once: ReadTimeout"):
        connect(server.url, timeout=0.5)
    assert 0.9 < time.monotonic() - start < 4.5, "rounded up to one second; the client's default is five"
    assert server.faults.total == 1


@pytest.mark.parametrize(
    "timeout",
    [
        *(0, -1, -0.5, True, "5", [5]),
        float("inf"),
        float("nan"),
    ],
)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_timeout_that_is_none_is_refused(connect, timeout):
    with pytest.raises(InvalidInputError, match="timeout must be seconds above 0 or None, not "):
        connect("http://127.0.0.1:1", timeout=timeout)


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_without_a_timeout_the_clients_own_holds(new_store):
    assert new_store(DIMENSION, timeout=None).count() == 0


@pytest.mark.parametrize(
    "url",
    [None, 5, b"http://host", "", "localhost", "localhost:6333", "ftp://host", "/var/qdrant", "http://", "http:///x"],
)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_what_is_no_url_is_refused(connect, url):
    with pytest.raises(InvalidInputError, match=r"url must begin with http:// or https://, such as .*, not "):
        connect(url)


@pytest.mark.parametrize(
    "url", ["http://host:port", "http://host:99999", "http://host:0", "http://two words", "https://[::1"]
)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_url_that_cannot_be_read_is_refused(connect, url):
    with pytest.raises(InvalidInputError, match="is not usable: "):
        connect(url)


def test_nobody_at_that_address_is_told(connect):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerUnavailableError, match=f"{url} gave no answer to info, asked once: ConnectError"):
            connect(url)


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_server_may_be_below_a_path(connect, server, sent):
    answer = server.answer
    server.answer = lambda method, path, body: answer(method, path.removeprefix("/vectors/qdrant") or "/", body)
    connect(f"{server.url}/vectors/qdrant", collection="c")
    assert server.client.collection_exists("c")
    assert {path.startswith("/vectors/qdrant/") for _, path in server.requests} == {True}


class Proxy(BaseHTTPRequestHandler):
    """Hands on what is below a path to a server that knows nothing of it, as one proxy for several programs does."""

    protocol_version = "HTTP/1.1"

    def _forward(self):
        self.server.paths.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        below = self.path.removeprefix(self.server.prefix)
        if below == self.path or not below.startswith("/"):
            status, content = 404, b"no such program"
        else:
            behind = http.client.HTTPConnection(urlsplit(self.server.behind).netloc)
            with contextlib.closing(behind):
                behind.request(self.command, below, body, {"Content-Type": "application/json"})
                answer = behind.getresponse()
                status, content = answer.status, answer.read()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815 - the base class's names

    def log_message(self, format, *args):  # noqa: A002 - the base class's name for it
        pass


@pytest.fixture
def proxy(server):
    """A proxy on loopback, which has the server at ``{proxy.url}/vectors/qdrant``."""
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    listening.behind, listening.prefix, listening.paths = server.url, "/vectors/qdrant", []
    listening.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
    thread.start()
    yield listening
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.mark.parametrize("end", ["", "/"])
def test_a_server_may_be_behind_a_proxy(connect, proxy, server, end):
    store = connect(f"{proxy.url}/vectors/qdrant{end}", collection="c")
    assert store.add([Document(id="d", chunks=["text"])]).chunks == 1
    assert store.search("text")[0].text == "text"
    assert server.client.count("c").count == 1
    assert len(proxy.paths) > 8
    assert {path.startswith("/vectors/qdrant/") for path in proxy.paths} == {True}


def test_a_path_that_leads_nowhere_is_told(connect, proxy):
    with pytest.raises(StoreNotFoundError, match=f"{proxy.url}/elsewhere"):
        connect(f"{proxy.url}/elsewhere")


@pytest.mark.parametrize(
    ("url", "sent_to"),
    [
        ("http://localhost", "http://localhost:6333"),
        ("http://localhost/", "http://localhost:6333"),
        ("https://xyz.cloud.qdrant.io", "https://xyz.cloud.qdrant.io:6333"),
        ("https://Host", "https://host:6333"),
        ("https://host:443", "https://host:443"),
        ("https://host/qdrant", "https://host:443/qdrant"),
        ("http://host/below/a/path/", "http://host:80/below/a/path"),
        ("https://host:6333/qdrant/", "https://host:6333/qdrant"),
        ("http://[::1]", "http://[::1]:6333"),
        ("http://[::1]:7000/q", "http://[::1]:7000/q"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_where_requests_go_is_what_is_shown(run_async, url, sent_to, asynchronous):
    async def make():
        return make_client(url, api_key=None, prefer_grpc=False, timeout=1, asynchronous=asynchronous)

    client = run_async(make())
    assert client._client.rest_uri.rstrip("/") == describe(client) == sent_to
    run_async(client.close()) if asynchronous else client.close()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"url": "http://host:7000/"}, "http://host:7000"),
        ({"url": "http://host"}, "http://host:6333"),
        ({"url": "https://host", "port": None}, "https://host"),
        ({"url": "https://host", "prefix": "/below/"}, "https://host:6333/below"),
        ({"host": "Host"}, "http://host:6333"),
        ({"host": "host", "port": 7000, "https": True, "prefix": "below"}, "https://host:7000/below"),
        ({"host": "host", "https": True, "api_key": "key"}, "https://host:6333"),
        ({"location": "http://host:7000"}, "http://host:7000"),
        ({}, "http://localhost:6333"),
    ],
)
def test_a_client_of_ones_own_is_shown_by_where_its_requests_go(options, shown):
    client = QdrantClient(**options, check_compatibility=False)
    assert describe(client) == shown
    assert client._client.rest_uri.lower().rstrip("/") == shown
    client.close()


def test_stores_of_one_server_take_turns_however_its_address_is_written(server, hash_encoder):
    port = int(server.url.rpartition(":")[2])
    clients = [
        QdrantClient(url=server.url, check_compatibility=False),
        QdrantClient(url=f"{server.url}/", check_compatibility=False),
        QdrantClient(host="127.0.0.1", port=port, check_compatibility=False),
    ]
    stores = [VectorStore(client, "c", encoder=hash_encoder(DIMENSION)) for client in clients]
    assert len({id(store._session.points._ledger) for store in stores}) == 1
    for client in clients:
        client.close()


# --- which version -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.15.5", "1.9.7", "0.11.0", "1.15.0-dev"])
def test_a_server_too_old_is_refused(connect, server, sent, version):
    server.version = version
    with pytest.raises(
        UnsupportedServerError, match=rf"{server.url} runs Qdrant {version}; version 1\.16 or newer is needed"
    ):
        connect(server.url)
    assert [(request.method, request.path) for request in sent] == [("GET", "/")]


@pytest.mark.parametrize("version", ["1.16.0", "1.18.3"])
@pytest.mark.parametrize(
    ("codes_memory", "on_disk"), [(None, True), ("cold", True), ("cached", True), ("pinned", False)]
)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_older_servers_get_flags_for_memory(new_store, server, sent, version, codes_memory, on_disk):
    server.version = version
    given = {} if codes_memory is None else {"codes_memory": codes_memory, "bits_memory": codes_memory}
    new_store(DIMENSION, config=CollectionConfig(**given))
    codes = created(sent)["vectors"][VECTOR_NAME]
    assert codes == {
        "size": DIMENSION,
        "distance": "Euclid",
        "datatype": "uint8",
        "on_disk": on_disk,
        "hnsw_config": {"ef_construct": 200},
        "quantization_config": {
            "binary": {"always_ram": codes_memory in (None, "pinned"), "query_encoding": "scalar8bits"}
        },
    }
    assert indexed(sent).keys() == SERVER_INDEXES.keys()


@pytest.mark.parametrize("version", ["1.19.0", "1.20.1", "1.20.0-dev", "2.0.0", "master"])
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_newer_servers_get_placements(new_store, server, sent, version):
    server.version = version
    new_store(DIMENSION)
    assert created(sent)["vectors"][VECTOR_NAME] == {
        "size": DIMENSION,
        "distance": "Euclid",
        "datatype": "uint8",
        "memory": "cold",
        "hnsw_config": {"ef_construct": 200},
        "quantization_config": {"binary": {"memory": "pinned", "query_encoding": "scalar8bits"}},
    }


@pytest.mark.parametrize(("version", "plain"), [("1.16.0", {"language": "none"}), ("1.19.3", STEMMED_BY_NOBODY)])
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_an_older_server_makes_vectors_of_words(new_store, server, sent, version, plain):
    server.version = version
    store = new_store(DIMENSION)
    assert not {"text", "words"} & indexed(sent).keys()
    assert created(sent)["sparse_vectors"] == {"bm25": {"modifier": "idf"}}
    assert created(sent)["metadata"][METADATA_KEY]["bm25_vector"] is True
    sent.clear()
    store.add([Document(id="d", chunks=["Some words", "é"])])
    (body,) = [one.body for one in sent if one.path.endswith("/points")]
    assert [point["vector"]["bm25"] for point in body["points"]] == [
        {"text": text, "model": "qdrant/bm25", "options": {"tokenizer": "word", "avg_len": 160.0, **plain}}
        for text in ("Some words", "é")
    ]
    sent.clear()
    assert store.search("words", hybrid=True, with_codes=True)[0].text == "Some words"
    (body,) = [one.body for one in sent if one.path.endswith("/query/batch")]
    (search,) = body["searches"]
    assert search["with_vector"] == ["codes"]
    assert search["prefetch"][1]["query"]["nearest"]["text"] == "words"


@pytest.mark.parametrize("version", ["1.20.0", "1.20.0-dev", "master"])
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_hybrid_search_on_a_newer_server(new_store, server, sent, version):
    server.version = version
    store = new_store(DIMENSION)
    assert indexed(sent)["text"] == TEXT_INDEX
    store.add([Document(id="d", chunks=["some words"])])
    assert store.search("words", hybrid=True)[0].text == "some words"


# --- how a collection is made ------------------------------------------------------------------------


def test_a_collection_is_made_as_configured(new_store, sent):
    config = CollectionConfig(
        shard_number=3,
        replication_factor=2,
        write_consistency_factor=1,
        codes_memory="cached",
        bits_memory="cold",
        query_encoding="binary",
        text_index=False,
    )
    store = new_store(
        DIMENSION, collection="c", config=config, index_fields={"lang": "keyword", "author": {"e.mail": "uuid"}}
    )
    body = created(sent)
    assert {name: body[name] for name in body if name not in ("vectors", "metadata")} == {
        "shard_number": 3,
        "replication_factor": 2,
        "write_consistency_factor": 1,
        "on_disk_payload": True,
    }
    assert body["vectors"][VECTOR_NAME] == {
        "size": DIMENSION,
        "distance": "Euclid",
        "datatype": "uint8",
        "memory": "cached",
        "hnsw_config": {"ef_construct": 200},
        "quantization_config": {"binary": {"memory": "cold", "query_encoding": "binary"}},
    }
    recorded = body["metadata"][METADATA_KEY]
    assert recorded == {
        "schema": 2,
        "library": recorded["library"],
        "tenants": False,
        "text_index": False,
        "words_index": False,
        **dataclasses.asdict(store.fingerprint),
    }
    own = {field: {"type": kind, "enable_hnsw": False} for field, kind in PAYLOAD_INDEXES.items()}
    own["generation"] = {"type": "integer", "lookup": False, "range": True, "enable_hnsw": False, "memory": "cold"}
    assert indexed(sent) == {**own, "metadata.lang": "keyword", 'metadata.author."e.mail"': "uuid"}


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_what_is_not_configured_is_left_to_the_server(new_store, sent):
    new_store(DIMENSION)
    assert created(sent).keys() == {"vectors", "metadata", "on_disk_payload"}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("shard_number", [0, -1, 1.5, "2", True]),
        ("replication_factor", [0, "1"]),
        ("write_consistency_factor", [0, 2.0]),
        ("codes_memory", ["disk", None, True, "Pinned"]),
        ("bits_memory", ["ram", None, 1]),
        ("query_encoding", ["scalar4bits", None, 8]),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(field, values):
    for value in values:
        with pytest.raises(InvalidInputError, match=f"{field} must be .*not {value!r}"):
            CollectionConfig(**{field: value})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["lang"], "index_fields must be a dict such as .*not list"),
        ({"lang": "string"}, "index of metadata field 'lang' must be one of keyword, .*not 'string'"),
        ({"author": {"born": int}}, "index of metadata field 'born' must be one of"),
        ({'quo"te': "keyword"}, "a metadata key must be"),
        ({"": "keyword"}, "a metadata key must be"),
        ({5: "keyword"}, "a metadata key must be"),
    ],
)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_index_fields_that_cannot_be_are_refused_before_anything_is_made(connect, server, sent, fields, said):
    with pytest.raises(InvalidInputError, match=said):
        connect(server.url, index_fields=fields)
    assert {request.method for request in sent} == {"GET"}


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_an_index_may_have_parameters(new_store, sent):
    words = models.TextIndexParams(type=models.TextIndexType.TEXT, lowercase=False)
    new_store(DIMENSION, index_fields={"title": words})
    assert indexed(sent)["metadata.title"] == {"type": "text", "lowercase": False}


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_an_existing_collection_keeps_its_layout_and_gets_what_is_new(new_store, sent):
    new_store(DIMENSION, collection="c", config=CollectionConfig(text_index=False))
    sent.clear()
    new_store(DIMENSION, collection="c", config=CollectionConfig(text_index=False, codes_memory="pinned"))
    new_store(DIMENSION, collection="c")
    assert {request.method for request in sent} == {"GET"}
    new_store(DIMENSION, collection="c", config=CollectionConfig(), index_fields={"lang": "keyword"})
    assert indexed(sent) == {"text": TEXT_INDEX, "words": TEXT_INDEX, "metadata.lang": "keyword"}
    assert {request.method for request in sent if not request.path.endswith("/index")} == {"GET"}


def test_without_create_there_must_be_one(connect, server, sent):
    with pytest.raises(StoreNotFoundError, match="there is no collection 'c'; index documents first"):
        connect(server.url, collection="c", create=False)
    assert {request.method for request in sent} == {"GET"}
    connect(server.url, collection="c")
    connect(server.url, collection="c", create=False)


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_collection_without_the_index_of_words_goes_on_as_it_is(new_store, server, sent, hash_encoder):
    """Its search by words finds what the index of the text sees; a copy has both indexes."""
    metadata = hash_encoder(DIMENSION).fingerprint.to_metadata()
    del metadata[METADATA_KEY]["words_index"]
    server.client.create_collection("old", vectors_config=vector_params(DIMENSION), metadata=metadata)
    for field, kind in {**SERVER_INDEXES, "text": text_index_params()}.items():
        server.client.create_payload_index("old", field, kind)
    old = new_store(DIMENSION, collection="old")
    assert {request.method for request in sent} == {"GET"}
    old.add([Document(id="zh", chunks=["机器学习 part 80"]), Document(id="en", chunks=["part 81"])])
    words = {"hybrid": True, "lexical_weight": 1}
    assert [hit.document_id for hit in old.search("80", **words)] == ["zh"]
    assert old.search("学习", **words) == []
    assert old.search("学习", hybrid=True)
    new = new_store(DIMENSION, collection="new")
    old.copy_to(new)
    for store in (new, new_store(DIMENSION, collection="old", config=CollectionConfig(text_index=True))):
        assert [hit.document_id for hit in store.search("学习", **words)] == ["zh"]
        assert [hit.document_id for hit in store.search("80", **words)] == ["zh"]
    assert server.client.get_collection("old").payload_schema.keys() == {"text", "words", *SERVER_INDEXES}


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_what_a_killed_process_left_out_is_completed(new_store, server, sent, hash_encoder):
    metadata = hash_encoder(DIMENSION).fingerprint.to_metadata()
    server.client.create_collection("c", vectors_config=vector_params(DIMENSION), metadata=metadata)
    server.client.create_payload_index("c", LOSS_FIELD, "float")
    new_store(DIMENSION, collection="c")
    assert indexed(sent).keys() == {"text", "words", *SERVER_INDEXES} - {LOSS_FIELD}
    assert server.client.get_collection("c").payload_schema.keys() == {"text", "words", *SERVER_INDEXES}


# --- what exists is verified -------------------------------------------------------------------------


def changed_params(**changes):
    (params,) = vector_params(DIMENSION).values()
    return {VECTOR_NAME: params.model_copy(update=changes)}


def changed_metadata(encoder, **changes):
    metadata = encoder.fingerprint.to_metadata()
    metadata[METADATA_KEY] |= changes
    return metadata


LAYOUTS = {
    "distance": (
        changed_params(distance=models.Distance.COSINE),
        ["distance of vector 'codes' is Cosine, and Euclid is needed"],
    ),
    "datatype": (
        changed_params(datatype=models.Datatype.FLOAT32),
        ["datatype of vector 'codes' is float32, and uint8 is needed"],
    ),
    "no datatype": (changed_params(datatype=None), ["datatype of vector 'codes' is None, and uint8 is needed"]),
    "size": (changed_params(size=32), ["size of vector 'codes' is 32, and 64 is needed"]),
    "no quantization": (changed_params(quantization_config=None), ["vector 'codes' has no binary quantization"]),
    "everything": (
        changed_params(
            distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16, size=65, quantization_config=None
        ),
        ["size .* is 65, .*", "distance .* is Dot, .*", "datatype .* is float16, .*", ".* no binary quantization"],
    ),
    "another name": (
        {"dense": vector_params(DIMENSION)[VECTOR_NAME]},
        ["its vectors are 'dense', and 'codes' is needed"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_another_layout_is_refused(connect, server, sent, hash_encoder, layout):
    vectors, differences = LAYOUTS[layout]
    metadata = changed_metadata(hash_encoder(DIMENSION))
    server.client.create_collection("c", vectors_config=vectors, metadata=metadata)
    said = "collection 'c' was altered: " + "; ".join(differences) + ". Index into another collection"
    with pytest.raises(SchemaMismatchError, match=said):
        connect(server.url, collection="c")
    assert_untouched(server, sent)


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_an_unnamed_vector_is_refused(connect, server, sent, change_answers, hash_encoder):
    metadata = changed_metadata(hash_encoder(DIMENSION))
    server.client.create_collection("c", vectors_config=vector_params(DIMENSION), metadata=metadata)

    def without_name(answer):
        vectors = answer["result"]["config"]["params"]
        vectors["vectors"] = vectors["vectors"][VECTOR_NAME]
        return answer

    change_answers("GET", "/collections/c", without_name)
    with pytest.raises(SchemaMismatchError, match="its vectors are an unnamed one, and 'codes' is needed"):
        connect(server.url, collection="c")
    assert_untouched(server, sent)


OF_ANOTHER = {
    "model": ({"model": "other"}, ["model 'other' in the collection, 'hash-encoder' given"]),
    "revision": ({"revision": "2"}, ["revision '2' in the collection, '1' given"]),
    "dimension": ({"dimension": 32}, ["dimension 32 in the collection, 64 given"]),
    "several": (
        {"quantizer": "tanh", "window_tokens": 4096, "min_context": 0, "context_weight": 0.5},
        ["quantizer 'tanh'", "window_tokens 4096", "min_context 0", "context_weight 0.5"],
    ),
    "schema": ({"schema": 1, "library": "0.9"}, [r"has schema version 1 \(written by pplx-vectorstore 0\.9\)"]),
}


@pytest.mark.parametrize("name", OF_ANOTHER)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_the_collection_of_another_model_is_refused(connect, server, sent, hash_encoder, name):
    changes, said = OF_ANOTHER[name]
    metadata = changed_metadata(hash_encoder(DIMENSION), **changes)
    server.client.create_collection("c", vectors_config=vector_params(DIMENSION), metadata=metadata)
    with pytest.raises(SchemaMismatchError, match="; ".join(f"{one}.*" for one in said)):
        connect(server.url, collection="c")
    assert_untouched(server, sent)


@pytest.mark.parametrize("metadata", [{}, {"owner": "somebody"}, {METADATA_KEY: "text"}], ids=str)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_somebody_elses_collection_is_refused(connect, server, sent, metadata):
    server.client.create_collection("c", vectors_config=vector_params(DIMENSION), metadata=metadata)
    with pytest.raises(SchemaMismatchError, match="collection 'c' was not written by pplx-vectorstore; use another"):
        connect(server.url, collection="c")
    assert_untouched(server, sent)


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_an_index_of_another_type_is_refused(connect, server, sent, hash_encoder):
    metadata = changed_metadata(hash_encoder(DIMENSION))
    server.client.create_collection("c", vectors_config=vector_params(DIMENSION), metadata=metadata)
    # The first of ours is missing, and must not be made before the others are found to be wrong.
    for field, kind in [("document_id", "text"), ("chunk_index", "keyword"), ("metadata.lang", "integer")]:
        server.client.create_payload_index("c", field, kind)
    with pytest.raises(SchemaMismatchError) as caught:
        connect(server.url, collection="c", index_fields={"lang": "keyword", "year": "integer"})
    for said in (
        "collection 'c'",
        "field 'document_id' is of type text, and keyword is needed",
        "field 'chunk_index' is of type keyword, and integer is needed",
        "field 'metadata.lang' is of type integer, and keyword is needed",
    ):
        assert said in str(caught.value)
    assert_untouched(server, sent, indexes={"document_id", "chunk_index", "metadata.lang"})


def assert_untouched(server, sent, indexes=frozenset()):
    assert {request.method for request in sent} == {"GET"}
    assert server.client.get_collection("c").payload_schema.keys() == indexes


# --- two at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
def test_another_may_make_the_collection_meanwhile(connect, server, sent, hash_encoder, same):
    """It is there only after this process was told that it is not."""
    answer = server.answer

    def make_it_first(method, path, body):
        if (method, path) == ("PUT", "/collections/c"):
            server.answer = answer
            name = "hash-encoder" if same else "of another process"
            VectorStore.connect(server.url, collection="c", encoder=hash_encoder(DIMENSION, name=name)).close()
        return answer(method, path, body)

    server.answer = make_it_first
    if same:
        connect(server.url, collection="c")
        assert server.client.get_collection("c").payload_schema.keys() == {*SERVER_INDEXES, "text", "words"}
    else:
        with pytest.raises(SchemaMismatchError, match="model 'of another process' in the collection"):
            connect(server.url, collection="c")
    assert [one.path for one in sent if one.method == "PUT"].count("/collections/c") == 2


def test_many_may_open_a_new_collection_at_once(server, hash_encoder):
    n = 6
    start = threading.Barrier(n, timeout=60)
    errors = []

    def open_and_add(i):
        try:
            start.wait()
            with VectorStore.connect(server.url, collection="c", encoder=hash_encoder(DIMENSION)) as store:
                store.add([Document(id=f"d{i}", chunks=["text"])])
        except Exception as error:  # noqa: BLE001 - told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=open_and_add, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert server.client.count("c").count == n


# --- whose client ------------------------------------------------------------------------------------


def test_each_store_refuses_the_others_client(server, hash_encoder, run_async):
    async def make_client():
        return AsyncQdrantClient(url=server.url, check_compatibility=False)

    client = run_async(make_client())
    with pytest.raises(InvalidInputError, match="needs a blocking client; give AsyncQdrantClient to AsyncVectorStore"):
        VectorStore(client, encoder=hash_encoder(DIMENSION))
    run_async(client.close())
    client = QdrantClient(url=server.url, check_compatibility=False)
    with pytest.raises(InvalidInputError, match="needs an AsyncQdrantClient; give a QdrantClient to VectorStore"):
        AsyncVectorStore(client, encoder=hash_encoder(DIMENSION))
    client.close()
    assert server.requests == []


def test_a_client_that_was_handed_over_stays_open(server, hash_encoder):
    client = QdrantClient(url=server.url, check_compatibility=False)
    with VectorStore(client, "c", encoder=hash_encoder(DIMENSION)) as store:
        store.add([Document(id="d", chunks=["text"])])
    assert not client._client.closed
    assert client.count("c").count == 1
    with pytest.raises(SchemaMismatchError):
        VectorStore(client, "c", encoder=hash_encoder(DIMENSION, name="other"))
    assert client.count("c").count == 1
    client.close()


def test_an_async_client_that_was_handed_over_stays_open(server, hash_encoder, run_async):
    async def scenario():
        client = AsyncQdrantClient(url=server.url, check_compatibility=False)
        async with AsyncVectorStore(client, "c", encoder=hash_encoder(DIMENSION)) as store:
            await store.add([Document(id="d", chunks=["text"])])
        assert not client._client.closed
        assert (await client.count("c")).count == 1
        await client.close()

    run_async(scenario())


def test_an_own_client_is_closed(new_store):
    store = new_store(DIMENSION)
    client = store._client
    assert not client._client.closed
    store.close()
    assert client._client.closed
    store.close()  # again, which is nothing


@pytest.mark.parametrize("version", ["1.20.0", "1.0.0"])
def test_an_own_client_is_closed_when_opening_fails(connect, server, engine, monkeypatch, version):
    made = []

    def make(*arguments, **options):
        made.append(make_client(*arguments, **options))
        return made[-1]

    module = "async_store" if engine == "async" else "store"
    monkeypatch.setattr(f"pplx_vectorstore.{module}.make_client", make)
    server.version = version
    with pytest.raises((StoreNotFoundError, UnsupportedServerError)):
        connect(server.url, create=False)
    (client,) = made
    assert client._client.closed


# --- bits that cannot be trusted yet -----------------------------------------------------------------


WIDE = 384  # components; shorter vectors are never searched by their bits
SETTLED = {GENERATION_KEY: {"current": 2}, INDEXED_KEY: {"below": 2, "vectors": 80}}
BY_CODES = {"ignore": True, "rescore": True}
ACORN = {"enable": True, "max_selectivity": 1.0}
LATER = {"must": [{"key": "generation", "range": {"gte": 2.0}}]}


@pytest.fixture
def said(change_answers, monkeypatch):
    """What the server says of collection "c": its generations, its status, and how many vectors it has indexed."""
    monkeypatch.setattr(ledger, "_STATE_AGE", 0.0)
    monkeypatch.setattr(access, "_FULL_SCAN_BYTES", 0)
    monkeypatch.setattr(access, "_CACHED_BYTES", 0)
    said = {"status": "green", "indexed": 90, "generations": SETTLED}

    def tell(answer):
        answer["result"]["status"] = said["status"]
        answer["result"]["indexed_vectors_count"] = said["indexed"]
        answer["result"]["config"]["metadata"] |= said["generations"]
        return answer

    change_answers("GET", "/collections/c", tell)
    return said


@pytest.fixture
def searched(new_store, sent, said):
    """A search among 90 chunks, on a server that says so of itself: ``searched(status="yellow")``."""
    return search_of(new_store(WIDE, collection="c"), sent, said)


def search_of(store, sent, said):
    store.add(Document(id=f"d{i}", chunks=[f"text {i}"]) for i in range(90))

    def search(*, status="green", indexed=90, generations=SETTLED, **options):
        said.update(status=status, indexed=indexed, generations=generations)
        sent.clear()
        hits = store.search("text 7", **options)
        assert hits[0].document_id == "d7"
        (body,) = [request.body for request in sent if request.path.endswith("/query/batch")]
        search, *unseen = body["searches"]
        assert [one["using"] for one in unseen] == (["words"] if options.get("hybrid") else [])
        return search

    return search


def is_by_bits(search):
    return "prefetch" in search


def test_codes_beyond_memory_are_searched_by_their_bits_once_all_are_indexed(searched):
    search = searched()
    assert search["limit"] == 10
    assert search["params"] == {"hnsw_ef": 100, "exact": False, "quantization": BY_CODES, "acorn": ACORN}
    by_bits, by_codes = search["prefetch"]
    assert by_bits["params"] == {
        "hnsw_ef": 200,
        "exact": False,
        "quantization": {"ignore": False, "rescore": True, "oversampling": 10.0},
    }
    # What has been written since has no bits that mean anything.
    assert by_codes["params"] == search["params"]
    assert (by_bits.get("filter"), by_codes["filter"]) == (None, LATER)
    assert by_bits["limit"] == by_codes["limit"] == 10


@pytest.mark.parametrize("engine", ["http"], indirect=True)
@pytest.mark.parametrize(("many", "beam"), [(89, 200), (90, 100)])
def test_of_many_points_the_beam_by_the_codes_is_wider(searched, monkeypatch, many, beam):
    monkeypatch.setattr(access, "_MANY", many)
    assert searched(generations={})["params"]["hnsw_ef"] == beam
    assert searched(generations={}, k=10, candidates=20)["params"]["hnsw_ef"] == beam / 5
    assert searched()["prefetch"][0]["params"]["hnsw_ef"] == 200  # by the bits


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_the_status_does_not_matter(searched):
    for status in ("yellow", "grey", "red"):
        assert is_by_bits(searched(status=status))


@pytest.mark.parametrize(
    "said_so",
    [
        {"generations": {}},
        {"generations": {GENERATION_KEY: {"current": 2}}},
        {"indexed": 79},  # some index was built anew, and what was small may have none
    ],
)
def test_what_is_not_known_to_be_indexed_is_searched_by_the_codes(searched, said_so):
    search = searched(**said_so)
    assert not is_by_bits(search)
    assert search["limit"] == 10
    assert search["params"] == {"hnsw_ef": 100, "exact": False, "quantization": BY_CODES, "acorn": ACORN}


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_filters_and_tenants_hold_in_each_stage(new_store, sent, said):
    store = new_store(WIDE, collection="c", tenant="t", index_fields={"lang": "keyword"})
    store.add(Document(id=f"d{i}", chunks=[f"text {i}"], metadata={"lang": "en"}) for i in range(90))
    sent.clear()
    assert store.search("text 7", filter={"lang": "en"})[0].document_id == "d7"
    (body,) = [request.body for request in sent if request.path.endswith("/query/batch")]
    ((by_bits, by_codes),) = [search["prefetch"] for search in body["searches"]]
    tenant = {"key": "tenant", "match": {"value": "t"}}
    lang = {"must": [{"key": "metadata.lang", "match": {"value": "en"}}]}
    assert by_bits["filter"] == {"must": [tenant, lang]}
    assert by_codes["filter"] == {"must": [tenant, {"must": [lang, LATER]}]}


@pytest.mark.parametrize(
    ("dimension", "memory", "by_bits"),
    [
        (WIDE, "cold", True),
        (WIDE, None, True),
        (2560, None, True),
        (WIDE, "cached", False),
        (WIDE, "pinned", False),
        (2560, "pinned", False),
        (WIDE - 1, "cold", False),
        (64, None, False),
    ],
)
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_short_vectors_and_those_in_memory_are_searched_by_the_codes(new_store, sent, said, dimension, memory, by_bits):
    config = None if memory is None else CollectionConfig(codes_memory=memory)
    search = search_of(new_store(dimension, collection="c", config=config), sent, said)
    assert is_by_bits(search()) is by_bits


@pytest.mark.parametrize("what", ["_FULL_SCAN_BYTES", "_CACHED_BYTES"])
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_so_few_that_all_are_compared_or_that_memory_holds_them_are_searched_by_the_codes(searched, monkeypatch, what):
    for most, by_bits in ((90 * WIDE, False), (90 * WIDE - 1, True)):
        monkeypatch.setattr(access, what, most)
        assert is_by_bits(searched()) is by_bits


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_more_candidates_per_hit_than_the_server_allows_are_searched_by_the_codes(new_store, server, sent, said):
    server.strict_mode = {"enabled": True, "search_max_oversampling": 5.0}
    search = search_of(new_store(WIDE, collection="c"), sent, said)
    assert not is_by_bits(search(k=10, candidates=101))
    by_bits = search(k=20, candidates=100)["prefetch"][0]["params"]["quantization"]
    assert by_bits == {"ignore": False, "rescore": True, "oversampling": 5.0}


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_words_of_many_questions_are_asked_for_together(new_store, sent):
    store = new_store(DIMENSION)
    store.add(Document(id=f"d{i}", chunks=[f"第{i}章 text {i}"]) for i in range(20))
    for question, n_requests in (("text {}", 1), ("第{}章", 3)):
        sent.clear()
        hits = store.search_batch([question.format(i) for i in range(20)], k=1, hybrid=True, lexical_weight=0.9)
        assert [hit.document_id for (hit,) in hits] == [f"d{i}" for i in range(20)]
        assert len([one for one in sent if one.path.startswith("/collections/") and one.method == "POST"]) == n_requests


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_hybrid_search_chooses_the_same_way(searched):
    for generations, by_bits in ((SETTLED, True), ({}, False)):
        vectors, words = searched(generations=generations, hybrid=True)["prefetch"]
        assert (vectors["limit"], words["limit"]) == (100, 100)
        assert is_by_bits(vectors) is by_bits


def test_the_state_is_asked_for_once_a_second_however_much_is_written(new_store, sent, monkeypatch):
    store = new_store(WIDE, collection="c")
    documents = [Document(id=f"d{i}", chunks=[f"text {i}"]) for i in range(3)]
    now = [1000.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])

    def asked():
        sent.clear()
        for i in range(3):
            store.search(f"text {i}")
            store.add(documents[: i + 1])
            store.delete(document_ids=["d0"])
        return sum((request.method, request.path) == ("GET", "/collections/c") for request in sent)

    asked()
    assert asked() == 0
    now[0] += 1.1
    assert asked() == 1


# --- gRPC --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://localhost:6333", 6334),
        ("http://localhost", 6334),
        ("https://xyz.cloud.qdrant.io:6333", 6334),
        ("http://10.0.0.5:7000/below/a/path:9", 7001),
        ("http://[::1]:7000", 7001),
        ("http://[::1]", 6334),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_grpc_is_on_the_port_after(run_async, url, port, asynchronous):
    async def make():  # an async client wants a loop
        return make_client(url, api_key="key", prefer_grpc=True, timeout=3, asynchronous=asynchronous)

    client = run_async(make())
    assert type(client) is (AsyncQdrantClient if asynchronous else QdrantClient)
    remote = client._client
    assert (remote._prefer_grpc, remote._grpc_port, remote._timeout) == (True, port, 3)
    assert ("api-key", "key") in remote._grpc_headers
    assert remote._grpc_channel_pool == [], "nothing is connected yet"
    run_async(client.close()) if asynchronous else client.close()


@pytest.mark.parametrize(
    "url", ["http://localhost:7000", "http://localhost", "https://host/qdrant", "http://localhost:65535"]
)
def test_grpc_is_where_it_is_said_to_be(url):
    options = {"api_key": None, "timeout": None, "asynchronous": False}
    for prefer_grpc in (False, True):  # the port alone says that gRPC is wanted
        client = make_client(url, prefer_grpc=prefer_grpc, grpc_port=443, **options)
        assert (client._client._prefer_grpc, client._client._grpc_port) == (True, 443)
        client.close()


@pytest.mark.parametrize("port", [0, -1, 65536, 6334.0, "6334", True, [6334]])
@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_a_port_that_is_none_is_refused(connect, port):
    with pytest.raises(InvalidInputError, match=r"grpc_port must be a port from 1 to 65535, or None .*, not "):
        connect("http://127.0.0.1:1", grpc_port=port)


@pytest.mark.parametrize("engine", ["http"], indirect=True)
def test_after_the_last_port_there_is_none(connect):
    with pytest.raises(InvalidInputError, match=r"no port after the URL's, 65535, for gRPC; give its own as grpc_port"):
        connect("http://127.0.0.1:65535", prefer_grpc=True)


@pytest.fixture
def grpc_elsewhere(server, qdrant_grpc_module):
    """gRPC of the server, on a port that has nothing to do with HTTP's."""
    http_port = int(server.url.rpartition(":")[2])
    running = None
    while running is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        if port == http_port + 1:
            continue
        with contextlib.suppress(RuntimeError):  # somebody else was faster
            running = qdrant_grpc_module.GrpcServer(server, port)
    yield running
    running.stop()


def test_grpc_may_be_on_any_port(new_store, server, grpc_elsewhere):
    store = new_store(DIMENSION, grpc_port=grpc_elsewhere.port)
    store.add([Document(id="d", chunks=["text"])])
    assert store.search("text")[0].text == "text"
    assert {"HealthCheck", "Create", "Upsert", "QueryBatch"} <= set(grpc_elsewhere.calls)
    assert server.requests == [], "nothing goes over HTTP"


def test_the_port_of_grpc_in_the_url_is_told_at_once(connect, grpc_elsewhere):
    with pytest.raises(ServerError, match=r"not HTTP: .*; the port of gRPC is given as grpc_port$") as caught:
        connect(f"http://127.0.0.1:{grpc_elsewhere.port}", retries=8)
    assert not isinstance(caught.value, ServerUnavailableError), "which is tried again"


def test_a_port_without_grpc_is_named(connect, server):
    named = re.escape(f"{server.url} (gRPC on port 1) gave no answer to info, asked once: UNAVAILABLE")
    with pytest.raises(ServerUnavailableError, match=f"{named}.* unless grpc_port names another$"):
        connect(server.url, grpc_port=1)
    assert server.requests == []


def test_the_port_of_grpc_in_the_url_and_grpc_wanted(connect, grpc_elsewhere):
    port = grpc_elsewhere.port
    named = re.escape(f"http://127.0.0.1:{port} (gRPC on port {port + 1}) gave no answer to info")
    with pytest.raises(ServerUnavailableError, match=f"{named}.* unless grpc_port names another$"):
        connect(f"http://127.0.0.1:{port}", prefer_grpc=True)


def test_a_server_that_was_there_is_not_looked_for_elsewhere(new_store, grpc_elsewhere):
    store = new_store(DIMENSION, grpc_port=grpc_elsewhere.port)
    store.add([Document(id="d", chunks=["text"])])
    grpc_elsewhere.stop()
    with pytest.raises(ServerUnavailableError, match=r"gave no answer to .*the server up\?") as caught:
        store.search("text")
    assert "grpc_port" not in str(caught.value)


def test_without_grpc_nothing_is_said_of_it():
    client = make_client("http://localhost:7000", api_key=None, prefer_grpc=False, timeout=None, asynchronous=False)
    assert client._client._prefer_grpc is False
    client.close()


def test_stores_pass_the_connections_options_on(engine, connect, monkeypatch):
    given = {}

    def make(url, **options):
        given.update(url=url, **options)
        raise InvalidInputError("not made")

    module = "async_store" if engine == "async" else "store"
    monkeypatch.setattr(f"pplx_vectorstore.{module}.make_client", make)
    with pytest.raises(InvalidInputError, match="not made"):
        connect("http://host:7000", api_key="key", prefer_grpc=True, grpc_port=7443, timeout=2.5)
    assert given == {
        "url": "http://host:7000",
        "api_key": "key",
        "prefer_grpc": True,
        "grpc_port": 7443,
        "timeout": 2.5,
        "asynchronous": engine == "async",
    }
