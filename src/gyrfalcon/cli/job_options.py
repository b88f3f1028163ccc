"""The options of commands that write a result for each row of a file: `score`, and `generate -o`."""

import argparse

from gyrfalcon.bounds import Bounds
from gyrfalcon.cli.option_types import Whole, one_of

PART_ROWS = 500


def add_rows(group: argparse._ArgumentGroup) -> None:
    """What fields of a row are called, and how the work is divided."""
    for name, text in (("id", "names a row"), ("prompt", "holds a row's text or token ids")):
        group.add_argument(
            f"--{name}-field",
            metavar="NAME",
            default=name,
            help=f"the field or column that {text} (default {name})",
        )
    group.add_argument(
        "--part-rows",
        type=Whole("--part-rows", Bounds(1, 10_000)),
        metavar="N",
        default=PART_ROWS,
        help="rows of a part, the most work that a killed worker loses",
    )
    group.add_argument(
        "--on-error",
        type=one_of("--on-error", "stop", "write"),
        metavar="stop|write",
        default="stop",
        help="for a row from which no result can come: stop, before the model is loaded where that can be "
        "known (default); or write the error in place of its result and go on",
    )
    for name, least, default, text in (
        (
            "workers",
            1,
            None,
            "do the parts on this many actors of a Ray cluster, that of RAY_ADDRESS or one on "
            "this machine (extra ray-data; default: in this process)",
        ),
        ("cpus", 1, 1, "logical CPUs of each actor"),
        ("gpus", 0, 0, "GPUs of each actor"),
    ):
        option = f"--ray-{name}"
        group.add_argument(
            option,
            type=Whole(option, Bounds(least, 10_000)),
            metavar="N",
            default=default,
            help=text,
        )
    group.add_argument(
        "--overwrite", action="store_true", help="discard what the folder has and start over"
    )
