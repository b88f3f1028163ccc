"""One GPU, one command: are the kernels right, does the model obey its laws, how fast is it, and how
near the card's limits.

    scripts/gpu-gate [--json FILE]                 everything, at most 9 minutes on one H100 or H200
    scripts/gpu-gate --only speed --json FILE --minutes 4.5
    scripts/gpu-gate --resume FILE --minutes 4.5   the same in two calls: what FILE lacks
    scripts/gpu-gate --full-sweep int8             the guide's 36 cases token by token
    scripts/gpu-gate --dry-run                     every step on the CPU, tiny, Triton interpreted, and the
                                                   card's own plan at full size, launches noted, not run

FILE is written after every row. A step that takes too long is ended, and the next one begins.
Needs torch, triton, numpy, safetensors, transformers and pytest; nothing is installed, nothing is
downloaded. Where gemlite is installed, its products are timed beside ours. What does not fit the card
is named as skipped. Exit code 1 when a check does not hold, 2 for wrong usage, 3 when time ran out before
all was found.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_document import CannotResume, Document, digest_of_sources
from gpu_sweep import PRECISIONS
from gpu_table import table
from gpu_worker import CannotStart, Loaded, RowProcess

ALWAYS = "limits"  # what is timed is told in parts of them
COMPILE = "compile"  # before the first word of a step: its kernels, ahead of it


class WrongUsage(Exception):
    """str() says what was wanted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Finds the rows that are wanted; 1 when one did not hold."""
    options = parse(arguments)
    end = time.monotonic() + 60 * options.minutes
    try:
        process = RowProcess(load, options)
        try:
            document, wanted = _begin(process, options)
            in_time = find_rows(process, document, wanted, end)
        finally:
            process.end()
    except (CannotResume, CannotStart, WrongUsage) as error:
        print(f"gpu-gate: error: {error}", file=sys.stderr)
        return 2
    print(table(document.as_json()))
    print(f"written to {document.path}")
    if not document.holds():
        return 1
    if not in_time:
        print(f"{options.minutes:g} minutes are over; the rest: --resume {document.path}")
    return 0 if in_time else 3


def _begin(process: RowProcess, options: argparse.Namespace) -> tuple[Document, Sequence[str]]:
    wanted = chosen(list(process.rows), options.only)
    facts = {
        **process.facts,
        "command": sys.argv[1:],
        "dry_run": options.dry_run,
        "sources": digest_of_sources(),
    }
    if options.resume:
        return Document.resume(options.resume, facts), wanted
    place = "dry-run" if options.dry_run else facts["device"].replace(" ", "-").lower()
    path = options.json or Path("benchmarks/results") / f"gpu-gate-{place}.json"
    return Document.begin(path, facts), wanted


def chosen(names: Sequence[str], only: Sequence[str]) -> Sequence[str]:
    """The steps that begin with one of the words, what is compiled for them, and the limits; WrongUsage where
    none begins so.
    """

    def begins(name: str, words: str) -> bool:
        return f"{name} ".startswith(f"{words} ")

    for words in only:
        if not any(begins(name, words) for name in names):
            raise WrongUsage(f"wanted steps of {', '.join(names)}; got {words!r}")
    steps = [name for name in names if not only or any(begins(name, words) for words in only)]
    needed = {ALWAYS, *(f"{COMPILE} {name.partition(' ')[0]}" for name in steps)}
    return [name for name in names if name in needed or name in steps]


def find_rows(process: RowProcess, document: Document, wanted: Sequence[str], end: float) -> bool:
    """Adds what the document lacks of the steps; whether it was all found before `end` (monotonic)."""
    for step in wanted:
        rows = [row for row in process.rows[step] if row not in document.known(step)]
        if rows:
            print(f"gpu-gate: {step}", file=sys.stderr, flush=True)
        seconds = process.deadlines[step]
        until = time.monotonic() + seconds
        for row in rows:
            try:
                found = process.find(step, row, min(until, end))
            except TimeoutError:
                if time.monotonic() >= end:
                    return False
                found = {"passed": False, "error": f"ended {seconds:g} s after its step began"}
            document.add(step, row, found)
            if time.monotonic() >= until:
                break
    return True


def load(options: argparse.Namespace) -> Loaded:
    """What the process that finds rows begins with."""
    if options.dry_run:
        import triton_interpreter  # before all that imports triton

        triton_interpreter.install()
    from gpu_steps import load_steps

    return load_steps(options)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-gate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        metavar="STEPS",
        help="such as speed, or laws,tests, or 'speed 40b int4'; limits are always measured",
    )
    parser.add_argument("--full-sweep", choices=PRECISIONS, metavar="PRECISION")
    parser.add_argument("--shape", default="40b", help="of the full sweep: 40b or 7b")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="end after this many minutes (default: 9)"
    )
    file = parser.add_mutually_exclusive_group()
    file.add_argument("--json", type=Path, metavar="FILE", help="where to write")
    file.add_argument(
        "--resume", type=Path, metavar="FILE", help="go on with this one: its rows are kept"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
