"""The processes of started ranks: what became of them, and their end."""

import time
from collections.abc import Callable

import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext

from gyrfalcon.errors import RankDied
from gyrfalcon.parallel.error_message import decode_error

POLL_SECONDS = 0.02
DEATH_SECONDS = 5.0  # how long a broken connection waits for the process behind it to be seen dead


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


def await_arrival(children: ProcessContext, store: dist.Store, seconds: float) -> None:
    """Until each has come to the store; RankDied for one that ends first or does not come in time."""
    deadline = time.monotonic() + seconds
    for rank in range(1, len(children.processes) + 1):
        while not store.check([f"here/{rank}"]):
            raise_if_dead(children, store)
            if time.monotonic() > deadline:
                raise came_late(children, f"no word of rank {rank}", seconds)
            time.sleep(POLL_SECONDS)


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
