"""The watchdog judges what rank 0 hears of all ranks: whether one has ended, says nothing any more, or none
makes progress though there is work. Knows neither connections nor processes.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from gyrfalcon.errors import GyrfalconError, RankDied
from gyrfalcon.parallel.progress_monitor import ProgressMonitor, RankStatus

RANK_TIMEOUT = 10.0  # seconds that a rank may stand still
SLOW = 60  # times as long may take what takes minutes: loading from a slow disk, compiling kernels
QUIET = 0.3  # of the timeout without a heartbeat, of ranks that stand still, tells which one keeps the others
# After a connection has ended, for the end of the process behind it to be seen.
SETTLE_SECONDS = 1.0


@dataclass(slots=True)
class _Rank:
    """What rank 0 knows of one rank, by the watchdog's clock."""

    host: str
    status: RankStatus = field(default_factory=RankStatus)
    has_come: bool = False
    has_left: bool = False
    heard_at: float = 0.0
    moved_at: float = 0.0
    ended_at: float | None = None
    error: GyrfalconError | None = None


class Watchdog:
    """Rank 0's view of all ranks. Without `when_idle` a rank may be silent or end where there is no work:
    it runs a program of its own, which may end earlier. `check` raises what is known of a rank that has
    ended.
    """

    def __init__(
        self,
        monitor: ProgressMonitor,
        size: int,
        timeout: float,
        *,
        when_idle: bool = True,
        check: Callable[[], object] | None = None,
    ) -> None:
        self.error: GyrfalconError | None = None
        self.timeout = timeout
        self.stalled_seconds = 0.0  # for which no rank has moved though there is work
        self._monitor, self._when_idle, self._check = monitor, when_idle, check
        self._settle_seconds = 0.0 if check is None else SETTLE_SECONDS
        self._ranks = [_Rank(socket.gethostname()) for _ in range(size)]
        self._clock = 0.0

    def come(self, rank: int, host: str) -> None:
        """A rank has come: from here on it is expected to be heard."""
        known = self._ranks[rank]
        known.host, known.has_come = host, True
        known.heard_at = known.moved_at = self._clock

    def hear(self, rank: int, status: RankStatus) -> None:
        """What a rank says."""
        known = self._ranks[rank]
        known.heard_at = self._clock
        if status.progress != known.status.progress:
            known.moved_at = self._clock
        known.status = status

    def end(self, rank: int, error: GyrfalconError | None = None) -> None:
        """A rank has ended, by an `error` if it said so."""
        known = self._ranks[rank]
        known.error = known.error or error
        known.ended_at = self._clock if known.ended_at is None else known.ended_at

    def leave(self, rank: int) -> None:
        """A rank has said good-bye, which is no error unless it is still needed."""
        self._ranks[rank].has_left = True

    def has_come(self, rank: int) -> bool:
        """Whether a rank has come."""
        return self._ranks[rank].has_come

    def describe(self, rank: int) -> str:
        """Where a rank is and what it did when it was last heard."""
        known = self._ranks[rank]
        return f"on {known.host} while {known.status.where}"

    def look(self, seconds: float) -> GyrfalconError | None:
        """Judges what has happened in the `seconds` since the last look; the first error is the one that is
        kept.
        """
        self._clock += seconds
        self.hear(0, self._monitor.status())
        if not self._monitor.num_working:
            for known in self._ranks:
                known.moved_at = self._clock
                known.heard_at = known.heard_at if self._when_idle else self._clock
        self.stalled_seconds = self._clock - max(known.moved_at for known in self._ranks)
        if self.error is None:
            self.error = self._found()
        return self.error

    def _found(self) -> GyrfalconError | None:
        working = self._monitor.num_working > 0
        for rank, known in enumerate(self._ranks):
            if not working and (known.has_left or not self._when_idle):
                continue
            if known.ended_at is not None:
                return self._has_ended(rank, self._clock - known.ended_at)
            if known.has_come and self._clock - known.heard_at >= self.timeout:
                return self._known_end() or self._stopped(rank, "went silent")
        slow = any(known.status.is_slow for known in self._ranks)
        limit = self.timeout * SLOW if slow else self.timeout
        if self.stalled_seconds < limit or len(self._ranks) == 1:
            return None
        quiet = self._clock - QUIET * self.timeout
        for rank, known in enumerate(self._ranks):
            if known.has_come and known.heard_at < quiet:
                return self._known_end() or self._stopped(rank, "went silent")
        first = min(range(len(self._ranks)), key=self._progress)
        return self._known_end() or self._stopped(first, "stood still")

    def _progress(self, rank: int) -> tuple[int, float]:
        known = self._ranks[rank]
        return known.status.step, known.moved_at

    def _known_end(self) -> GyrfalconError | None:
        try:
            if self._check is not None:
                self._check()
        except GyrfalconError as error:
            return error
        return None

    def _has_ended(self, rank: int, seconds: float) -> GyrfalconError | None:
        error = self._ranks[rank].error or self._known_end()
        if error is not None or seconds < self._settle_seconds:
            return error
        return RankDied(
            f"all {len(self._ranks)} ranks to live",
            f"rank {rank} on {self._ranks[rank].host}, which ended while {self._ranks[rank].status.where}",
            "look at its output and start again",
        )

    def _stopped(self, rank: int, how: str) -> RankDied:
        known = self._ranks[rank]
        return RankDied(
            f"every rank to move within {self.timeout:g} s",
            f"rank {rank} on {known.host}, which {how} while {known.status.where}",
            "find out what stopped it, then start again, or raise `rank_timeout`",
        )
