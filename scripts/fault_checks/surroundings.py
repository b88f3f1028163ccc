"""What happens around a server: a slow rank, a port that is taken, limits of files and memory, full disks, a
wall clock that jumps.
"""

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_checks.server import wait_until

from fault_checks.memory_group import memory_group
from fault_checks.rows import NotHere, Row
from fault_checks.server import LIMITS, LINE, START_SECONDS, ended, goes_on, reach, served

CLOCK = Path(__file__).with_name("clock.c")
DAY = 86400


def _slow_row(folder: Path, phase: str) -> Row:
    """A rank that gets a tenth of its time is slow, not dead: nothing ends."""
    row = Row("slow rank", phase)
    with served(folder) as server:
        reach(server, phase)
        rank, until = server.ranks()[0], time.monotonic() + 5
        while time.monotonic() < until:
            rank.send_signal(signal.SIGSTOP)
            time.sleep(0.18)
            rank.send_signal(signal.SIGCONT)
            time.sleep(0.02)
        goes_on(row, server)
    return row


def _port_row(folder: Path, phase: str) -> Row:
    """A second server on the port of another is told so, and the first goes on."""
    row = Row("port taken", phase, limit_seconds=START_SECONDS)
    with served(folder) as first:
        reach(first, phase)
        with served(folder, "--port", str(first.port)) as second:
            ended(row, second, time.monotonic())
        code, line = row.exit_code, row.line
        row.claim("exit code 2", code == 2, code)
        row.claim("a line that names the port", LINE in line and str(first.port) in line, line)
        goes_on(row, first)
        row.exit_code, row.line = code, line
    return row


def _file_limit_row(folder: Path, phase: str) -> Row:
    """Too few open files for its clients: the server answers again once there are enough."""
    row = Row("file limit", phase)
    with served(folder) as server:
        reach(server, phase)
        few = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (few, few + 4096))
        server.ask("A", 5)
        time.sleep(1)
        resource.prlimit(
            server.process.pid, resource.RLIMIT_NOFILE, (min(before[1], few + 4096),) * 2
        )
        goes_on(row, server)
    return row


def _memory_row(folder: Path, phase: str) -> Row:
    """No more address space for rank 1, as under a limit: it goes on in what it has, or all end in a line."""
    row = Row("no memory", phase, limit_seconds=LIMITS["kill"])
    with served(folder) as server:
        reach(server, phase)
        rank = server.ranks()[0]
        used = rank.memory_info().vms
        resource.prlimit(rank.pid, resource.RLIMIT_AS, (used, used))
        if not server.streams:
            server.ask("Once upon a time", 200)
        begin = time.monotonic()
        for thread in server.threads:
            thread.join(START_SECONDS)
        if server.ends.count("whole") == len(server.ends):
            goes_on(row, server)
            return row
        ended(row, server, begin)
        row.claim("exit code 1", row.exit_code == 1, row.exit_code)
        is_named = LINE in row.line and "rank 1" in row.line
        row.claim("one line that names the rank", is_named, row.line)
        row.claim("no client is left without an answer", "cut off" not in row.clients, row.clients)
    return row


def _shm_row(folder: Path, phase: str) -> Row:
    """/dev/shm has room for nothing: ranks share memory that has no name there."""
    row = Row("full /dev/shm", phase)
    if os.geteuid():
        raise NotHere("needs root for a mount of its own")
    mount = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && { head -c 1M /dev/zero >/dev/shm/x; exec "$@"; }'
    before = ("unshare", "-m", "sh", "-c", mount, "sh")
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        raise NotHere("this system allows no mount of one's own")
    with served(folder, before=before) as server:
        reach(server, phase)
        goes_on(row, server)
    return row


def _disk_row(folder: Path, phase: str) -> Row:
    """The disk of its log is full: the server answers, and logs again once there is room."""
    row = Row("full disk", phase)
    with served(folder) as server:
        reach(server, phase)
        size = server.log.stat().st_size
        before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, before[1]))
        server.ask("A", 5)
        wait_until(lambda: "whole" in server.ends, START_SECONDS)
        row.claim("nothing more in the log", server.log.stat().st_size == size, server.said[size:])
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
        goes_on(row, server)
        lines = server.said[size:]
        row.claim("what was left out is counted", "lines of the log were left out" in lines, lines)
    return row


def _oom_row(folder: Path, phase: str) -> Row:
    """The kernel kills a rank for want of memory: as with any other kill."""
    row = Row("out of memory", phase, limit_seconds=LIMITS["kill"])
    with memory_group() as group, served(folder) as server:
        reach(server, phase)
        group.take(server.ranks()[0].pid)
        if phase == "idle":
            server.ask("Once upon a time", 1500)
        wait_until(lambda: group.num_kills > 0 or not group.is_alive, START_SECONDS)
        ended(row, server, time.monotonic())
        named = LINE in row.line and "rank 1" in row.line and "signal 9" in row.line
        row.claim("exit code 1", row.exit_code == 1, row.exit_code)
        row.claim("one line that names the rank and the signal", named, row.line)
        row.claim("no client is left without an answer", "cut off" not in row.clients, row.clients)
    return row


def _clock_row(folder: Path, phase: str) -> Row:
    """The wall clock goes a day ahead, then a day back: nobody notices."""
    row = Row("clock jump", phase)
    with jumping_clock(folder) as clock, served(folder, env=clock.env) as server:
        reach(server, phase)
        for days in (1, -1):
            clock.jump(days * DAY)
            time.sleep(1)
            server.ask("A", 5)
        goes_on(row, server)
    return row


class Clock:
    """A wall clock whose jumps are written to a file, for processes that start with `env`."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise NotHere("needs a C compiler for a clock of its own")
        self._library, self._file = folder / "server-clock.so", folder / "server-clock"
        self.jump(0)
        words = [compiler, "-O1", "-shared", "-fPIC", "-o", str(self._library), str(CLOCK)]
        if subprocess.run(words, capture_output=True).returncode:
            raise NotHere("needs a C compiler that makes shared libraries")
        self.env = {"LD_PRELOAD": str(self._library), "FAULTS_CLOCK": str(self._file)}

    def jump(self, seconds: int) -> None:
        """Has the clock be so much ahead."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))

    def is_obeyed(self) -> bool:
        """Whether processes see it."""
        self.jump(DAY)
        code = "import time; print(time.time())"
        words = [sys.executable, "-S", "-c", code]
        seen = subprocess.run(words, env=self.env, capture_output=True, text=True).stdout
        self.jump(0)
        return bool(seen) and float(seen) > time.time() + DAY / 2


@contextmanager
def jumping_clock(folder: Path) -> Iterator[Clock]:
    """A clock that processes see; NotHere where there can be none."""
    clock = Clock(folder)
    if not clock.is_obeyed():
        raise NotHere("needs a loader that takes LD_PRELOAD")
    yield clock


SURROUNDINGS: dict[str, Callable[[Path, str], Row]] = {
    "slow rank": _slow_row,
    "port taken": _port_row,
    "file limit": _file_limit_row,
    "no memory": _memory_row,
    "out of memory": _oom_row,
    "full /dev/shm": _shm_row,
    "full disk": _disk_row,
    "clock jump": _clock_row,
}
