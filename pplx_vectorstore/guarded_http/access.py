"""Who may use a server: by the form of requests, the name that they ask for, and their key."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pplx_vectorstore.errors import InvalidInputError

LOOPBACK = "127.0.0.1"
KEY_VARIABLE = "PPLX_VECTORSTORE_API_KEY"
"""Of the environment: a server's own key, also for those who ask it."""
_MOST_HEADERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use a server.

    Attributes:
        api_key: What requests must have as their bearer token; None for no key.
        hosts: Names that requests may have in their Host header, in lower case and without port; None for any.
        host_option: The option by which another name is allowed, for messages; None where there is none.
    """

    api_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = None
    host_option: str | None = None


class NotAdmittedError(Exception):
    """A request goes no further.

    Args:
        status: Of HTTP.
        message: What was expected, and the way out.
        headers: To go with the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers)


def is_loopback(host: str) -> bool:
    """Tell whether only programs of this machine reach a host name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choose_access(
    host: str, api_key: str | None, allowed_hosts: Sequence[str] = (), *, host_option: str | None = None
) -> Access:
    """Decide who may use a server.

    Args:
        host: What it binds to.
        api_key: What requests must have, or None.
        allowed_hosts: Names in the Host header that are right beside its own.
        host_option: The option that `allowed_hosts` come from.

    Raises:
        InvalidInputError: Anybody could use it from elsewhere; or no header can hold the key.
    """
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or not api_key or " " in api_key):
        raise InvalidInputError("the key must be of printable ASCII characters without spaces, and not empty")
    if not is_loopback(host):
        if api_key is None:
            raise InvalidInputError(
                f"--host {host} lets other machines in, and there is no key; set {KEY_VARIABLE} to one that clients "
                "send as 'Authorization: Bearer KEY', or leave --host out to serve this machine alone"
            )
        names = set(allowed_hosts)
    else:
        names = {"localhost", LOOPBACK, "[::1]", f"[{host}]" if ":" in host else host, *allowed_hosts}
    return Access(api_key=api_key, hosts=frozenset(map(str.lower, names)) or None, host_option=host_option)


def require_form(scope: Mapping[str, Any], access: Access) -> None:
    """Refuse a request of a form that could deceive whoever stands before or behind this server.

    Args:
        scope: Of ASGI.
        access: Says which hosts are right.

    Raises:
        NotAdmittedError: 400, 421 or 431; its connection is to be closed.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    close = {"Connection": "close"}
    if len(headers) > _MOST_HEADERS:
        raise NotAdmittedError(431, f"a request may have {_MOST_HEADERS} header fields at most", close)
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
        # Who stands in front may take the other one's word for where the next request begins.
        raise NotAdmittedError(400, "a request has Content-Length or Transfer-Encoding, not both", close)
    if access.hosts is not None:
        given = [value.decode("latin-1") for name, value in headers if name == b"host"]
        # A name that leads here by somebody else's DNS: a page of theirs would be asking.
        if len(given) != 1 or host_name(given[0]) not in access.hosts:
            way_out = "" if access.host_option is None else f"; another name is allowed by {access.host_option}"
            raise NotAdmittedError(421, f"this server answers to {', '.join(sorted(access.hosts))}{way_out}", close)


def require_key(scope: Mapping[str, Any], access: Access) -> None:
    """Refuse a request without the key.

    Args:
        scope: Of ASGI.
        access: Says which key is right.

    Raises:
        NotAdmittedError: 401.
    """
    if access.api_key is None:
        return
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
    # Compared to the end, whatever it is: how long it takes tells nothing of the key.
    is_right = hmac.compare_digest(token.strip(), access.api_key.encode("ascii"))
    if scheme.lower() != b"bearer" or not is_right:
        raise NotAdmittedError(401, "a valid key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})


def host_name(host: str) -> str:
    """Return the name in a Host header, without the port."""
    name, colon, port = host.strip().lower().rpartition(":")
    is_port = colon and port.isascii() and port.isdecimal() and (":" not in name or name.endswith("]"))
    return (name if is_port else host.strip().lower()).removesuffix(".")
