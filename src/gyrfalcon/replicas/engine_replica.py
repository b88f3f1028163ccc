"""EngineReplica: one engine with the server's own application, as an actor of Ray Serve."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator

from ray import serve
from starlette.types import Message

from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine.heap import freeze_heap
from gyrfalcon.errors import RankDied
from gyrfalcon.replicas.forwarding import Accepted, Forwarded, Part, Start
from gyrfalcon.replicas.settings import ReplicasConfig
from gyrfalcon.serve.app import application
from gyrfalcon.serve.keys import all_keys
from gyrfalcon.serve.service import Service, Settings, served_names

log = logging.getLogger(__name__)

LAST_ANSWERS_SECONDS = 1.0  # for errors to reach clients when the engine has failed
MOST_PART_BYTES = 1 << 20  # of an answer; gRPC takes messages of 4 MiB
GATHER_SECONDS = 0.005  # what an answer gives in that time after its last part is sent together


class EngineReplica:
    """What Ray Serve starts, asks, watches and ends. Its methods run on one event loop."""

    async def __init__(  # type: ignore[misc]  # Ray Serve waits for it
        self, config: ReplicasConfig
    ) -> None:
        """Loads the model; raises why it cannot."""
        self._name = serve.get_replica_context().replica_id.unique_id
        settings = Settings(
            names=config.served_model_names or served_names(config.engine.model),
            ignore_unknown=config.unknown_options == "ignore",
            max_queued_requests=config.max_queued_requests,
            max_queued_tokens=config.max_queued_tokens,
            public_metrics=config.public_metrics,
        )
        engine = config.replica_engine
        keys = all_keys(config.api_key_file)
        self._is_loaded = False
        self._ending: asyncio.Task[None] | None = None
        self._service = Service(lambda: Engine(engine), settings, self._failed)
        self._app = application(self._service, keys)
        self._service.start()
        await self._service.until_loaded()
        if self._service.failure is not None:
            raise self._service.failure
        self._is_loaded = True
        freeze_heap()

    async def answer(self, request: Forwarded) -> AsyncIterator[Part]:
        """The application's answer. Ends the request in the engine when its client has left, which Ray
        says by a cancellation.
        """
        outbox, gone = _Outbox(), asyncio.Event()
        body: list[Message] = [
            {"type": "http.request", "body": request.body, "more_body": False},
        ]

        async def receive() -> Message:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        yield Accepted(self._name)
        answering = asyncio.ensure_future(self._app(request.scope, receive, outbox.send))
        answering.add_done_callback(outbox.end)
        try:
            async for part in outbox:
                yield part
            answering.result()
        finally:
            gone.set()
            answering.cancel()

    async def metrics(self) -> tuple[str, str]:
        """The replica's id, and what it shows at /metrics."""
        return self._name, self._service.metrics.text().decode()

    async def check_health(self) -> None:
        """Ray ends a replica that raises: one whose engine has failed, or does not step though it has
        work.
        """
        state = self._service.state
        if state in ("failed", "stalled"):
            got = f"one that is {state}"
            raise RankDied("an engine that steps", got, "see the replica's log")

    async def __del__(self) -> None:
        await self._service.thread.stop()

    def _failed(self, error: BaseException) -> None:
        """An engine that failed takes its process with it, so that Ray sends it nothing more at once."""
        if self._is_loaded and self._ending is None:
            self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        await asyncio.sleep(LAST_ANSWERS_SECONDS)
        logging.shutdown()
        os._exit(1)


class _Outbox:
    """The messages of an application as parts of an answer; those that nobody has taken yet become one. A
    part takes Ray a millisecond of processor time on its way, as much as a small model takes for a token.
    """

    def __init__(self) -> None:
        self._start: Start | None = None
        self._body: list[bytes] = []
        self._has_ended = False
        self._wake = asyncio.Event()

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self._start = Start(message["status"], tuple(map(tuple, message["headers"])))
        elif message.get("body"):
            self._body.append(message["body"])
        self._wake.set()

    def end(self, answering: "asyncio.Future[None]") -> None:
        """Nothing more comes."""
        self._has_ended = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[Part]:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._start is not None:
                start, self._start = self._start, None
                yield start
            if self._body:
                body, self._body = b"".join(self._body), []
                for begin in range(0, len(body), MOST_PART_BYTES):
                    yield body[begin : begin + MOST_PART_BYTES]
                await asyncio.sleep(0 if self._has_ended else GATHER_SECONDS)
            if self._has_ended and not self._body:
                return
