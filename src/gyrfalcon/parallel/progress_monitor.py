"""Whether a rank makes progress, as a thread of it sees: by what its heartbeats count, by the processor time
of the thread that computes, and by what that reads from a disk.
"""

import time
from dataclasses import dataclass, field

from gyrfalcon.parallel.heartbeat import Heartbeat

# Of the time between two looks, of a thread that computes; one that waits takes a tenth of that.
LEAST_BUSY = 0.005
LEAST_SECONDS = 0.0005  # in any time: a thread that wakes and waits again takes a tenth of that
FAULTS = 9  # a field of /proc/…/stat behind the name of the program


@dataclass(frozen=True, slots=True)
class RankStatus:
    """What a rank says of itself.

    progress: how often it was seen to make some.
    step: the number of its last step.
    where: what it does, in words.
    is_slow: it does what may take minutes.
    """

    progress: int = 0
    step: int = 0
    where: str = "starting"
    is_slow: bool = False


@dataclass(slots=True)
class _Seen:
    """What the last look saw of one heartbeat."""

    heartbeat: Heartbeat
    count: int = -1
    thread: int = 0
    at: float = 0.0
    used: tuple[float, int] = (0.0, 0)

    def has_moved(self, *, own_program: bool) -> bool:
        """Since the last look."""
        heartbeat, now = self.heartbeat, time.monotonic()
        count = heartbeat.count + heartbeat.step
        before, self.used, used_at, self.at = self.used, _used_by(heartbeat.thread), self.at, now
        other = count != self.count or heartbeat.thread != self.thread
        self.count, self.thread = count, heartbeat.thread
        if other or (own_program and not heartbeat.num_working):
            return True
        seconds, faults = self.used[0] - before[0], self.used[1] - before[1]
        least = max(LEAST_BUSY * (now - used_at), LEAST_SECONDS)
        return heartbeat.on_host and (faults > 0 or seconds >= least)


@dataclass(slots=True)
class ProgressMonitor:
    """The progress of one rank, whose engines each have a heartbeat. `own_program`: between the engines'
    calls the rank runs a program of its own, which counts as progress.
    """

    own_program: bool = False
    progress: int = 0
    _seen: list[_Seen] = field(default_factory=list)

    def add(self, heartbeat: Heartbeat) -> None:
        """Watches one more engine."""
        self._seen = [*self._seen, _Seen(heartbeat)]

    def drop(self, heartbeat: Heartbeat) -> None:
        """Watches that engine no more."""
        self._seen = [seen for seen in self._seen if seen.heartbeat is not heartbeat]

    @property
    def num_working(self) -> int:
        """Operations of all ranks under way, as far as this one knows."""
        return sum(seen.heartbeat.num_working for seen in self._seen)

    def status(self) -> RankStatus:
        """What there is to say now. Without an engine there is nothing to do, which counts as progress."""
        moved = [seen.has_moved(own_program=self.own_program) for seen in self._seen]
        self.progress += any(moved) or not moved
        hearts = [seen.heartbeat for seen in self._seen]
        if not hearts:
            return RankStatus(self.progress, where="between engines")
        busy = next((heart for heart in hearts if heart.num_working), hearts[-1])
        slow = any(heart.exempt for heart in hearts)
        return RankStatus(self.progress, busy.step, busy.where, slow)


def _used_by(thread: int) -> tuple[float, int]:
    """Processor seconds of a thread of this process, and its page faults that read from a disk."""
    try:
        with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
            seconds = int(file.read().split()[0]) / 1e9
        with open(f"/proc/self/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
            return seconds, int(file.read().rpartition(")")[2].split()[FAULTS])
    except OSError:  # the thread has ended, or no Linux
        return time.process_time(), 0
