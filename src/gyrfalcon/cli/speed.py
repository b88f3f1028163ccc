"""`gyrfalcon speed`: times input and output lengths, as the guide does."""

import argparse

from gyrfalcon.bounds import TOKENS, Bounds
from gyrfalcon.cli.engine_options import add_engine, add_model
from gyrfalcon.cli.option_types import Whole, Wholes
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "time every pair of an input and an output length"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Time every pair of an input and an output length: real text, greedy, end-of-text tokens ignored.

    Writes the guide's table (CSV) and all measurements (JSON) after every case; after an interruption,
    run the same command again to resume. Without -f and --json nothing is written.

    examples:
      gyrfalcon speed falcon-40b-4 -f speed.csv
      gyrfalcon speed nestling --in 32,256 --out 32 --json speed.json --baseline guide
    """
    lengths = (32, 64, 128, 256, 512, 1024)
    add_model(parser)
    parser.add_argument(
        "-f",
        "--csv",
        metavar="CSV",
        help="the guide's table of 8 columns; the JSON goes beside it (CSV's name with .json) unless "
        "--json names another place (default: none)",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=Whole("--batch", Bounds(1, 10_000)),
        default=1,
        help="prompts at once (default 1)",
    )
    for option, least, what in (("--in", 1, "prompt"), ("--out", 2, "output")):
        parser.add_argument(
            option,
            dest=f"{what}_lens",
            metavar="N,N,…",
            type=Wholes(option, Bounds(least, TOKENS.most)),
            default=lengths,
            help=f"{what} lengths in tokens (default {','.join(map(str, lengths))})",
        )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=Whole("--repeats", Bounds(1, 10_000)),
        default=3,
        help="runs of each case; the median is reported (default 3)",
    )
    parser.add_argument(
        "--baseline",
        metavar="JSON|guide",
        help="also print the speed-up over another speed result, or over the guide's figures (of Falcon-40B; "
        "for falcon-7b those of a later table by its publisher); warns where model or cases differ "
        "(default: neither)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="measure every case again and replace the files"
    )
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    """Times every case and shows the table."""
    with ending_interrupts():
        from gyrfalcon.cli import speed_run
    return speed_run.run(args)
