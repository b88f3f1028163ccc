"""One HTTP/1.1 connection as an asyncio protocol: a request goes out, the parts of its answer go to a
reader in the callback that receives them, so that an event costs no task switch.
"""

import asyncio
from typing import Protocol

from gyrfalcon.load.failures import Failure, lost_failure
from gyrfalcon.load.response import Response


class Reader(Protocol):
    """Who reads an answer. Both methods raise Failure."""

    def part(self, response: Response, part: bytes) -> None:
        """Takes bytes of the body; the head has been read."""

    def end(self, response: Response) -> None:
        """The answer is complete."""


class StaleConnection(Exception):
    """The server closed a connection that had been kept before it read this request."""


class Connection(asyncio.Protocol):
    """Takes one request after another."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader: Reader | None = None
        self._response = Response()
        self._answered: asyncio.Future[None] | None = None
        self._num_requests = 0
        self._has_bytes = False  # of the present answer

    @property
    def is_open(self) -> bool:
        """Whether it can take a request now."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and self._answered is None

    async def exchange(self, request: bytes, reader: Reader) -> None:
        """Sends a request and returns when the reader has its whole answer; raises Failure or
        StaleConnection. Cancelled or failed, it closes the connection.
        """
        assert self._transport is not None
        self._reader, self._response, self._has_bytes = reader, Response(), False
        self._answered = asyncio.get_running_loop().create_future()
        self._num_requests += 1
        self._transport.write(request)
        try:
            await self._answered
        except BaseException:
            self.abort()
            raise
        finally:
            self._answered = self._reader = None
        if not self._response.keeps_alive or self._transport.get_write_buffer_size():
            self._transport.close()

    def abort(self) -> None:
        """Closes it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with what has come."""
        reader, response = self._reader, self._response
        if reader is None or response.complete:
            self.abort()  # nothing was asked for
            return
        self._has_bytes = True
        try:
            for part in response.feed(data):
                reader.part(response, part)
            if response.complete:
                reader.end(response)
                self._conclude(None)
        except Failure as failure:
            self._conclude(failure)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the other side closed, or something broke."""
        if self._reader is None or self._response.complete:
            return
        if self._num_requests > 1 and not self._has_bytes:
            self._conclude(StaleConnection())
            return
        try:
            if exc is not None:
                raise lost_failure(exc)
            self._response.end()
            self._reader.end(self._response)
            self._conclude(None)
        except Failure as failure:
            self._conclude(failure)

    def _conclude(self, error: Exception | None) -> None:
        answered = self._answered
        if answered is None or answered.done():
            return
        if error is None:
            answered.set_result(None)
        else:
            answered.set_exception(error)
