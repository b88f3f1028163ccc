"""What a check found: claims that hold or do not, figures, and the document that is made of them."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gyrfalcon import __version__
from gyrfalcon.measure.result import machine_facts

HELD, FAILED, NOT_RUN = "held", "failed", "not run"


class NotRun(Exception):
    """What a check needs cannot be had; the message says what, and why."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that has to be true of the server, and what was seen."""

    text: str
    holds: bool
    got: str


@dataclass(slots=True)
class Report:
    """What one run of a check found."""

    check: str
    claims: list[Claim] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)  # of clients
    why_not: str = ""  # not run
    broken: str = ""  # the check itself ended with this error
    seconds: float = 0.0
    tool: str = "serve-check"  # the script that it belongs to

    def claim(self, text: str, holds: bool, got: object = "") -> None:
        """Notes and prints whether something is true. `got` is what was seen, in a few words."""
        one = Claim(text, bool(holds), str(got)[:400])
        self.claims.append(one)
        shown = f": {one.got}" if one.got else ""
        print(f"  {'ok  ' if holds else 'FAIL'} {text}{shown}", flush=True)

    def figure(self, name: str, value: object) -> None:
        """Notes and prints a figure of the run."""
        self.figures[name] = value
        print(f"       {name} = {value}", flush=True)

    @property
    def verdict(self) -> str:
        """HELD, FAILED or NOT_RUN. A check that claimed nothing has failed."""
        if self.why_not:
            return NOT_RUN
        held = self.claims and not self.broken and all(one.holds for one in self.claims)
        return HELD if held else FAILED

    def document(self, arguments: Sequence[str]) -> dict[str, object]:
        """The result as JSON; `arguments` are those of the command line."""
        return {
            "format": f"gyrfalcon-{self.tool}",
            "version": 1,
            "check": self.check,
            "verdict": self.verdict,
            "reason": self.why_not or self.broken,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([f"scripts/{self.tool}", *arguments]),
            "seconds": round(self.seconds, 1),
            "machine": machine_facts(),
            "versions": {"gyrfalcon": __version__, "python": sys.version.split()[0]}
            | self.versions,
            "claims": [
                {"claim": one.text, "holds": one.holds, "got": one.got} for one in self.claims
            ],
            "figures": self.figures,
        }
