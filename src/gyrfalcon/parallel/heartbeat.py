"""What a rank has done so far, for the watchdog. Knows neither ranks nor clocks."""

import threading
from ctypes import c_int64
from dataclasses import dataclass, field

STEP = "taking a step"


@dataclass(slots=True)
class Heartbeat:
    """What one rank has done for one engine. The thread that does it writes here, plain numbers, since that
    happens after every block; the one that looks only reads.

    counter: of blocks, tensors, messages and steps, in memory that native steps write to as well.
    doing: what it does or waits for, in words.
    step: the number of the last step that it began, when the counter was at `before_step`.
    thread: the system's number of the thread that does it. While that computes on the host or reads from
        a disk the rank makes progress as well: one native call may compute a whole step.
    num_working: operations of all ranks under way; rank 0 alone knows.
    exempt: it does what may take minutes, such as loading weights and compiling kernels.
    """

    counter: c_int64 = field(default_factory=c_int64)
    doing: str = "starting"
    step: int = 0
    thread: int = field(default_factory=threading.get_native_id)
    num_working: int = 0
    exempt: bool = False
    on_host: bool = True
    before_step: int = 0

    @property
    def count(self) -> int:
        """What the counter says."""
        return self.counter.value

    def begin_step(self) -> None:
        """From here on the counter counts blocks of the next step."""
        self.step += 1
        self.counter.value += 1
        self.before_step = self.counter.value
        self.doing = STEP

    @property
    def where(self) -> str:
        """What it does, in words, as "which stopped while …" goes on."""
        if self.doing is not STEP:
            return self.doing
        if not self.step:
            return "waiting for work"
        return f"in step {self.step} after {self.count - self.before_step} blocks"
