"""Points as gRPC messages: what the client itself would send, byte for byte."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client import grpc as messages
from qdrant_client.conversions.conversion import RestToGrpc

from pplx_vectorstore import Chunk, Document
from pplx_vectorstore.engines.grpc_points import make_message
from pplx_vectorstore.engines.server import speaks_grpc
from pplx_vectorstore.engines.upserts import make_batch, upsert
from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.points import Point, chunk_point_id, equalize_codes, iter_points

IDS = st.uuids().map(str)
VECTORS = st.none() | st.lists(st.integers(0, 255), min_size=1, max_size=300).map(lambda row: np.array(row, np.uint8))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS,
    st.sampled_from(["", "\0", "é", "型号", "\U0001f600", 2**62, 2**53 + 1, -(2**63), 1.0, 1, True, -0.0, 5e-324]),
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
PAYLOADS = st.builds(
    lambda rest, metadata: {**rest, "metadata": metadata},
    st.dictionaries(TEXTS, VALUES, max_size=5),
    st.dictionaries(TEXTS, VALUES, max_size=5),
)
POINTS = st.lists(st.builds(Point, IDS, VECTORS, PAYLOADS), max_size=4)


def as_struct(point):
    """The point as the client takes it."""
    vector = {} if point.vector is None else {"codes": point.vector.tolist()}
    return models.PointStruct(id=point.id, vector=vector, payload=point.payload)


def make_points(tenant=None):
    """Points of every kind that the library makes."""
    chunks = [
        Chunk(text="one\0two", start=0, end=7, metadata={"none": None, "inner": {"list": [None, {"é": []}, 2**62]}}),
        Chunk(text=" ", id="blank, with an id of its own"),
        Chunk(text="型号80的零件 cafe\u0301"),  # which has words of its own
        Chunk(text="clipped"),
    ]
    document = Document(id="d", chunks=chunks, metadata={"lang": "en", "size": 1 / 3, "whole": 1.0, "even": True})
    rng = np.random.default_rng(5)
    codes = rng.integers(-128, 128, size=(len(chunks), 64)).astype(np.int8)
    codes[1] = 0
    (vectors,) = equalize_codes([codes], 28**2 * 64)
    ids = [chunk_point_id(document, chunk, index, tenant) for index, chunk in enumerate(chunks)]
    points = list(iter_points(document, chunks, vectors, ids, "0123456789abcdef" * 3, tenant))
    assert points[1].vector is None
    assert "words" in points[2].payload
    assert "own_codes" in points[3].payload
    return points


@given(POINTS)
def test_a_message_is_the_clients_own(points):
    message = make_message(None, points)
    expected = messages.UpsertPoints(
        wait=True, points=[RestToGrpc.convert_point_struct(as_struct(point)) for point in points]
    )
    # Deterministic, because entries of a map have no order.
    assert message.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("tenant", [None, "acme"])
def test_what_the_library_makes_is_sent_as_the_client_would(tenant):
    points = make_points(tenant)
    expected = [RestToGrpc.convert_point_struct(as_struct(point)) for point in points]
    assert list(make_message(None, points).points) == expected


@pytest.mark.parametrize(("levels", "fits"), [(32, True), (33, False), (60, False)])
def test_metadata_nests_as_deep_as_the_client_can_send_it(levels, fits):
    nested = 1
    for _ in range(levels):
        nested = {"k": nested}
    point = Point(make_points()[0].id, None, {"text": "x", "metadata": nested})
    if fits:
        expected = RestToGrpc.convert_point_struct(as_struct(point))
        assert list(messages.UpsertPoints(points=[expected]).points) == list(make_message(None, [point]).points)
        return
    with pytest.raises(InvalidInputError, match="flatten it, or connect with prefer_grpc=False"):
        make_message(None, [point])


# --- over the wire -----------------------------------------------------------------------------------


class Recorder:
    """A server that keeps what it is sent: method, bytes, seconds that the client waits, and its key."""

    def __init__(self):
        self.calls = []
        answers = {"Upsert": messages.PointsOperationResponse, "UpdateBatch": messages.UpdateBatchResponse}
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                lambda message, context, name=name, answer=answer: self._keep(name, message, context, answer),
                response_serializer=lambda answer: answer.SerializeToString(),
            )
            for name, answer in answers.items()
        }
        self._threads = ThreadPoolExecutor(4)
        self._server = grpc.server(self._threads)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("qdrant.Points", handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _keep(self, name, message, context, answer):
        key = dict(context.invocation_metadata()).get("api-key")
        self.calls.append((name, message, round(context.time_remaining()), key))
        updated = messages.UpdateResult(operation_id=0, status=messages.UpdateStatus.Completed)
        return answer(result=updated if name == "Upsert" else [updated])

    def close(self):
        self._server.stop(None).wait()
        self._threads.shutdown()


@pytest.fixture
def recorder():
    with contextlib.closing(Recorder()) as running:
        yield running


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize("class_", [QdrantClient, AsyncQdrantClient])
@pytest.mark.parametrize("timeout", [None, 0.5, 30])
@pytest.mark.parametrize("n", [0, 4])
@pytest.mark.parametrize("deletes", [False, True])
def test_what_is_sent_is_what_the_client_sends(recorder, class_, timeout, n, deletes):
    points = make_points()[:n]
    stale = models.Filter(must=[models.HasIdCondition(has_id=[make_points()[0].id])]) if deletes else None
    structs = [as_struct(point) for point in points]

    async def send():
        client = class_(
            url="http://127.0.0.1:1",
            grpc_port=recorder.port,
            prefer_grpc=True,
            timeout=timeout,
            api_key="a key",
            check_compatibility=False,
        )
        ours = upsert(client, "c", batch=make_batch(client, points), stale=stale)
        if class_ is AsyncQdrantClient:
            await ours
        if deletes:
            operations = [
                models.UpsertOperation(upsert=models.PointsList(points=structs)),
                models.DeleteOperation(delete=models.FilterSelector(filter=stale)),
            ]
            theirs = client.batch_update_points("c", operations)
        else:
            theirs = client.upsert("c", structs)
        if class_ is AsyncQdrantClient:
            await theirs
            await client.close()
        else:
            client.close()

    asyncio.run(send())
    kind = messages.UpdateBatchPoints if deletes else messages.UpsertPoints
    ours, theirs = [
        (name, kind.FromString(message), remaining, key) for name, message, remaining, key in recorder.calls
    ]
    assert ours == theirs
    assert ours[0] == ("UpdateBatch" if deletes else "Upsert")
    assert ours[3] == "a key"


def test_the_same_batch_may_be_sent_again(recorder):
    client = QdrantClient(port=1, grpc_port=recorder.port, prefer_grpc=True, check_compatibility=False)
    batch = make_batch(client, make_points())
    stale = models.Filter(must=[models.HasIdCondition(has_id=[make_points()[0].id])])
    for condition in (None, stale, None, stale):
        upsert(client, "c", batch=batch, stale=condition)
    client.close()
    sent = [(name, message) for name, message, _, _ in recorder.calls]
    assert sent[:2] == sent[2:]


class Own(QdrantClient):
    """A client whose verbs may do more than Qdrant's."""


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: QdrantClient(port=1, prefer_grpc=True, check_compatibility=False), True),
        (lambda: AsyncQdrantClient(port=1, prefer_grpc=True, check_compatibility=False), True),
        (lambda: QdrantClient(port=1, check_compatibility=False), False),
        (lambda: QdrantClient(":memory:", prefer_grpc=True), False),
        (lambda: Own(port=1, prefer_grpc=True, check_compatibility=False), False),
        (object, False),
    ],
)
def test_only_what_the_clients_own_verbs_would_send_is_sent_past_them(make, expected):
    assert speaks_grpc(make()) is expected
