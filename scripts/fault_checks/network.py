"""What happens between the ranks of a server: a link that is down, a slow one, a store that is gone."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from socket import socket

from netns_cluster.hosts import Host, hosts
from netns_cluster.hosts import NotHere as NoHosts
from netns_cluster.job import Job
from serve_checks.environment import clean_environ

from fault_checks.rows import NotHere, Row
from fault_checks.server import (
    HOST,
    LIMITS,
    OPTIONS,
    START_SECONDS,
    Served,
    claim_end,
    ended,
    goes_on,
    reach,
    served_by,
)

SLOW, SLOW_TOKENS = "20mbit", 300
STORE = """
import sys, time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True, wait_for_workers=False)
print("there", flush=True)
time.sleep(3600)
"""


def _down_row(folder: Path, phase: str) -> Row:
    """The link of rank 1's host goes down: all end, with one line that names the rank."""
    row = Row("link down", phase, limit_seconds=LIMITS["SIGSTOP"])
    with _two_hosts() as made, _served_on(made, folder) as server:
        reach(server, phase)
        begin = time.monotonic()
        made[1].set_link("down")
        ended(row, server, begin)
        claim_end(row)
    return row


def _slow_row(folder: Path, phase: str) -> Row:
    """A link of 20 Mbit/s is slow, not dead: nothing ends."""
    row = Row("link at 20 Mbit/s", phase)
    with _two_hosts() as made, _served_on(made, folder) as server:
        reach(server, phase, SLOW_TOKENS)
        for host in made:
            host.shape(SLOW)
        goes_on(row, server)
    return row


@contextmanager
def _two_hosts() -> Iterator[list[Host]]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(hosts(2))
        except NoHosts as reason:
            raise NotHere(str(reason)) from None
        yield made


@contextmanager
def _served_on(made: list[Host], folder: Path) -> Iterator[Served]:
    """A server of a rank on each host, started by torchrun; its clients are on the first."""
    place = folder / f"server-{time.monotonic_ns()}"
    place.mkdir()
    words = ("-m", "gyrfalcon", "serve", "nestling", *OPTIONS)
    with closing(Job(made, 1, words, place, 0)) as job:
        server = Served(job.agents[0], place / "err0", folder, job.agents[1:], made[0].namespace)
        with served_by(server):
            yield server


def _store_row(folder: Path, phase: str) -> Row:
    """The store at which torchrun's ranks have met ends: they need it no more, and end as always."""
    row = Row("store gone", phase)
    with _store() as (store, port), _ranks_at(port, folder) as server:
        reach(server, phase)
        store.kill()
        store.wait()
        goes_on(row, server)
        codes = [one.wait(START_SECONDS) for one in server.others]
        row.claim("the other ranks end with 0 as well", set(codes) == {0}, codes)
    return row


@contextmanager
def _store() -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """torchrun's store, in a process of its own."""
    with closing(socket()) as free:
        free.bind((HOST, 0))
        port = int(free.getsockname()[1])
    words = [sys.executable, "-c", STORE, str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process, port
        finally:
            process.kill()


@contextmanager
def _ranks_at(port: int, folder: Path) -> Iterator[Served]:
    """A server of two ranks as torchrun starts them, without torchrun."""
    place = folder / f"server-{time.monotonic_ns()}"
    place.mkdir()
    started = []
    for rank in range(2):
        own = {
            "TORCHELASTIC_RUN_ID": "faults",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "MASTER_ADDR": HOST,
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
        }
        with (place / f"err{rank}").open("wb") as err:
            words = [sys.executable, "-m", "gyrfalcon", "serve", "nestling", *OPTIONS]
            started.append(
                subprocess.Popen(words, env=clean_environ() | own, stdout=err, stderr=err)
            )
    server = Served(started[0], place / "err0", folder, started[1:])
    with served_by(server):
        yield server


NETWORK: dict[str, Callable[[Path, str], Row]] = {
    "link down": _down_row,
    "link at 20 Mbit/s": _slow_row,
    "store gone": _store_row,
}
