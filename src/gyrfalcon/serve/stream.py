"""Answers that are sent as they come: server-sent events. What a client does not read is kept up to a bound;
one that stays behind is cut off. Events are written when they are about to be sent, large ones elsewhere than
on the event loop.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from starlette.types import Message, Receive, Scope, Send

from gyrfalcon.request import Delta
from gyrfalcon.serve.answer_size import LONG_ENTRIES
from gyrfalcon.serve.answers import Head, until_gone
from gyrfalcon.serve.errors import ApiError, as_api_error, as_json
from gyrfalcon.serve.formats import Json
from gyrfalcon.serve.requests import Streaming

MOST_WAITING = 1024  # deltas that a client has not read, or if these are more,
MOST_WAITING_STEPS = 32  # those of this many steps
LARGE_BYTES = 256 << 10  # what is sent at once and may take a while
PING_SECONDS = 10.0
SEND_SECONDS = 60.0  # that a client may take to read what is being sent
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
MARK = "\x00the text\x00"  # in its place


@dataclass(slots=True)
class Part:
    """A delta on its way to the client, and the usage so far where that is shown."""

    prompt: int
    delta: Delta
    usage: Json | None


class EventStream:
    """A sink of the engine thread, and the ASGI response that sends what it takes. `cancel` frees what the
    request still holds.
    """

    def __init__(self, head: Head, streaming: Streaming) -> None:
        self._head, self._streaming = head, streaming
        self._events = EventWriter(head, streaming)
        self._held: dict[int, list[Delta]] = defaultdict(list)  # by prompt, until it has its scores
        self._num_left = num_samples = len(head.format.prompts) * head.format.num_samples
        self._most_waiting = max(MOST_WAITING, MOST_WAITING_STEPS * num_samples)
        self._waiting: list[Part | bytes] = []
        self._sending_since: float | None = None
        self._last_bytes = 0  # of what was sent before
        self._ended = False
        loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._cut: asyncio.Future[None] = loop.create_future()
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
        usage = self._head.usage() if self._streaming.continuous_usage else None
        for one in (delta, *self._held.pop(prompt, ())) if self._held else (delta,):
            self._waiting.append(Part(prompt, one, usage))
            self._num_left -= one.finish_reason is not None
        if not self._num_left:
            self._end()

    def flush(self) -> None:
        stuck = self._sending_since is not None and self._last_bytes <= LARGE_BYTES
        if stuck and len(self._waiting) > self._most_waiting:
            self._cut_off()
        self._go_on()

    def fail(self, error: BaseException) -> None:
        if not self._ended:
            self._ended = True
            self._waiting.append(b"data: " + as_json(as_api_error(error).envelope) + b"\n\n")
            self._go_on()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(until_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({gone, sending, self._cut}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:  # a response that is left half-way closes its connection
            self._ended = True
            self.cancel()
            for task in (gone, sending, watching):
                task.cancel()

    async def _send(self, send: Send) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        } | dict(self._head.headers)
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send_one(send, {"type": "http.response.start", "status": 200, "headers": raw})
        while self._waiting or not self._ended:
            if not self._waiting:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            waiting, self._waiting = self._waiting, []
            is_long, write = self._events.is_long(waiting), self._events.written
            data = await asyncio.to_thread(write, waiting) if is_long else write(waiting)
            if data:
                body: Message = {"type": "http.response.body", "body": data, "more_body": True}
                await self._send_one(send, body)
                self._last_bytes = len(data)
        await self._send_one(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_one(self, send: Send, message: Message) -> None:
        self._sending_since = time.monotonic()
        await send(message)
        self._sending_since = None

    async def _watch(self) -> None:
        """Pings while there is nothing to send; cuts off a client that does not read."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            if self._wake is not None and not self._wake.done():
                self._waiting.append(PING)
                self._go_on()
            since = self._sending_since
            if since is not None and time.monotonic() - since > SEND_SECONDS:
                self._cut_off()

    def _go_on(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _cut_off(self) -> None:
        if not self._cut.done():
            self._cut.set_result(None)

    def _end(self) -> None:
        if self._streaming.include_usage:
            self._waiting.append(self._events.last(self._head.usage()))
        self._waiting.append(DONE)
        self._ended = True


class EventWriter:
    """Deltas → the bytes of their events, in their order."""

    def __init__(self, head: Head, streaming: Streaming) -> None:
        self._head, self._form = head, head.format
        self._before = as_json(head.fields(head.format.chunk_kind))[:-1] + b',"choices":['
        self._usage = b',"usage":null' if streaming.include_usage else b""
        self._opened: set[tuple[int, int]] = set()  # samples
        self._has_begun = False  # what only the first event has is out
        self._frames: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # of plain events, by sample
        self._num_samples = len(head.format.prompts) * head.format.num_samples
        self._of_token = head.format.num_entries(0, 1)

    def is_long(self, waiting: list[Part | bytes]) -> bool:
        """Whether writing these takes long."""
        form, num_entries = self._form, len(waiting) * self._of_token
        if len(self._opened) < self._num_samples:
            parts = [part for part in waiting if isinstance(part, Part)]
            opening = {(part.prompt, part.delta.index) for part in parts} - self._opened
            lengths = [len(form.prompts[prompt].ids) for prompt, _ in opening]
            num_entries += sum(form.num_entries(length, 0) for length in lengths)
        return num_entries > LONG_ENTRIES

    def written(self, waiting: list[Part | bytes]) -> bytes:
        """Their events; fewer than deltas, since some have nothing to show."""
        events: list[bytes] = []
        for part in waiting:
            if isinstance(part, bytes):
                events.append(part)
            elif self._is_plain(part):
                events.append(self._plain_event(part))
            else:
                events += self._events(part)
        return b"".join(events)

    def last(self, usage: Json) -> bytes:
        """The event of the usage, which has no choices."""
        return b"".join((b"data: ", self._before, b'],"usage":', as_json(usage), b"}\n\n"))

    def _is_plain(self, part: Part) -> bool:
        """Whether the event differs from the sample's others by its text alone."""
        delta = part.delta
        return (
            self._has_begun
            and bool(delta.text)
            and delta.finish_reason is None
            and part.usage is None
            and not self._form.shows_tokens
            and (part.prompt, delta.index) in self._opened
        )

    def _plain_event(self, part: Part) -> bytes:
        """The same as _event() writes, of which all but the text is kept: most tokens need no more."""
        sample = part.prompt, part.delta.index
        frame = self._frames.get(sample)
        if frame is None:
            marked = replace(part.delta, text=MARK)
            before, _, after = self._event(self._form.part(part.prompt, marked), None).partition(
                as_json(MARK)
            )
            frame = self._frames[sample] = before, after
        return as_json(part.delta.text).join(frame)

    def _events(self, part: Part) -> Iterator[bytes]:
        form, delta, sample = self._form, part.delta, (part.prompt, part.delta.index)
        if sample not in self._opened:
            self._opened.add(sample)
            opening = form.opening(part.prompt, delta.index)
            if opening is not None:
                yield self._event(opening, part.usage)
        has_tokens = form.shows_tokens and delta.token is not None
        if delta.text or has_tokens or delta.finish_reason is not None:
            yield self._event(form.part(part.prompt, delta), part.usage)

    def _event(self, choice: Json, usage: Json | None) -> bytes:
        self._has_begun = True
        fields = self._usage if usage is None else b',"usage":' + as_json(usage)
        if extras := self._head.extras():
            fields += b"," + as_json(extras)[1:-1]
        return b"".join((b"data: ", self._before, as_json(choice), b"]", fields, b"}\n\n"))
