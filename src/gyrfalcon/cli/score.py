"""`gyrfalcon score`: log-probabilities of prompts in files of any size."""

import argparse

from gyrfalcon.cli.engine_options import add_engine
from gyrfalcon.cli.job_options import add_rows
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "score prompts by the million, on any number of workers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Score every row of a file, or of all files in a folder: the log-probability of each token of its
    prompt, or of its continuation, given what comes before.

    Rows are JSONL or Parquet with the field prompt and, if wanted, id and continuation; or lines of a .txt
    file. Results go to OUT in parts. Run the same command again to go on after an interruption, or at the
    same time, on any machine that sees OUT, to share the work.

    examples:
      gyrfalcon score questions.jsonl scores -m falcon-7b
      gyrfalcon score shards/ scores -m falcon-40b-4 --sums-only --on-error write
      gyrfalcon score shards/ scores -m falcon-7b --ray-workers 8 --ray-gpus 1
    """
    parser.add_argument(
        "input", metavar="IN", help="a .jsonl, .parquet or .txt file, or a folder of them"
    )
    parser.add_argument("output", metavar="OUT", help="the folder for the results")
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        required=True,
        help="a Hugging Face folder, a cut, a hub id or nestling",
    )
    rows = parser.add_argument_group("rows and parts")
    rows.add_argument(
        "--continuation-field",
        metavar="NAME",
        default="continuation",
        help="the field that holds what is scored after the prompt (default continuation)",
    )
    rows.add_argument(
        "--sums-only",
        action="store_true",
        help="leave the tokens and their log-probabilities out of the results: sums take a tenth of the disk",
    )
    add_rows(rows)
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    """Scores what the folder has no result for yet."""
    with ending_interrupts():
        from gyrfalcon.cli import job_run
    return job_run.score(args)
