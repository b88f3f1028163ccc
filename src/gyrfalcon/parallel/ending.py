"""How the watchdog ends the ranks of which one has ended or stands still."""

import os
import sys
import time
from collections.abc import Callable, Sequence

from torch.multiprocessing.spawn import ProcessContext

from gyrfalcon.errors import GyrfalconError
from gyrfalcon.parallel.beats import Caller, Listener
from gyrfalcon.parallel.children import DEATH_SECONDS, POLL_SECONDS, kill
from gyrfalcon.parallel.group import Group

TELL_SECONDS = 0.25  # for the other ranks to end by themselves
GRACE_SECONDS = 1.0  # for the thread that works to notice, and to leave as it does after any error


def end_this_process(error: GyrfalconError) -> None:
    """Whatever it waits for."""
    print(f"gyrfalcon: error: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def end_spawned(children: ProcessContext, groups: Sequence[Group], beats: Listener) -> None:
    """Kills them, which ends what this process waits for; on accelerators aborting does. One whose thread
    goes on waiting regardless, in a driver, ends itself.
    """
    kill(children)
    if any([group.abort() for group in groups]):
        _give_up(beats, DEATH_SECONDS)


def end_torchrun(beats: Listener | Caller, abort: Callable[[], object]) -> None:
    """Tells the others, and ends this process unless the thread that works there notices: a lost link to
    another host may keep it waiting for ever.
    """
    if beats.error is not None and isinstance(beats, Listener):
        beats.tell_end(beats.error, TELL_SECONDS)
    abort()
    _give_up(beats, GRACE_SECONDS)


def _give_up(beats: Listener | Caller, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while beats.num_working:
        if time.monotonic() > deadline and beats.error is not None:
            end_this_process(beats.error)
        time.sleep(POLL_SECONDS)
