"""Ctrl-C between two steps, never within one, so that what it interrupts can go on working; and at once
where an exception could be lost.

All of it does nothing in threads, which get none, and where the program handles Ctrl-C itself.
"""

import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from gyrfalcon.errors import GyrfalconError

ANSWERED = b"\0"  # no signal's number


class Watch:
    """Acts on Ctrl-C while the main thread waits in native code, where Python's own handlers do not
    run: the system's handler writes each signal to a pipe, which a thread reads.
    """

    def __init__(self, act: Callable[[], object]) -> None:
        """Calls `act`, which must not hold this object, when Ctrl-C came often enough, see on()."""
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._patience = [1]
        listen = threading.Thread(target=_listen, args=(read, self._patience, act), daemon=True)
        listen.start()
        weakref.finalize(self, os.close, self._write)

    @contextlib.contextmanager
    def on(self, patience: int) -> Iterator[None]:
        """Acts at the `patience`th Ctrl-C that has not been answered(); not where the program has
        such a pipe of its own, as asyncio may.
        """
        self._patience[0] = patience
        others = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if others >= 0:
            signal.set_wakeup_fd(others, warn_on_full_buffer=False)
        try:
            yield
        finally:
            if others < 0:
                signal.set_wakeup_fd(-1)

    def answered(self) -> None:
        """The Ctrl-C so far count no longer."""
        os.write(self._write, ANSWERED)


def _listen(pipe: int, patience: list[int], act: Callable[[], object]) -> None:
    came = 0
    while signals := os.read(pipe, 1):
        if signals == ANSWERED:
            came = 0
        elif signals[0] == signal.SIGINT:
            came += 1
            if came >= patience[0]:
                act()
    os.close(pipe)


@dataclass(slots=True)
class Hold:
    """The Ctrl-C that came while they were held, and whether a second one must wait, too."""

    came: int = 0
    firm: bool = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        self.came += 1
        if self.came > 1 and not self.firm:
            raise KeyboardInterrupt


@contextlib.contextmanager
def held_interrupts(watch: Watch | None = None) -> Iterator[Hold]:
    """Holds a Ctrl-C back until the block has ended; a second one interrupts it at once unless the
    hold is firm, with `watch` in native code as well: what fails once it acted is an interruption.
    """
    hold = Hold()
    if not _are_ours():
        yield hold
        return
    signal.signal(signal.SIGINT, hold.note)
    try:
        with contextlib.nullcontext() if watch is None else watch.on(2):
            yield hold
    except GyrfalconError as error:
        if hold.came:
            raise KeyboardInterrupt from error
        raise
    finally:
        if hold.came and watch is not None:
            watch.answered()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hold.came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def watched_interrupts(watch: Watch | None) -> Iterator[None]:
    """A Ctrl-C interrupts the block as usual; `watch` acts on it as well."""
    if watch is None or not _are_ours():
        yield
        return
    with watch.on(1):
        yield


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
    if threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
