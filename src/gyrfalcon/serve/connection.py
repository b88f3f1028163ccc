"""One HTTP connection, with bounds on how long a client may take: to send a request's head, and to take what
is left when the server ends the connection.
"""

import asyncio
import socket
from typing import Any

import h11
from h11._writers import ChunkedWriter
from uvicorn.protocols.http.h11_impl import H11Protocol

from gyrfalcon.serve.errors import ApiError, as_json

HEAD_SECONDS = 20.0
CLOSE_SECONDS = 5.0
MOST_PIPELINED_BYTES = 64 << 10  # of further requests, while one is answered
LOST_SECONDS = 30  # without a sign of life from the client's machine


class Connection(H11Protocol):
    """uvicorn's, which waits for a request's head for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        self.conn = _Chunks(
            h11.SERVER, self.config.h11_max_incomplete_event_size or MOST_PIPELINED_BYTES
        )
        super().connection_made(_Closing(transport))  # type: ignore[arg-type]  # in its place
        _notice_lost_machines(transport.get_extra_info("socket"))
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._read_on()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Bytes that are no HTTP: an error in the envelope, where no answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = ApiError(400, "wanted an HTTP/1.1 request, got other bytes")
            body = as_json(error.envelope)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._watch()

    def _read_on(self) -> None:
        """uvicorn stops reading at a further request, and would not see that its client hangs up."""
        cycle = self.cycle
        if not self.flow.read_paused or cycle is None or cycle.response_complete or cycle.more_body:
            return
        if len(self.conn.trailing_data[0]) > MOST_PIPELINED_BYTES:
            self.transport.abort()
        else:
            self.flow.resume_reading()

    def _watch(self) -> None:
        """A deadline from the first byte of a request's head to its last, whatever comes in between; also
        for the rest of a body whose request is answered.
        """
        if self._is_within_request():
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _is_within_request(self) -> bool:
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        between = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        return answering or (cycle is not None and between)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _notice_lost_machines(connection: socket.socket | None) -> None:
    """Has the system end a connection whose client's machine answers nothing any more."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, LOST_SECONDS // 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, LOST_SECONDS // 6)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000)


class _Chunks(h11.Connection):
    """h11's, with the way of a chunk of a body made short: there is one for every token of every stream."""

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """The parts of an event's bytes."""
        if (
            type(event) is h11.Data
            and event.data
            and self.our_state is h11.SEND_BODY
            and type(self._writer) is ChunkedWriter
        ):
            return [b"%x\r\n" % len(event.data), event.data, b"\r\n"]
        return super().send_with_data_passthrough(event)


class _Closing:
    """A transport whose close() does not wait for ever for a client that reads nothing."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Sends what is left, within a few seconds."""
        if not self._transport.is_closing():
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)
        self._transport.close()
