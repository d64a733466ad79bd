"""The server that other tests talk to answers as the engine behind it does, and fails as it is told to."""

import asyncio
import importlib.util
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from pplx_vectorstore.collection import LOSS_FIELD, VECTOR_NAME, vector_params
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.qdrant.conversion import as_clients, as_ours
from pplx_vectorstore.query import QueryVector, Ranking, build_query


def load_helper(name):
    """Import a helper module that lies beside this file, under its own name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


qdrant_server = load_helper("qdrant_server")
Faults, QdrantServer = qdrant_server.Faults, qdrant_server.QdrantServer

NAME = "documents"
METADATA = {"pplx_vectorstore": {"schema": 2, "revision": None, "label": "Ünïcode 文"}}
TEXTS = ["grüne Wiesen", "文字 and words", "words, words 🦉", "", 'tab\t"quote" \\ \u2028']
CODES = np.random.default_rng(5).integers(-127, 128, size=(5, 8)).astype(np.int8)
SQUARED_NORM = 127**2


def search(row, *, by_bits=False, exact=False, **options):
    """A search for a vector; by the bits all are candidates, since no index covers them."""
    ranking = Ranking(candidates=5, by_bits=by_bits, exact=exact)
    return as_clients(build_query(QueryVector.of(CODES[row], SQUARED_NORM), ranking, **options))


QUERY = search(1, k=3)


def point_id(i):
    return str(uuid.UUID(int=i + 1))


def make_point(i):
    codes = CODES[i].astype(int)
    payload = {
        "text": TEXTS[i],
        "document_id": f"d{i % 2}",
        LOSS_FIELD: float(np.sqrt(codes @ codes)) / 1000,
        "metadata": {"year": 2020 + i, "gone": None, "tags": ["ä", None], "deep": {"empty": {}}},
    }
    # Of the fourth point all codes are zero: it has no vector.
    vector = {} if i == 3 else {"codes": (codes + 128).tolist()}
    return models.PointStruct.model_construct(id=point_id(i), vector=vector, payload=payload)


def where(field, value):
    return models.Filter(must=[models.FieldCondition(key=field, match=models.MatchValue(value=value))])


def write(client):
    """The same writes on any client, each kind at least once."""
    client.create_collection(NAME, vectors_config=as_clients(vector_params(8)), metadata=METADATA)
    client.create_payload_index(NAME, field_name=LOSS_FIELD, field_schema="float")
    client.create_payload_index(NAME, field_name="document_id", field_schema="keyword")
    tenant = models.KeywordIndexParams(type="keyword", is_tenant=True)
    client.create_payload_index(NAME, field_name="tenant", field_schema=tenant)
    words = models.TextIndexParams(type="text", tokenizer=models.TokenizerType.WORD, lowercase=True, scoring=True)
    client.create_payload_index(NAME, field_name="text", field_schema=words)
    client.upsert(NAME, points=[make_point(i) for i in range(5)])
    client.upsert(NAME, points=[make_point(0)])
    client.set_payload(NAME, payload={"tenant": "ä", "nothing": None}, points=[point_id(0), point_id(3)])


def new_folder():
    """A new folder, in memory where that is possible: the engine syncs files to disk all the time."""
    in_memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=in_memory if os.access(in_memory, os.W_OK) else None)


@pytest.fixture
def folder():
    with new_folder() as path:
        yield Path(path)


@pytest.fixture
def server(folder):
    with QdrantServer(folder / "served", strict_mode={"enabled": True, "max_query_limit": 100}) as server:
        yield server
        server.faults = None
        assert server.errors == []


@pytest.fixture
def remote(server):
    client = QdrantClient(url=server.url, check_compatibility=False)
    yield client
    client.close()


@pytest.fixture
def filled(server, remote):
    write(remote)
    return remote


# --- it answers as the engine does ---------------------------------------------------------------------


def plain(answer):
    """Any client's answer as plain values; a field that was not asked for is as good as an empty one."""
    if isinstance(answer, tuple) and not hasattr(answer, "_fields"):
        return tuple(plain(one) for one in answer)
    if isinstance(answer, list):
        return [plain(one) for one in answer]
    if hasattr(answer, "points"):
        return plain(answer.points)
    if hasattr(answer, "payload"):
        return (answer.id, answer.payload or {}, answer.vector, getattr(answer, "score", None))
    return answer


def in_order(records):
    return sorted(plain(records), key=lambda fields: fields[0])


# Of points that are not indexed yet, the engine's bits say nothing.
CODES_ONLY = models.SearchParams(hnsw_ef=16, quantization=models.QuantizationSearchParams(ignore=True))
NEAREST = models.Prefetch(query=models.NearestQuery(nearest=[200.0] * 8), using="codes", limit=4, params=CODES_ONLY)
NEAREST_ALONE = models.QueryRequest(
    query=NEAREST.query, using="codes", limit=2, filter=where("document_id", "d0"), params=CODES_ONLY
)
WORDS = models.Prefetch(query=models.TextQuery(text="words"), using="text", limit=4)
FUSED = models.QueryRequest(
    prefetch=[NEAREST, WORDS],
    query=models.FusionQuery(fusion=models.Fusion.RRF),
    limit=4,
    with_payload=["text"],
    with_vector=True,
)
NESTED = models.QueryRequest(
    prefetch=[models.Prefetch(prefetch=FUSED.prefetch, query=FUSED.query, limit=4), WORDS], query=FUSED.query, limit=5
)
YOUNG = models.Filter(
    must=[models.FieldCondition(key="metadata.year", range=models.Range(gte=2021))],
    must_not=[models.HasIdCondition(has_id=[point_id(4)])],
)
READS = {
    "exists": lambda client: [client.collection_exists(name) for name in (NAME, "other")],
    "retrieve": lambda client: in_order(client.retrieve(NAME, ids=[point_id(4), point_id(3), point_id(9)])),
    "retrieve fields": lambda client: in_order(client.retrieve(NAME, ids=[point_id(2)], with_payload=["text"])),
    "retrieve vectors": lambda client: in_order(
        client.retrieve(NAME, ids=[point_id(i) for i in range(5)], with_payload=False, with_vectors=True)
    ),
    "scroll": lambda client: plain(client.scroll(NAME, limit=10, with_vectors=True)),
    "scroll page": lambda client: plain(
        client.scroll(NAME, limit=2, offset=point_id(1), with_payload=["text", LOSS_FIELD])
    ),
    "scroll filter": lambda client: plain(client.scroll(NAME, scroll_filter=YOUNG, limit=2)),
    "count": lambda client: client.count(NAME, exact=True).count,
    "count filter": lambda client: client.count(NAME, count_filter=where("tenant", "ä"), exact=True).count,
    "count bool": lambda client: client.count(NAME, count_filter=where(LOSS_FIELD, True), exact=True).count,
    "facet": lambda client: client.facet(NAME, key="document_id", exact=True),
    "facet filter": lambda client: client.facet(NAME, key="tenant", facet_filter=YOUNG, limit=1, exact=True),
    "search": lambda client: plain(client.query_batch_points(NAME, requests=[QUERY])),
    "search exact": lambda client: plain(
        client.query_batch_points(NAME, requests=[search(2, k=2, filter=YOUNG, score_threshold=-1, exact=True)])
    ),
    "search by bits": lambda client: plain(client.query_batch_points(NAME, requests=[search(2, k=2, by_bits=True)])),
    "search many": lambda client: plain(client.query_batch_points(NAME, requests=[QUERY, NEAREST_ALONE, QUERY])),
    "search fused": lambda client: plain(
        client.query_batch_points(NAME, requests=[FUSED, NESTED, search(1, k=3, text="words")])
    ),
}


@pytest.fixture(scope="module")
def same():
    """A client of the server and an engine that had the same writes."""
    with (
        new_folder() as path,
        EdgeClient(Path(path) / "direct") as direct,
        QdrantServer(Path(path) / "served") as server,
    ):
        remote = QdrantClient(url=server.url, check_compatibility=False)
        write(direct)
        write(remote)
        yield remote, direct
        remote.close()
        assert server.errors == []


@pytest.mark.parametrize("name", READS)
def test_a_read_gives_what_the_engine_gives(same, name):
    remote, direct = same
    expected = READS[name](direct)
    assert as_ours(READS[name](remote)) == expected
    assert expected not in ([], [[]], None)


def test_a_collection_tells_what_the_engine_tells(same):
    remote, direct = (client.get_collection(NAME) for client in same)
    assert remote.config.metadata == direct.config.metadata == METADATA
    assert as_ours(remote.config.params.vectors[VECTOR_NAME]) == direct.config.params.vectors[VECTOR_NAME]
    assert direct.config.params.vectors == vector_params(8)
    assert {field: as_ours(index) for field, index in remote.payload_schema.items()} == direct.payload_schema
    assert set(remote.payload_schema) == {LOSS_FIELD, "document_id", "tenant", "text"}
    assert (remote.points_count, remote.status) == (direct.points_count, "green") == (5, "green")


def test_fields_not_asked_for_are_absent(filled):
    (record,) = filled.retrieve(NAME, ids=[point_id(0)], with_payload=False)
    assert (record.payload, record.vector) == (None, None)
    (answer,) = filled.query_batch_points(NAME, requests=[NEAREST_ALONE])
    assert answer.points[0].payload is None


def test_a_point_without_vector_stays_without(filled):
    (record,) = filled.retrieve(NAME, ids=[point_id(3)], with_vectors=True)
    assert record.vector == {}
    assert record.payload["metadata"] == make_point(3).payload["metadata"]


DELETIONS = {
    "by ids": models.PointIdsList(points=[point_id(1), point_id(9)]),
    "by filter": models.FilterSelector(filter=where("document_id", "d1")),
}


@pytest.mark.parametrize("name", DELETIONS)
def test_deletions_delete_what_the_engine_deletes(filled, folder, name):
    with EdgeClient(folder / "direct") as direct:
        write(direct)
        for client in (filled, direct):
            client.delete(NAME, points_selector=DELETIONS[name])
        assert plain(filled.scroll(NAME, limit=10)) == plain(direct.scroll(NAME, limit=10))
        assert filled.count(NAME).count < 5


def test_a_batch_applies_its_operations_in_order(filled):
    def setting(payload, *rows):
        update = models.SetPayload(payload=payload, points=[point_id(i) for i in rows])
        return models.SetPayloadOperation(set_payload=update)

    results = filled.batch_update_points(
        NAME,
        update_operations=[
            models.DeleteOperation(delete=DELETIONS["by ids"]),
            models.UpsertOperation(upsert=models.PointsList(points=[make_point(1)])),
            setting({"text": "first"}, 1, 2),
            setting({"text": "second"}, 1),
        ],
    )
    assert [result.status for result in results] == ["completed"] * 4
    records = in_order(filled.retrieve(NAME, ids=[point_id(1), point_id(2)]))
    assert [fields[1]["text"] for fields in records] == ["second", "first"]


def test_the_async_client_gets_the_same(filled, server):
    async def ask():
        client = AsyncQdrantClient(url=server.url, check_compatibility=False)
        try:
            await client.create_collection("second", vectors_config=as_clients(vector_params(8)), metadata={})
            await client.upsert("second", points=[make_point(1)])
            many = [client.query_batch_points(NAME, requests=[QUERY]) for _ in range(20)]
            return await client.scroll("second"), await asyncio.gather(*many)
        finally:
            await client.close()

    page, answers = asyncio.run(ask())
    assert plain(page) == ([(point_id(1), make_point(1).payload, None, None)], None)
    assert [plain(answer) for answer in answers] == [plain(filled.query_batch_points(NAME, requests=[QUERY]))] * 20


def test_it_counts_requests_and_their_bodies(filled, server):
    before = len(server.requests)
    filled.upsert(NAME, points=[make_point(0)])
    filled.collection_exists(NAME)
    assert server.requests[before:] == [("PUT", f"/collections/{NAME}/points"), ("GET", f"/collections/{NAME}/exists")]
    assert server.bodies[before] > len(json.dumps(make_point(0).payload)) > server.bodies[before + 1] == 0
    assert server.largest_body == max(server.bodies)


def test_it_tells_its_version_and_strict_mode(folder, filled, server):
    assert filled.info().version == "1.20.0"
    strict_mode = filled.get_collection(NAME).config.strict_mode_config
    assert (strict_mode.enabled, strict_mode.max_query_limit) == (True, 100)
    with QdrantServer(folder / "old", version="1.9.3") as old:
        client = QdrantClient(url=old.url, check_compatibility=False)
        assert client.info().version == "1.9.3"
        client.create_collection(NAME, vectors_config=as_clients(vector_params(8)), metadata={})
        assert client.get_collection(NAME).config.strict_mode_config is None
        client.close()


def test_a_slow_server_is_slow_to_answer_writes_only(filled, server):
    server.delay = 1.5
    start = time.monotonic()
    filled.count(NAME)
    assert time.monotonic() - start < server.delay
    start = time.monotonic()
    filled.set_payload(NAME, payload={"text": "x"}, points=[point_id(0)])
    assert time.monotonic() - start >= server.delay


# --- it refuses as Qdrant does -------------------------------------------------------------------------

REFUSED = {
    "unknown collection": (404, "doesn't exist", lambda client: client.count("other")),
    "created twice": (
        409,
        f"Wrong input: Collection `{NAME}` already exists!",
        lambda client: client.create_collection(NAME, vectors_config=as_clients(vector_params(8))),
    ),
    "unknown point": (
        404,
        "No point with id",
        lambda client: client.set_payload(NAME, payload={"a": 1}, points=[point_id(9)]),
    ),
    "wrong dimension": (
        400,
        "Vector dimension error",
        lambda client: client.upsert(
            NAME, points=[models.PointStruct(id=point_id(0), vector={"codes": [1, 2]}, payload={})]
        ),
    ),
    "unknown vector": (
        400,
        "Not existing vector name",
        lambda client: client.query_batch_points(
            NAME, requests=[models.QueryRequest(query=models.NearestQuery(nearest=[1.0]), using="other")]
        ),
    ),
    "no id": (400, "failed to parse", lambda client: client.retrieve(NAME, ids=["no-uuid"])),
    "no index": (400, "No appropriate index", lambda client: client.facet(NAME, key="metadata.year")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(filled, name):
    status, message, call = REFUSED[name]
    with pytest.raises(UnexpectedResponse) as caught:
        call(filled)
    assert caught.value.status_code == status
    assert message in caught.value.structured()["status"]["error"]


DELETE_ONE = json.dumps({"delete": {"points": [point_id(0)]}})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("points", '{"points": [{"id": "00'),
        ("points", '{"points": [{"id": 1}]}'),
        ("points", "[]"),
        ("points/scroll", '{"limit": "many"}'),
        ("points/delete", '{"everything": true}'),
        ("points/query/batch", ""),
        ("points/batch", f'{{"operations": [{DELETE_ONE}, {{"set_payload": {{}}}}]}}'),
        ("points/batch", f'{{"operations": [{DELETE_ONE}, {{"clear_payload": {{"points": [1]}}}}]}}'),
    ],
)
def test_malformed_requests(filled, server, path, body):
    method = "PUT" if path == "points" else "POST"
    response = httpx.request(method, f"{server.url}/collections/{NAME}/{path}", content=body)
    assert response.status_code == 400
    assert "Wrong input" in response.json()["status"]["error"]
    assert filled.count(NAME).count == 5


def test_failures_of_its_own_are_kept(folder):
    with QdrantServer(folder / "served") as server:
        assert httpx.get(f"{server.url}/telemetry").status_code == 404
        server.client = None
        response = httpx.get(f"{server.url}/collections/{NAME}")
        assert response.status_code == 500
        assert response.json()["status"]["error"].startswith("AttributeError")
        assert ["telemetry" in server.errors[0], "Traceback" in server.errors[1]] == [True, True]
        server.client = EdgeClient(folder / "served")


# --- it fails as it is told to -------------------------------------------------------------------------


def status_of(error):
    return getattr(error, "status_code", None) or getattr(error, "retry_after_s", None) or type(error.source)


FAILURES = {
    "reset_before": (ResponseHandlingException, httpx.ReadError),
    "reset_after": (ResponseHandlingException, httpx.ReadError),
    "429": (ResourceExhaustedResponse, 7),
    "429_bare": (UnexpectedResponse, 429),
    "500": (UnexpectedResponse, 500),
    "500_after": (UnexpectedResponse, 500),
    "503": (UnexpectedResponse, 503),
    "stall_before": (ResponseHandlingException, httpx.RemoteProtocolError),
    "stall_after": (ResponseHandlingException, httpx.RemoteProtocolError),
    "truncated": (ResponseHandlingException, httpx.RemoteProtocolError),
    "truncated_json": (json.JSONDecodeError, None),  # of all failures the one that the client does not wrap
}


def test_every_kind_is_tested():
    assert set(FAILURES) == set(qdrant_server.ALL_KINDS)


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("which", [QdrantClient, AsyncQdrantClient])
def test_a_fault_is_what_it_says(filled, server, kind, which):
    class_, detail = FAILURES[kind]
    server.faults = Faults(1, 1.0, [kind], stall_seconds=0.1, most=1, retry_after="7")

    async def fail():
        client = which(url=server.url, check_compatibility=False)
        try:
            result = client.set_payload(NAME, payload={"text": "applied"}, points=[point_id(0)])
            if which is AsyncQdrantClient:
                await result
        finally:
            closed = client.close()
            if which is AsyncQdrantClient:
                await closed

    with pytest.raises(class_) as caught:
        asyncio.run(fail())
    if detail is not None:
        assert status_of(caught.value) == detail
    (record,) = filled.retrieve(NAME, ids=[point_id(0)])
    assert (record.payload["text"] == "applied") is (kind in qdrant_server.APPLIED)
    assert (server.faults.counts, server.faults.total) == ({kind: 1}, 1)


def test_a_stall_outlasts_a_patient_client_and_close_ends_it(folder):
    server = QdrantServer(folder / "served", faults=Faults(1, 1.0, ["stall_before"], stall_seconds=60))
    client = QdrantClient(url=server.url, check_compatibility=False, timeout=1)
    with pytest.raises(ResponseHandlingException) as caught:
        client.collection_exists(NAME)
    assert isinstance(caught.value.source, httpx.ReadTimeout)
    client.close()

    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as idle, socket.create_connection((host, int(port))) as stalled:
        stalled.sendall(f"GET /collections/{NAME} HTTP/1.1\r\n\r\n".encode())
        while len(server.requests) < 2:
            time.sleep(0.01)
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < 5
        assert idle.recv(1) == stalled.recv(1) == b""
    assert server.errors == []
    assert not [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def test_a_client_that_hangs_up_is_no_failure_of_the_server(filled, server):
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (b"PUT /collec", b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"):
        for linger in (0, 1):  # with RST and with FIN
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)
                time.sleep(0.02)  # until it is read
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))
    assert filled.count(NAME).count == 5
    time.sleep(0.05)  # what the server has to say of them, the fixture finds


def test_faults_follow_their_seed_and_their_rate():
    def draw(seed, **options):
        faults = Faults(seed, 0.25, **options)
        return [faults.choose("/collections/x") for _ in range(2000)], faults

    chosen, faults = draw(3)
    assert chosen == draw(3)[0] != draw(4)[0]
    assert 400 < faults.total < 600
    assert set(faults.counts) == set(qdrant_server.ALL_KINDS)
    assert sum(kind is not None for kind in chosen) == faults.total
    assert draw(3, most=5)[1].total == 5
    with pytest.raises(ValueError, match="unknown"):
        Faults(1, 1.0, ["earthquake"])


def test_the_version_is_spared_unless_everything_is_to_fail(remote, server):
    server.faults = Faults(1, 1.0, ["503"])
    assert remote.info().version == "1.20.0"
    server.faults = Faults(1, 1.0, ["503"], everything=True)
    with pytest.raises(UnexpectedResponse):
        remote.info()


def test_many_threads_and_faults_leave_no_error_of_the_servers_own(filled, server):
    server.faults = Faults(9, 0.5, stall_seconds=0.01)
    done, unexpected = [], []

    def work(row):
        client = QdrantClient(url=server.url, check_compatibility=False)
        for i in range(20):
            try:
                client.set_payload(NAME, payload={f"by{row}": i}, points=[point_id(row)])
                done.append(row)
            except (ResponseHandlingException, ResourceExhaustedResponse, UnexpectedResponse, ValueError):
                pass
            except Exception as error:  # noqa: BLE001 - reported by the assertion below
                unexpected.append(error)
        client.close()

    threads = [threading.Thread(target=work, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    assert len(done) + server.faults.total == 80
