"""The server as a process: its socket, its signals, its end."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.guarded_http.connections import MOST_HEAD_BYTES, GuardedProtocol, allow_many_connections
from pplx_vectorstore.serving.app import Gate
from pplx_vectorstore.serving.service import EmbeddingService
from pplx_vectorstore.serving.wire import RefusalError

_KEEP_ALIVE_SECONDS = 30  # longer than clients keep connections, so that they do not ask on one that is being closed
# After the last answer there may be a client that has connected but not asked yet.
_QUIET_SECONDS = 0.3


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


class _Protocol(GuardedProtocol):
    """Refuses in the protocol's JSON."""

    def error_body(self, status: int, message: str) -> bytes:
        return RefusalError(status, message).body()


class Server(uvicorn.Server):
    """Serves until SIGTERM, SIGINT or `stop`; then answers what was taken on, while it refuses what comes.

    A second signal ends it at once.

    Args:
        service: Started by `serve_on`, and closed.
        app: In front of it.
        on_listening: Called when requests and signals are taken.
        on_ready: Called when the model is loaded.
    """

    def __init__(
        self,
        service: EmbeddingService,
        app: Gate,
        *,
        on_listening: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        )
        # Its loggers show what errors say, and warn of each request that is none.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
        super().__init__(config)
        self._service = service
        self._on_listening = on_listening
        self._on_ready: Callable[[], None] | None = on_ready
        self._is_stopping = False
        self._quiet_since: float | None = None

    def serve_on(self, listener: socket.socket) -> None:
        """Serve on a socket from `bind`, which is closed in the end.

        Raises:
            BaseException: Whatever loading the model raised.
        """
        allow_many_connections()
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._on_listening()

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
            # Whoever comes now is told by the system; whoever is connected, by us.
            for server in self.servers:
                server.close()
        return self._quiet_since is not None and now - self._quiet_since >= _QUIET_SECONDS
