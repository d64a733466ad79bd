"""What of a server's failures is worth another try, and what the rest is called.

Every request of ours may be sent twice: ids are derived from content, so a write that took effect
although its answer was lost changes nothing when it is repeated.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from pplx_vectorstore.errors import (
    InvalidInputError,
    ServerError,
    ServerUnavailableError,
    StoreNotFoundError,
    UnsupportedFilterError,
)

DEFAULT_RETRIES = 8
# Seconds. Waits are drawn from 0 to twice the last bound, so that clients do not come back together.
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 20.0
_WRITES = ("upsert", "delete", "batch_update_points")
_REPEATABLE = "What was acknowledged is kept; the same call again completes the rest"
# Tries after the first where no connection was ever made.
_FIRST_CONTACT = 2
_LONGEST_RETRY_AFTER = 300.0


class Retries:
    """Calls functions again while their failure looks temporary.

    Args:
        most: Tries after the first; 0 for none.
        where: Names the server in errors, such as its URL; None for an engine in this process, whose
            errors are passed on as they are.
    """

    def __init__(self, most: int = DEFAULT_RETRIES, *, where: str | None) -> None:
        if not isinstance(most, int) or isinstance(most, bool) or most < 0:
            raise InvalidInputError(f"retries must be a whole number of at least 0, not {most!r}")
        self._most = most
        self._where = where
        self._has_answered = False
        self._given_up = threading.Event()

    @contextlib.contextmanager
    def giving_up(self, now: bool) -> Iterator[None]:
        """Within the block, if `now`, nothing is tried again, and waits end."""
        if now:
            self._given_up.set()
        try:
            yield
        finally:
            self._given_up.clear()

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

        retrying = Retrying(**self._policy(), sleep=sleep_using_event(self._given_up))
        try:
            answer: Any = retrying(function, *arguments, **options)
        except Exception as error:
            self._translate(verb, error, retrying.statistics["attempt_number"])
            raise
        self._has_answered = True
        return answer

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

        retrying = AsyncRetrying(**self._policy())
        try:
            answer: Any = await retrying(function, *arguments, **options)
        except Exception as error:
            self._translate(verb, error, retrying.statistics["attempt_number"])
            raise
        self._has_answered = True
        return answer

    def _policy(self) -> dict[str, Any]:
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
            return self._given_up.is_set() or bool(state.attempt_number > most)

        return {
            "retry": retry_if_exception(is_temporary),
            "stop": stop,
            "wait": wait,
            "reraise": True,
        }

    def _translate(self, verb: str, error: Exception, attempts: int) -> None:
        """Raise our error for a server's; return where it is none."""
        reason = _reason(error)
        status = _status(error)
        if is_temporary(error):
            tries = "once" if attempts == 1 else f"{attempts} times"
            raise ServerUnavailableError(
                f"{self._where} gave no answer to {verb}, asked {tries}: {reason}. Is the address right and the "
                f"server up?{' ' + _REPEATABLE if verb in _WRITES else ''}"
            ) from error
        if status is None:
            self._translate_misfit(verb, error)
            return
        if "index required" in reason.lower():
            raise UnsupportedFilterError(
                f"{self._where} runs in strict mode, which filters by indexed fields only: {reason}. "
                "Name the field in index_fields when opening the store"
            ) from error
        if status in (401, 403):
            raise ServerError(
                f"{self._where} refused {verb} ({reason}); give an api_key, or set QDRANT_API_KEY, with the "
                "rights for it"
            ) from error
        if status == 404:
            raise StoreNotFoundError(f"{self._where}: {reason}") from error
        raise ServerError(f"{self._where} refused {verb}: {reason}") from error

    def _translate_misfit(self, verb: str, error: Exception) -> None:
        """Raise our error for a request that could not be sent, or an answer that is none of Qdrant's."""
        import httpx
        from qdrant_client.http.exceptions import ResponseHandlingException

        if type(error).__module__ == "google.protobuf.message":
            raise InvalidInputError(
                f"{verb} could not be sent to {self._where} over gRPC, whose messages nest 100 levels deep: "
                f"{_reason(error)}. Each dict in metadata takes three levels; flatten it, or connect with "
                "prefer_grpc=False"
            ) from error
        if not isinstance(error, ResponseHandlingException):
            return
        if isinstance(error.source, httpx.LocalProtocolError):
            # Without its cause, which quotes the header, and so the api_key.
            raise InvalidInputError(
                f"{verb} could not be sent to {self._where}: a header is malformed. Does the api_key begin or end "
                "with white space, such as the line end of a file?"
            ) from None
        raise ServerError(
            f"{self._where} gave an answer to {verb} that is not understood: {_reason(error)}. Is this the address "
            "of a Qdrant server?"
        ) from error


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
        return isinstance(source, httpx.TransportError) and not isinstance(
            source, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
        )
    return _grpc_code(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL")


def _is_unreachable(error: BaseException | None) -> bool:
    """Tell whether there was not even a connection."""
    import httpx

    source = getattr(error, "source", error)
    return isinstance(source, (httpx.ConnectError, httpx.ConnectTimeout)) or (
        error is not None and _grpc_code(error) == "UNAVAILABLE"
    )


def is_conflict(error: BaseException) -> bool:
    """Tell whether what was to be created exists already."""
    cause = error.__cause__
    return cause is not None and (_status(cause) == 409 or "already exists" in _reason(cause))


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


def _reason(error: BaseException) -> str:
    """Return what went wrong in one line: the server's own words where there are any."""
    content = getattr(error, "content", None)
    if content:
        try:
            answer = json.loads(content)
            text = answer["status"]["error"]
        except (ValueError, KeyError, TypeError):
            text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        return f"{getattr(error, 'status_code', '')} {' '.join(str(text).split())[:500]}".strip()
    details = getattr(error, "details", None)
    if callable(details):
        return f"{_grpc_code(error)} {details()}"
    source = getattr(error, "source", error)
    text = " ".join(str(source).split())[:500]
    return f"{type(source).__name__}: {text}" if text else type(source).__name__
