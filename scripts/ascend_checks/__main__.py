"""Checks of what runs on an Ascend NPU, on a machine that has none.

    scripts/ascend-check                      all checks
    scripts/ascend-check --list
    scripts/ascend-check shapes-2.7.1 kernels --out DIR

Each check makes an environment of its own, once: torch_npu with stand-ins of CANN's libraries, or the open
part of Ascend's compiler. For each check a file ascend-check-NAME.json is written. What only a card can show
is listed in docs/ascend.md.

Exit code: 0 all held; 1 a claim did not hold; 2 wrong usage; 77 a package cannot be had, so that a check
was not run, and all others held.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve_checks.__main__ import EXIT_FAILED, EXIT_NOT_RUN, as_text
from serve_checks.report import FAILED, NOT_RUN, NotRun, Report

from ascend_checks.checks import CHECKS, Check, Context
from gyrfalcon.files.output import replace_file

TOOL = "ascend-check"
BUILD = Path(__file__).parents[2] / "build" / TOOL
MINUTES = 30.0


def main(argv: Sequence[str] | None = None, checks: Mapping[str, Check] = CHECKS) -> int:
    """Runs those of the checks that are asked for; see the exit code above."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _options(arguments, checks)
    width = max(map(len, checks))
    if options.list:
        for name, check in checks.items():
            print(f"{name:<{width}} {check.summary}")
        return 0
    end = time.monotonic() + 60 * options.minutes
    options.environments.mkdir(parents=True, exist_ok=True)
    reports = [
        _run(name, checks[name], options, arguments, end) for name in options.checks or checks
    ]
    print()
    for report in reports:
        print(
            f"{report.check:<{width}} {report.verdict:<8} {report.why_not or report.broken}".rstrip()
        )
    verdicts = {report.verdict for report in reports}
    return EXIT_FAILED if FAILED in verdicts else EXIT_NOT_RUN if NOT_RUN in verdicts else 0


def _options(arguments: Sequence[str], checks: Mapping[str, Check]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=TOOL, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", metavar="CHECK", nargs="*", help="its name (default: all)")
    parser.add_argument("--list", action="store_true", help="list the checks")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help=f"end what has not ended after this many minutes, as failed (default {MINUTES:g})",
    )
    parser.add_argument("--out", type=Path, default=BUILD, help="folder of the results")
    parser.add_argument(
        "--environments",
        type=Path,
        default=BUILD / "environments",
        help="folder of the virtual environments, which are kept",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.checks if name not in checks]
    if unknown:
        _refuse(f"wanted checks among {', '.join(checks)}, got {unknown[0]}; see --list")
    if not 0 < options.minutes <= 1440:
        _refuse(f"wanted --minutes above 0, at most 1440, got {options.minutes:g}; correct it")
    options.environments = options.environments.resolve()
    return options


def _refuse(message: str) -> None:
    print(f"{TOOL}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _run(
    name: str, check: Check, options: argparse.Namespace, arguments: Sequence[str], end: float
) -> Report:
    """Runs one check and writes its file."""
    print(f"{name}: {check.summary}", flush=True)
    report, begin = Report(name, tool=TOOL), time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{TOOL}-{name}-") as folder:
        try:
            check.run(Context(Path(folder), options.environments, end), report)
        except NotRun as error:
            report.why_not = str(error)
        except Exception as error:  # the check itself failed, which is no verdict on others
            traceback.print_exc()
            report.broken = f"{type(error).__name__}: {error}"[:500]
    report.seconds = time.monotonic() - begin
    text = as_text(report.document(arguments))
    replace_file(options.out / f"{TOOL}-{name}.json", text.encode())
    print(f"{name}: {report.verdict}, {report.seconds:.0f} s", flush=True)
    return report


if __name__ == "__main__":
    sys.exit(main())
