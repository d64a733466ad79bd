"""The server as a process: its socket, its signals, its end."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.serving.app import Access, Gate
from pplx_vectorstore.serving.connections import MOST_CONNECTIONS, GuardedProtocol
from pplx_vectorstore.serving.service import EmbeddingService

LOOPBACK = "127.0.0.1"
_KEEP_ALIVE_SECONDS = 30  # longer than clients keep connections, so that they do not ask on one that is being closed
_OPEN_FILES_BESIDE_CONNECTIONS = 512
_MOST_HEAD_BYTES = 32_768
# After the last answer there may be a client that has connected but not asked yet.
_QUIET_SECONDS = 0.3


def is_loopback(host: str) -> bool:
    """Tell whether only programs of this machine reach a host name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choose_access(host: str, api_key: str | None, allowed_hosts: Sequence[str]) -> Access:
    """Decide who may use a server.

    Args:
        host: What it binds to.
        api_key: What requests must have, or None.
        allowed_hosts: Names in the Host header that are right beside its own.

    Raises:
        InvalidInputError: Anybody could use it from elsewhere; or the key is none.
    """
    if api_key is not None and (
        not api_key.isascii() or not api_key.isprintable() or not api_key.strip() or " " in api_key
    ):
        raise InvalidInputError("the API key must be of printable ASCII characters without spaces")
    if not is_loopback(host):
        if api_key is None:
            raise InvalidInputError(
                f"on {host} anybody in the network could use the server: set a key that requests must have in "
                f"PPLX_VECTORSTORE_API_KEY, or leave --host out to serve this machine alone"
            )
        return Access(api_key=api_key, hosts=frozenset(map(str.lower, allowed_hosts)) or None)
    bound = f"[{host}]" if ":" in host else host
    names = {"localhost", LOOPBACK, "[::1]", bound, *allowed_hosts}
    return Access(api_key=api_key, hosts=frozenset(map(str.lower, names)))


def bind(host: str, port: int) -> socket.socket:
    """Open the socket to listen on.

    Args:
        host: Name or address.
        port: 0 for any that is free.

    Raises:
        InvalidInputError: It is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidInputError(
            f"cannot listen on {host} port {port} ({error.strerror or error}); choose another with --port or --host"
        ) from error


class Server(uvicorn.Server):
    """Serves until SIGTERM, SIGINT or `stop`; then answers what was taken on, while it refuses what comes.

    A second signal ends it at once.

    Args:
        service: Started by `serve_on`, and closed.
        app: In front of it.
        on_ready: Called when the model is loaded.
    """

    def __init__(self, service: EmbeddingService, app: Gate, *, on_ready: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
        )
        # Its loggers show what errors say, and warn of each request that is none.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
        super().__init__(config)
        self._service = service
        self._on_ready: Callable[[], None] | None = on_ready
        self._is_stopping = False
        self._quiet_since: float | None = None

    def serve_on(self, listener: socket.socket) -> None:
        """Serve on a socket from `bind`, which is closed in the end.

        Raises:
            BaseException: Whatever loading the model raised.
        """
        _allow_many_connections()
        self._service.start()
        try:
            self.run(sockets=[listener])
        finally:
            listener.close()
            if not self.force_exit:
                self._service.close()
        if self._service.failure is not None:
            raise self._service.failure

    def stop(self) -> None:
        """Begin to end; any thread may."""
        self._is_stopping = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._is_stopping:
            self.should_exit = self.force_exit = True
        self.stop()

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second for what has changed."""
        if self._on_ready is not None and self._service.state == "ready":
            self._on_ready()
            self._on_ready = None
        if self._service.state == "failed":
            self.should_exit = True
        elif self._is_stopping:
            self._service.drain()
            self.should_exit = self.should_exit or self._is_quiet()
        return await super().on_tick(counter)

    def _is_quiet(self) -> bool:
        now = time.monotonic()
        if not self._service.is_idle:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        return self._quiet_since is not None and now - self._quiet_since >= _QUIET_SECONDS


def _allow_many_connections() -> None:
    """Raise the soft limit of open files to what the connections may take, as far as the hard one lets us."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + _OPEN_FILES_BESIDE_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # then there are as many as there are
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
