"""The part of the examination for which torch is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from gyrfalcon.device import HOST
from gyrfalcon.device.host import Host
from gyrfalcon.device.lookup import all_devices
from gyrfalcon.device.protocol import Device
from gyrfalcon.device.setup import Finding, setup_of
from gyrfalcon.device.threads import threads_of
from gyrfalcon.device.topology import usable_cores
from gyrfalcon.doctor import device_checks, host_checks
from gyrfalcon.doctor.examination import Examination, environments
from gyrfalcon.measure.machine import describe
from gyrfalcon.measure.machine import examine as examine_machine


def examine(
    host: Host,
    folder: Path,
    findings: list[Finding],
    ranks: int | None,
    *,
    measure: bool,
) -> Examination:
    """Goes on from what was found without torch."""
    counts = device_checks.device_counts()
    num_cards = max(count for name, count in counts.items() if name != HOST)
    ranks = ranks or max(1, num_cards)
    devices = all_devices()
    findings += _check(host, counts, devices, ranks)
    if measure:
        findings += device_checks.check_bandwidth(devices)
    report = examine_machine(folder)
    kinds = [
        name
        for name, count in counts.items()
        if name == HOST or count or setup_of(name).num_cards(host)
    ]
    environment = environments(kinds, ranks, threads_of(ranks), host.environment)
    return Examination(asdict(report), describe(report), findings, environment, ranks)


def _check(
    host: Host, counts: dict[str, int], devices: Sequence[Device], ranks: int
) -> Iterator[Finding]:
    num_cards = max(count for name, count in counts.items() if name != HOST)
    yield device_checks.check_files(ranks)
    yield host_checks.check_shared_memory(ranks, num_cards, host_checks.shared_memory_free())
    yield from device_checks.check_kernels(host.environment)
    yield from device_checks.check_operators(devices, host.environment)
    yield from device_checks.check_cards(host, counts)
    yield from device_checks.check_card_memory(devices)
    yield from device_checks.check_peers(devices)
    yield from device_checks.check_threads(ranks, usable_cores(), host.environment)
