"""A server of the OpenAI API whose every answer follows a script: what it sends, when, and how it breaks."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from gyrfalcon.load.target import Target, target_of

EVENT_STREAM = "text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    time: float  # of the event loop's clock
    path: str
    headers: dict[str, str]
    body: dict[str, object]


@dataclass
class Server:
    """What a script may use, and what was asked so far."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    num_connections: int = 0

    @property
    def target(self) -> Target:
        return target_of(self.url)


class Reply:
    """Writes one answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def whole(self, status: int, body: bytes, *headers: str) -> None:
        """An answer with a length."""
        lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}", *headers, "", ""]
        await self.raw("\r\n".join(lines).encode() + body)

    async def head(self, content_type: str = EVENT_STREAM) -> None:
        """The beginning of a chunked answer."""
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {content_type}", "Transfer-Encoding: chunked"]
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, value: object) -> None:
        """One event of a stream."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        await self.chunk(b"data: " + data + b"\n\n")

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def stream(self, asked: Asked, first: float, gap: float, num_tokens: int = -1) -> None:
        """A complete answer: its first token after `first` seconds, the others `gap` apart; as many as
        were asked for unless `num_tokens` says.
        """
        limit = asked.body["max_tokens"]
        assert isinstance(limit, int)
        count = limit if num_tokens < 0 else num_tokens
        is_chat = asked.path.endswith("/chat/completions")
        await self.head()
        if is_chat:
            await self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for number in range(count):
            await asyncio.sleep(gap if number else first)
            text = {"delta": {"content": "a"}} if is_chat else {"text": "a"}
            reason = "length" if number == count - 1 else None
            await self.event({"choices": [{**text, "finish_reason": reason}]})
        await self.event({"choices": [], "usage": usage_of(asked, count)})
        await self.event(b"[DONE]")
        await self.end()


Script = Callable[[Server, Asked, Reply], Awaitable[None]]


def usage_of(asked: Asked, output_len: int) -> dict[str, object]:
    """A word is two tokens; around a chat message stand five."""
    if "messages" in asked.body:
        messages = asked.body["messages"]
        assert isinstance(messages, list)
        prompt_tokens = 5 + 2 * len(str(messages[0]["content"]).split())
    else:
        prompt_tokens = 2 * len(str(asked.body["prompt"]).split())
    return {"prompt_tokens": prompt_tokens, "completion_tokens": output_len}


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Answers each request by the script, in the present event loop; lists the model "tiny"."""
    server = Server("")
    tasks = set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.num_connections += 1
        with suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError
        ):
            while True:
                asked = await _read(reader)
                if asked.path == "/v1/models":
                    body = json.dumps({"data": [{"id": "tiny"}, {"id": "other"}]}).encode()
                    await Reply(writer).whole(200, body)
                    continue
                server.asked.append(asked)
                await script(server, asked, Reply(writer))
                if writer.is_closing():
                    break
        writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    server.url = f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def serving_in_a_thread(script: Script) -> Iterator[Server]:
    """The same in a thread with its own event loop, for what runs its own."""
    started, ended = threading.Event(), asyncio.Event()
    found = list[tuple[Server, asyncio.AbstractEventLoop]]()

    async def serve() -> None:
        async with serving(script) as server:
            found.append((server, asyncio.get_running_loop()))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(30)
        yield found[0][0]
    finally:
        found[0][1].call_soon_threadsafe(ended.set)
        thread.join()


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.split("\r\n")
    fields = [field.partition(": ") for field in lines if field]
    headers = {name.lower(): value for name, _, value in fields}
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    time = asyncio.get_running_loop().time()
    return Asked(time, line.split()[1], headers, json.loads(raw) if raw else {})
