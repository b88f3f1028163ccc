"""`gyrfalcon perplexity`: how well a model predicts a text file."""

import argparse

from gyrfalcon.bounds import ONE_TOKEN_OR_MORE, TOKENS, Bounds
from gyrfalcon.cli.engine_options import add_engine, add_model
from gyrfalcon.cli.option_types import Whole
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "measure how well the model predicts a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Measure how well the model predicts a text: perplexity, bits per token and per byte.

    A window slides over the text; each token but the first is scored once, given those before it.

    examples:
      gyrfalcon perplexity falcon-7b novel.txt --window 1024
    """
    add_model(parser)
    parser.add_argument("file", metavar="FILE", help="a text file in UTF-8")
    parser.add_argument(
        "--window",
        type=Whole("--window", Bounds(2, TOKENS.most)),
        metavar="N",
        help="tokens the model sees at a time (default: the longest sequence it takes)",
    )
    parser.add_argument(
        "--stride",
        type=Whole("--stride", ONE_TOKEN_OR_MORE),
        metavar="N",
        help="tokens from one window to the next (default: half a window); fewer: more context, more time",
    )
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    """Scores the file and shows its perplexity."""
    with ending_interrupts():
        from gyrfalcon.cli import perplexity_run
    return perplexity_run.run(args)
