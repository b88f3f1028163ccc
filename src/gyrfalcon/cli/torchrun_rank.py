"""A command under torchrun: rank 0 runs it, and the other ranks follow the engines that it makes."""

import signal
from collections.abc import Callable
from contextlib import suppress

from gyrfalcon.engine.rank_messages import encode_engine
from gyrfalcon.engine.worker import follow_command
from gyrfalcon.parallel.meeting import Store, announce, wait_until_left
from gyrfalcon.parallel.torchrun import Torchrun
from gyrfalcon.parallel.torchrun_ranks import meeting_of


def run(torchrun: Torchrun, command: Callable[[], int]) -> int:
    """The command's exit code on rank 0; 0 on the others, once it has ended."""
    meeting = meeting_of(torchrun, led=True)
    if torchrun.rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; rank 0 answers it
        follow_command(meeting)
        return 0
    try:
        return command()
    finally:
        meeting.heartbeats.stop()
        if meeting.heartbeats.error is None:
            _dismiss(meeting.store, torchrun.world_size)


def _dismiss(store: Store, world_size: int) -> None:
    """Has the other ranks end. Where the store is gone, as when torchrun was killed, the good-bye has."""
    with suppress(RuntimeError):
        announce(store, encode_engine(None))
        wait_until_left(store, world_size)
