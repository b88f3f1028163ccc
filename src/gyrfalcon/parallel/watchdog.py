"""The watchdog: rank 0 sees whether the ranks move, and ends them when they stand still.

A thread of each other rank sends what its Heartbeat says to the store at which they met, and one of rank 0
reads it there.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gyrfalcon.errors import GyrfalconError, RankDied
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.meeting import Store

LOOKS = 10  # in the time that a rank may stand still
LONGEST_LOOK = 1.0  # seconds between two
# Of the time between two looks, of a thread that computes; one that waits takes a tenth of that.
LEAST_BUSY = 0.005
FAULTS = 9  # a field of /proc/…/stat behind the name of the program


class _Observer:
    """Counts how often a rank of this process was seen to move."""

    def __init__(self, heartbeat: Heartbeat, *, own_program: bool = False) -> None:
        """`own_program`: between the engine's calls the rank runs a program of its own, and moves."""
        self.moves = 0
        self._heartbeat, self._own_program = heartbeat, own_program
        self._seen = (0, 0, 0.0)  # count, thread, and when
        self._used = (0.0, 0)  # what that thread had used

    def look(self) -> None:
        """Compares with what the last look saw."""
        heartbeat, now = self._heartbeat, time.monotonic()
        used = _used_by(heartbeat.thread)
        count, thread, then = self._seen
        elsewhere = self._own_program and not heartbeat.num_working
        if heartbeat.count != count or heartbeat.thread != thread or heartbeat.exempt or elsewhere:
            self.moves += 1
        elif heartbeat.on_host:
            seconds, faults = used[0] - self._used[0], used[1] - self._used[1]
            self.moves += faults > 0 or seconds >= LEAST_BUSY * (now - then)
        self._seen, self._used = (heartbeat.count, heartbeat.thread, now), used

    def report(self, number: int) -> str:
        """What rank 0 hears, for the `number`th time."""
        return json.dumps([number, self.moves, self._heartbeat.doing, socket.gethostname()])


def _used_by(thread: int) -> tuple[float, int]:
    """Processor seconds of a thread of this process, and its page faults that read from a disk."""
    try:
        with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
            seconds = int(file.read().split()[0]) / 1e9
        with open(f"/proc/self/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
            return seconds, int(file.read().rpartition(")")[2].split()[FAULTS])
    except OSError:  # the thread has ended, or no Linux
        return time.process_time(), 0


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"


class _Looking:
    """A thread that looks now and then until it is stopped. A look that finds no store, as that of another
    host may be for a while, is followed by the next.
    """

    def __init__(self, timeout: float) -> None:
        self._interval = min(timeout / LOOKS, LONGEST_LOOK)
        self._over = threading.Event()

    def start(self, look: Callable[[float], object], name: str) -> None:
        """Calls `look` with the seconds since the last time. This process may have been stopped, by
        Ctrl-Z, which is no fault of the other ranks: no more than two intervals count.
        """

        def run() -> None:
            then = time.monotonic()
            while not self._over.wait(self._interval):
                now = time.monotonic()
                with suppress(RuntimeError):
                    look(min(now - then, 2 * self._interval))
                then = now

        threading.Thread(target=run, name=name, daemon=True).start()

    def stop(self) -> None:
        """Has it look no more."""
        self._over.set()


class Sender:
    """Sends what a rank other than 0 does."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        store: Store,
        rank: int,
        timeout: float,
        *,
        own_program: bool = False,
    ) -> None:
        self._observer = _Observer(heartbeat, own_program=own_program)
        self._store, self._rank = store, rank
        self._number = 0
        self._looking = _Looking(timeout)

    def start(self) -> "Sender":
        """Goes on in a thread of its own; returns itself."""
        self._looking.start(self.look, "heartbeat")
        return self

    def stop(self) -> None:
        """Ends that."""
        self._looking.stop()

    def look(self, seconds: float = 0.0) -> None:
        """Sends once."""
        self._number += 1
        self._observer.look()
        self._store.set(_key(self._rank), self._observer.report(self._number))


@dataclass(slots=True)
class _Seen:
    """What rank 0 saw of one rank, by the watchdog's clock."""

    number: float = 0
    moves: int = 0
    doing: str = "starting"
    host: str = ""
    heard_at: float = 0.0
    moved_at: float = 0.0


class Watchdog:
    """Rank 0's view of all ranks. When one says nothing for `timeout` seconds, or none moves for so long
    while there is work, `end` ends them; not a single rank, which is this process. Without `when_idle` a
    rank may be silent where there is no work: it runs a program of its own, which may end earlier.
    `check` raises what is known of a rank that is silent because it has ended.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        store: Store | None,
        size: int,
        timeout: float,
        end: Callable[[GyrfalconError], object],
        *,
        when_idle: bool = True,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.error: GyrfalconError | None = None
        self.stalled_seconds = 0.0  # for which no rank has moved though there is work
        self._heartbeat, self._store, self._timeout, self._end = heartbeat, store, timeout, end
        self._when_idle, self._check = when_idle, check
        self._own = _Observer(heartbeat)
        self._seen = [_Seen(host=socket.gethostname()) for _ in range(size)]
        self._clock = 0.0
        self._looking = _Looking(timeout)

    def start(self) -> "Watchdog":
        """Goes on in a thread of its own; returns itself."""
        self._looking.start(self.look, "watchdog")
        return self

    def stop(self) -> None:
        """Ends that."""
        self._looking.stop()

    def look(self, seconds: float) -> None:
        """What has happened in the `seconds` since the last look."""
        self._clock += seconds
        self._own.look()
        self._take(0, self._clock, self._own.moves, self._heartbeat.doing, self._seen[0].host)
        for rank in range(1, len(self._seen)):
            if self._store is not None and self._store.check([_key(rank)]):
                self._take(rank, *json.loads(self._store.get(_key(rank))))
        if not self._heartbeat.num_working:
            for seen in self._seen:
                seen.moved_at = self._clock
                if not self._when_idle:
                    seen.heard_at = self._clock
        self.stalled_seconds = self._clock - max(seen.moved_at for seen in self._seen)
        silent = [seen for seen in self._seen if self._clock - seen.heard_at >= self._timeout]
        stalled = self.stalled_seconds >= self._timeout and len(self._seen) > 1
        if (silent or stalled) and self.error is None:
            first = min(silent or self._seen, key=lambda seen: seen.moved_at)
            try:
                self._check()
                self.error = self._stood_still(first)
            except GyrfalconError as error:
                self.error = error
            self.stop()
            self._end(self.error)

    def _take(self, rank: int, number: float, moves: int, doing: str, host: str) -> None:
        seen = self._seen[rank]
        if number != seen.number:
            seen.heard_at = self._clock
        if moves != seen.moves:
            seen.moved_at = self._clock
        seen.number, seen.moves, seen.doing, seen.host = number, moves, doing, host

    def _stood_still(self, seen: _Seen) -> RankDied:
        rank = next(rank for rank, other in enumerate(self._seen) if other is seen)
        return RankDied(
            f"every rank to move within {self._timeout:g} s",
            f"rank {rank} on {seen.host}, which stood still while {seen.doing}",
            "look what stopped it and start again, or raise `rank_timeout`",
        )
