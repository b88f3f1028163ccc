"""`gyrfalcon verify`: checks every file of a cut."""

import argparse
from dataclasses import asdict

from gyrfalcon.cli.cut_options import add_cut, cut_folder
from gyrfalcon.console.format import counted, show_result, shown_bytes
from gyrfalcon.errors import CheckFailed
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "check every file of a cut"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Check every file of a cut against its manifest: size, checksum, tensor names and shapes.

    Prints each fault; exits 1 when there is one.

    examples:
      gyrfalcon verify falcon-40b-4
    """
    add_cut(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a line for each fault; CheckFailed when there is one."""
    with ending_interrupts():
        from gyrfalcon.cut.verify import verify
    report = verify(cut_folder(args.cut))
    size = f"{counted(report.num_files, 'file')}, {shown_bytes(report.num_bytes)}"
    faults = counted(len(report.faults), "fault") if report.faults else "no faults"
    lines = [f"fault: {fault}" for fault in report.faults]
    show_result(asdict(report), [*lines, f"{report.folder}: {size}, {faults}"], args.json)
    if report.faults:
        raise CheckFailed("no faults", f"{len(report.faults)}", "cut the checkpoint again")
    return 0
