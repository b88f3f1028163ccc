"""Machines that are folders: the files that a driver or a container shows, and what programs print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gyrfalcon.device.host import Answer, Host
from gyrfalcon.device.setup import Finding


@dataclass
class Machine:
    """A machine below `root`; `asked` has the programs that were run."""

    root: Path
    versions: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)  # by the first word of the program
    environment: dict[str, str] = field(default_factory=dict)
    torch_version: str = ""  # the text of torch/version.py
    asked: list[Sequence[str]] = field(default_factory=list)

    def write(self, path: str, text: str = "") -> "Machine":
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    @property
    def host(self) -> Host:
        def run(words: Sequence[str], seconds: float) -> Answer | None:
            self.asked.append(words)
            return self.answers.get(Path(words[0]).name.rstrip("0123456789."))

        def package_file(package: str, name: str) -> str:
            return self.torch_version if (package, name) == ("torch", "version.py") else ""

        environment: Mapping[str, str] = self.environment
        return Host(self.root, environment, self.versions.get, package_file, run)


def shown(findings: Sequence[Finding]) -> dict[str, str]:
    """What each finding says, with its cure, and FAULT before what is one."""
    return {
        each.name: f"{'FAULT ' if each.is_fault else ''}{each.found}; {each.cure}"
        for each in findings
    }
