"""Whether the watchdog takes anybody for dead on a busy machine: a server of two ranks answers streams, with
pauses, while other processes take all cores.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_checks.rows import Row
from fault_checks.server import START_SECONDS, Served, goes_on, reach, served

LOAD = 8.0  # the least load average, of one minute
SPINNERS = 10
NICENESS = 19
PAUSE_SECONDS = 5.0  # without a stream, after each round of them
SPIN = f"import os\nos.nice({NICENESS})\nwhile True: pass\n"


def alarms_row(folder: Path, minutes: float) -> Row:
    """The minutes count from the moment at which the load average is high enough."""
    row = Row("false alarms", f"{minutes:g} min", limit_seconds=60 * minutes)
    with _load(), served(folder) as server:
        reach(server, "idle")
        while os.getloadavg()[0] < LOAD and not _has_ended(row, server):
            _stream(server)
        begin, least, rounds = time.monotonic(), os.getloadavg()[0], 0
        while time.monotonic() - begin < 60 * minutes and not _has_ended(row, server):
            _stream(server)
            least, rounds = min(least, os.getloadavg()[0]), rounds + 1
        if not row.broken:
            goes_on(row, server)
        row.seconds, row.limit_seconds = time.monotonic() - begin, None
        row.clients += f", {rounds} rounds, load average {least:.1f} or more"
        row.claim(f"a load average of {LOAD:g}", least >= LOAD, least)
    return row


def _has_ended(row: Row, server: Served) -> bool:
    ended = server.process.poll() is not None
    if ended:
        row.claim("no alarm", False, server.last_line)
    return ended


def _stream(server: Served) -> None:
    server.ask("Once upon a time", 1500)
    for thread in server.threads:
        thread.join(START_SECONDS)
    time.sleep(PAUSE_SECONDS)


@contextmanager
def _load() -> Iterator[None]:
    """Processes that compute all the time, and give way to others."""
    spinners = [subprocess.Popen([sys.executable, "-S", "-c", SPIN]) for _ in range(SPINNERS)]
    try:
        yield
    finally:
        for one in spinners:
            one.kill()
            one.wait()
