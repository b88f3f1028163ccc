"""`gyrfalcon doctor`: what this machine has, what is wrong with it, and the cure."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gyrfalcon.cli.engine_options import add_world_size
from gyrfalcon.console.format import goes_to_stdout, write_json
from gyrfalcon.files.output import open_output
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "examine this machine: what it has, what is wrong, and the cure"
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Examine this machine: versions, processor, memory, disk, devices, the operators used and why; the
    environment that ranks get; and checks of drivers, libraries, limits and bandwidth, each fault in one
    line with its cure.

    Exit code 1 when something is wrong, else 0. A bundle has no prompts, no weights and no secrets: look into
    it before you send it.

    examples:
      gyrfalcon doctor
      gyrfalcon doctor -w 4 --json machine.json
      gyrfalcon doctor --quick
      gyrfalcon doctor --bundle for-the-developers.zip
    """
    add_world_size(parser, "the ranks that a model shall have here (default: one a card, else 1)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do not measure the memory's bandwidth, which takes seconds",
    )
    parser.add_argument(
        "--bundle",
        metavar="FILE",
        help="also write a ZIP file for whoever is to help: this report, versions, settings, what the cards' "
        "programs say (default: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints what it found."""
    bundle = None if args.bundle is None else open_output(args.bundle, "--bundle", regular=True)
    with _extensions_left_out():
        with ending_interrupts():
            from gyrfalcon.cli import doctor_run
        examination = doctor_run.examine(args.world_size, measure=not args.quick)
        if not goes_to_stdout(args.json):
            print("\n".join(examination.lines()))
        if args.json is not None:
            write_json(examination.document(), args.json)
        if bundle is not None:
            doctor_run.write_bundle(examination, bundle, quiet=goes_to_stdout(args.json))
    return 1 if examination.num_faults else 0


@contextmanager
def _extensions_left_out() -> Iterator[None]:
    """Within it torch is imported without its extensions: a broken one would break torch."""
    before = os.environ.get(AUTOLOAD)
    os.environ.setdefault(AUTOLOAD, "0")
    try:
        yield
    finally:
        if before is None:
            del os.environ[AUTOLOAD]
