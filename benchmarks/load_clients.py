"""What a streamed event costs the client: the connection of `gyrfalcon load` beside HTTP libraries.

    python benchmarks/load_clients.py [--streams 32] [--events 200] [--repeats 3]

A server in another process sends that many streams at a time, an event a millisecond each, as one HTTP
chunk. Each client reads its answers with the same Answer; timed is the CPU time of its thread alone
(time.thread_time), without making connections. Libraries that are not installed are left out: httpx2
comes with huggingface_hub, aiohttp with pip install aiohttp.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from statistics import median

from gyrfalcon.load.answer import Answer
from gyrfalcon.load.api import Api
from gyrfalcon.load.client import Client
from gyrfalcon.load.target import Target, target_of

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = {
    "id": "cmpl-0123456789abcdef",
    "object": "text_completion",
    "created": 1_790_000_000,
    "model": "nestling",
    "choices": [{"index": 0, "text": " word", "logprobs": None, "finish_reason": None}],
}
BODY = {"model": "nestling", "prompt": "a", "stream": True}
EVENT_SECONDS = 0.001
Ask = Callable[[], Awaitable[Answer]]


def main(argv: Sequence[str] | None = None) -> None:
    """Times each client and prints a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    clients = {"gyrfalcon": ours, "httpx2": httpx2, "aiohttp": aiohttp}
    with served(args.events) as target:
        for name, client in clients.items():
            if name != "gyrfalcon" and find_spec(name) is None:
                print(f"{name:<10} not installed")
                continue
            runs = [asyncio.run(timed(client, target, args.streams)) for _ in range(args.repeats)]
            print(f"{name:<10} {median(runs):.1f} µs of CPU an event")


async def timed(
    client: Callable[[Target], AsyncIterator[Ask]], target: Target, num_streams: int
) -> float:
    """Microseconds of this thread's CPU an event, once all connections are there."""
    async for ask in client(target):
        await asyncio.gather(*(ask() for _ in range(num_streams)))
        start = time.thread_time()
        answers = await asyncio.gather(*(ask() for _ in range(num_streams)))
        seconds = time.thread_time() - start
        return 1e6 * seconds / sum(len(answer.token_times) for answer in answers)
    raise AssertionError("a client gives one way to ask")


async def ours(target: Target) -> AsyncIterator[Ask]:
    """As `gyrfalcon load` asks."""
    client = Client(target, None, 60.0)
    await client.look_up()
    api = Api(client, "completions", {})

    async def ask() -> Answer:
        answer = Answer()
        await api.stream(api.body("nestling", "a", 1), answer)
        return answer

    yield ask
    client.close()


async def httpx2(target: Target) -> AsyncIterator[Ask]:
    """By httpx2, reading lines."""
    import httpx2 as library

    limits = library.Limits(max_connections=None)
    async with library.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:

        async def ask() -> Answer:
            answer, clock = Answer(), asyncio.get_running_loop().time
            async with client.stream("POST", target.url("completions"), json=BODY) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        answer.take(line[6:].encode(), clock())
            return answer

        yield ask


async def aiohttp(target: Target) -> AsyncIterator[Ask]:
    """By aiohttp, reading lines."""
    import aiohttp as library

    connector = library.TCPConnector(limit=0)
    async with library.ClientSession(connector=connector) as session:

        async def ask() -> Answer:
            answer, clock = Answer(), asyncio.get_running_loop().time
            async with session.post(target.url("completions"), json=BODY) as response:
                async for line in response.content:
                    if line.startswith(b"data: "):
                        answer.take(line[6:].rstrip(), clock())
            return answer

        yield ask


@contextmanager
def served(num_events: int) -> Iterator[Target]:
    """The server, in a process of its own."""
    receive, send = Pipe(duplex=False)
    process = Process(target=_serve, args=(send, num_events), daemon=True)
    process.start()
    try:
        yield target_of(f"http://127.0.0.1:{receive.recv()}")
    finally:
        process.terminate()
        process.join()


def _serve(ports: Connection, num_events: int) -> None:
    async def listen() -> None:
        server = await asyncio.start_server(
            lambda reader, writer: _stream(reader, writer, num_events), "127.0.0.1", 0
        )
        ports.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


async def _stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, num_events: int
) -> None:
    event = _chunk(json.dumps(EVENT).encode())
    while head := await _head(reader):
        length = next(
            line for line in head.split(b"\r\n") if line.lower().startswith(b"content-le")
        )
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(HEAD)
        for _ in range(num_events):
            await asyncio.sleep(EVENT_SECONDS)
            writer.write(event)
        writer.write(_chunk(b"[DONE]") + b"0\r\n\r\n")
    writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


def _chunk(data: bytes) -> bytes:
    text = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(text), text)


if __name__ == "__main__":
    main()
