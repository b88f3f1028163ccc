"""Breaks gyrfalcon and says what came of it: a table of faults and phases.

    scripts/faults --list
    scripts/faults                              everything, some nine minutes on two cores
    scripts/faults --only kill --only 'SIGSTOP idle'
    scripts/faults --short                      a part of each, less than a minute
    scripts/faults --alarms 30                  no fault: is anybody taken for dead on a busy machine?

A server with two ranks is broken while it loads, reads prompts, answers, is idle and drains. Commands that
write are killed at each of their write calls in turn, find the disk full or read-only there, or the power
fails, and are run again: the result has to be that of an undisturbed run. What this machine cannot do, such
as network namespaces without root, is skipped, with the reason.

Exit code: 0 all held; 1 a claim did not hold; 2 wrong usage; 130, 143 ended by Ctrl-C or SIGTERM, with all
that it had made taken away.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from fault_checks.alarms import alarms_row
from fault_checks.disk import FAULTS
from fault_checks.ending import end_tidily
from fault_checks.jobs import make_jobs
from fault_checks.network import NETWORK
from fault_checks.rows import FAILED, NotHere, Row
from fault_checks.server import PHASES, SIGNALS, signal_row
from fault_checks.surroundings import SURROUNDINGS
from fault_checks.writes import Outcome, faults_of
from gyrfalcon import __version__
from gyrfalcon.files.output import replace_file
from gyrfalcon.measure.result import machine_facts

ROOT = Path(__file__).parents[2]
JOBS = ("cut", "recut", "merge", "mmlu", "speed", "score", "generate")
OTHERS = {**SURROUNDINGS, **NETWORK}
OTHER_PHASES = ("decode", "idle")
NAMES = (
    *(f"{fault} {phase}" for fault in SIGNALS for phase in PHASES),
    *(f"{fault} {phase}" for fault in OTHERS for phase in OTHER_PHASES),
    *(f"{fault} {job}" for job in JOBS for fault in FAULTS),
)
SHORT_EVERY = 25  # of a job's write calls
SHORT = ("kill decode", *JOBS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs those rows that are asked for; see the exit code above."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _options(arguments)
    if options.list:
        print("\n".join(NAMES))
        return 0
    end_tidily()
    begin, rows = time.monotonic(), []
    for row in _rows(options):
        rows.append(row)
        print(row.shown(), flush=True)
    seconds = time.monotonic() - begin
    _write(options.out / "faults.json", rows, seconds, arguments)
    failed = [row for row in rows if row.verdict == FAILED]
    print(
        f"\n{len(rows)} rows in {seconds:.0f} s, {len(failed)} failed; {options.out / 'faults.json'}"
    )
    for row in failed:
        print(f"{row.fault} {row.phase}: {'; '.join(row.broken)}")
    return int(bool(failed))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="rows with these words in their name; may come again",
    )
    parser.add_argument(
        "--short", action="store_true", help="less than a minute: a part of the rows"
    )
    parser.add_argument(
        "--alarms",
        type=float,
        metavar="MINUTES",
        help="only watch for false alarms, so long, at a load average of 8",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "faults", help="folder of the JSON"
    )
    options = parser.parse_args(arguments)
    for words in options.only:
        if not any(words in name for name in NAMES):
            print(
                f"faults: error: wanted words of a row, got {words!r}; see --list", file=sys.stderr
            )
            raise SystemExit(2)
    if options.short and not options.only:
        options.only = list(SHORT)
    return options


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    def only(fault: str, phase: str) -> bool:
        return not options.only or any(words in f"{fault} {phase}" for words in options.only)

    torch.set_num_threads(1)  # a fork has no threads of its parent's
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        (folder / "serve").mkdir()
        if options.alarms:
            yield alarms_row(folder / "serve", options.alarms)
            return
        yield from _write_rows(folder, only, SHORT_EVERY if options.short else 1)
        yield from _serve_rows(folder / "serve", only)


def _serve_rows(folder: Path, only: Callable[[str, str], bool]) -> Iterator[Row]:
    """Kill and SIGSTOP in each phase; the other faults under load and idle."""
    for fault in SIGNALS:
        for phase in PHASES:
            if only(fault, phase):
                yield signal_row(folder, fault, phase)
    for fault, run in OTHERS.items():
        for phase in OTHER_PHASES:
            if only(fault, phase):
                try:
                    yield run(folder, phase)
                except NotHere as reason:
                    yield Row(fault, phase, skipped=str(reason))


def _write_rows(folder: Path, only: Callable[[str, str], bool], every: int) -> Iterator[Row]:
    """A row for each job and fault of the disk, at all of its calls."""
    wanted = {job: [fault for fault in FAULTS if only(fault, job)] for job in JOBS}
    if not any(wanted.values()):
        return
    jobs = make_jobs(folder / "read")
    for name, faults in wanted.items():
        begin = time.monotonic()
        found = faults_of(jobs[name], folder / name, every, faults) if faults else []
        for fault in faults:
            yield _write_row(fault, name, [one for one in found if one.fault == fault])
        if faults:
            print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def _write_row(fault: str, job: str, outcomes: Sequence[Outcome]) -> Row:
    row = Row(fault, job)
    for one in outcomes:
        row.claim(f"at write call {one.at}", not one.broken, one.broken)
    same = len(outcomes) - len(row.broken)
    row.clients = f"the same result after {same} of {len(outcomes)} write calls"
    row.line = next((one.line for one in outcomes if one.line), "")
    return row


def _write(path: Path, rows: Sequence[Row], seconds: float, arguments: Sequence[str]) -> None:
    document = {
        "format": "gyrfalcon-faults",
        "version": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["scripts/faults", *arguments]),
        "gyrfalcon": __version__,
        "machine": machine_facts(),
        "seconds": round(seconds, 1),
        "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
    }
    replace_file(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
