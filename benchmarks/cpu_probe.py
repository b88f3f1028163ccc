"""What benchmarks of single operations on the CPU share: the clock, the processor's limits measured beside
them, and a JSON file whose rows come from several runs.
"""

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, thread_time

import torch

from gyrfalcon.console.format import write_json
from gyrfalcon.files.output import open_output
from gyrfalcon.measure.result import machine_facts

PROBE_BYTES, PROBE_ROUNDS = 256 << 20, 1 << 17
Clock = Callable[[], float]
JsonRow = dict[str, object]


def clock_for(threads: int) -> Clock:
    """One thread's processor time, which work beside it changes little; of several, what a clock says."""
    return thread_time if threads == 1 else perf_counter


class Probe:
    """The largest rates measured so far, a second."""

    def __init__(self, found: ctypes.CDLL, clock: Clock) -> None:
        self._found, self._clock = found, clock
        self._block = torch.ones(PROBE_BYTES, dtype=torch.uint8)
        self.read = 0.0
        self.peaks: dict[str, float] = {}  # multiply-adds of each instruction, in float32 first

    def measure(self) -> None:
        """One more try of each."""
        start = self._clock()
        self._found.gf_read(self._block.data_ptr(), PROBE_BYTES)
        self.read = max(self.read, PROBE_BYTES / (self._clock() - start))
        for name in self._found.gf_multiply_instructions().split():
            start = self._clock()
            operations = self._found.gf_multiply_add(name, PROBE_ROUNDS)
            rate = operations / 2 / (self._clock() - start)
            self.peaks[name.decode()] = max(self.peaks.get(name.decode(), 0.0), rate)


def save_rows(
    path: Path, form: str, rows: Sequence[JsonRow], key: Sequence[str], threads: int
) -> None:
    """Writes the rows, and those of earlier runs in the file that none of them replaces: two of one `key` are
    of the same thing.
    """

    def what(row: Mapping[str, object]) -> tuple[object, ...]:
        return tuple(row[name] for name in key)

    kept = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    new = {what(row) for row in rows}
    facts = {
        "format": form,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "threads": threads,
        "rows": [row for row in kept if what(row) not in new] + [*rows],
    }
    write_json(facts, open_output(str(path), "--json"))
