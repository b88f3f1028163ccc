"""`gyrfalcon recut`: cut → cut for another number of ranks."""

import argparse
from pathlib import Path

from gyrfalcon.cli.cut_options import SAVED, add_cut, add_writing, cut_folder, show_written
from gyrfalcon.cli.engine_options import add_world_size
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "re-shard a cut for another number of ranks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Re-shard a cut for another number of ranks, without the checkpoint it came from.

    examples:
      gyrfalcon recut falcon-40b-4 falcon-40b-2 -w 2
    """
    add_cut(parser)
    parser.add_argument("target", metavar="NEW", help="the folder to write")
    add_world_size(parser, "how many ranks to cut for", required=True)
    add_writing(parser)


def run(args: argparse.Namespace) -> int:
    """Re-shards; the last line says that it is saved."""
    with ending_interrupts():
        from gyrfalcon.cut.recut import recut
    summary = recut(
        cut_folder(args.cut),
        Path(args.target),
        args.world_size,
        max_shard_bytes=args.max_shard_bytes,
        overwrite=args.overwrite,
    )
    show_written(summary, f"{SAVED}: {summary.target} (world size {summary.world_size})", args.json)
    return 0
