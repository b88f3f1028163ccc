"""How the watchdog ends the ranks of which one has ended or stands still."""

import os
import sys
import time
from collections.abc import Callable, Sequence

from torch.multiprocessing.spawn import ProcessContext

from gyrfalcon.errors import GyrfalconError
from gyrfalcon.parallel.children import DEATH_SECONDS, POLL_SECONDS, kill
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.heartbeats import HeartbeatClient, HeartbeatServer

TELL_SECONDS = 0.25  # for the other ranks to end by themselves
GRACE_SECONDS = 1.0  # for the thread that works to notice, and to leave as it does after any error


def end_this_process(error: GyrfalconError) -> None:
    """Whatever it waits for."""
    print(f"gyrfalcon: error: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def end_spawned(
    children: ProcessContext, groups: Sequence[Group], heartbeats: HeartbeatServer
) -> None:
    """Kills them, which ends what this process waits for; on accelerators aborting does. One whose thread
    goes on waiting regardless, in a driver, ends itself.
    """
    kill(children)
    if any([group.abort() for group in groups]):
        _give_up(heartbeats, DEATH_SECONDS)


def end_torchrun(
    heartbeats: HeartbeatServer | HeartbeatClient, abort: Callable[[], object]
) -> None:
    """Tells the others, and ends this process unless the thread that works there notices: a lost link to
    another host may keep it waiting for ever.
    """
    if heartbeats.error is not None and isinstance(heartbeats, HeartbeatServer):
        heartbeats.tell_end(heartbeats.error, TELL_SECONDS)
    abort()
    _give_up(heartbeats, GRACE_SECONDS)


def _give_up(heartbeats: HeartbeatServer | HeartbeatClient, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while heartbeats.num_working:
        if time.monotonic() > deadline and heartbeats.error is not None:
            end_this_process(heartbeats.error)
        time.sleep(POLL_SECONDS)
