"""A command under torchrun: rank 0 runs it, and the other ranks follow the engines that it makes."""

import signal
from collections.abc import Callable

from gyrfalcon.engine.rank_messages import encode_engine
from gyrfalcon.engine.worker import follow_command
from gyrfalcon.parallel.meeting import announce, lead, meet, wait_until_left
from gyrfalcon.parallel.torchrun import Torchrun


def run(torchrun: Torchrun, command: Callable[[], int]) -> int:
    """The command's exit code on rank 0; 0 on the others, once it has ended."""
    store = meet(torchrun)
    if torchrun.rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; rank 0 answers it
        follow_command(torchrun, store)
        return 0
    lead(store)
    try:
        return command()
    finally:
        announce(store, encode_engine(None))
        wait_until_left(store, torchrun.world_size)
