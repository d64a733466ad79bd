"""What of a server's failures is worth another try, and what the rest is called.

Every request of ours may be sent twice: ids are derived from content, so a write that took effect
although its answer was lost changes nothing when it is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from pplx_vectorstore.engines.server import describe_with_port, secrets_of
from pplx_vectorstore.errors import (
    InvalidInputError,
    PplxVectorStoreError,
    ServerError,
    ServerUnavailableError,
    StoreNotFoundError,
    UnsupportedFilterError,
)
from pplx_vectorstore.redaction import redact

DEFAULT_RETRIES = 8
# Seconds. Waits are drawn from 0 to twice the last bound, so that clients do not come back together.
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 20.0
_WRITES = ("upsert", "delete", "batch_update_points")
_REPEATABLE = "What was acknowledged is kept; the same call again completes the rest"
_GRPC_PORT = "The URL has the port of HTTP; gRPC is looked for on the next one, unless grpc_port names another"
# Tries after the first where no connection was ever made.
_FIRST_CONTACT = 2
_LONGEST_RETRY_AFTER = 300.0
# Characters of a server's words in our errors.
_MOST_WORDS = 500


_given_up: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("given up", default=None)
GLANCE = 0.1
"""Seconds after which whoever waits looks whether the operation was given up."""


@contextlib.contextmanager
def operation() -> Iterator[threading.Event]:
    """Within the block, requests belong to one operation: once the event is set, none of them is tried again.

    Threads and tasks that are begun within belong to it too. An operation within another is a part of that.
    """
    given_up = _given_up.get() or threading.Event()
    token = _given_up.set(given_up)
    try:
        yield given_up
    finally:
        _given_up.reset(token)


class GivenUpError(Exception):
    """Ends what a cancelled operation has begun."""


def require_wanted() -> None:
    """End what is done for an operation that was given up.

    Raises:
        GivenUpError: It was.
    """
    given_up = _given_up.get()
    if given_up is not None and given_up.is_set():
        raise GivenUpError


def give_up_unless(error: BaseException) -> None:
    """Let nothing of the running operation be tried again, unless it is an ordinary error that ends it."""
    given_up = _given_up.get()
    if given_up is not None and not isinstance(error, Exception):
        given_up.set()


async def _sleep_unless(given_up: threading.Event, seconds: float) -> None:
    """Sleep until the event is set, by a glance now and then: whoever sets it may be in another thread."""
    while seconds > 0 and not given_up.is_set():
        await asyncio.sleep(min(seconds, GLANCE))
        seconds -= GLANCE


class Retries:
    """Calls functions again while their failure looks temporary.

    Args:
        most: Tries after the first; 0 for none.
        where: Names the server in errors, such as its URL; None for an engine in this process, whose
            errors are passed on as they are.
        secrets: What no error may hold, though the server's words do.
    """

    def __init__(self, most: int = DEFAULT_RETRIES, *, where: str | None, secrets: Sequence[str] = ()) -> None:
        if not isinstance(most, int) or isinstance(most, bool) or most < 0:
            raise InvalidInputError(f"retries must be a whole number of at least 0, not {most!r}")
        self._most = most
        self._where = where
        self._secrets = tuple(secrets)
        self._has_answered = False

    @classmethod
    def of(cls, client: Any, most: int = DEFAULT_RETRIES) -> Retries:
        """Return those of a client's server, or of an engine in this process."""
        return cls(most, where=describe_with_port(client), secrets=secrets_of(client))

    def call(
        self, verb: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> Any:
        """Call a function, and again while that may help.

        Raises:
            ServerUnavailableError: It failed on every try.
            ServerError: The server refused, or is none of Qdrant's.
            InvalidInputError: The request could not be sent.
        """
        if self._where is None:
            return function(*arguments, **options)
        from tenacity import Retrying, sleep_using_event

        given_up = _given_up.get() or threading.Event()
        retrying = Retrying(**self._policy(given_up), sleep=sleep_using_event(given_up))
        try:
            answer: Any = retrying(function, *arguments, **options)
        except Exception as error:
            ours = self._translate(verb, error, retrying.statistics["attempt_number"])
            if ours is None:
                raise
        else:
            self._has_answered = True
            return answer
        raise ours  # out here, where the client's error, which holds the request and so the key, is no context of it

    async def acall(
        self,
        verb: str,
        function: Callable[..., Awaitable[Any]],
        arguments: tuple[Any, ...],
        options: Mapping[str, Any],
    ) -> Any:
        """Await a function as `call` calls one."""
        if self._where is None:
            return await function(*arguments, **options)
        from tenacity import AsyncRetrying

        given_up = _given_up.get() or threading.Event()
        retrying = AsyncRetrying(**self._policy(given_up), sleep=functools.partial(_sleep_unless, given_up))

        async def attempt() -> Any:  # of a function that is no coroutine function, it would not await what it returns
            return await function(*arguments, **options)

        try:
            answer: Any = await retrying(attempt)
        except Exception as error:
            ours = self._translate(verb, error, retrying.statistics["attempt_number"])
            if ours is None:
                raise
        else:
            self._has_answered = True
            return answer
        raise ours  # out here, where the client's error, which holds the request and so the key, is no context of it

    def _policy(self, given_up: threading.Event) -> dict[str, Any]:
        from tenacity import retry_if_exception, wait_random_exponential

        jittered = wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)

        def wait(state: Any) -> float:
            asked = _retry_after(state.outcome.exception())
            return jittered(state) + min(asked, _LONGEST_RETRY_AFTER)

        def stop(state: Any) -> bool:
            most = self._most
            if not self._has_answered and _is_unreachable(state.outcome.exception()):
                # Patience is for a server that has been there: a mistyped address should be told soon.
                most = min(most, _FIRST_CONTACT)
            return given_up.is_set() or bool(state.attempt_number > most)

        return {
            "retry": retry_if_exception(is_temporary),
            "stop": stop,
            "wait": wait,
            "reraise": True,
        }

    def _translate(self, verb: str, error: Exception, attempts: int) -> PplxVectorStoreError | None:
        """Return our error for one of the client's; None for any other."""
        reason = self._reason(error)
        status = _status(error)
        if is_temporary(error):
            tries = "once" if attempts == 1 else f"{attempts} times"
            hints = [_GRPC_PORT] if _grpc_code(error) == "UNAVAILABLE" and not self._has_answered else []
            hints += [_REPEATABLE] if verb in _WRITES else []
            return _refusal(
                ServerUnavailableError,
                f"{self._where} gave no answer to {verb}, asked {tries}: {reason}. Is the address right and the "
                f"server up? {'. '.join(hints)}".rstrip(),
                status,
            )
        if status is None:
            return self._translate_misfit(verb, error, reason)
        if "index required" in reason.lower():
            return UnsupportedFilterError(
                f"{self._where} runs in strict mode, which filters by indexed fields only: {reason}. "
                "Name the field in index_fields when opening the store"
            )
        if status in (401, 403):
            return _refusal(
                ServerError,
                f"{self._where} refused {verb} ({reason}); give an api_key, or set QDRANT_API_KEY, with the "
                "rights for it",
                status,
            )
        if status == 404:
            return StoreNotFoundError(f"{self._where}: {reason}")
        return _refusal(ServerError, f"{self._where} refused {verb}: {reason}", status)

    def _translate_misfit(self, verb: str, error: Exception, reason: str) -> PplxVectorStoreError | None:
        """Return our error for a request that could not be sent, or an answer that is none of Qdrant's."""
        import httpx
        from qdrant_client.http.exceptions import ResponseHandlingException

        if type(error).__module__ == "google.protobuf.message":
            return refuse_nesting(verb, self._where, reason)
        if not isinstance(error, ResponseHandlingException):
            return None
        if isinstance(error.source, (httpx.LocalProtocolError, UnicodeEncodeError)):
            # Without its words, which quote the header, and so the api_key.
            return InvalidInputError(
                f"{verb} could not be sent to {self._where}: a header is malformed. Does the api_key begin or end "
                "with white space, such as the line end of a file?"
            )
        if _is_no_http(error.source):
            return ServerError(
                f"{self._where} gave an answer to {verb} that is not HTTP: {reason}. The URL must have Qdrant's port "
                "of HTTP, 6333 by default, and https:// where that is of TLS; the port of gRPC is given as grpc_port"
            )
        return ServerError(
            f"{self._where} gave an answer to {verb} that is not understood: {reason}. Is this the address of a Qdrant "
            "server?"
        )

    def _reason(self, error: BaseException) -> str:
        """Return what went wrong in one line, without secrets: the server's own words where there are any."""
        status, text = _words(error)
        words = " ".join(redact(text, self._secrets).split())[:_MOST_WORDS]
        return f"{status}{words}".strip().removesuffix(".")


def refuse_nesting(verb: str, where: str | None, reason: str) -> InvalidInputError:
    """Return the error for what nests deeper than gRPC's messages do."""
    return InvalidInputError(
        f"{verb} could not be sent to {where} over gRPC, whose messages nest 100 levels deep: {reason}. Each dict in "
        "metadata takes three levels; flatten it, or connect with prefer_grpc=False and without grpc_port"
    )


def _refusal(kind: type[ServerError], message: str, status: int | None) -> ServerError:
    error = kind(message)
    error.status = status
    return error


def is_temporary(error: BaseException) -> bool:
    """Tell whether the same request may succeed later: no connection, no whole answer, 408, 429, or 5xx."""
    import httpx
    from pydantic import ValidationError
    from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if isinstance(error, ResourceExhaustedResponse):
        return True
    if isinstance(error, QdrantException):  # its Retry-After is a date, which the client cannot read
        return "Retry-After" in str(error)
    if isinstance(error, UnexpectedResponse):
        # 501 and 505: it will never do that; 507: its disk is full.
        return error.status_code in (408, 429) or (
            (error.status_code or 0) >= 500 and error.status_code not in (501, 505, 507)
        )
    # The answer was cut off; an answer that does not fit otherwise would not fit again.
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return True
    if isinstance(error, ResponseHandlingException):
        source = error.source
        if isinstance(source, ValidationError):
            return any(detail["type"] == "json_invalid" for detail in source.errors(include_url=False))
        return (
            isinstance(source, httpx.TransportError)
            and not isinstance(source, (httpx.UnsupportedProtocol, httpx.LocalProtocolError))
            and not _is_no_http(source)
        )
    return _grpc_code(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL")


def _is_no_http(error: BaseException) -> bool:
    """Tell whether what came began with no status line, as from a port of gRPC."""
    import httpx

    # The class alone also stands for connections that were closed too soon, and for answers damaged on their way.
    beginnings = ("illegal request line", "illegal status line")
    return isinstance(error, httpx.RemoteProtocolError) and str(error).startswith(beginnings)


def _is_unreachable(error: BaseException | None) -> bool:
    """Tell whether there was not even a connection."""
    import httpx

    source = getattr(error, "source", error)
    return isinstance(source, (httpx.ConnectError, httpx.ConnectTimeout)) or (
        error is not None and _grpc_code(error) == "UNAVAILABLE"
    )


def is_conflict(error: BaseException) -> bool:
    """Tell whether what was to be created exists already."""
    if not isinstance(error, ServerError) or error.status is None:
        return False
    return error.status == 409 or "already exists" in str(error)


def _retry_after(error: BaseException | None) -> float:
    """Return the seconds that the server asked to wait, or 0."""
    value = getattr(error, "retry_after_s", None)
    if value is None:
        value = (getattr(error, "headers", None) or {}).get("Retry-After", 0)
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return 0.0


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of a refusal, or what a gRPC code corresponds to."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status
    of_codes = {
        "NOT_FOUND": 404,
        "UNAUTHENTICATED": 401,
        "PERMISSION_DENIED": 403,
        "ALREADY_EXISTS": 409,
        "INVALID_ARGUMENT": 400,
        "FAILED_PRECONDITION": 400,
    }
    code = _grpc_code(error)
    return None if code is None else of_codes.get(code, 500)


def _grpc_code(error: BaseException) -> str | None:
    code = getattr(error, "code", None)
    if not callable(code):
        return None
    name = getattr(code(), "name", None)
    return name if isinstance(name, str) else None


def _words(error: BaseException) -> tuple[str, str]:
    """Return what to name before an error's words, and these."""
    content = getattr(error, "content", None)
    if content:
        try:
            text = json.loads(content)["status"]["error"]
        except (ValueError, KeyError, TypeError):
            text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
        return f"{getattr(error, 'status_code', '')} ", str(text)
    details = getattr(error, "details", None)
    if callable(details):
        return f"{_grpc_code(error)} ", str(details())
    source = getattr(error, "source", error)
    text = str(source).strip()
    return f"{type(source).__name__}{': ' if text else ''}", text
