"""The server by streamable HTTP, for agents on this machine, or with a key on others."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import JSONResponse

from pplx_vectorstore.errors import InvalidInputError, StoreError

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/mcp"
_GRACE_SECONDS = 5


def check_binding(host: str, key: str | None) -> None:
    """Refuse to serve other machines without a key, and a key that no header can hold.

    Raises:
        InvalidInputError: Says what to do.
    """
    if not is_loopback(host) and not key:
        raise InvalidInputError(
            f"--host {host} lets other machines in, and there is no key; set PPLX_VECTORSTORE_API_KEY to one that "
            "clients send as 'Authorization: Bearer KEY', or leave --host out to serve this machine alone"
        )
    if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip() or not key):
        raise InvalidInputError("the key must be printable ASCII, not empty, and without spaces around it")


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    return _Guard(app, key)


def make_http_server(app: ASGIApp) -> uvicorn.Server:
    """Make what serves an application until the process is told to end."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
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
        key: None where nobody needs one.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: ASGIApp = self._app
        if scope["type"] == "http" and not self._is_known(scope):
            response = JSONResponse(
                {"error": "unauthorized: send the server's key as 'Authorization: Bearer KEY'"},
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        elif scope["type"] == "http" and scope["method"] != "POST":
            # With GET, clients ask for a stream of what a server has to say unasked; this one has nothing.
            response = JSONResponse({"error": "only POST is served"}, status_code=405, headers={"Allow": "POST"})
        await response(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        if self._key is None:
            return True
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, credentials = sent[0].partition(b" ") if len(sent) == 1 else (b"", b"", b"")
        return hmac.compare_digest(credentials.strip(), self._key) and scheme.lower() == b"bearer"


def _as_authority(host: str) -> str:
    return f"[{host}]" if ":" in host else host
