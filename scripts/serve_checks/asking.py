"""Asks a server with h11 over asyncio, a connection for each request: a check can leave when it likes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import h11

HOST = "127.0.0.1"
JSON = {"content-type": "application/json"}
READ_BYTES = 65536


@dataclass(slots=True)
class Reply:
    """A whole HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, which the caller looks into."""
        return json.loads(self.body)


@dataclass(slots=True)
class Streamed:
    """A streamed answer that was read to its end: when each event came (seconds of the loop's clock)."""

    status: int = 0
    times: list[float] = field(default_factory=list)  # of events with text or token ids
    text: str = ""
    finish_reason: str | None = None
    error: object = None
    is_done: bool = False

    @property
    def is_whole(self) -> bool:
        return self.is_done and self.finish_reason is not None and self.error is None


async def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request and its whole answer; OSError or h11.RemoteProtocolError when none comes."""
    status, found, parts = 0, dict[str, str](), list[bytes]()
    async with aclosing(_events(port, method, path, body, JSON | dict(headers or {}))) as events:
        async for event in events:
            if isinstance(event, h11.Response):
                status = event.status_code
                found = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
    return Reply(status, found, b"".join(parts))


async def post(port: int, path: str, body: object) -> Reply:
    """Asks with JSON."""
    return await ask(port, "POST", path, json.dumps(body).encode())


async def stream(port: int, path: str, body: object, into: Streamed | None = None) -> Streamed:
    """Asks for a stream and reads it to its end, filling `into` as events come."""
    answer, clock = into or Streamed(), asyncio.get_running_loop().time
    raw = json.dumps({"stream": True, **_object(body)}).encode()
    rest = b""
    async with aclosing(_events(port, "POST", path, raw, JSON)) as events:
        async for event in events:
            if isinstance(event, h11.Response):
                answer.status = event.status_code
            elif isinstance(event, h11.Data):
                *whole, rest = (rest + bytes(event.data)).split(b"\n\n")
                _take(answer, whole, clock())
    return answer


async def leave(port: int, path: str, body: object, num_parts: int) -> None:
    """Asks for a stream and closes the connection after some parts of it."""
    raw = json.dumps({"stream": True, **_object(body)}).encode()
    async with aclosing(_events(port, "POST", path, raw, JSON)) as events:
        async for event in events:
            num_parts -= isinstance(event, h11.Data)
            if num_parts <= 0:
                return


async def send_raw(port: int, data: bytes, seconds: float) -> bytes:
    """Sends bytes and returns what comes until the server closes, or within that time."""
    reader, writer = await asyncio.open_connection(HOST, port)
    found = b""
    try:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                writer.write(data)
                await writer.drain()
                while part := await reader.read(READ_BYTES):
                    found += part
    finally:
        writer.close()
    return found


def _object(body: object) -> dict[str, object]:
    assert isinstance(body, dict)
    return body


async def _events(
    port: int, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
) -> AsyncGenerator[h11.Event]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        lines = {"host": f"{HOST}:{port}", "connection": "close", **headers}
        if body is not None:
            lines["content-length"] = str(len(body))
        connection = h11.Connection(h11.CLIENT)
        sent: Sequence[h11.Event] = (
            h11.Request(method=method, target=path, headers=list(lines.items())),
            *([h11.Data(data=body)] if body else []),
            h11.EndOfMessage(),
        )
        for one in sent:
            writer.write(connection.send(one) or b"")
        await writer.drain()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ_BYTES))
                continue
            if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return
            assert not isinstance(event, type)
            yield event
    finally:
        writer.close()


def _take(answer: Streamed, blocks: Sequence[bytes], now: float) -> None:
    for block in blocks:
        if block.startswith(b":"):
            continue
        data = block.removeprefix(b"data: ")
        if data == b"[DONE]":
            answer.is_done = True
            continue
        value = json.loads(data)
        answer.error = value.get("error") or answer.error
        for choice in value.get("choices", ()):
            text = choice.get("text") or choice.get("delta", {}).get("content") or ""
            answer.text += text
            if text or choice.get("token_ids"):
                answer.times.append(now)
            answer.finish_reason = choice["finish_reason"] or answer.finish_reason
