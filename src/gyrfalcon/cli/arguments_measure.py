"""The arguments of the commands that measure a model, and of the one that reports what they found."""

import argparse
from collections.abc import Callable

from gyrfalcon.bounds import ONE_TOKEN_OR_MORE, TOKENS, Bounds
from gyrfalcon.cli.engine_options import add_engine
from gyrfalcon.cli.option_types import Whole, Wholes, one_of
from gyrfalcon.engine_config import DECODE_STEPS
from gyrfalcon.errors import UsageError


def _add_speed(parser: argparse.ArgumentParser) -> None:
    """Time every pair of an input and an output length, with real text, greedily, end-of-text ignored.

    Writes the guide's table (CSV) and all that was measured (JSON) after every case; run the same
    command again after an interruption and it goes on where it stopped. Without -f and --json nothing
    is written.

    examples:
      gyrfalcon speed falcon-40b-4 -f speed.csv
      gyrfalcon speed nestling --in 32,256 --out 32 --json speed.json --baseline guide
    """
    lengths = (32, 64, 128, 256, 512, 1024)
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
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
        help="times each case is timed; the median counts (default 3)",
    )
    parser.add_argument(
        "--baseline",
        metavar="JSON|guide",
        help="also print how many times as fast this is as another speed result, or as the guide's figures "
        "(of Falcon-40B; beside falcon-7b those of a later table of its publisher); warns where model or "
        "cases are others (default: neither)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="measure all again, whatever the files hold"
    )
    add_engine(parser.add_argument_group("how the model runs"))


def _add_precision(parser: argparse.ArgumentParser) -> None:
    """Compare the model's logits with a reference's, token by token: prefill and decode steps.

    Prints each figure with its limit for the precision the model runs in; exits 1 when one does not
    hold. The curves of every position are in the JSON.

    examples:
      gyrfalcon precision falcon-7b --json precision.json
      gyrfalcon precision falcon-7b --quant int8 --reference kept.safetensors
    """
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    parser.add_argument(
        "--reference",
        metavar="auto|transformers|fp32|FILE",
        help="transformers in fp32; our own fp32 path on one rank, which is not independent; or a file "
        "kept with --save-reference (default auto: transformers where it is installed, else fp32)",
    )
    parser.add_argument(
        "--save-reference",
        metavar="FILE",
        help="keep the reference's logits: 4 bytes × vocabulary for each token (default: not kept)",
    )
    parser.add_argument(
        "--golden",
        action="store_true",
        help="compare with published log-probabilities instead; known for falcon-7b",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt on each line; token ids where the model has no tokenizer (default: shipped texts)",
    )
    parser.add_argument(
        "--decode-steps",
        metavar="N",
        type=Whole("--decode-steps", TOKENS),
        help=f"the last N tokens of a prompt are computed one at a time (default {DECODE_STEPS})",
    )
    add_engine(parser.add_argument_group("how the model runs"))


def _add_mmlu(parser: argparse.ArgumentParser) -> None:
    """Evaluate a model on MMLU, or on another exam in its folder layout.

    Broken off, the same command goes on where it stopped; finished results are replaced only with
    --overwrite. With two result files and no MODEL: compare them question by question.

    examples:
      gyrfalcon mmlu falcon-40b-4 -d mmlu --limit 20
      gyrfalcon mmlu --compare one/mmlu.json two/mmlu.json
    """
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a Hugging Face folder, a cut, a hub id or nestling",
    )
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
        help="most likely letter, prompts as in the original paper (default) or in lm-evaluation-harness; "
        "or the guide's way, the first letter of 32 generated tokens",
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
        help="start anew and replace what an earlier run left in DIR, finished or not",
    )
    parser.add_argument(
        "--golden",
        action="store_true",
        help="also compare with published figures; exits 1 when they differ",
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        nargs="+",
        default=[],
        help="an earlier run's mmlu.json to compare with, or two of them and no MODEL (default: none)",
    )
    add_engine(parser.add_argument_group("how the model runs"))


def _add_perplexity(parser: argparse.ArgumentParser) -> None:
    """Measure how well the model predicts a text: perplexity, bits per token and per byte.

    A window slides over the text; each token but the first is scored once, given those before it.

    examples:
      gyrfalcon perplexity falcon-7b novel.txt --window 1024
    """
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
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
    add_engine(parser.add_argument_group("how the model runs"))


def _add_report(parser: argparse.ArgumentParser) -> None:
    """Turn result files (the JSON of speed, mmlu, precision and perplexity) into the guide's tables.

    Writes report.md and report.html, one page with plots that needs nothing from outside. Several
    results of a kind stand side by side.

    examples:
      gyrfalcon report speed.json test_result/mmlu.json -o report
      gyrfalcon report new.json --baseline old.json guide --no-plots
    """
    parser.add_argument("files", metavar="RESULT", nargs="+", help="a result file, in any order")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="report",
        help="where the report goes (default report)",
    )
    parser.add_argument(
        "--baseline",
        metavar="guide|FILE",
        nargs="+",
        default=[],
        help="compare with the guide's own figures, or with other result files (default: neither)",
    )
    parser.add_argument(
        "--no-plots",
        dest="plots",
        action="store_false",
        help="tables only; plots need matplotlib",
    )


def settle_runs(args: argparse.Namespace) -> None:
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
        "--golden": args.golden or None,
    }
    for option, value in needs_model.items():
        if args.model is None and value is not None:
            do = f"leave {option} out: two result files are compared as they are"
            raise UsageError(f"a MODEL with {option}", "none", do)
    if args.model is not None and args.data is None:
        raise UsageError("-d DIR, the exam's folder", "none", "add it")


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "speed": ("time every pair of an input and an output length", _add_speed),
    "precision": ("compare the model's logits with a reference's", _add_precision),
    "mmlu": ("evaluate on MMLU or another exam, or compare two runs", _add_mmlu),
    "perplexity": ("measure how well the model predicts a text", _add_perplexity),
    "report": ("turn result files into tables and plots", _add_report),
}
