"""Answers that are sent as they come: server-sent events. What a client does not read is kept up to a bound;
one that stays behind is cut off.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable

from starlette.types import Message, Receive, Scope, Send

from gyrfalcon.request import Delta
from gyrfalcon.serve.answers import Head, until_gone
from gyrfalcon.serve.errors import ApiError, as_api_error, as_json
from gyrfalcon.serve.requests import Streaming

MOST_BACKLOG_BYTES = 256 << 10
PING_SECONDS = 10.0
SEND_SECONDS = 60.0  # that a client may take to read what is being sent
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


class EventStream:
    """A sink of the engine thread, and the ASGI response that sends what it takes. `cancel` frees what the
    request still holds.
    """

    def __init__(self, head: Head, streaming: Streaming) -> None:
        self._head, self._streaming = head, streaming
        self._before = as_json(head.fields(head.format.chunk_kind))[:-1] + b',"choices":['
        self._opened: set[tuple[int, int]] = set()  # samples
        self._held: dict[int, list[Delta]] = defaultdict(list)  # by prompt, until it has its scores
        self._num_left = len(head.format.prompts) * head.format.num_samples
        self._events: list[bytes] = []
        self._backlog_bytes = 0
        self._is_sending = self._ended = False
        self._wake = asyncio.Event()
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.cancel: Callable[[], None] = lambda: None

    def take(self, prompt: int, delta: Delta) -> None:
        if self._ended:
            return
        try:
            self._head.take(prompt, delta)
        except ApiError as error:
            self.fail(error)
            return
        form = self._head.format
        if form.needs_scores and form.prompts[prompt].scores is None:
            self._held[prompt].append(delta)
            return
        for one in (delta, *self._held.pop(prompt, ())):
            self._write_delta(prompt, one)
        if not self._num_left:
            self._end()

    def flush(self) -> None:
        if self._is_sending and self._backlog_bytes > MOST_BACKLOG_BYTES and not self._cut.done():
            self._cut.set_result(None)
        self._wake.set()

    def fail(self, error: BaseException) -> None:
        if not self._ended:
            self._ended = True
            self._write(b"data: " + as_json(as_api_error(error).envelope) + b"\n\n")
            self._wake.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(until_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending, self._cut}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                with contextlib.suppress(TimeoutError):  # cut off, as one that stays behind
                    sending.result()
        finally:  # a response that is left half-way closes its connection
            self._ended = True
            self.cancel()
            gone.cancel()
            sending.cancel()

    async def _send(self, send: Send) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        } | dict(self._head.headers)
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send_one(send, {"type": "http.response.start", "status": 200, "headers": raw})
        while self._events or not self._ended:
            if not self._events:
                await self._next_or_ping()
            data, self._events, self._backlog_bytes = b"".join(self._events), [], 0
            await self._send_one(
                send, {"type": "http.response.body", "body": data, "more_body": True}
            )
        await self._send_one(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_one(self, send: Send, message: Message) -> None:
        """Sends a message; TimeoutError when the client does not read."""
        self._is_sending = True
        async with asyncio.timeout(SEND_SECONDS):
            await send(message)
        self._is_sending = False

    async def _next_or_ping(self) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PING_SECONDS):
                await self._wake.wait()
                return
        self._write(PING)

    def _write_delta(self, prompt: int, delta: Delta) -> None:
        form, sample = self._head.format, (prompt, delta.index)
        if sample not in self._opened:
            self._opened.add(sample)
            opening = form.opening(prompt, delta.index)
            if opening is not None:
                self._write_choice(opening)
        self._num_left -= delta.finish_reason is not None
        has_tokens = form.shows_tokens and delta.token is not None
        if delta.text or has_tokens or delta.finish_reason is not None:
            self._write_choice(form.part(prompt, delta))

    def _write_choice(self, choice: object) -> None:
        fields = b""
        if self._streaming.continuous_usage:
            fields = b',"usage":' + as_json(self._head.usage())
        elif self._streaming.include_usage:
            fields = b',"usage":null'
        if extras := self._head.extras():
            fields += b"," + as_json(extras)[1:-1]
        self._write(b"".join((b"data: ", self._before, as_json(choice), b"]", fields, b"}\n\n")))

    def _end(self) -> None:
        if self._streaming.include_usage:
            usage = as_json(self._head.usage())
            self._write(b"".join((b"data: ", self._before, b'],"usage":', usage, b"}\n\n")))
        self._write(DONE)
        self._ended = True

    def _write(self, event: bytes) -> None:
        self._events.append(event)
        self._backlog_bytes += len(event)
