"""One row of the table: a fault in a phase, what it claims, and what was seen."""

from dataclasses import dataclass, field

HELD, FAILED, SKIPPED = "held", "failed", "skipped"


class NotHere(Exception):
    """A fault that this machine cannot have; the message says why."""


@dataclass(slots=True)
class Row:
    """A fault in a phase. `broken`: the claims that did not hold; `skipped`: why it was not run."""

    fault: str
    phase: str
    exit_code: int | None = None
    line: str = ""  # the last that the command said
    seconds: float | None = None  # from the fault to the end of the command, or to its answer
    limit_seconds: float | None = None
    clients: str = ""  # what they saw
    remains: str = "nothing"  # processes, files and shared memory that were left
    broken: list[str] = field(default_factory=list)
    skipped: str = ""

    def claim(self, text: str, holds: bool, got: object = "") -> None:
        """Notes what does not hold."""
        if not holds:
            self.broken.append(f"{text}: {got!s:.200}")

    @property
    def verdict(self) -> str:
        """HELD, FAILED or SKIPPED."""
        return SKIPPED if self.skipped else FAILED if self.broken else HELD

    def shown(self) -> str:
        """The row as a line for people."""
        code = "" if self.exit_code is None else f"exit {self.exit_code}"
        took = "" if self.seconds is None else f"{self.seconds:.1f} s"
        what = self.skipped or "; ".join(self.broken) or self.clients
        return (
            f"{self.fault:<16} {self.phase:<10} {self.verdict:<8} {code:<8} {took:>7}  {what:.110}"
        )
