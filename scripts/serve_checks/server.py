"""A server in a process of its own, and what can be seen of it from outside: memory, metrics, log."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import psutil

from serve_checks.environment import clean_environ

START_SECONDS, STOP_SECONDS, ASK_SECONDS = 120.0, 40.0, 30.0
READY = re.compile(r"^serving .* at (http://([^/]+):(\d+))/v1$", re.M)


@dataclass(slots=True)
class Server:
    """A server that takes requests."""

    process: "subprocess.Popen[bytes]"
    log: Path
    url: str = ""  # without /v1
    port: int = 0

    def processes(self) -> list[psutil.Process]:
        """The server's and those it started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(one.memory_info().rss for one in self.processes())

    def get(self, path: str) -> bytes:
        """The body at a path; an error for any other status than 200."""
        with urlopen(Request(self.url + path), timeout=ASK_SECONDS) as answer:
            return bytes(answer.read())

    def metrics(self) -> dict[str, float]:
        """/metrics: the sum of each metric over its labels."""
        found: dict[str, float] = {}
        for line in self.get("/metrics").decode().splitlines():
            if not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[1]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def is_idle(self) -> bool:
        """Whether no sequence runs or waits and no cache block is in use."""
        found = self.metrics()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return not any(found[f"vllm:{name}"] for name in names)

    def stop(self, sent: signal.Signals = signal.SIGTERM) -> int:
        """Ends it by a signal; its exit code. A server that stays is killed."""
        if self.process.poll() is None:
            self.process.send_signal(sent)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def tail(self) -> str:
        """The end of its log, for an error."""
        return self.log.read_text("utf-8", "replace")[-2000:]


@contextmanager
def serving(folder: Path, model: str | Path, *options: str) -> Iterator[Server]:
    """A ready server of a model on a free port; its log goes to `folder`."""
    words = ["serve", str(model), "--port", "0", *options]
    with starting([sys.executable, "-m", "gyrfalcon", *words], folder) as server:
        yield server


@contextmanager
def starting(command: list[str], folder: Path) -> Iterator[Server]:
    """The server that a command starts, once it says that it is ready."""
    log = folder / f"server-{len(list(folder.glob('server-*.log')))}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=clean_environ(), stderr=stream, stdout=stream)
    server = Server(process, log)
    try:
        found = _ready(server)
        server.url, server.port = found[1], int(found[3])
        yield server
    finally:
        server.stop()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it holds within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _ready(server: Server) -> "re.Match[str]":
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        found = READY.search(server.log.read_text("utf-8", "replace"))
        if found:
            return found
        time.sleep(0.05)
    raise RuntimeError(f"wanted a server that starts, got {server.tail()}")
