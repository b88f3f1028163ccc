"""Progress on stderr: a bar on a terminal, a line per minute elsewhere (in a log)."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event, Lock, Thread
from typing import Any, Protocol

from tqdm import tqdm
from tqdm.asyncio import tqdm_asyncio

from gyrfalcon.console.format import shown_bytes

LINE_SECONDS = 60.0
BYTES = "B"  # the unit that is shown as kB, MB, GB

Clock = Callable[[], float]


class Bar(Protocol):
    """What a caller may do with a bar."""

    def update(self, n: float = 1) -> bool | None:
        """Counts `n` more units as done, from any thread."""
        ...


class _Hidden:
    """A bar that shows nothing. (A hidden tqdm would still hold a lock that a killed process
    leaks.)
    """

    def update(self, n: float = 1) -> None:
        pass


class Lines:
    """A bar as log lines: line() says how much is done and how long the rest will take at this
    pace.
    """

    def __init__(self, total: float, unit: str, label: str, clock: Clock = time.monotonic) -> None:
        self._total, self._unit, self._label, self._clock = total, unit, label, clock
        self._start, self._done, self._lock = clock(), 0.0, Lock()

    def update(self, n: float = 1) -> None:
        """Counts `n` more units as done."""
        with self._lock:
            self._done += n

    def line(self) -> str:
        """Such as "loading: 120 of 433 tensors, 3 min left"."""
        seconds = self._clock() - self._start
        done = self._shown(self._done)
        of = f" of {self._shown(self._total)}" if self._total else ""
        unit = "" if self._unit == BYTES else f" {self._unit}"
        rest = f"after {_minutes(seconds)}"
        if self._total and self._done:
            rest = f"{_minutes(seconds * (self._total - self._done) / self._done)} left"
        return f"{self._label}: {done}{of}{unit}, {rest}"

    def _shown(self, count: float) -> str:
        return shown_bytes(int(count)) if self._unit == BYTES else f"{count:g}"


class LogBar(tqdm_asyncio):  # type: ignore[type-arg]  # generic to type checkers only
    """A tqdm for another library's downloads in a log: a line per minute instead of a redrawn bar."""

    def __init__(self, *args: Any, seconds: float | None = None, **settings: Any) -> None:
        settings.pop("name", None)
        self._seconds = LINE_SECONDS if seconds is None else seconds
        self._began = time.monotonic()
        super().__init__(*args, **{**settings, "mininterval": self._seconds, "miniters": 1})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Instead of drawing the bar."""
        if time.monotonic() - self._began >= self._seconds:
            print(msg or str(self), file=sys.stderr, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """Nothing was drawn."""


def bar(total: float, unit: str, label: str, shown: bool = True) -> AbstractContextManager[Bar]:
    """A bar over `total` units (0: unknown), closed on leaving its `with`."""
    if not shown:
        return nullcontext(_Hidden())
    if not sys.stderr.isatty():
        return print_each(LINE_SECONDS, Lines(total, unit, label))
    return tqdm(total=total, unit=unit, unit_scale=True, desc=label, file=sys.stderr, leave=False)


@contextmanager
def print_each(seconds: float, lines: Lines) -> Iterator[Bar]:
    """Prints a line every `seconds` from a thread: a unit may take longer than that."""
    ended = Event()

    def tell() -> None:
        while not ended.wait(seconds):
            print(lines.line(), file=sys.stderr, flush=True)

    thread = Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


def _minutes(seconds: float) -> str:
    """Whole minutes, hours from 100 of them."""
    minutes = round(seconds / 60)
    if minutes >= 100:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else "less than a minute"
