"""`gyrfalcon doctor`: what this machine has."""

import argparse
from dataclasses import asdict
from pathlib import Path

from gyrfalcon.console.format import show_result
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
    lines = [f"{name:<16} {fact}" for name, fact in describe(report)]
    show_result(asdict(report), lines, args.json)
    return 0
