"""Kills a command at each of its write calls in turn, fills its disk or has the power fail there, and runs it
again: the result is that of an undisturbed run, what looks whole is whole, and no temporary file stays.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fault_checks.disk import CODES, FAULTS, FULL, KILL, POWER, READ_ONLY, FaultyDisk
from fault_checks.forks import Ended, in_forks, run

EXIT_CODES = {FULL: 2, READ_ONLY: 2}
SAID = {FULL: "free some space", READ_ONLY: "Read-only file system"}
DONE = ("one that is there already", "of an earlier run")  # how a command refuses to do it twice
TEMPORARY = (".part", ".partial")
ENDED = "ended"  # a file beside a command's own: it came to its end


@dataclass(frozen=True, slots=True)
class Job:
    """A command that writes into the folder `out` of its place.

    outcome: what of the result has to be equal, whatever happened on the way. whole: raises where what looks
    finished is not; called after each fault.
    """

    name: str
    words: Callable[[Path], Sequence[str]]  # by the place
    outcome: Callable[[Path], object]
    whole: Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one fault: what it broke, "" where all held, and what the command said last."""

    fault: str
    at: int
    broken: str
    line: str


def undisturbed(job: Job, place: Path) -> tuple[int, object]:
    """How many calls change files while nothing fails, and the result."""
    (place / "out").mkdir(parents=True)
    disk = FaultyDisk(place / "out", KILL, 0)
    ended = run(
        job.words(place),
        place / "log",
        disk.install,
        lambda: (place / "count").write_text(str(disk.count)),
    )
    if ended.code:
        raise RuntimeError(f"wanted {job.name} to run, got {ended.code}: {ended.said[-500:]}")
    job.whole(place)
    return int((place / "count").read_text()), job.outcome(place)


def disturbed(job: Job, fault: str, at: int, place: Path, expected: object) -> Outcome:
    """One run with a fault at a call, then one without."""
    (place / "out").mkdir(parents=True)
    words, disk = job.words(place), FaultyDisk(place / "out", fault, at)

    def end() -> None:
        (place / ENDED).touch()
        disk.end()

    first = run(words, place / "log", disk.install, end)
    try:
        broken = _broken(job, fault, first, words, place, expected)
        return Outcome(fault, at, broken, first.last_line if first.code > 0 else "")
    finally:
        shutil.rmtree(place)


def _broken(
    job: Job, fault: str, first: Ended, words: Sequence[str], place: Path, expected: object
) -> str:
    if fault in CODES and first.code and (told := _badly_told(fault, first)):
        return told
    if fault not in CODES and not (first.was_killed or first.code == 0):
        return f"wanted a kill, got {first.code}: {first.said[-300:]}"
    try:
        job.whole(place)
    except Exception as error:
        return f"wanted what looks whole to be so, got {type(error).__name__}: {error}"
    if fault == POWER and (place / ENDED).exists() and (lost := _lost(job, place, expected)):
        return lost
    again = run(words, place / "log")
    if again.code and not any(done in again.said for done in DONE):
        return f"wanted the same command to go on, got {again.code}: {again.last_line}"
    if (found := job.outcome(place)) != expected:
        return (
            f"wanted the result of an undisturbed run, got another: {_difference(found, expected)}"
        )
    left = [path.name for path in place.rglob("*") if path.name.endswith(TEMPORARY)]
    return f"wanted no temporary file, got {left[0]}" if left else ""


def _badly_told(fault: str, ended: Ended) -> str:
    """What is wrong with how a run ended whose disk failed; "" where nothing is."""
    line = ended.last_line
    if ended.code != EXIT_CODES[fault]:
        return f"wanted exit code {EXIT_CODES[fault]}, got {ended.code}: {line}"
    if not line.startswith("gyrfalcon: error: wanted ") or "Traceback" in ended.said:
        return f"wanted one line of three parts, got {ended.said[-300:]}"
    return "" if SAID[fault] in line else f"wanted a line with {SAID[fault]!r}, got {line}"


def _lost(job: Job, place: Path, expected: object) -> str:
    """What of a finished result a loss of power took; "" where all of it is there."""
    try:
        found = job.outcome(place)
    except Exception as error:
        return f"wanted a finished result to stay, got {type(error).__name__}: {error}"
    if isinstance(found, dict) and isinstance(expected, dict):
        found = {name: found.get(name) for name in expected}  # what is tidied up may come back
    return (
        "" if found == expected else f"wanted a result to stay, lost {_difference(found, expected)}"
    )


def _difference(found: object, expected: object) -> str:
    """Where two results differ, in a few words."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = found.keys() | expected.keys()
        return ", ".join(sorted(n for n in names if found.get(n) != expected.get(n)))[:200]
    return f"{found!r:.100} instead of {expected!r:.100}"


def faults_of(
    job: Job, folder: Path, every: int = 1, faults: Sequence[str] = FAULTS
) -> list[Outcome]:
    """Each fault at each of the job's calls, or at every `every`-th and the last; the power also fails once
    all is done.
    """
    num_calls, expected = undisturbed(job, folder / "whole")
    tried = [
        (at, fault)
        for at in sorted({*range(1, num_calls + 1, every), num_calls, num_calls + 1})
        for fault in faults
        if at <= num_calls or fault == POWER
    ]

    def outcome(number: int) -> dict[str, object]:
        at, fault = tried[number]
        return asdict(disturbed(job, fault, at, folder / f"{at} {fault}", expected))

    return [Outcome(**one) for one in in_forks(outcome, len(tried), folder)]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; none where it is not there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
