"""Clients of Qdrant servers: how they are made, and what the server behind one can do."""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pplx_vectorstore.errors import InvalidInputError, UnsupportedServerError
from pplx_vectorstore.redaction import without_password

# Seconds. A batch of points may wait for its turn behind others.
DEFAULT_TIMEOUT = 60.0

API_KEY_VARIABLE = "QDRANT_API_KEY"
# The first with metadata of collections, which record how the vectors are made.
MINIMUM_VERSION = (1, 16)
_UNLINKED_INDEXES = (1, 17)
_MEMORY_PLACEMENT = (1, 19)
_TEXT_SCORING = (1, 20)

_VERSION = re.compile(r"(\d+)\.(\d+)")
# Characters. Values of other headers, such as "1", may stand in any message.
_SHORTEST_SECRET = 8
# What a header can hold, over HTTP and over gRPC.
_HEADER = re.compile(r"[!-~]([ -~]*[!-~])?")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do.

    Attributes:
        kind: "embedded", "server", or "emulation" for ``QdrantClient(":memory:")``.
        version: Of a server, as it says.
        memory_placement: Whether vectors can be placed cold, cached or pinned; older servers have two flags.
        text_scoring: Whether it ranks by BM25.
        unlinked_indexes: Whether payload indexes can be kept out of the vectors' graph.
    """

    kind: Literal["embedded", "server", "emulation"]
    version: str = ""
    memory_placement: bool = True
    text_scoring: bool = True
    unlinked_indexes: bool = True


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


def speaks_grpc(client: Any) -> bool:
    """Tell whether a client sends points over gRPC, with the verbs that it has of Qdrant: another's may do more."""
    from qdrant_client import AsyncQdrantClient, QdrantClient

    is_qdrants = type(client) in (QdrantClient, AsyncQdrantClient)
    return is_qdrants and bool(client.init_options.get("prefer_grpc")) and describe(client) is not None


def read_capabilities(version: str, where: str) -> Capabilities:
    """Turn a server's version into what it can do.

    Raises:
        UnsupportedServerError: It is older than the oldest that can hold our collections.
    """
    match = _VERSION.match(version)
    if match is None:  # built from a branch: take it for the newest
        return Capabilities("server", version)
    number = int(match[1]), int(match[2])
    if number < MINIMUM_VERSION:
        raise UnsupportedServerError(
            f"{where} runs Qdrant {version}; version {'.'.join(map(str, MINIMUM_VERSION))} or newer is needed, which "
            "records a collection's model with it. Upgrade the server, or use the embedded engine"
        )
    return Capabilities(
        "server",
        version,
        memory_placement=number >= _MEMORY_PLACEMENT,
        text_scoring=number >= _TEXT_SCORING,
        unlinked_indexes=number >= _UNLINKED_INDEXES,
    )
