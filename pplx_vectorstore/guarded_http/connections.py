"""HTTP connections with deadlines: uvicorn's own keep silent, half-sent and unread ones for ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

RECEIVE_SECONDS = 30.0
"""Time from the connection's beginning to a request's first byte, and from there to its last."""
UNREAD_SECONDS = 60.0
"""Time for which an answer, or the part of it that is being sent, may stand still because its client does not read."""
MOST_CONNECTIONS = 4096
MOST_HEAD_BYTES = 32_768
"""For ``h11_max_incomplete_event_size``."""

_OPEN_FILES_BESIDE_CONNECTIONS = 512
_RECEIVING = (h11.IDLE, h11.SEND_BODY)


class GuardedProtocol(H11Protocol):
    """Ends connections that stand still."""

    receive_seconds = RECEIVE_SECONDS
    unread_seconds = UNREAD_SECONDS
    most_connections = MOST_CONNECTIONS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._receiving = _Deadline(self, self.receive_seconds)
        self._unread = _Deadline(self, self.unread_seconds)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give a new connection its deadline, or end it where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
            return
        # asyncio leaves this to sockets that were made for TCP by name. Without, the parts of an answer wait for the
        # client to acknowledge the one before: 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._receiving.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._receiving.cancel()
        self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; with the first of a request its time begins."""
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._receiving.cancel()
        super().data_received(data)

    def handle_events(self) -> None:
        """Read what has come, now or while the request before was being answered; the rest must be in time."""
        super().handle_events()
        if self.conn.their_state in _RECEIVING:
            self._receiving.begin()
        else:
            self._receiving.cancel()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        super().pause_writing()
        self._unread.begin()

    def resume_writing(self) -> None:
        """Go on: it has read."""
        self._unread.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the application's form."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is under way, or was given
            self.transport.abort()
            return
        body = self.error_body(400, "this is not an HTTP request as RFC 9112 has it, or its head is too large")
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        events = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def error_body(self, status: int, message: str) -> bytes:
        """Return the JSON of a refusal; an application that has a form of its own for them overrides this."""
        return json.dumps({"error": message}).encode()


class _Deadline:
    """Ends a connection some seconds after it was begun, unless it is cancelled."""

    def __init__(self, connection: GuardedProtocol, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin, if it has not begun already."""
        if self._timer is None:
            # What is left in the buffer, nobody reads: there is nothing to flush.
            self._timer = self._connection.loop.call_later(self._seconds, self._connection.transport.abort)

    def cancel(self) -> None:
        """Forget it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def allow_many_connections() -> None:
    """Raise the soft limit of open files to what the connections may take, as far as the hard one lets us.

    Otherwise whoever opens many would keep the process from opening files of its own.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + _OPEN_FILES_BESIDE_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # then there are as many as there are
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
