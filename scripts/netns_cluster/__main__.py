"""Two or three hosts on one machine, by network namespaces, as root.

    scripts/netns-cluster test                   all checks
    scripts/netns-cluster test faults restart    some of them
    scripts/netns-cluster run -- generate nestling "The falcon"
    scripts/netns-cluster run --hosts 3 --ranks 2 --rate 50mbit -- speed nestling

The checks: equality (with one process), wire (bytes and time of a token), commands (led by rank 0), faults
(kill, stop, link down), restart (torchrun's). `run` shows what the ranks print, those of rank 0 first.

Exit code: 0 all held; 1 a claim did not hold, or a command failed; 2 wrong usage; 77 not run, since this
machine makes no namespaces; 130, 143 ended by Ctrl-C or SIGTERM, with all that it had made taken away.
"""

import argparse
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from fault_checks.ending import end_tidily
from serve_checks.report import HELD, Report

from netns_cluster.hosts import NotHere, hosts
from netns_cluster.job import job

NOT_RUN = 77
MOST_HOSTS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for; see the exit code above."""
    options = _options(sys.argv[1:] if argv is None else argv)
    end_tidily()
    try:
        return _test(options.checks) if options.what == "test" else _run(options)
    except NotHere as reason:
        print(f"netns-cluster: not run: {reason}", file=sys.stderr)
        return NOT_RUN


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="netns-cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", required=True, metavar="test|run")
    test = what.add_parser("test", help="run the checks")
    test.add_argument("checks", nargs="*", metavar="CHECK", help="their names (default: all)")
    run = what.add_parser("run", help="run a command of gyrfalcon on all hosts")
    run.add_argument("--hosts", type=int, choices=(2, MOST_HOSTS), default=2)
    run.add_argument("--ranks", type=int, default=1, help="of each host (default 1)")
    run.add_argument("--rate", help="of each host's link, such as 50mbit (default: unshaped)")
    run.add_argument("command", nargs="+", help="after --, without gyrfalcon")
    return parser.parse_args(argv)


def _test(names: Sequence[str]) -> int:
    with hosts(MOST_HOSTS) as made:
        from netns_cluster.checks import CHECKS  # torch and transformers

        unknown = [name for name in names if name not in CHECKS]
        if unknown:
            wanted, do = ", ".join(CHECKS), "choose some of these"
            print(f"netns-cluster: error: wanted {wanted}, got {unknown[0]}; {do}", file=sys.stderr)
            return 2
        held = True
        for name in names or CHECKS:
            print(f"{name}:", flush=True)
            report = Report(name, tool="netns-cluster")
            with tempfile.TemporaryDirectory(prefix="netns-cluster-") as folder:
                try:
                    CHECKS[name](made, Path(folder), report)
                except NotHere:
                    raise
                except Exception as error:  # of the check, not of what it checks
                    traceback.print_exc()
                    report.broken = str(error)
            held = held and report.verdict == HELD
    return 0 if held else 1


def _run(options: argparse.Namespace) -> int:
    with hosts(options.hosts) as made:
        for host in made:
            host.shape(options.rate)
        with job(made, options.ranks, ("-m", "gyrfalcon", *options.command)) as one:
            codes = one.wait()
            for host in made:
                sys.stdout.write(one.out(host.index))
                sys.stderr.write(one.err(host.index))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
