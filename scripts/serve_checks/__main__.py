"""Checks of `gyrfalcon serve` from outside: real clients, hostile ones, load, faults.

    scripts/serve-check --list
    scripts/serve-check openai curl
    scripts/serve-check soak --minutes 5 --out benchmarks/results
    scripts/serve-check fairness --model FOLDER --serve "--quant int8 --threads 2"
    scripts/serve-check all

Each check starts its own servers. A client that is a package gets a virtual environment of its own, with the
versions in scripts/serve_checks/pins. For each check a file serve-check-NAME.json is written.

Exit code: 0 all held; 1 a claim did not hold; 2 wrong usage; 77 something that a check needs cannot be
had, so that it was not run, and all others held.
"""

import argparse
import json
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from gyrfalcon.files.output import replace_file
from serve_checks.checks import CHECKS, Check
from serve_checks.context import Context
from serve_checks.report import FAILED, NOT_RUN, NotRun, Report

ROOT = Path(__file__).parents[2]
EXIT_FAILED, EXIT_NOT_RUN = 1, 77


def main(argv: Sequence[str] | None = None, checks: Mapping[str, Check] = CHECKS) -> int:
    """Runs those of the checks that are asked for; see the exit code above."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _options(arguments, checks)
    if options.list:
        for name, check in checks.items():
            print(f"{name:<13} {check.summary}")
        return 0
    reports = [_run(name, checks[name], options, arguments) for name in options.checks]
    print()
    for report in reports:
        print(f"{report.check:<13} {report.verdict:<8} {report.why_not or report.broken}".rstrip())
    verdicts = {report.verdict for report in reports}
    return EXIT_FAILED if FAILED in verdicts else EXIT_NOT_RUN if NOT_RUN in verdicts else 0


def _options(arguments: Sequence[str], checks: Mapping[str, Check]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="serve-check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checks", metavar="CHECK", nargs="*", help="its name, or all")
    parser.add_argument("--list", action="store_true", help="list the checks")
    parser.add_argument(
        "--minutes", type=float, help="how long a load lasts (default: the check's own)"
    )
    parser.add_argument(
        "--model", default="nestling", help="what fairness and idle serve (default nestling)"
    )
    parser.add_argument(
        "--serve", type=shlex.split, default=[], help="further options of serve, for the same"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default 0)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "serve-check", help="folder of the results"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=ROOT / "build" / "serve-check" / "environments",
        help="folder of the virtual environments, which are kept",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.checks if name not in (*checks, "all")]
    if unknown or not (options.checks or options.list):
        got = unknown[0] if unknown else "none"
        _refuse(f"wanted checks among {', '.join(checks)} or all, got {got}; see --list")
    if options.minutes is not None and not 0 < options.minutes <= 1440:
        _refuse(f"wanted --minutes above 0, at most 1440, got {options.minutes:g}; correct it")
    if "all" in options.checks:
        options.checks = list(checks)
    return options


def _refuse(message: str) -> None:
    print(f"serve-check: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _run(name: str, check: Check, options: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Runs one check and writes its file."""
    print(f"{name}: {check.summary}", flush=True)
    report, begin = Report(name), time.monotonic()
    options.environments.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"serve-check-{name}-") as folder:
        context = Context(
            Path(folder),
            options.environments.resolve(),
            options.minutes,
            options.seed,
            options.model,
            tuple(options.serve),
        )
        try:
            check.run(context, report)
        except NotRun as error:
            report.why_not = str(error)
        except Exception as error:  # the check itself failed, which is no verdict on others
            traceback.print_exc()
            report.broken = f"{type(error).__name__}: {error}"[:500]
    report.seconds = time.monotonic() - begin
    text = as_text(report.document(arguments))
    replace_file(options.out / f"serve-check-{name}.json", text.encode())
    print(f"{name}: {report.verdict}, {report.seconds:.0f} s", flush=True)
    return report


def as_text(document: Mapping[str, object]) -> str:
    """JSON with a line for each field."""
    lines = (
        f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in document.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _end(number: int, frame: object) -> None:
    """Ends on SIGTERM as on Ctrl-C: no server of a check is left behind."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
