"""`gyrfalcon precision`: compares the model's logits with a reference's."""

import argparse

from gyrfalcon.bounds import TOKENS
from gyrfalcon.cli.engine_options import add_engine, add_model
from gyrfalcon.cli.option_types import Whole
from gyrfalcon.engine_config import DECODE_STEPS
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "compare the model's logits with a reference's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Compare the model's logits with a reference's, token by token: prefill and decode steps.

    Prints each figure with its limit for the precision the model runs in; exits 1 when one is
    outside. The JSON has the curves over all positions.

    examples:
      gyrfalcon precision falcon-7b --json precision.json
      gyrfalcon precision falcon-7b --quant int8 --reference kept.safetensors
    """
    add_model(parser)
    parser.add_argument(
        "--reference",
        metavar="auto|transformers|fp32|FILE",
        help="transformers in fp32; our own fp32 path on one rank, which is not independent; or a file "
        "written by --save-reference (default auto: transformers where it is installed, else fp32)",
    )
    parser.add_argument(
        "--save-reference",
        metavar="FILE",
        help="save the reference's logits: 4 bytes × vocabulary for each token (default: not saved)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="compare with published log-probabilities instead; known for falcon-7b",
    )
    parser.add_argument("--golden", dest="published", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="one prompt per line; token ids where the model has no tokenizer (default: shipped texts)",
    )
    parser.add_argument(
        "--decode-steps",
        metavar="N",
        type=Whole("--decode-steps", TOKENS),
        help=f"decode the last N tokens of each prompt one at a time (default {DECODE_STEPS})",
    )
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    """Compares and shows each figure; CheckFailed when one is outside its limit."""
    with ending_interrupts():
        from gyrfalcon.cli import precision_run
    return precision_run.run(args)
