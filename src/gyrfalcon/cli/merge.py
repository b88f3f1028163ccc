"""`gyrfalcon merge`: cut → Hugging Face folder."""

import argparse
from pathlib import Path

from gyrfalcon.cli.cut_options import add_cut, add_writing, cut_folder, show_written
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "merge a cut back into a Hugging Face folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Merge a cut back into a Hugging Face folder, bit for bit.

    examples:
      gyrfalcon merge falcon-40b-4 falcon-40b-again
    """
    add_cut(parser)
    parser.add_argument("target", metavar="HF", help="the folder to write")
    parser.add_argument(
        "--dequantise",
        action="store_true",
        help="also merge a cut that is quantised or in another dtype than its source, and say what was lost",
    )
    add_writing(parser)


def run(args: argparse.Namespace) -> int:
    """Merges and says what was written."""
    with ending_interrupts():
        from gyrfalcon.cut.recut import merge
    summary = merge(
        cut_folder(args.cut),
        Path(args.target),
        dequantise=args.dequantise,
        max_shard_bytes=args.max_shard_bytes,
        overwrite=args.overwrite,
    )
    show_written(summary, f"merged: {summary.target}", args.json)
    return 0
