"""`gyrfalcon mmlu`: runs a multiple-choice exam, or compares two runs of one."""

import argparse

from gyrfalcon.bounds import Bounds
from gyrfalcon.cli.engine_options import add_engine, add_model
from gyrfalcon.cli.option_types import Whole, one_of
from gyrfalcon.errors import UsageError
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "evaluate on MMLU or another exam, or compare two runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Evaluate a model on MMLU, or on another exam in its folder layout.

    After an interruption, run the same command again to resume; finished results are replaced only with
    --overwrite. Given two result files and no MODEL, it compares them question by question.

    examples:
      gyrfalcon mmlu falcon-40b-4 -d mmlu --limit 20
      gyrfalcon mmlu --compare one/mmlu.json two/mmlu.json
    """
    add_model(parser, optional=True)
    parser.add_argument(
        "-d",
        "--data",
        metavar="DIR",
        help="the folder that holds dev/, val/ and test/, or nestling, the exam that ships with the package "
        "(no default: needed with a MODEL)",
    )
    parser.add_argument(
        "--protocol",
        type=one_of("--protocol", "hendrycks", "lm-eval", "generate"),
        default="hendrycks",
        metavar="hendrycks|lm-eval|generate",
        help="the most likely letter, with prompts as in the original paper (default) or in "
        "lm-evaluation-harness; or the guide's way, the first letter in 32 generated tokens",
    )
    parser.add_argument(
        "--split",
        type=one_of("--split", "test", "val"),
        default="test",
        metavar="test|val",
        help="the guide used val",
    )
    parser.add_argument(
        "--shots",
        type=Whole("--shots", Bounds(0, 1000)),
        default=5,
        metavar="N",
        help="worked examples (default 5)",
    )
    parser.add_argument("--subjects", metavar="A,B", help="only these subjects (default: all)")
    parser.add_argument(
        "--limit",
        type=Whole("--limit", Bounds(1, 1_000_000)),
        metavar="N",
        help="only the first N questions of each subject (default: all)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="test_result",
        help="where the results go (default test_result)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start over and replace what an earlier run left in DIR, finished or not",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="also compare with published figures; exits 1 when they differ",
    )
    parser.add_argument("--golden", dest="published", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--compare",
        metavar="FILE",
        nargs="+",
        default=[],
        help="an earlier run's mmlu.json to compare with, or two of them and no MODEL (default: none)",
    )
    add_engine(parser)
    parser.set_defaults(check=_check)


def run(args: argparse.Namespace) -> int:
    """Evaluates and shows the score, or compares two results."""
    with ending_interrupts():
        from gyrfalcon.cli import mmlu_run
    return mmlu_run.run(args)


def _check(args: argparse.Namespace) -> None:
    """A MODEL and its exam, perhaps with a run to compare; or two runs alone."""
    most = 2 if args.model is None else 1
    if args.model is None and len(args.compare) != 2:
        raise UsageError(
            "a MODEL, or two result files after --compare", "neither", "give one of them"
        )
    if len(args.compare) > most:
        got = f"{len(args.compare)} after --compare"
        raise UsageError("one result file beside a MODEL, two without", got, "leave some out")
    needs_model = {
        "-d": args.data,
        "--subjects": args.subjects,
        "--limit": args.limit,
        "--published": args.published or None,
    }
    for option, value in needs_model.items():
        if args.model is None and value is not None:
            do = f"leave {option} out: two result files are compared as they are"
            raise UsageError(f"a MODEL with {option}", "none", do)
    if args.model is not None and args.data is None:
        raise UsageError("-d DIR, the exam's folder", "none", "add it")
