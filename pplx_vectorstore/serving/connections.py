"""HTTP connections with deadlines: uvicorn's own keep silent, half-sent and unread ones for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pplx_vectorstore.serving.wire import RefusalError

RECEIVE_SECONDS = 30.0
"""Time from a request's first byte, or the connection's beginning, to the request's last byte."""
UNREAD_SECONDS = 60.0
"""Time for which a client may read nothing of an answer that is under way."""
MOST_CONNECTIONS = 4096

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
        self._receiving.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._receiving.cancel()
        self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that is not complete by them must be in time."""
        super().data_received(data)
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
        """Refuse what is no HTTP, in the protocol's JSON."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is under way, or was given
            self.transport.abort()
            return
        body = RefusalError(400, "this is not an HTTP request as RFC 9112 has it, or its head is too large").body()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        events = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


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
