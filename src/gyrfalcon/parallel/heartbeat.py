"""What a rank has done so far, for the watchdog. Knows neither ranks nor clocks."""

import threading
from ctypes import c_int64
from dataclasses import dataclass, field


@dataclass(slots=True)
class Heartbeat:
    """What one rank has done. The thread that does it writes here, plain numbers, since that happens after
    every block; the one that looks only reads.

    counter: of blocks, tensors, messages and steps, in memory that native steps write to as well.
    doing: what it does or waits for, in words.
    thread: the system's number of the thread that does it. While that computes on the host or reads from
        a disk the rank moves as well: one native call may compute a whole step.
    num_working: operations of all ranks under way; rank 0 alone knows.
    exempt: it does what takes as long as it takes, such as compiling kernels.
    """

    counter: c_int64 = field(default_factory=c_int64)
    doing: str = "starting"
    thread: int = field(default_factory=threading.get_native_id)
    num_working: int = 0
    exempt: bool = False
    on_host: bool = True

    @property
    def count(self) -> int:
        """What the counter says."""
        return self.counter.value
