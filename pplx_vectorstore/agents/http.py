"""The server by streamable HTTP, for agents on this machine, or with a key on others."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import JSONResponse

from pplx_vectorstore.errors import StoreError
from pplx_vectorstore.guarded_http.access import (
    Access,
    NotAdmittedError,
    choose_access,
    is_loopback,
    require_form,
    require_key,
)
from pplx_vectorstore.guarded_http.connections import MOST_HEAD_BYTES, GuardedProtocol, allow_many_connections

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/mcp"
_GRACE_SECONDS = 5


def bind(host: str, port: int) -> socket.socket:
    """Take a port; 0 for any that is free.

    Raises:
        StoreError: It is taken, or the host is none of this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise StoreError(f"{host}:{port} cannot be served: {error}; give another --host or --port") from error


def make_app(server: Server[Any], *, host: str, port: int, key: str | None) -> ASGIApp:
    """Make the ASGI application.

    Args:
        server: What answers.
        host: Where it is served.
        port: Where it is served.
        key: What clients must send; None for none.
    """
    # A page in a browser can have its own name lead here, and then call what listens on loopback: the name betrays it.
    # It cannot know the key.
    names = [f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", _as_authority(host))]
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=is_loopback(host), allowed_hosts=names, allowed_origins=[]
    )
    app = server.streamable_http_app(
        streamable_http_path=PATH, stateless_http=True, transport_security=security, host=host
    )
    return _Guard(app, choose_access(host, key))


def make_http_server(app: ASGIApp) -> uvicorn.Server:
    """Make what serves an application until the process is told to end.

    Connections that stand still are ended. The process may open more files from now on, so that many of them leave some
    for the index.
    """
    allow_many_connections()
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=GuardedProtocol,
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            ws="none",
            proxy_headers=False,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )


class _Guard:
    """Lets nobody in without the key, whatever they ask for, and nobody wait for messages that never come.

    Args:
        app: What answers.
        access: Who may ask.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: ASGIApp = self._app
        if scope["type"] == "http":
            try:
                require_form(scope, self._access)
                require_key(scope, self._access)
            except NotAdmittedError as error:
                response = JSONResponse({"error": error.message}, status_code=error.status, headers=error.headers)
            else:
                if scope["method"] != "POST":
                    # With GET, clients ask for a stream of what a server has to say unasked; this one has nothing.
                    response = JSONResponse(
                        {"error": "only POST is served"}, status_code=405, headers={"Allow": "POST"}
                    )
        await response(scope, receive, send)


def _as_authority(host: str) -> str:
    return f"[{host}]" if ":" in host else host
