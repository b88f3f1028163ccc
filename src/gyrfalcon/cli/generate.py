"""`gyrfalcon generate`: continues prompts."""

import argparse

from gyrfalcon.bounds import SAMPLING, TOP_TOKENS
from gyrfalcon.cli.engine_options import add_engine, add_model, add_speculation
from gyrfalcon.cli.job_options import PART_ROWS, add_rows
from gyrfalcon.cli.option_types import Number, Whole
from gyrfalcon.errors import UsageError
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "continue prompts"
_DEFAULTS = {
    "id_field": "id",
    "prompt_field": "prompt",
    "part_rows": PART_ROWS,
    "on_error": "stop",
    "overwrite": False,
    "ray_workers": None,
    "ray_cpus": 1,
    "ray_gpus": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Continue prompts. The text streams to standard output; everything else goes to standard error.

    examples:
      gyrfalcon generate nestling "The old captain"
      gyrfalcon generate falcon-7b-instruct --chat "Name a bird."
      gyrfalcon generate nestling "The bird is:" --choice falcon --choice kestrel
      gyrfalcon generate falcon-40b -w 4 --prompt-file prompts.txt --temperature 0.7 --seed 1 --json out.jsonl
      gyrfalcon generate falcon-40b --prompt-file millions.parquet -o texts --max-new-tokens 64
    """
    add_model(parser)
    parser.add_argument(
        "prompt_words",
        metavar="PROMPT",
        nargs="*",
        default=[],  # without one argparse calls it missing where MODEL is
        help="words of one prompt; - reads one prompt per line from standard input",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="a prompt; may be given several times (default: the PROMPT after MODEL)",
    )
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="read one prompt per line from a file; with -o also rows of .jsonl or .parquet, or all files of "
        "a folder (default: no file)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="with --prompt-file: write results to a folder, in parts, for files of any size; run the same "
        "command again to go on, or at the same time to share the work (default: print them)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="each prompt is a user's message, formatted by the model's chat template; the answer ends where "
        "the template ends it, unless --ignore-eos",
    )
    _add_sampling(
        parser.add_argument_group("how the next token is chosen (default: always the most likely)")
    )
    _add_structured(parser.add_argument_group("what the text has to match (default: nothing)"))
    add_rows(parser.add_argument_group("rows and parts, with -o"))
    add_engine(parser)
    add_speculation(parser.add_argument_group("speculative decoding"))
    parser.set_defaults(check=_check)


def run(args: argparse.Namespace) -> int:
    """Generates for every prompt and prints text, JSON or both."""
    with ending_interrupts():
        from gyrfalcon.cli import generate_run
    return generate_run.run(args)


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    for option, kind, default, text in (
        ("--max-new-tokens", Whole, 128, "stop after this many"),
        ("--min-tokens", Whole, 0, "let nothing end the text before this many"),
        (
            "--temperature",
            Number,
            0.0,
            "0 always takes the most likely token; higher is more varied",
        ),
        ("--top-k", Whole, 0, "sample among the N most likely tokens; 0: all"),
        (
            "--top-p",
            Number,
            1.0,
            "sample among the most likely tokens that together reach probability N",
        ),
        (
            "--min-p",
            Number,
            0.0,
            "sample among tokens at least N times as likely as the most likely one",
        ),
        ("--repetition-penalty", Number, 1.0, "above 1 discourages tokens that already occurred"),
        ("--presence-penalty", Number, 0.0, "subtracted from the logit of each generated token"),
        (
            "--frequency-penalty",
            Number,
            0.0,
            "the same, once for each time the token was generated",
        ),
        ("--seed", Whole, None, "makes sampling repeatable (default: another each time)"),
        ("--n", Whole, 1, "independent continuations of each prompt"),
        (
            "--logprobs",
            Whole,
            None,
            "with --json: log-probabilities of each new token and of the N most likely ones (default: none)",
        ),
    ):
        bounds = SAMPLING[option.removeprefix("--").replace("-", "_")]
        group.add_argument(
            option, metavar="N", type=kind(option, bounds), default=default, help=text
        )
    group.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        help='stop before this text or special token, such as "<|im_end|>"; may be given several times '
        "(default: none)",
    )
    group.add_argument(
        "--stop-id",
        metavar="ID",
        dest="stop_ids",
        action="append",
        type=Whole("--stop-id", TOP_TOKENS),
        help="stop at this token id; may be given several times (default: none)",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="go on after tokens that end a text"
    )


def _add_structured(group: argparse._ArgumentGroup) -> None:
    """Options of structured output, of which at most one kind may be given."""
    for option, metavar, text in (
        ("--json-schema", "FILE", "JSON that the schema in FILE describes"),
        ("--regex", "TEXT", "a regular expression, all of it"),
        ("--grammar", "FILE", "a context-free grammar in FILE, in Lark's syntax"),
    ):
        group.add_argument(option, metavar=metavar, help=f"{text} (extra serve; default: none)")
    group.add_argument(
        "--choice",
        metavar="TEXT",
        dest="choices",
        action="append",
        help="one of these texts; given once for each (extra serve; default: none)",
    )


def _check(args: argparse.Namespace) -> None:
    """Exactly one kind of prompt, and no option that would be ignored. Standard input becomes the prompt
    file "-".
    """
    words = args.prompt_words + args.rest  # argparse stops at the first option behind MODEL
    args.rest = []
    from_stdin = words == ["-"]
    given = {
        "PROMPT": bool(words) and not from_stdin,
        "--prompt": args.prompt is not None,
        "--prompt-file": args.prompt_file is not None,
        "-": from_stdin,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) != 1:
        raise UsageError(
            "one of a PROMPT after MODEL, --prompt, --prompt-file and - (standard input)",
            " and ".join(names) or "no prompt",
            "give one of them",
        )
    structured = {
        "--json-schema": args.json_schema,
        "--regex": args.regex,
        "--choice": args.choices,
        "--grammar": args.grammar,
    }
    kinds = [name for name, value in structured.items() if value is not None]
    if len(kinds) > 1:
        raise UsageError(f"one of {', '.join(structured)}", " and ".join(kinds), "give one of them")
    if from_stdin:
        args.prompt_file = "-"
    elif words:
        args.prompt = [" ".join(words)]
    if args.output is not None:
        _check_files(args)
        return
    for name, default in _DEFAULTS.items():
        if getattr(args, name) != default:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"-o FOLDER with {flag}", "none", f"add it, or leave {flag} out")
    if args.prompt_file is not None and args.prompt_file.lower().endswith((".jsonl", ".parquet")):
        do = "add -o FOLDER for the results"
        raise UsageError("-o with a prompt file of rows", args.prompt_file, do)
    if args.logprobs is not None and args.json is None:
        do = "add --json FILE (- for standard output), or leave --logprobs out"
        raise UsageError("--json with --logprobs, which only JSON shows", "none", do)


def _check_files(args: argparse.Namespace) -> None:
    """-o reads files, as often as a worker begins."""
    if args.prompt_file in (None, "-"):
        got = "standard input" if args.prompt_file == "-" else "other prompts"
        raise UsageError("--prompt-file FILE with -o", got, "name a file, or leave -o out")
