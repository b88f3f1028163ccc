"""A group of processes (cgroup) with next to no memory, in which the kernel kills whoever wants more."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fault_checks.rows import NotHere

ROOT = Path("/sys/fs/cgroup")
MOST_BYTES = 64 << 10  # that a process may take from then on


class MemoryGroup:
    """One that is there. Of what a process has taken before, version 2 charges nothing to it, nor does 1."""

    def __init__(self, folder: Path, limit: str, kills: str) -> None:
        self._folder, self._limit, self._kills = folder, limit, kills
        self._process = 0

    def take(self, process: int) -> None:
        """Puts a process into it."""
        self._process = process
        (self._folder / self._limit).write_text(str(MOST_BYTES))
        (self._folder / "cgroup.procs").write_text(str(process))

    @property
    def num_kills(self) -> int:
        """Of the kernel in this group."""
        for line in (self._folder / self._kills).read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    @property
    def is_alive(self) -> bool:
        """Whether the process that was put into it is."""
        return psutil.pid_exists(self._process)


@contextmanager
def memory_group() -> "Iterator[MemoryGroup]":
    """A group that is gone at the end; NotHere where none can be made."""
    if os.geteuid():
        raise NotHere("needs root for a group of processes (cgroup)")
    old = (ROOT / "memory").is_dir()
    folder = (ROOT / "memory" if old else ROOT) / f"faults-{os.getpid()}"
    files = (
        ("memory.limit_in_bytes", "memory.oom_control") if old else ("memory.max", "memory.events")
    )
    try:
        folder.mkdir()
    except OSError as error:
        raise NotHere(f"needs groups of processes (cgroups): {error.strerror}") from None
    try:
        if not (folder / files[0]).exists():
            raise NotHere("needs cgroups that limit memory")
        yield MemoryGroup(folder, *files)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:  # until the processes in it have ended
        with suppress(OSError):
            folder.rmdir()
        time.sleep(0.05)
