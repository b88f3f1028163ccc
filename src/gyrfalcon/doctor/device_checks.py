"""Checks of devices, kernels and threads, which ask torch."""

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

import torch

from gyrfalcon.console.format import counted, shown_bytes
from gyrfalcon.device import KINDS
from gyrfalcon.device.environment import set_by_user
from gyrfalcon.device.host import Host
from gyrfalcon.device.lookup import kind_of
from gyrfalcon.device.protocol import Device
from gyrfalcon.device.setup import Finding, fault, setup_of
from gyrfalcon.device.threads import node_processors, own_processors, threads_of, unbound
from gyrfalcon.device.topology import Core
from gyrfalcon.doctor import host_checks
from gyrfalcon.errors import UsageError
from gyrfalcon.native.library import VARIABLE as NATIVE
from gyrfalcon.native.library import available, instructions, library, why_not_native
from gyrfalcon.ops import VARIABLE, chosen_name
from gyrfalcon.parallel.launch import files_needed

BUSY_SHARE = 0.2  # of a card's memory, held by others: less than that are driver and displays
LEAST_TO_MEASURE = 2 << 30
SLOW_SHARE = 0.6  # of the bandwidth that the maker states


def check_kernels(environment: Mapping[str, str]) -> Iterator[Finding]:
    """The native kernels: built, and for which of this processor's instructions, or why not."""
    name = "native kernels"
    try:
        built = library() is not None
    except UsageError as error:
        yield fault(name, f"{error.got} at {NATIVE}", error.do)
        return
    if built:
        yield Finding(name, f"{instructions()}, of {', '.join(available())}")
        return
    why, _, do = why_not_native().partition("; ")
    if environment.get(NATIVE) == "0":
        yield Finding(name, f"not used: {why}", f"unset {NATIVE}: plain torch is slower")
    else:
        yield fault(name, f"{why}: plain torch does their work, more slowly", do)


def check_operators(devices: Sequence[Device], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether operators were asked for that cannot run on any device, and Triton where it is needed."""
    errors = []
    for device in devices:
        try:
            chosen_name(device)
        except UsageError as error:
            errors.append(error)
    if errors and len(errors) == len(devices):
        yield fault(
            "operators", f"{VARIABLE}={environment.get(VARIABLE)}: {errors[-1].got}", errors[-1].do
        )
    cards = [device for device in devices if "triton" in device.operator_sets]
    if cards and find_spec("triton") is None:
        do = "pip install triton: without it cards use plain torch, more slowly"
        yield fault("operators", f"no Triton for {cards[0].model}", do)


def check_cards(host: Host, counts: Mapping[str, int]) -> Iterator[Finding]:
    """Cards that the driver has and torch does not find; `counts` has torch's number of each kind."""
    for name in KINDS:
        setup = setup_of(name)
        there, found = setup.num_cards(host), counts[name]
        if found < there:
            hidden = next(
                (
                    f"{variable}={host.environment[variable]}"
                    for variable in (setup.visible.name, *setup.visible.aliases)
                    if set_by_user(variable, host.environment)
                )
                if setup.visible
                else iter(()),
                "",
            )
            told = f"the driver has {counted(there, 'card')}, torch finds {found}"
            if hidden:
                yield Finding(f"{name} cards", f"{told} ({hidden})")
            else:
                do = (
                    "see the lines on its driver and torch; in a container, pass all its devices on"
                )
                yield fault(f"{name} cards", told, do)


def check_card_memory(devices: Sequence[Device]) -> Iterator[Finding]:
    """What other programs hold of a card's memory."""
    for device in devices:
        if device.on_host:
            continue
        free, total = device.memory()
        found = f"{shown_bytes(free)} of {shown_bytes(total)} free"
        if total - free > BUSY_SHARE * total:
            do = "end the programs that hold the rest, or leave this card out"
            yield Finding(f"{device} memory", found, do)
        else:
            yield Finding(f"{device} memory", found)


def check_peers(devices: Sequence[Device]) -> Iterator[Finding]:
    """Whether cards of one kind read each other's memory: else their collectives go through the host."""
    cards = [device for device in devices if not device.on_host]
    pairs = [(a, b) for a in cards for b in cards if str(a) < str(b) and a.name == b.name]
    reaching = {(a, b): a.reaches(b) for a, b in pairs}
    apart = [f"{a} and {b}" for (a, b), reaches in reaching.items() if reaches is False]
    known = [reaches for reaches in reaching.values() if reaches is not None]
    if apart:
        do = "expect slower all-reduces; an IOMMU (ACS) or a virtual machine may forbid what the cards can"
        shown = ", ".join(apart[:3]) + (f" and {len(apart) - 3} more" if len(apart) > 3 else "")
        yield Finding("peer access", f"none between {shown}", do)
    elif known:
        yield Finding("peer access", f"between all {len(cards)} cards")


def check_bandwidth(devices: Sequence[Device]) -> Iterator[Finding]:
    """Measured memory bandwidth, beside what a card's maker states."""
    for device in devices:
        name = f"{device} bandwidth"
        if not device.on_host and device.memory()[0] < LEAST_TO_MEASURE:
            yield Finding(name, "not measured: too little memory is free")
            continue
        measured = device.measure_bandwidth()
        stated = setup_of(device.name).bandwidths
        promised = next((rate for part, rate in stated.items() if part in device.model), None)
        found = f"{measured / 1e9:,.1f} GB/s"
        if promised and measured < SLOW_SHARE * promised:
            do = "look for other programs on the card, a power limit, or clocks held back by heat"
            yield fault(name, f"{found}, {promised / 1e9:,.0f} by its maker", do)
        else:
            yield Finding(name, found)


def check_files(ranks: int) -> Finding:
    """The limit of open files."""
    return host_checks.check_files(files_needed(ranks), *resource.getrlimit(resource.RLIMIT_NOFILE))


def check_threads(
    ranks: int, cores: Sequence[Core], environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Threads of a rank, where they keep to, and the NUMA nodes."""
    usable = len(os.sched_getaffinity(0))
    own = set_by_user("OMP_NUM_THREADS", environment)
    threads = torch.get_num_threads() if own else threads_of(ranks)
    found = f"{threads} for each of {counted(ranks, 'rank')}, {counted(usable, 'processor')} usable"
    if own:
        found += f" (OMP_NUM_THREADS={environment['OMP_NUM_THREADS']}, set by you)"
    if threads * ranks > max(usable, ranks):
        yield fault(
            "threads", found, "unset OMP_NUM_THREADS or lower it: threads wait for each other"
        )
    else:
        yield Finding("threads", found)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield _binding(ranks, cores)
    finally:
        torch.set_num_threads(before)


def _binding(ranks: int, cores: Sequence[Core]) -> Finding:
    """Where each rank on the CPU keeps to, for as many threads as torch has now."""
    name, nodes = "core binding", len({core.node for core in cores}) or 1
    places = [own_processors(rank, ranks, cores) for rank in range(ranks)]
    homes = [node_processors(rank, ranks, cores) for rank in range(ranks)]
    where = counted(nodes, "NUMA node")
    if unbound():
        return Finding(name, f"left to you: {unbound()}; {where}")
    if not cores:
        return Finding(name, "none: the system does not tell its cores")
    if places[0]:
        shown = [f"rank {rank} on {_ranges(own)}" for rank, own in enumerate(places)]
        return Finding(name, f"a core for each thread, {', '.join(shown)}; {where}")
    if homes[0]:
        shown = [f"rank {rank} on {_ranges(own)}" for rank, own in enumerate(homes)]
        return Finding(name, f"by NUMA node, {', '.join(shown)}")
    return Finding(name, f"none: the ranks' threads do not fill the {len(cores)} cores; {where}")


def _ranges(processors: Sequence[int]) -> str:
    """0, 1, 2, 5 → 0-2,5."""
    parts: list[list[int]] = []
    for each in sorted(processors):
        if parts and parts[-1][-1] == each - 1:
            parts[-1].append(each)
        else:
            parts.append([each])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def device_counts() -> dict[str, int]:
    """How many of each kind torch finds."""
    return {name: kind_of(name).count() for name in KINDS}
