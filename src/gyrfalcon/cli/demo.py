"""`gyrfalcon demo`: the whole chain on nestling."""

import argparse

SUMMARY = "run the whole chain on nestling, the model that ships with the package"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Run the whole chain on nestling with 2 ranks: cut, verify, generate, speed, exam, precision, report.

    Exits 1 when the exam is under 60 % or the precision gate fails.

    examples:
      gyrfalcon demo
      gyrfalcon demo -o /tmp/demo
    """
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="gyrfalcon-demo",
        help="where everything is written (default gyrfalcon-demo); an earlier demo's files are replaced",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the steps one after the other; CheckFailed when a step failed."""
    from gyrfalcon.cli import demo_run

    return demo_run.run(args)
