"""What a rank has done so far, for the watchdog. Knows neither ranks nor clocks."""

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class Heartbeat:
    """What one rank has done. The thread that does it writes here, plain numbers, since that happens after
    every block; the one that looks only reads.

    count: of blocks, tensors, messages and steps.
    doing: what it does or waits for, in words.
    thread: the system's number of the thread that does it. While that computes on the host or reads from
        a disk the rank moves as well: one native call may compute a whole step.
    num_working: operations of all ranks under way; rank 0 alone knows.
    exempt: it does what takes as long as it takes, such as compiling kernels.
    """

    count: int = 0
    doing: str = "starting"
    thread: int = field(default_factory=threading.get_native_id)
    num_working: int = 0
    exempt: bool = False
    on_host: bool = True
