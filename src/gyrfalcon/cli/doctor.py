"""`gyrfalcon doctor`: what this machine has."""

import argparse
from dataclasses import asdict
from pathlib import Path

from gyrfalcon.console.format import goes_to_stdout, write_json
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "show what this machine has and which operators are used"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Show what this machine has: versions, processor, memory, disk, devices, the operators used and why.

    examples:
      gyrfalcon doctor
      gyrfalcon doctor --json machine.json
    """


def run(args: argparse.Namespace) -> int:
    """Prints what it found."""
    with ending_interrupts():
        from gyrfalcon.measure.machine import describe, examine
    report = examine(Path.cwd())
    if not goes_to_stdout(args.json):
        print("\n".join(f"{name:<16} {fact}" for name, fact in describe(report)))
    if args.json is not None:
        write_json(asdict(report), args.json)
    return 0
