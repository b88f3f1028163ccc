"""The host's cores and NUMA nodes, as Linux describes them in /sys (Documentation/ABI/stable/
sysfs-devices-node and sysfs-devices-system-cpu).
"""

import contextlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices/system")
PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core: its NUMA node, and its logical processors that this process may use."""

    node: int
    processors: tuple[int, ...]  # lowest first


def usable_cores(usable: Collection[int] | None = None, system: Path = SYSTEM) -> list[Core]:
    """The cores with a processor that this process may use (or one of `usable`), node by node, then by
    their lowest processor. None where the system does not tell.
    """
    processors = sorted(os.sched_getaffinity(0) if usable is None else usable)
    siblings: dict[str, list[int]] = {}
    try:
        for processor in processors:
            topology = system / f"cpu/cpu{processor}/topology"
            text = (topology / "thread_siblings_list").read_text()
            siblings.setdefault(text.strip(), []).append(processor)
    except OSError:
        return []
    node_of = _nodes(system / "node")
    cores = [Core(node_of.get(each[0], 0), tuple(each)) for each in siblings.values()]
    return sorted(cores, key=lambda core: (core.node, core.processors))


def _nodes(folder: Path) -> dict[int, int]:
    """The NUMA node of each processor; those without memory or processors of their own do not count."""
    found = {}
    for node in folder.glob("node[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            for processor in processor_list((node / "cpulist").read_text()):
                found[processor] = int(node.name.removeprefix("node"))
    return found


def processor_list(text: str) -> list[int]:
    """`0-3,8` as Linux writes lists of processors; ValueError for anything else."""
    found: list[int] = []
    for part in text.strip().split(",") if text.strip() else []:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError(text)
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def node_of_pci(address: str, devices: Path = PCI) -> int | None:
    """The NUMA node of a card at an address such as 0000:3b:00.0; None where there is one node only, or the
    system does not tell.
    """
    with contextlib.suppress(OSError, ValueError):
        node = int((devices / address.lower() / "numa_node").read_text())
        return node if node >= 0 else None
    return None
