"""All that `gyrfalcon doctor` examines, in one report; there is one even where torch cannot be imported."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gyrfalcon import __version__
from gyrfalcon.console.format import counted
from gyrfalcon.device import KINDS
from gyrfalcon.device.environment import Setting, settings_of
from gyrfalcon.device.host import Host
from gyrfalcon.device.setup import Finding, fault, first_letters, setup_of
from gyrfalcon.doctor import host_checks
from gyrfalcon.parallel.interrupts import ending_interrupts


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found; `machine` is empty, and `facts` short, where torch could not be imported."""

    machine: Mapping[str, object]
    facts: Sequence[tuple[str, str]]
    findings: Sequence[Finding]
    environment: Mapping[str, Sequence[Setting]]  # of ranks, by the kind of device
    ranks: int

    @property
    def num_faults(self) -> int:
        return sum(finding.is_fault for finding in self.findings)

    def document(self) -> dict[str, object]:
        """For --json."""
        return {
            **self.machine,
            "ranks": self.ranks,
            "findings": [asdict(finding) for finding in self.findings],
            "environment": {
                kind: [asdict(setting) for setting in settings]
                for kind, settings in self.environment.items()
            },
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        for name, fact in self.facts:
            yield f"{name:<16} {fact}"
        for kind, settings in self.environment.items():
            yield f"\nenvironment of {counted(self.ranks, 'rank')} on {kind}"
            for setting in settings:
                yield f"  {setting.name:<26} {setting.value or '-':<26} {setting.origin}: {setting.why}"
        yield "\nchecks"
        for finding in sorted(self.findings, key=lambda each: each.is_fault):
            mark = "FAULT" if finding.is_fault else "note" if finding.cure else "ok"
            cure = f"; {finding.cure}" if finding.cure else ""
            yield f"  {mark:<5} {finding.name:<18} {finding.found}{cure}"
        yield f"\n{counted(self.num_faults, 'fault') if self.num_faults else 'no faults'}"


def examine_all(host: Host, folder: Path, ranks: int | None, *, measure: bool) -> Examination:
    """Examines everything. `ranks`: how many shall share a model, by default as many as there are cards.
    `measure`: bandwidth too, seconds of work.
    """
    findings = [*host_checks.check_extensions(host, host_checks.extensions())]
    for setup in map(setup_of, KINDS):
        if setup.present(host):
            findings += setup.check(host)
    findings += host_checks.check_host(host, folder)
    try:
        with ending_interrupts():
            from gyrfalcon.doctor import with_torch
    except Exception as error:  # whatever a broken installation raises
        return _without_torch(host, error, findings, ranks or 1)
    return with_torch.examine(host, folder, findings, ranks, measure=measure)


def _without_torch(
    host: Host, error: Exception, findings: list[Finding], ranks: int
) -> Examination:
    said = str(error).strip().splitlines() or [type(error).__name__]
    do = "install torch again, as run.sh does; pip check shows what does not fit"
    findings.append(fault("torch", f"cannot be imported: {first_letters(said[0])}", do))
    packages = {
        name: host.version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")
    }
    facts = [
        ("gyrfalcon", __version__),
        ("python", platform.python_version()),
        *((name, version or "not installed") for name, version in packages.items()),
    ]
    machine = {"gyrfalcon": __version__, "python": platform.python_version(), "packages": packages}
    return Examination(machine, facts, findings, {}, ranks)


def environments(
    kinds: Sequence[str], ranks: int, threads: int, environment: Mapping[str, str] = os.environ
) -> dict[str, list[Setting]]:
    """The environment of ranks on each kind of device."""
    return {name: settings_of(setup_of(name), ranks, threads, environment) for name in kinds}
