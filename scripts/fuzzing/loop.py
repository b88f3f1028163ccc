"""Damages one target's file again and again, by chance or led by coverage, and keeps what breaks a law."""

import importlib.util
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gyrfalcon
from fuzzing.laws import Auditor, Broken, check
from fuzzing.targets import Target

POOL = 200  # damaged files that are damaged further
MOST_BYTES = 1 << 20  # of a file that grows


@dataclass(slots=True)
class Found:
    """What came of one target."""

    num_files: int = 0
    num_accepted: int = 0
    lines: "Counter[str]" = field(default_factory=Counter)  # refusals, by what they wanted
    # By what was seen: the first such file.
    broken: "dict[str, bytes]" = field(default_factory=dict)


class Bench:
    """A target's folder, and the trial of one content of its file by all readers."""

    def __init__(self, target: Target, parent: Path, auditor: Auditor) -> None:
        self.target = target
        self.path = target.make(parent / "folder")
        self.whole = self.path.read_bytes()
        self.found = Found()
        self.last = parent / "last"  # the content that is tried, should it end the process
        self._folder = parent / "folder"
        self._auditor = auditor
        for read in target.readers:  # imports, caches, threads
            read(self.path)
        self._before = _names(self._folder)

    def trial(self, raw: bytes) -> str | None:
        """One content. What it broke, None where all laws hold; noted in `found`."""
        self.path.write_bytes(raw)
        self.last.write_bytes(raw)
        self.found.num_files += 1
        try:
            lines = [self._read(read, len(raw)) for read in self.target.readers]
        except Broken as error:
            what = str(error)
            self.found.broken.setdefault(what, raw)
            return what
        self.found.num_accepted += not any(lines)
        self.found.lines.update(line.split(", got ")[0][:60] for line in lines if line)
        return None

    def _read(self, read: Callable[[Path], object], num_bytes: int) -> str:
        line = check(lambda: read(self.path), self._folder, num_bytes, self._auditor)
        if (now := _names(self._folder)) != self._before:
            for name in now - self._before:
                (self._folder / name).unlink()
            raise Broken(f"wanted no code run and no file written, got {now ^ self._before}")
        return line


def by_chance(bench: Bench, seconds: float, seed: int, tell: Callable[[Found], object]) -> None:
    """Damages the whole file, and files damaged before that gave a new line."""
    chance, pool, known = random.Random(seed), [bench.whole], 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        raw = bench.whole if chance.random() < 0.5 else chance.choice(pool)
        raw = bench.target.mutate(raw, chance)
        if len(raw) > MOST_BYTES:
            continue
        bench.trial(raw)
        if len(bench.found.lines) > known:
            known = len(bench.found.lines)
            pool = [*pool[-POOL:], raw]
        tell(bench.found)


def has_atheris() -> bool:
    """Whether a coverage-guided fuzzer is installed."""
    return importlib.util.find_spec("atheris") is not None


def _names(folder: Path) -> "set[str]":
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@cache  # its hook cannot be taken back
def auditor() -> Auditor:
    """The process's one watcher of what is opened and started."""
    return Auditor(Path(gyrfalcon.__file__).parent)


def written(found: Found) -> "dict[str, object]":
    """As JSON; files in hexadecimal."""
    return {
        "files": found.num_files,
        "accepted": found.num_accepted,
        "lines": dict(found.lines.most_common()),
        "broken": {what: raw.hex() for what, raw in found.broken.items()},
    }


def read_back(value: "dict[str, Any]") -> Found:
    """What written() wrote."""
    broken = {what: bytes.fromhex(raw) for what, raw in value["broken"].items()}
    return Found(value["files"], value["accepted"], Counter(value["lines"]), broken)
