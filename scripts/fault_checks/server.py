"""Faults of a server with two ranks, in each phase of its life: what it says, how soon it ends, what clients
see, and what remains.
"""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from serve_checks.asking import HOST as HOST
from serve_checks.asking import Streamed, stream
from serve_checks.environment import clean_environ
from serve_checks.server import READY, wait_until

from fault_checks.rows import Row

PHASES = ("load", "prefill", "decode", "idle", "drain")
RANK_TIMEOUT = 10
# The aims are 2 and 12 s on an idle machine (docs/reliability.md); three more are for a busy one.
LIMITS = {"kill": 5.0, "SIGSTOP": RANK_TIMEOUT + 5.0}
SIGNALS = {"kill": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}
SPAWNED = "spawn_main"  # in the command line of a rank that torch.multiprocessing starts
NUM_STREAMS = 4
START_SECONDS, END_SECONDS = 120.0, 60.0
OPTIONS = (
    *("--threads", "1", "--port", "0", "--shutdown-timeout", "20"),
    *("--rank-timeout", str(RANK_TIMEOUT)),
)
SHM = "/dev/shm"
NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET
LINE = "gyrfalcon: error: wanted "
LONG = "Once upon a time there was a falcon. " * 40  # a prompt whose prefill takes a while


@dataclass(slots=True)
class Served:
    """A server's process, its log, a folder in which nothing may stay, and its clients.

    others: the same of its other hosts, where it has some. namespace: in which clients ask, "" for this one.
    """

    process: "subprocess.Popen[Any]"
    log: Path
    folder: Path
    others: "Sequence[subprocess.Popen[Any]]" = ()
    namespace: str = ""
    family: "list[psutil.Process]" = field(default_factory=list)
    streams: "list[Streamed]" = field(default_factory=list)
    ends: "list[str]" = field(default_factory=list)
    threads: "list[threading.Thread]" = field(default_factory=list)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    @property
    def last_line(self) -> str:
        """The last that it said: torchrun has more to say after that."""
        lines = self.said.strip().splitlines() or [""]
        return next((line for line in reversed(lines) if line.startswith(LINE)), lines[-1])

    @property
    def port(self) -> int:
        found = READY.search(self.said)
        return int(found[3]) if found else 0

    def ranks(self) -> "list[psutil.Process]":
        """The processes of ranks other than the first."""
        return [one for one in self._children() if _rank_of(one) not in (None, 0)]

    def terminate(self) -> None:
        """Asks the first rank to end."""
        first = [one for one in self._children() if _rank_of(one) == 0]
        for one in first:
            one.terminate()
        if not first:
            self.process.terminate()

    def _children(self) -> "list[psutil.Process]":
        for started in (self.process, *self.others):
            with suppress(psutil.NoSuchProcess):
                own = psutil.Process(started.pid)
                self.family = list({*self.family, own, *own.children(recursive=True)})
        return self.family

    def ask(self, prompt: str, num_tokens: int) -> None:
        """Starts the clients, each a stream of its own."""
        for _ in range(NUM_STREAMS):
            one = Streamed()
            self.streams.append(one)
            thread = threading.Thread(target=self._client, args=(one, prompt, num_tokens))
            self.threads.append(thread)
            thread.start()

    def _client(self, one: Streamed, prompt: str, num_tokens: int) -> None:
        body = {"model": "nestling", "prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True}
        try:
            if self.namespace:
                enter(self.namespace)
            asyncio.run(stream(self.port, "/v1/completions", body, one))
            self.ends.append("whole" if one.is_whole else "error" if one.error else f"{one.status}")
        except Exception as error:
            self.ends.append(f"cut off ({type(error).__name__})")


def _rank_of(process: psutil.Process) -> int | None:
    """The rank that a process is, 1 for any that multiprocessing starts; None where it is none."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        if SPAWNED in " ".join(process.cmdline()):
            return 1
        return int(process.environ().get("RANK", "")) if "RANK" in process.environ() else None
    return None


def enter(namespace: str) -> None:
    """Has this thread make its connections in a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), NETWORK_NAMESPACE):
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")


@contextmanager
def served(
    folder: Path,
    *more: str,
    before: Sequence[str] = (),
    env: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Served]:
    """A server that may not be ready yet; whatever is left of it is ended afterwards."""
    log = folder / f"server-{time.monotonic_ns()}.log"
    words = ["serve", "nestling", "-w", "2", *OPTIONS, *more]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "gyrfalcon", *words],
            env=clean_environ() | {"TMPDIR": str(folder)} | dict(env),
            stdout=out,
            stderr=out,
            cwd=folder,
        )
    server = Served(process, log, folder)
    with served_by(server):
        yield server


@contextmanager
def served_by(server: Served) -> Iterator[Served]:
    """Ends whatever is left of a server."""
    try:
        yield server
    finally:
        server.ranks()
        for one in server.family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        for started in (server.process, *server.others):
            started.kill()
            started.wait()
        for thread in server.threads:
            thread.join(END_SECONDS)


def reach(server: Served, phase: str, num_tokens: int = 1500) -> None:
    """Brings a server into a phase; RuntimeError where it does not get there."""
    is_there = wait_until(
        lambda: (
            bool(server.ranks() if phase == "load" else server.port)
            or server.process.poll() is not None
        ),
        START_SECONDS,
    )
    if not is_there or server.process.poll() is not None:
        raise RuntimeError(f"wanted a server in phase {phase}, got {server.said[-500:]}")
    server.ranks()
    if phase == "prefill":
        server.ask(LONG, 50)
        time.sleep(0.05)
    elif phase in ("decode", "drain"):
        server.ask("Once upon a time", num_tokens)
        wait_until(lambda: all(len(one.times) > 2 for one in server.streams), START_SECONDS)
    if phase == "drain":
        server.terminate()
        time.sleep(0.2)


def signal_row(folder: Path, fault: str, phase: str) -> Row:
    """A rank is killed or stopped: all others end, with one line that names it."""
    row = Row(fault, phase, limit_seconds=LIMITS[fault])
    with served(folder) as server:
        reach(server, phase)
        rank, begin = server.ranks()[0], time.monotonic()
        rank.send_signal(SIGNALS[fault])
        ended(row, server, begin)
        claim_end(row)
    return row


def claim_end(row: Row) -> None:
    """All have ended because of rank 1, and everybody was told."""
    row.claim("exit code 1", row.exit_code == 1, row.exit_code)
    row.claim("one line of three parts at the end", row.line.startswith(LINE), row.line)
    row.claim("which names the rank", "rank 1" in row.line, row.line)
    row.claim("no client is left without an answer", "cut off" not in row.clients, row.clients)


def ended(row: Row, server: Served, begin: float) -> None:
    """Waits for the end of the server and its clients, and notes what is there afterwards."""
    try:
        row.exit_code = server.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        row.claim(f"an end within {END_SECONDS:g} s", False, "none")
    row.seconds = time.monotonic() - begin
    for thread in server.threads:
        thread.join(END_SECONDS)
    row.clients = ", ".join(f"{n} × {end}" for end, n in sorted(Counter(server.ends).items()))
    row.line = server.last_line
    assert row.limit_seconds is not None
    row.claim(
        f"within {row.limit_seconds:g} s", row.seconds <= row.limit_seconds, f"{row.seconds:.1f} s"
    )
    nothing_remains(row, server)


def nothing_remains(row: Row, server: Served) -> None:
    """No process of the server is alive a moment later, no file is left but the log, and no shared memory
    that has the number of one.
    """
    wait_until(lambda: not any(map(_lives, server.family)), 2)
    left = [f"process {one.pid}" for one in server.family if _lives(one)]
    left += [path.name for path in server.folder.iterdir() if not path.name.startswith("server-")]
    numbers = [str(one.pid) for one in server.family]
    left += [name for name in os.listdir(SHM) if any(number in name for number in numbers)]
    row.remains = ", ".join(left) or "nothing"
    row.claim("no process and no file remains", not left, row.remains)


def _lives(one: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return one.status() != psutil.STATUS_ZOMBIE
    return False


def goes_on(row: Row, server: Served) -> None:
    """The server answers all its clients and ends normally."""
    if not server.streams:
        server.ask("Once upon a time", 20)
    for thread in server.threads:
        thread.join(START_SECONDS)
    begin, row.limit_seconds = time.monotonic(), 25.0
    server.terminate()
    ended(row, server, begin)
    row.claim("every answer is whole", set(server.ends) == {"whole"}, row.clients)
    row.claim("exit code 0", row.exit_code == 0, row.exit_code)
