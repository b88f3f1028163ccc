"""Runs the server: a listening socket, uvicorn, and what ends it. Knows no endpoints."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from gyrfalcon.engine.engine import Engine
from gyrfalcon.errors import GyrfalconError, RankDied, UsageError
from gyrfalcon.serve.access import allowed_hosts
from gyrfalcon.serve.app import application, with_origins
from gyrfalcon.serve.connection import Connection
from gyrfalcon.serve.service import Service, Settings

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
MOST_HEADER_BYTES = 64 << 10
LAST_ANSWERS_SECONDS = 1.0  # for errors to reach clients when the engine has failed


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the server is reached, by whom, and how long it may take to end."""

    host: str
    port: int
    keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    shutdown_seconds: float = 30.0


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; UsageError where the address is not available."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        got = error.strerror or str(error)
        do = "choose another `host` or `port`"
        raise UsageError("an address to listen on", f"{host}:{port}, {got}", do) from None
    return listening


def run(
    make_engine: Callable[[], Engine],
    settings: Settings,
    listening: Listening,
    bound: socket.socket,
    on_ready: Callable[[Engine], None],
) -> None:
    """Serves until a signal or a failure ends it; returns after SIGTERM. Raises KeyboardInterrupt after
    Ctrl-C, and what ended the engine.
    """
    _allow_many_files()
    asyncio.run(_Running(make_engine, settings, listening, bound, on_ready).run())


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers: ours let streams finish first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Running:
    """One run of the server on its event loop."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        settings: Settings,
        listening: Listening,
        bound: socket.socket,
        on_ready: Callable[[Engine], None],
    ) -> None:
        self._make_engine, self._settings = make_engine, settings
        self._listening, self._bound, self._on_ready = listening, bound, on_ready
        self._interrupted = self._hurried = self._stopped = False

    async def run(self) -> None:
        self._over = asyncio.Event()
        service = self._service = Service(self._make_engine, self._settings, self._failed)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        hosts = allowed_hosts(self._listening.host, self._listening.allowed_hosts)
        self._gate = application(service, self._listening.keys, hosts)
        server = _Server(_config(with_origins(self._gate, self._listening.allowed_origins)))
        serving = asyncio.ensure_future(server.serve([self._bound]))
        serving.add_done_callback(self._stopped_serving)
        service.start()
        announcing = asyncio.ensure_future(self._announce())
        await self._over.wait()
        await self._last_answers()
        announcing.cancel()
        has_ended = await service.thread.stop()
        server.should_exit = True
        await serving  # raises what ended it
        if not has_ended:
            error = service.failure
            if error is None and not service.thread.computes_here:
                error = _goes_on()
            _end_this_process(error, 130 if self._interrupted else 0)
        if self._stopped:
            raise RuntimeError("the HTTP server ended by itself")
        if service.failure is not None:
            raise service.failure
        if self._interrupted:
            raise KeyboardInterrupt

    async def _announce(self) -> None:
        await self._service.until_loaded()
        if self._service.is_ready:
            self._on_ready(self._service.engine)

    async def _last_answers(self) -> None:
        """Waits until what is being answered has ended, within the time there is."""
        service, seconds = self._service, self._listening.shutdown_seconds
        if service.failure is not None or self._stopped:
            seconds = LAST_ANSWERS_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._gate.num_answering and not self._hurried:
                    await asyncio.sleep(0.02)

    def _failed(self, error: BaseException) -> None:
        self._over.set()

    def _stopped_serving(self, serving: "asyncio.Future[None]") -> None:
        """Nobody can be answered any more, unless this is how we end."""
        self._stopped = not self._over.is_set()
        self._over.set()

    def _drain(self) -> None:
        self._service.is_draining = True
        self._over.set()

    def _interrupt(self) -> None:
        self._hurried = self._over.is_set()  # the second signal does not wait
        self._interrupted = True
        self._drain()


def _goes_on() -> RankDied:
    got = "one that goes on, and may wait for a device for ever"
    return RankDied("the engine's last step to end", got, "see the log, and look at the device")


def _end_this_process(error: BaseException | None, exit_code: int) -> None:
    """Whatever its threads wait for, which on its way out Python might wait for as well. Without an error
    with this exit code: nobody waits for the step that a processor is computing.
    """
    logging.shutdown()
    if error is not None:
        print("gyrfalcon: error:", error, file=sys.stderr, flush=True)
        exit_code = error.exit_code if isinstance(error, GyrfalconError) else 1
    os._exit(exit_code)


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )


def _allow_many_files() -> None:
    """As many connections as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
