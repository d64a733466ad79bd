"""The routes, and who may use them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pplx_vectorstore.encoders.served import DIGEST_HEADER
from pplx_vectorstore.guarded_http.access import Access, NotAdmittedError, require_form, require_key
from pplx_vectorstore.serving.metrics import CONTENT_TYPE
from pplx_vectorstore.serving.service import EmbeddingService, Held, ModelFailureError, log_failure
from pplx_vectorstore.serving.wire import (
    DEFAULT_ENCODING,
    EmbeddingRequest,
    RefusalError,
    ServedModel,
    read_request,
    write_answer,
    write_model,
)

logger = logging.getLogger("pplx_vectorstore.serving")

EMBEDDINGS = "/v1/embeddings"
CONTEXTUALIZED = "/v1/contextualizedembeddings"
HEALTH = "/health"
# Of HTTP, for a client that hung up: nobody sees it but the log.
_HUNG_UP = 499
_FAILURES = {401: "authentication", 429: "overloaded", 503: "unavailable", 500: "backend"}


def make_app(
    service: EmbeddingService,
    access: Access,
    *,
    unset_encoding: str = DEFAULT_ENCODING,
    log_requests: bool = False,
) -> Gate:
    """Make the ASGI application.

    Args:
        service: Does the work.
        access: Who may ask.
        unset_encoding: How vectors are written where the request does not say.
        log_requests: Whether to log a line for each request: never what it holds.
    """
    routes = _Routes(service, unset_encoding)
    router = Router(
        routes=[
            Route(EMBEDDINGS, routes.embeddings, methods=["POST"]),
            Route(CONTEXTUALIZED, routes.contextualized, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
            Route(HEALTH, routes.health, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
        ],
        redirect_slashes=False,
    )
    return Gate(router, service, access, log_requests=log_requests)


class Gate:
    """What every request passes first: its form, its host, its key; and what becomes of errors.

    Args:
        router: What is behind.
        service: Counts refusals.
        access: Who may ask.
        log_requests: Whether to log a line for each.
    """

    def __init__(self, router: ASGIApp, service: EmbeddingService, access: Access, *, log_requests: bool) -> None:
        self._router = router
        self._service = service
        self._access = access
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            raise RuntimeError(f"this application has no {scope['type']}")
        started = time.monotonic()
        status = _HUNG_UP

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._service.state == "draining" and not Headers(raw=message["headers"]).get("connection"):
                    # So that nobody asks on a connection that is about to go.
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        try:
            await self._answer(scope, receive, send_on)
        finally:
            seconds = time.monotonic() - started
            self._count(scope["path"], status, seconds)
            if self._log_requests:
                # Both are the client's words: anything can be in them.
                path = scope["path"] if scope["path"] in _SHOWN_PATHS else "(another path)"
                method = scope["method"] if scope["method"] in _SHOWN_METHODS else "(another method)"
                logger.info("%s %s %d %.0f ms", method, path, status, 1000 * seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            require_form(scope, self._access)
            if scope["path"] != HEALTH:
                require_key(scope, self._access)
            # With an application in the scope, the router raises what it has no route for.
            await self._router({**scope, "app": self}, receive, send)
        except RefusalError as refusal:
            await _response(refusal)(scope, receive, send)
        except NotAdmittedError as error:
            await _response(RefusalError(error.status, error.message, headers=error.headers))(scope, receive, send)
        except HTTPException as error:
            await _response(_not_routed(error))(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the client gets an answer, and the log no text
            log_failure("a request failed", error)
            with contextlib.suppress(RuntimeError):  # an answer was under way
                await _response(RefusalError(500, "the server failed at this request"))(scope, receive, send)

    def _count(self, path: str, status: int, seconds: float) -> None:
        if path not in (EMBEDDINGS, CONTEXTUALIZED):
            return
        metrics, route = self._service.metrics, path.removeprefix("/v1/")
        metrics.request_count.add(route)
        if status == 200:
            metrics.request_success.add(route)
            metrics.request_duration.observe(seconds)
        else:
            metrics.request_failure.add("disconnected" if status == _HUNG_UP else _FAILURES.get(status, "validation"))


class _Routes:
    """What each route does.

    Args:
        service: Does the work.
        unset_encoding: How vectors are written where the request does not say.
    """

    def __init__(self, service: EmbeddingService, unset_encoding: str) -> None:
        self._service = service
        self._unset_encoding = unset_encoding

    async def embeddings(self, request: Request) -> Response:
        """Embed texts one by one."""
        return await self._embed(request, nested=False)

    async def contextualized(self, request: Request) -> Response:
        """Embed chunks in the context of their document."""
        return await self._embed(request, nested=True)

    async def models(self, request: Request) -> Response:
        """List the one model."""
        return _json({"object": "list", "data": [write_model(self._service.model)]})

    async def model(self, request: Request) -> Response:
        """Describe the model, asked for by any of its names."""
        model = self._service.model
        if request.path_params["name"].lower() not in model.names:
            raise RefusalError(404, f"this server has no such model; it serves {model.name!r}", "model")
        return _json(write_model(model))

    async def health(self, request: Request) -> Response:
        """Tell whether requests are answered."""
        state = self._service.state
        status = 200 if state == "ready" else 503
        return _json({"status": "ok" if state == "ready" else state}, status, _no_store(status))

    async def metrics(self, request: Request) -> Response:
        """Tell what was counted."""
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE)

    async def _embed(self, request: Request, *, nested: bool) -> Response:
        service = self._service
        model = service.model
        _require_json(request.headers)
        if request.headers.get(DIGEST_HEADER, model.digest) != model.digest:
            raise RefusalError(
                400, f"this server's {model.name!r} is not the model that the client began with; load the encoder again"
            )
        announced = _content_length(request.headers)
        if announced > service.limits.body_bytes:
            raise _too_large(service.limits.body_bytes)
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(service.hold())
            held.require(announced)
            asked = await self._read(request, model, held, nested=nested)
            service.metrics.embed_count.add(amount=asked.n_chunks)
            patience = _patience(request.headers)
            service.take_on(asked, held, patience)
            try:
                codes, tokens = await _unless_hung_up(request, service.embed(asked, held, patience))
            except ModelFailureError as failure:
                # Clients try again what failed with 500, unless they are told not to.
                headers = {"x-should-retry": "false"} if failure.is_final else {}
                raise RefusalError(500, "the model failed at this request", headers=headers) from None
            service.metrics.embed_success.add(amount=asked.n_chunks)
            parts = await service.run_apart(asked.answer_bytes, partial(write_answer, asked, codes, tokens))
            return _HeldResponse(parts, stack.pop_all())

    async def _read(self, request: Request, model: ServedModel, held: Held, *, nested: bool) -> EmbeddingRequest:
        limits = self._service.limits
        body = await _read_body(request, limits.body_bytes, held)
        read = partial(read_request, body, model, limits, nested=nested, unset_encoding=self._unset_encoding)
        return await self._service.run_apart(len(body), read)


_SHOWN_PATHS = (EMBEDDINGS, CONTEXTUALIZED, "/v1/models", HEALTH, "/metrics")
_SHOWN_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


async def _read_body(request: Request, most_bytes: int, held: Held) -> bytearray:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
        # As it comes, not as it is announced: whoever announces much and sends nothing keeps nobody out.
        held.grow(len(part))
    return body


async def _unless_hung_up(request: Request, work: Any) -> Any:
    """Await work, and cancel it if the client hangs up.

    Raises:
        ClientDisconnect: It did.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_wait_for_hang_up(request.receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _wait_for_hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _require_json(headers: Headers) -> None:
    media_type, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if media_type.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise RefusalError(415, "the body must be JSON in UTF-8: Content-Type: application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusalError(415, "the body must not be compressed: no Content-Encoding")


def _content_length(headers: Headers) -> int:
    return int(headers.get("content-length", "0"))  # h11 has made sure that it is a number


def _too_large(most_bytes: int) -> RefusalError:
    return RefusalError(413, f"the body exceeds the maximum of {most_bytes} bytes; send fewer documents at once")


def _patience(headers: Headers) -> float | None:
    """Return how long the client will wait, where it says so."""
    try:
        seconds = float(headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


def _no_store(status: int) -> dict[str, str]:
    return {"Cache-Control": "no-store"} | ({} if status == 200 else {"Retry-After": "5"})


def _response(refusal: RefusalError) -> Response:
    return Response(refusal.body(), refusal.status, refusal.headers, "application/json")


def _not_routed(error: HTTPException) -> RefusalError:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return RefusalError(405, f"this route takes {allowed}", headers={"Allow": allowed})
    return RefusalError(404, "there is no such route")


class _HeldResponse(Response):
    """An answer that counts among the bytes that are held, until it is sent.

    It is sent in parts: the next goes when the client has read nearly all before it.

    Args:
        parts: JSON.
        held: To be left.
    """

    def __init__(self, parts: list[bytes], held: contextlib.ExitStack) -> None:
        length = {"Content-Length": str(sum(map(len, parts)))}
        super().__init__(headers=length, media_type="application/json")
        self._parts = parts
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            last = len(self._parts) - 1
            for i, part in enumerate(self._parts):
                await send({"type": "http.response.body", "body": part, "more_body": i < last})
