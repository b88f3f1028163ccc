"""Checks of a machine that need no torch: packages, memory, disk, limits of containers."""

import os
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, requires
from pathlib import Path

import psutil

from gyrfalcon.console.format import counted, shown_bytes
from gyrfalcon.device.host import Host, numbers
from gyrfalcon.device.setup import Finding, fault
from gyrfalcon.errors import PIP_INSTALL

LEAST_DISK = LEAST_MEMORY = 1 << 30
LEAST_SHARED = 256 << 20  # for the collectives of several cards; a container of Docker has 64 MB
SERVER_FILES = 4096  # one connection is one file
NO_LIMIT = 1 << 60  # cgroup v1 says 2⁶³ rounded down to a page
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
SHARED = Path("/dev/shm")


def extensions() -> list[str]:
    """What has itself loaded with torch, and breaks `import torch` where it is broken itself."""
    return sorted(each.name for each in entry_points(group="torch.backends"))


def check_extensions(host: Host, names: Sequence[str]) -> Iterator[Finding]:
    """Whether torch loads them here; `gyrfalcon doctor` sees to it that it does not."""
    if names:
        found = f"loaded with torch: {', '.join(names)}"
        if host.environment.get(AUTOLOAD, "1") != "1":
            found = f"not loaded with torch here, by {AUTOLOAD}=0: {', '.join(names)}"
        yield Finding("torch extensions", found)


def base_requirements() -> list[str]:
    """What the installed package requires, extras left out."""
    try:
        return [each for each in requires("gyrfalcon") or [] if "extra" not in each]
    except PackageNotFoundError:  # run from its sources
        return []


def check_packages(host: Host, required: Sequence[str], constraints: str) -> Iterator[Finding]:
    """The base packages against what is required, and beside it what the tests ran with."""
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.M))
    others, all_well = [], True
    for requirement in required:
        match = re.match(r"([\w.-]+?)\s*>=\s*([\w.]+)", requirement)
        if match is None:
            continue
        name, least = match.groups()
        version = host.version(name)
        if version is None or numbers(version) < numbers(least):
            all_well = False
            found = f"{name} {version or 'not installed'}, {least} or newer is needed"
            yield fault("packages", found, f"{PIP_INSTALL} '{name}>={least}'")
        elif name in tested and numbers(version) != numbers(tested[name]):
            others.append(f"{name} {version} ({tested[name]})")
    if others:
        yield Finding("packages", f"other than tested (in brackets): {', '.join(others)}")
    elif required and all_well:
        yield Finding("packages", f"all {len(required)} new enough")


def check_memory(host: Host, available: int, total: int) -> Iterator[Finding]:
    """Free memory, and the limit of a container, which `total` does not have."""
    limit = _memory_limit(host)
    if limit < total:
        used = _memory_used(host)
        total, available = limit, max(0, min(available, limit - used))
    where = " of this container" if limit <= total and limit < NO_LIMIT else ""
    found = f"{shown_bytes(available)} of {shown_bytes(total)}{where} free"
    if available < LEAST_MEMORY:
        yield fault(
            "memory", found, "end other programs, or raise the container's limit (--memory)"
        )
    else:
        yield Finding("memory", found)


def _memory_limit(host: Host) -> int:
    return min(
        _number(host.read("/sys/fs/cgroup/memory.max")),
        _number(host.read("/sys/fs/cgroup/memory/memory.limit_in_bytes")),
    )


def _memory_used(host: Host) -> int:
    files = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
    return next((int(text) for text in map(host.read, files) if text.strip().isdecimal()), 0)


def _number(text: str) -> int:
    """A limit of a cgroup; NO_LIMIT where it is `max`, huge or not there."""
    return min(int(text), NO_LIMIT) if text.strip().isdecimal() else NO_LIMIT


def check_processors(host: Host, usable: int) -> Iterator[Finding]:
    """A container's share of the processors, where it is less than those that it shows."""
    text = host.read("/sys/fs/cgroup/cpu.max").split()
    if not text:
        folder = "/sys/fs/cgroup/cpu"
        files = (f"{folder}/cpu.cfs_quota_us", f"{folder}/cpu.cfs_period_us")
        text = [host.read(file).strip() for file in files]
    if len(text) == 2 and all(each.isdecimal() for each in text) and int(text[1]):
        share = int(text[0]) / int(text[1])
        if share < usable:
            do = f"start it with --cpuset-cpus instead of --cpus, or set OMP_NUM_THREADS={max(1, int(share))}"
            found = f"this container may use {share:g} of the {usable} processors that it shows"
            yield fault("processors", found, f"{do}: more threads are stopped in turn")


def check_disk(folder: Path, name: str, free: int | None = None) -> Finding:
    """Free space where results or temporary files are written."""
    free = shutil.disk_usage(folder).free if free is None else free
    found = f"{shown_bytes(free)} free in {folder}"
    if free < LEAST_DISK:
        return fault(name, found, "free some space, or work in another folder")
    return Finding(name, found)


def check_shared_memory(ranks: int, num_cards: int, free: int | None) -> Finding:
    """/dev/shm, through which the collectives of several cards may go. The CPU's ranks need none of it."""
    name = "/dev/shm"
    if free is None:
        return Finding(name, "none")
    found = f"{shown_bytes(free)} free"
    if min(ranks, num_cards) > 1 and free < LEAST_SHARED:
        do = "start the container with --shm-size=1g or --ipc=host"
        return fault(name, f"{found}, ranks on {counted(num_cards, 'card')} may need more", do)
    return Finding(name, found)


def shared_memory_free() -> int | None:
    """Free bytes of /dev/shm; None without it."""
    return shutil.disk_usage(SHARED).free if SHARED.is_dir() else None


def check_files(needed: int, limit: int, hard: int) -> Finding:
    """The limit of open files: of ranks, and of a server's clients."""
    name = "open files"
    raised = max(SERVER_FILES, needed)
    do = f"ulimit -n {raised}"
    if limit == resource.RLIM_INFINITY:
        return Finding(name, "without limit")
    if hard != resource.RLIM_INFINITY and hard < raised:
        do = f"raise the hard limit of {hard} (/etc/security/limits.conf, or --ulimit nofile={raised})"
    if limit < needed:
        return fault(name, f"{limit} at most, {needed} are needed", do)
    if limit < SERVER_FILES:
        return Finding(name, f"{limit} at most: few for a server with many clients", do)
    return Finding(name, f"{limit} at most")


def check_host(host: Host, folder: Path) -> Iterator[Finding]:
    """All of this page that depends on neither ranks nor devices."""
    sources = Path(__file__).parents[3] / "constraints.txt"
    constraints = sources.read_text("utf-8") if sources.is_file() else ""
    yield from check_packages(host, base_requirements(), constraints)
    memory = psutil.virtual_memory()
    yield from check_memory(host, memory.available, memory.total)
    yield from check_processors(host, len(os.sched_getaffinity(0)))
    yield check_disk(folder, "disk")
