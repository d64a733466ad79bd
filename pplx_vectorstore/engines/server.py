"""Clients of Qdrant servers: how they are made, and what of them may be shown."""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from typing import Any
from urllib.parse import urlsplit

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.redaction import without_password

# Seconds. A batch of points may wait for its turn behind others.
DEFAULT_TIMEOUT = 60.0

API_KEY_VARIABLE = "QDRANT_API_KEY"
# Characters. Values of other headers, such as "1", may stand in any message.
_SHORTEST_SECRET = 8
# What a header can hold, over HTTP and over gRPC.
_HEADER = re.compile(r"[!-~]([ -~]*[!-~])?")


def make_client(url: str, *, api_key: str | None, prefer_grpc: bool, timeout: float | None, asynchronous: bool) -> Any:
    """Make a ``QdrantClient`` or an ``AsyncQdrantClient`` of a URL.

    Args:
        url: Such as ``http://localhost:6333``.
        api_key: None to read the environment variable QDRANT_API_KEY.
        prefer_grpc: Send points and searches over gRPC, on the port after the URL's.
        timeout: Seconds for one request; None for the client's default.
        asynchronous: Which of the two.

    Raises:
        InvalidInputError: The URL is none, or the key cannot be sent.
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
    port = _port(url)
    options: dict[str, Any] = {
        "url": url,
        "api_key": key,
        "prefer_grpc": prefer_grpc,
        "grpc_port": port + 1 if port else 6334,
        "timeout": timeout,
        "check_compatibility": False,  # ours names what is missing
    }
    with warnings.catch_warnings():
        # On a private network that is a choice; the documentation says what it means.
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        with contextlib.suppress(ValueError):  # it quotes the URL, password and all
            return AsyncQdrantClient(**options) if asynchronous else QdrantClient(**options)
    raise _unusable(url)


def _port(url: str) -> int | None:
    with contextlib.suppress(ValueError):  # it quotes the URL, password and all
        return urlsplit(url).port
    raise _unusable(url)


def _unusable(url: str) -> InvalidInputError:
    return InvalidInputError(
        f"url {without_password(url)!r} is not usable: it must be like http://host:6333, with a port of at most 65535 "
        "(a key goes into api_key)"
    )


def describe(client: Any) -> str | None:
    """Return the address of the server behind a client, or None for an engine in this process."""
    from qdrant_client import AsyncQdrantClient, QdrantClient

    if not isinstance(client, (QdrantClient, AsyncQdrantClient)):
        return None
    options = client.init_options
    location = options.get("location")
    if location == ":memory:" or options.get("path"):
        return None
    host = options.get("host")
    address = str(options.get("url") or location or f"{host or 'localhost'}:{options.get('port')}")
    return without_password(address)


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
    from qdrant_client import AsyncQdrantClient, QdrantClient

    return isinstance(client, (QdrantClient, AsyncQdrantClient)) and describe(client) is None
