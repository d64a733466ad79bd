"""Clients of Qdrant servers: how they are made, and what of them may be shown."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
import threading
import warnings
import weakref
from typing import Any
from urllib.parse import urlsplit

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.forked import leave_to_the_other, renew_when_forked
from pplx_vectorstore.redaction import without_password

# Seconds. A batch of points may wait for its turn behind others.
DEFAULT_TIMEOUT = 60.0

# Qdrant's own, of HTTP; gRPC is on the one after.
_PORT = 6333
_LAST_PORT = 65535

API_KEY_VARIABLE = "QDRANT_API_KEY"
# Characters. Values of other headers, such as "1", may stand in any message.
_SHORTEST_SECRET = 8
# What a header can hold, over HTTP and over gRPC.
_HEADER = re.compile(r"[!-~]([ -~]*[!-~])?")


def make_client(
    url: str,
    *,
    api_key: str | None,
    prefer_grpc: bool,
    timeout: float | None,
    asynchronous: bool,
    grpc_port: int | None = None,
) -> Any:
    """Make a ``QdrantClient`` or an ``AsyncQdrantClient`` of a URL.

    Args:
        url: Such as ``http://localhost:6333``. Without a port, it is Qdrant's own, 6333; where it has a path, below
            which Qdrant itself serves nothing, it is that of the scheme: a proxy's.
        api_key: None to read the environment variable QDRANT_API_KEY.
        prefer_grpc: Send points and searches over gRPC.
        timeout: Seconds for one request; None for the client's default.
        asynchronous: Which of the two.
        grpc_port: Where on that host gRPC is; given, points and searches go over it. None for the port after the
            URL's, or 6334 where the URL has none.

    Raises:
        InvalidInputError: The URL is none, a port is none, or the key cannot be sent.
    """
    from qdrant_client import AsyncQdrantClient, QdrantClient

    if not isinstance(url, str) or not re.match(r"https?://[^/]", url):
        # What has no scheme may have a password all the same.
        came = repr(without_password(f"//{url}")[2:]) if isinstance(url, str) else type(url).__name__
        raise InvalidInputError(f"url must begin with http:// or https://, such as http://localhost:6333, not {came}")
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf
    ):
        raise InvalidInputError(f"timeout must be seconds above 0 or None, not {timeout!r}")
    key = api_key or os.environ.get(API_KEY_VARIABLE) or None
    _check_header(key)
    named, below = _port_and_path(url)
    over_grpc = prefer_grpc or grpc_port is not None
    options: dict[str, Any] = {
        "url": url,
        "port": (443 if url.startswith("https:") else 80) if below else _PORT,
        "api_key": key,
        "prefer_grpc": over_grpc,
        "grpc_port": _grpc_port(grpc_port, named) if over_grpc else _PORT + 1,
        "timeout": timeout,
        # Else each request is searched for texts to embed, and copied where there are some. The only ones that are sent
        # become vectors of BM25, which every server makes.
        "cloud_inference": True,
        "check_compatibility": False,  # ours names what is missing
    }
    with warnings.catch_warnings():
        # On a private network that is a choice; the documentation says what it means.
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        with contextlib.suppress(ValueError):  # it quotes the URL, password and all
            if asynchronous:
                return AsyncQdrantClient(**options)
            client = QdrantClient(**options)
            if not over_grpc:  # which a forked process cannot use at all once the other has
                renew_when_forked(client, functools.partial(_disconnect, options=options))
            return client
    raise _unusable(url)


_of_the_other: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
_connecting = threading.Lock()


def _disconnect(client: Any, options: dict[str, Any]) -> None:
    """In a forked process, note that a client is to connect anew before it is used."""
    global _connecting
    _connecting = threading.Lock()
    _of_the_other[client] = options


def connect_if_forked(client: Any) -> None:
    """Have a client connect anew that was made by `make_client` before this process was forked.

    Over connections that two processes use, each would get answers of the other.
    """
    if not is_of_another_process(client):
        return
    with _connecting:
        options = _of_the_other.get(client)
        if options is None:
            return
        leave_to_the_other(dict(vars(client)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were told of before
            client.__init__(**options)
        del _of_the_other[client]


def is_of_another_process(client: Any) -> bool:
    """Tell whether a client has the connections of the process that this one was forked from, still."""
    return bool(_of_the_other) and client in _of_the_other


def _port_and_path(url: str) -> tuple[int | None, str]:
    """Return the port that a URL names, and the path that it goes on with, without slashes around it."""
    with contextlib.suppress(ValueError):  # it quotes the URL, password and all
        parts = urlsplit(url)
        if parts.port != 0:  # which the client would take for none
            return parts.port, parts.path.strip("/")
    raise _unusable(url)


def _grpc_port(given: int | None, named: int | None) -> int:
    if given is None:
        if named == _LAST_PORT:
            raise InvalidInputError(f"there is no port after the URL's, {named}, for gRPC; give its own as grpc_port")
        return (named or _PORT) + 1
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= _LAST_PORT:
        raise InvalidInputError(
            f"grpc_port must be a port from 1 to {_LAST_PORT}, or None for the one after the URL's, not {given!r}"
        )
    return given


def _unusable(url: str) -> InvalidInputError:
    return InvalidInputError(
        f"url {without_password(url)!r} is not usable: it must be like http://host:6333, with a port from 1 to "
        f"{_LAST_PORT} (a key goes into api_key)"
    )


def describe(client: Any) -> str | None:
    """Return the address of the server behind a client, or None for an engine in this process.

    It is the same however it was written: with a slash at its end or without, with Qdrant's port or without.
    """
    if not is_qdrants(client):
        return None
    options = client.init_options
    location = options.get("location")
    if location == ":memory:" or options.get("path"):
        return None
    address = without_password(str(options.get("url") or location or options.get("host") or "localhost"))
    if "://" not in address:
        secure = bool(options.get("api_key")) if options.get("https") is None else options["https"]
        address = f"{'https' if secure else 'http'}://{address.removeprefix('//')}"
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    if options.get("port") is not None and not re.search(r":\d+$", host):
        host += f":{options['port']}"
    below = "/".join(filter(None, [path.strip("/") if slash else "", str(options.get("prefix") or "").strip("/")]))
    return f"{scheme.lower()}://{host.lower()}" + (f"/{below}" if below else "")


def describe_with_port(client: Any) -> str | None:
    """Return the address as `describe` does, and gRPC's port with it where requests go there."""
    address = describe(client)
    if address is None or not client.init_options.get("prefer_grpc"):
        return address
    return f"{address} (gRPC on port {client.init_options['grpc_port']})"


def secrets_of(client: Any) -> tuple[str, ...]:
    """Return what a client sends and nobody may read: its key, and what else it was given as headers.

    Raises:
        InvalidInputError: The key cannot be sent.
    """
    options = getattr(client, "init_options", None) or {}
    key = options.get("api_key")
    _check_header(key)
    headers = [*(options.get("headers") or {}).values(), *(options.get("metadata") or {}).values()]
    long_enough = [value for value in headers if isinstance(value, str) and len(value) >= _SHORTEST_SECRET]
    return tuple(filter(None, [key, *long_enough]))


def _check_header(key: object) -> None:
    # Without the key. httpcore would log it, and gRPC take it for a failure that may pass.
    if key is not None and not (isinstance(key, str) and _HEADER.fullmatch(key)):
        raise InvalidInputError(
            "the api_key must be visible ASCII. Does it begin or end with white space, such as the line end of a file?"
        )


def is_emulation(client: Any) -> bool:
    """Tell whether a client emulates the engine in numpy."""
    return is_qdrants(client) and describe(client) is None


def speaks_grpc(client: Any) -> bool:
    """Tell whether a client sends points over gRPC, with the verbs that it has of Qdrant: another's may do more."""
    own = type(client) in _qdrants_clients()
    return own and bool(client.init_options.get("prefer_grpc")) and describe(client) is not None


def is_qdrants(client: Any) -> bool:
    """Tell whether a client is Qdrant's own: of a server, or the emulation."""
    return isinstance(client, _qdrants_clients())


def _qdrants_clients() -> tuple[type, ...]:
    """Return their classes; none where the package, which takes most of a second, was not imported to make one."""
    package = sys.modules.get("qdrant_client")
    found = (getattr(package, name, None) for name in ("QdrantClient", "AsyncQdrantClient"))
    return tuple(one for one in found if one is not None)
