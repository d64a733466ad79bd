"""What of a server's failures is tried again, how long is waited, and what the rest is called."""

import asyncio
import contextvars
import json
import threading
import traceback

import grpc
import httpx
import pytest
from pydantic import BaseModel, ValidationError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from pplx_vectorstore.engines import retrying
from pplx_vectorstore.engines.retrying import Retries, is_conflict, is_temporary
from pplx_vectorstore.errors import (
    InvalidInputError,
    ServerError,
    ServerUnavailableError,
    StoreNotFoundError,
    UnsupportedFilterError,
)

WHERE = "http://qdrant.example:6333"


class Answer(BaseModel):
    count: int


class RpcFailure(grpc.RpcError):
    """What a blocking gRPC call raises: its own class is private, and is this and no more to a caller."""

    def __init__(self, code, details="words of the server"):
        super().__init__()
        self._code, self._details = code, details

    def code(self):
        return self._code

    def details(self):
        return self._details


def refusal(status, message="words of the server", headers=None):
    content = json.dumps({"status": {"error": message}, "time": 0.0}).encode()
    return UnexpectedResponse(status, "Reason", content, httpx.Headers(headers or {}))


def async_rpc_failure(code, details="words of the server"):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def raised(function, *arguments):
    """The error that a function raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever it is
        function(*arguments)
    return caught.value


def misread(text):
    return ResponseHandlingException(raised(Answer.model_validate_json, text))


@pytest.fixture(params=["call", "acall"])
def call(request):
    """Both ways to call, as one: ``call(retries, function, *arguments, **options)``."""

    def run(retries, function, *arguments, **options):
        if request.param == "call":
            return retries.call("count", function, arguments, options)

        async def awaitable(*arguments, **options):
            return function(*arguments, **options)

        return asyncio.run(retries.acall("count", awaitable, arguments, options))

    return run


@pytest.fixture
def slept(monkeypatch):
    """Seconds of every wait between tries; nothing is waited for."""
    waits = []

    async def sleep(given_up, seconds):
        waits.append(seconds)

    monkeypatch.setattr("tenacity.sleep_using_event", lambda event: waits.append)
    monkeypatch.setattr(retrying, "_sleep_unless", sleep)
    return waits


def acquainted(most):
    """The retries of a server that has answered before."""
    retries = Retries(most, where=WHERE)
    retries.call("info", lambda: "1.20.0", (), {})
    return retries


def failing(*errors, then="value"):
    """A function that raises one error after the other, and returns at last; it keeps how it was called."""
    left = list(errors)

    def function(*arguments, **options):
        function.calls.append((arguments, options))
        if left:
            raise left.pop(0)
        return then

    function.calls = []
    return function


# --- what is temporary ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520, 529])
def test_statuses_that_may_pass(status):
    assert is_temporary(refusal(status))


@pytest.mark.parametrize("status", [None, 302, 400, 401, 403, 404, 405, 409, 413, 422, 501, 505, 507])
def test_statuses_that_will_not_pass(status):
    assert not is_temporary(refusal(status))


PASSING = {
    "no connection": ResponseHandlingException(httpx.ConnectError("[Errno 111] Connection refused")),
    "no connection in time": ResponseHandlingException(httpx.ConnectTimeout("timed out")),
    "no answer in time": ResponseHandlingException(httpx.ReadTimeout("timed out")),
    "not sent in time": ResponseHandlingException(httpx.WriteTimeout("timed out")),
    "all connections busy": ResponseHandlingException(httpx.PoolTimeout("")),
    "reset while reading": ResponseHandlingException(httpx.ReadError("[Errno 104] Connection reset by peer")),
    "reset while writing": ResponseHandlingException(httpx.WriteError("[Errno 32] Broken pipe")),
    "damaged head": ResponseHandlingException(httpx.RemoteProtocolError("illegal header line")),
    "damaged body": ResponseHandlingException(httpx.RemoteProtocolError("illegal chunk header: bytearray(b'x')")),
    "cut off": ResponseHandlingException(httpx.RemoteProtocolError("peer closed connection")),
    "proxy": ResponseHandlingException(httpx.ProxyError("502 Bad Gateway")),
    "JSON cut off": misread('{"count": 1'),
    "JSON cut off, seen by json": raised(json.loads, '{"count": 1'),
    "UTF-8 cut off": raised(b"\xe6\x96".decode, "utf-8"),
    "429 with Retry-After": ResourceExhaustedResponse("Too many requests", "3"),
    "429 with a date": raised(ResourceExhaustedResponse, "", "Wed, 21 Oct 2026 07:28:00 GMT"),
}
LASTING = {
    "other URL": ResponseHandlingException(httpx.UnsupportedProtocol("ftp://")),
    "other header": ResponseHandlingException(httpx.LocalProtocolError("Illegal header value")),
    "redirects": ResponseHandlingException(httpx.TooManyRedirects("30")),
    "no HTTP": ResponseHandlingException(httpx.RemoteProtocolError("illegal request line")),
    "another protocol": ResponseHandlingException(httpx.RemoteProtocolError("illegal status line: bytearray(b'x')")),
    "other answer": misread('{"number": 1}'),
    "of the client": QdrantException("no such thing"),
    "of the caller": ValueError("no such thing"),
    "stopped": KeyboardInterrupt(),
}


@pytest.mark.parametrize("name", PASSING)
def test_no_whole_answer_may_pass(name):
    assert is_temporary(PASSING[name])


def test_the_date_is_what_the_client_cannot_read():
    assert type(PASSING["429 with a date"]) is QdrantException
    assert isinstance(PASSING["JSON cut off"].source, ValidationError)


@pytest.mark.parametrize("name", LASTING)
def test_what_would_not_fare_better_again(name):
    assert not is_temporary(LASTING[name])


@pytest.mark.parametrize("make", [RpcFailure, async_rpc_failure])
@pytest.mark.parametrize("code", grpc.StatusCode)
def test_grpc_codes(code, make):
    passing = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL"}
    assert is_temporary(make(code)) is (code.name in passing)


# --- how often -----------------------------------------------------------------------------------------


def test_the_same_call_is_made_until_it_succeeds(call, slept):
    function = failing(*PASSING.values())
    assert call(acquainted(len(PASSING)), function, "documents", limit=3) == "value"
    assert function.calls == [(("documents",), {"limit": 3})] * (len(PASSING) + 1)
    assert len(slept) == len(PASSING)


@pytest.mark.parametrize(("most", "tries"), [(0, "once"), (1, "2 times"), (5, "6 times")])
def test_at_most_so_often(call, slept, most, tries):
    function = failing(*[refusal(503)] * 10)
    message = rf"{WHERE} gave no answer to count, asked {tries}: 503 words of the server\. Is the address right"
    with pytest.raises(ServerUnavailableError, match=message) as caught:
        call(acquainted(most), function)
    assert len(function.calls) == most + 1
    assert len(slept) == most
    assert caught.value.status == 503
    assert caught.value.__cause__ is caught.value.__context__ is None, "it would hold the request's headers"


def test_a_server_that_never_answered_is_given_up_soon(call, slept):
    function = failing(*[PASSING["no connection"]] * 10)
    with pytest.raises(ServerUnavailableError, match="asked 3 times"):
        call(Retries(8, where=WHERE), function)
    assert len(function.calls) == 3


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_not_tried_again(call, slept, name):
    function = failing(LASTING[name])
    with pytest.raises(BaseException):  # noqa: B017, PT011 - which one is tested below
        call(acquainted(5), function)
    assert len(function.calls) == 1
    assert slept == []


def test_a_refusal_after_a_failure_ends_it(call, slept):
    function = failing(refusal(503), refusal(400), refusal(503))
    with pytest.raises(ServerError, match="400"):
        call(acquainted(5), function)
    assert len(function.calls) == 2


def test_an_engine_in_this_process_is_asked_once(call):
    error = refusal(503)
    function = failing(error)
    with pytest.raises(UnexpectedResponse) as caught:
        call(Retries(5, where=None), function)
    assert caught.value is error
    assert len(function.calls) == 1
    assert call(Retries(5, where=None), function, 1, a=2) == "value"


@pytest.mark.parametrize("most", [-1, 1.0, True, None, "3"])
def test_retries_must_be_a_number(most):
    with pytest.raises(InvalidInputError, match="retries"):
        Retries(most, where=WHERE)


# --- how long ------------------------------------------------------------------------------------------


def test_waits_grow_are_spread_and_stay_below_a_bound(call, slept):
    first, longest = retrying._FIRST_WAIT, retrying._LONGEST_WAIT
    runs = []
    for _ in range(100):
        slept.clear()
        call(acquainted(10), failing(*[refusal(503)] * 10))
        runs.append(list(slept))
    for n, waits in enumerate(zip(*runs, strict=True)):
        bound = min(longest, first * 2**n)
        assert 0 <= min(waits) < bound / 4
        assert bound / 2 < max(waits) <= bound
        assert len(set(waits)) > 90


ASKED = {
    "of a 429": (ResourceExhaustedResponse("", "7"), 7),
    "of a 503": (refusal(503, headers={"retry-after": "7"}), 7),
    "fractions": (refusal(503, headers={"Retry-After": "0.5"}), 0.5),
    "none": (refusal(503), 0),
    "a date": (refusal(503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), 0),
    "a date, of a 429": (PASSING["429 with a date"], 0),
    "below zero": (ResourceExhaustedResponse("", "-7"), 0),
    "no number": (refusal(503, headers={"Retry-After": "nan"}), 0),
    "days": (ResourceExhaustedResponse("", str(10**9)), retrying._LONGEST_RETRY_AFTER),
    "for ever": (refusal(503, headers={"Retry-After": "inf"}), retrying._LONGEST_RETRY_AFTER),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_the_server_asks_for_is_waited_on_top(call, slept, name):
    error, seconds = ASKED[name]
    call(acquainted(1), failing(error))
    (waited,) = slept
    assert seconds <= waited <= seconds + retrying._FIRST_WAIT


# --- what the rest is called ---------------------------------------------------------------------------

BOTH_RPC = (RpcFailure, async_rpc_failure)
TRANSLATED = [
    (refusal(400), ServerError, "refused count: 400 words of the server"),
    (refusal(409), ServerError, "refused count: 409 words of the server"),
    (refusal(507), ServerError, "refused count: 507 words of the server"),
    (refusal(401), ServerError, r"refused count \(401 words of the server\); give an api_key, or set QDRANT_API_KEY"),
    (refusal(403), ServerError, r"refused count \(403 words of the server\); give an api_key"),
    (refusal(404), StoreNotFoundError, "404 words of the server"),
    (refusal(400, "Bad request: Index required but not found"), UnsupportedFilterError, "index_fields"),
    (misread('{"number": 1}'), ServerError, "not understood: ValidationError: .*count Field required"),
    (LASTING["redirects"], ServerError, "not understood: TooManyRedirects: 30"),
    (LASTING["other header"], InvalidInputError, "header is malformed. Does the api_key"),
    (PASSING["no connection"], ServerUnavailableError, "ConnectError: .*refused"),
    (PASSING["all connections busy"], ServerUnavailableError, r"PoolTimeout\. "),
    (PASSING["429 with Retry-After"], ServerUnavailableError, "ResourceExhaustedResponse: Too many requests"),
    (PASSING["JSON cut off, seen by json"], ServerUnavailableError, "JSONDecodeError: "),
    *[
        (make(code), class_, words)
        for make in BOTH_RPC
        for code, class_, words in [
            (grpc.StatusCode.UNAVAILABLE, ServerUnavailableError, "UNAVAILABLE words of the server"),
            (grpc.StatusCode.NOT_FOUND, StoreNotFoundError, "NOT_FOUND words of the server"),
            (grpc.StatusCode.UNAUTHENTICATED, ServerError, "api_key"),
            (grpc.StatusCode.PERMISSION_DENIED, ServerError, "api_key"),
            (grpc.StatusCode.INVALID_ARGUMENT, ServerError, "refused count: INVALID_ARGUMENT words of the server"),
        ]
    ],
]


@pytest.mark.parametrize(("error", "class_", "words"), TRANSLATED)
def test_the_servers_errors_become_ours(call, error, class_, words):
    with pytest.raises(class_, match=words) as caught:
        call(acquainted(0), failing(error))
    assert type(caught.value) is class_
    assert WHERE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_that_cannot_be_sent_is_not_quoted(call):
    """It may be the api_key."""
    error = ResponseHandlingException(httpx.LocalProtocolError("Illegal header value b'secret'"))
    with pytest.raises(InvalidInputError) as caught:
        call(Retries(3, where=WHERE), failing(error))
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("error", [ValueError("mine"), LASTING["of the client"], KeyboardInterrupt()])
def test_errors_that_are_no_servers_are_passed_on(call, error):
    with pytest.raises(type(error)) as caught:
        call(acquainted(3), failing(error))
    assert caught.value is error


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"status": {"error": "two\\n  lines"}}', "refused count: 418 two lines"),
        (b"<html>\n proxy \xff</html>", "refused count: 418 <html> proxy \ufffd</html>"),
        (b'{"status": "error"}', 'refused count: 418 {"status": "error"}'),
        (b"[]", "refused count: 418 []"),
        (b"x" * 10_000, f"refused count: 418 {'x' * 500}"),
    ],
)
def test_the_servers_own_words_are_told_in_one_line(call, content, told):
    error = UnexpectedResponse(418, "Teapot", content, httpx.Headers())
    with pytest.raises(ServerError) as caught:
        call(acquainted(0), failing(error))
    assert str(caught.value) == f"{WHERE} {told}"


def test_a_refusal_without_words_is_told_by_its_status(call):
    with pytest.raises(ServerError, match=r"refused count: .*418 \(Teapot\)"):
        call(acquainted(0), failing(UnexpectedResponse(418, "Teapot", b"", httpx.Headers())))


@pytest.mark.parametrize(
    ("error", "conflict"),
    [
        (refusal(409), True),
        (refusal(400, "Wrong input: Collection `a` already exists!"), True),
        (refusal(400), False),
        (refusal(403), False),
        (RpcFailure(grpc.StatusCode.ALREADY_EXISTS), True),
        (async_rpc_failure(grpc.StatusCode.INVALID_ARGUMENT, "Collection `a` already exists!"), True),
        (async_rpc_failure(grpc.StatusCode.INVALID_ARGUMENT), False),
    ],
)
def test_a_conflict_is_known_by_its_status(call, error, conflict):
    with pytest.raises(ServerError) as caught:
        call(acquainted(0), failing(error))
    assert is_conflict(caught.value) is conflict
    assert not is_conflict(ServerError("already exists"))


def test_giving_up_ends_a_wait_and_the_tries(call):
    """Whoever interrupts a program will not sit out a server's Retry-After; other operations go on waiting."""
    retries = acquainted(8)
    asked, errors = threading.Event(), []

    def function():
        asked.set()
        raise refusal(503, headers={"Retry-After": "60"})

    def ask():
        try:
            call(retries, function)
        except ServerUnavailableError as error:
            errors.append(error)

    with retrying.operation() as given_up:
        context = contextvars.copy_context()
    asking = threading.Thread(target=context.run, args=(ask,))
    asking.start()
    asked.wait()
    with retrying.operation() as of_another:
        of_another.set()
    asking.join(0.2)
    assert asking.is_alive()
    given_up.set()
    asking.join(30)
    assert not asking.is_alive()
    assert len(errors) == 1
