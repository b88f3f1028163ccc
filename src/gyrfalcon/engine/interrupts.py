"""Ctrl-C between two steps, never within one, so that what it interrupts can go on working; and at once
where an exception could be lost.

Both do nothing in threads, which get none, and where the program handles Ctrl-C itself.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Holds a Ctrl-C back until the block has ended; a second one interrupts it at once."""
    if not _are_ours():
        yield
        return
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        came.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def ending_interrupts() -> Iterator[None]:
    """Ends the process at a Ctrl-C, exit code 130. For imports, which have nothing to put away: a
    KeyboardInterrupt there may end in another library's `except`, and the program would go on.
    """
    if not _are_ours():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _are_ours() -> bool:
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return ours and threading.current_thread() is threading.main_thread()
