"""An event loop whose clock jumps to the next timer whenever nothing else is to be done, so that what
waits for minutes is tested in milliseconds and its times are exact. Threads that it waits for take no time,
but timers may run out meanwhile: use none, and addresses instead of host names.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

GRACE_SECONDS = 0.0005  # for bytes on their way between two sockets of this machine


class _Selector(selectors.DefaultSelector):
    """Waits for no timer: it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; where nothing is, the clock has moved on by `timeout`."""
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0) or super().select(GRACE_SECONDS)
        if not ready:
            self.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run(), in virtual time that begins at 0."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


def stand_still(seconds: float) -> None:
    """What a loop sees of a callback that takes so long: its clock has moved on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    loop.virtual.now += seconds
