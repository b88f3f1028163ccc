"""A server in this process, on a loop of its own, and how tests ask it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from starlette.types import ASGIApp

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.serve.access import Gate
from gyrfalcon.serve.app import application, with_origins
from gyrfalcon.serve.service import Service, Settings

T = TypeVar("T")
NO_HEADERS: Mapping[str, str] = {}
Json = Any  # of an answer, which a test looks into


@dataclass(slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Json:
        return json.loads(self.body)

    @property
    def error(self) -> Json:
        """What is in the envelope of an error."""
        [(name, error)] = self.json().items()
        assert name == "error"
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def events(self) -> list[Json]:
        """The data of a stream's events, without [DONE], which has to be its last."""
        *events, last = data_of(self.body)
        assert last == "[DONE]"
        return [json.loads(event) for event in events]


def data_of(body: bytes) -> list[str]:
    """The data of all events, comments left out."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    return [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]


@dataclass(slots=True)
class Server:
    """The application on its loop; a request takes the way of ASGI, without a socket."""

    loop: asyncio.AbstractEventLoop
    service: Service
    gate: Gate
    app: ASGIApp
    failures: list[BaseException] = field(default_factory=list)

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, b"", headers)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Asks with a body of JSON."""
        headers = {"content-type": "application/json"} | headers
        return self.ask("POST", path, json.dumps(body).encode(), headers)

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        return self.on_loop(exchange(self.app, method, path, body, headers))

    def complete(self, prompt: object = "The falcon", **options: object) -> Json:
        """A completion of nestling that has to succeed; greedy unless asked for."""
        body = {"model": "nestling", "prompt": prompt, "temperature": 0} | options
        answer = self.post("/v1/completions", body)
        assert answer.status == 200, answer.body
        return answer.events() if options.get("stream") else answer.json()

    def later(
        self,
        path: str,
        body: object,
        reads: bool = True,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> "Pending":
        """Asks and does not wait; its client may read nothing."""
        return Pending(self, path, json.dumps(body).encode(), reads, headers=headers)

    def uploading(self, path: str, part: bytes) -> "Pending":
        """Sends a part of a body, and no more."""
        return Pending(self, path, part, ends=False)


@dataclass(slots=True)
class Client:
    """Who asks: it may leave, and stop reading."""

    gone: asyncio.Event = field(default_factory=asyncio.Event)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    parts: list[bytes] = field(default_factory=list)
    ends: bool = True  # its body


class Pending:
    """A request whose client can leave."""

    def __init__(
        self,
        server: Server,
        path: str,
        raw: bytes,
        reads: bool = True,
        ends: bool = True,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        self._loop, self._client = server.loop, Client(ends=ends)
        if reads:
            self._client.reads.set()
        headers = {"content-type": "application/json", **headers}
        self._answer: Future[Answer] = asyncio.run_coroutine_threadsafe(
            exchange(server.gate, "POST", path, raw, headers, self._client), server.loop
        )

    @property
    def parts(self) -> list[bytes]:
        """What has been sent."""
        return self._client.parts

    @property
    def has_ended(self) -> bool:
        """Whether all has been sent."""
        return self._answer.done()

    def leave(self) -> None:
        """The client closes its connection."""
        self._loop.call_soon_threadsafe(self._client.gone.set)

    def answer(self) -> Answer:
        return self._answer.result(60)


async def exchange(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
    client: Client | None = None,
) -> Answer:
    """One request to an ASGI application."""
    sent, answer = False, Answer(0, {}, b"")

    async def receive() -> dict[str, object]:
        nonlocal sent
        if not sent:
            sent = True
            more = client is not None and not client.ends
            return {"type": "http.request", "body": body, "more_body": more}
        await client.gone.wait() if client else await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")
            if client is not None:
                client.parts.append(message.get("body", b""))
                await client.reads.wait()

    headers = {"host": "127.0.0.1"} | headers
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.partition("?")[0],
        "raw_path": path.partition("?")[0].encode(),
        "query_string": path.partition("?")[2].encode(),
        "root_path": "",
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    return answer


@contextmanager
def serving(
    make_engine: Callable[[], Engine],
    *,
    keys: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    origins: Sequence[str] = (),
    wait: bool = True,
    **settings: Any,
) -> Iterator[Server]:
    """A server of an engine, ready unless `wait` is False."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    failures: list[BaseException] = []
    asked = Settings(**{"names": ("nestling",), **settings})

    async def begin() -> Server:
        service = Service(make_engine, asked, failures.append)
        service.start()
        if wait:
            await service.until_loaded()
        gate = application(service, keys, hosts)
        return Server(loop, service, gate, with_origins(gate, origins), failures)

    async def end(server: Server) -> None:
        await server.service.thread.stop()
        while server.gate.num_answering:
            await asyncio.sleep(0.001)

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result(60)
    try:
        yield server
    finally:
        server.on_loop(end(server))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def engine_of(model: Path, **settings: object) -> Engine:
    """An engine with a short context."""
    return Engine(EngineConfig(str(model), **{"max_len": 192, "seed": 1, **settings}))  # type: ignore[arg-type]


@contextmanager
def held(server: Server, num_running: int) -> Iterator[None]:
    """The engine's thread waits between two steps as soon as it runs so many samples: none of them ends."""
    reached, may_go_on = threading.Event(), threading.Event()

    def look(engine: Engine) -> None:
        if engine.stats().num_running != num_running:
            server.service.thread.between_steps(look)
            return
        reached.set()
        may_go_on.wait(20)

    server.service.thread.between_steps(look)
    try:
        assert reached.wait(20)
        yield
    finally:
        may_go_on.set()


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
