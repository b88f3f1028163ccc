"""The processes of started ranks: what became of them, and their end."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext

from gyrfalcon.errors import RankDied
from gyrfalcon.parallel.error_message import decode_error

POLL_SECONDS = 0.02
DEATH_SECONDS = 5.0  # how long a broken connection waits for the process behind it to be seen dead
# Between two looks, of the time that counts: this process may have been stopped together with its children.
MOST_BETWEEN_LOOKS = 0.5


def kill(children: ProcessContext) -> None:
    """Not by SIGTERM, which a stopped process does not answer. One that a driver keeps from dying is not
    waited for.
    """
    for process in children.processes:
        process.kill()
    join(children)


def join(children: ProcessContext) -> None:
    """Waits for their end, all together no longer than for a death."""
    deadline = time.monotonic() + DEATH_SECONDS
    for process in children.processes:
        process.join(max(0.0, deadline - time.monotonic()))


def await_arrival(
    children: ProcessContext, store: dist.Store, seconds: float, rank_timeout: float
) -> None:
    """Until each has come to the store; RankDied for one that ends first, is stopped for `rank_timeout`
    seconds or does not come in time.
    """
    deadline, stops = time.monotonic() + seconds, _Stops(children, rank_timeout)
    for rank in range(1, len(children.processes) + 1):
        while not store.check([f"here/{rank}"]):
            raise_if_dead(children, store)
            stops.look()
            if time.monotonic() > deadline:
                raise came_late(children, f"no word of rank {rank}", seconds)
            time.sleep(POLL_SECONDS)


class _Stops:
    """Sees from outside for how long children have been stopped (SIGSTOP), before
    they send heartbeats by themselves.
    """

    def __init__(self, children: ProcessContext, timeout: float) -> None:
        self._children, self._timeout = children, timeout
        self._seconds = dict.fromkeys(range(1, len(children.processes) + 1), 0.0)  # by rank
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """RankDied for one that has been stopped for too long."""
        before, self._looked_at = self._looked_at, time.monotonic()
        passed = min(self._looked_at - before, MOST_BETWEEN_LOOKS)
        for rank, child in enumerate(self._children.processes, 1):
            self._seconds[rank] = self._seconds[rank] + passed if _is_stopped(child.pid) else 0.0
            if self._seconds[rank] >= self._timeout:
                wanted = f"every rank to move within {self._timeout:g} s"
                got = f"rank {rank} on {socket.gethostname()}, which was stopped while starting"
                raise RankDied(wanted, got, "find out what stopped it, then start again")


def _is_stopped(process: int | None) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(process).status() == psutil.STATUS_STOPPED
    return False


def came_late(children: ProcessContext, got: str, seconds: float) -> RankDied:
    """The error for ranks that have not met in time."""
    wanted = f"all {len(children.processes) + 1} ranks to start within {seconds:g} s"
    return RankDied(wanted, got, "find out what stopped it, then start again")


def raise_if_dead(
    children: ProcessContext,
    store: dist.Store | None,
    describe: Callable[[int], str] = lambda rank: "",
) -> None:
    """Raises what a child said or how it ended, if one has; `describe` says where a rank was."""
    dead = {
        rank: code
        for rank, child in enumerate(children.processes, 1)
        if (code := child.exitcode) is not None
    }
    if not dead:
        return
    killed = [rank for rank, code in dead.items() if code < 0]
    # What other ranks said of a killed one's broken connection tells less.
    if not killed and store is not None and store.check(["error"]):
        raise decode_error(store.get("error"))
    rank = killed[0] if killed else next(iter(dead))
    code = dead[rank]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise RankDied(
        f"all {len(children.processes) + 1} ranks to live",
        f"rank {rank} ended by {how} {describe(rank)}".rstrip(),
        "start again",
    )
