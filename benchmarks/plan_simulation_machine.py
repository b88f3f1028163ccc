"""Whether benchmarks/plan_simulation.py has the machine for itself."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
IDLE = (3, 4)  # places of idle and waiting times in the line of all processors


@dataclass(frozen=True, slots=True)
class Used:
    """Seconds of processors: of all processes and the host's others, and of this one with its children."""

    wall: float
    all: float
    own: float

    @classmethod
    def now(cls) -> "Used":
        """Until now."""
        own = os.times()
        spent = own.user + own.system + own.children_user + own.children_system
        return cls(time.monotonic(), _busy_seconds(STAT.read_text("ascii")), spent)

    def others_share(self, until: "Used") -> float:
        """What others used since, as a share of all processors' time."""
        others = (until.all - self.all) - (until.own - self.own)
        processors = os.cpu_count() or 1
        return max(others, 0.0) / (processors * (until.wall - self.wall))


def _busy_seconds(stat: str) -> float:
    """user, nice, system, irq, softirq, steal of the first line; guests' time is in user's."""
    ticks = [int(one) for one in stat.split("\n", 1)[0].split()[1:9]]
    busy = sum(one for place, one in enumerate(ticks) if place not in IDLE)
    return busy / os.sysconf("SC_CLK_TCK")
