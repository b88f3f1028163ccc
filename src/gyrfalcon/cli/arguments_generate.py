"""The arguments of generate: prompts, how tokens are chosen, how the model runs."""

import argparse
from collections.abc import Callable

from gyrfalcon.bounds import SAMPLING, TOP_TOKENS
from gyrfalcon.cli.engine_options import add_engine
from gyrfalcon.cli.option_types import Number, Whole
from gyrfalcon.errors import UsageError


def _add_generate(parser: argparse.ArgumentParser) -> None:
    """Continue prompts. The text streams to standard output; all else goes to standard error.

    examples:
      gyrfalcon generate nestling "The old captain"
      gyrfalcon generate falcon-7b-instruct --chat "Name a bird."
      gyrfalcon generate falcon-40b -w 4 --prompt-file prompts.txt --temperature 0.7 --seed 1 --json out.jsonl
    """
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    parser.add_argument(
        "words",
        metavar="PROMPT",
        nargs="*",
        default=[],  # without one argparse calls it missing where MODEL is
        help="words of one prompt; - takes one from each line of standard input",
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
        help="one prompt from each line of a file (default: none is read)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="each prompt is a user's turn, written as the model's chat template says; the answer ends where"
        " the template ends it, unless --ignore-eos",
    )
    _add_sampling(
        parser.add_argument_group("how the next token is chosen (default: always the most likely)")
    )
    add_engine(parser.add_argument_group("how the model runs"))


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    for option, kind, default, text in (
        ("--max-new-tokens", Whole, 128, "stop after so many"),
        ("--temperature", Number, 0.0, "0 takes the most likely; higher is more varied"),
        ("--top-k", Whole, 0, "only among the K most likely; 0: all"),
        ("--top-p", Number, 1.0, "only among the most likely that together have probability P"),
        ("--min-p", Number, 0.0, "only those at least P times as likely as the most likely"),
        ("--repetition-penalty", Number, 1.0, "above 1 discourages tokens that already occurred"),
        ("--presence-penalty", Number, 0.0, "subtracted from the logit of each generated token"),
        ("--frequency-penalty", Number, 0.0, "the same, once for each time it was generated"),
        ("--seed", Whole, None, "makes sampling repeatable (default: another each time)"),
        ("--n", Whole, 1, "so many independent continuations of each prompt"),
        (
            "--logprobs",
            Whole,
            None,
            "with --json: log-probabilities, those of the N most likely tokens too (default: none)",
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
        help='end before this text or special token, such as "<|im_end|>"; may be given several times '
        "(default: none)",
    )
    group.add_argument(
        "--stop-id",
        metavar="ID",
        dest="stop_ids",
        action="append",
        type=Whole("--stop-id", TOP_TOKENS),
        help="end at this token id of the vocabulary; may be given several times (default: none)",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="go on after the tokens that end a text"
    )


def take_late_words(args: argparse.Namespace, unknown: list[str]) -> None:
    """argparse knows the words of a prompt only right behind MODEL; options may stand between."""
    if not any(word.startswith("-") and word != "-" for word in unknown):
        args.words += unknown
        unknown.clear()


def settle_prompts(args: argparse.Namespace) -> None:
    """Exactly one kind of prompt; standard input becomes the prompt file "-"."""
    from_stdin = args.words == ["-"]
    given = {
        "PROMPT": bool(args.words) and not from_stdin,
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
    if from_stdin:
        args.prompt_file = "-"
    elif args.words:
        args.prompt = [" ".join(args.words)]
    del args.words


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "generate": ("continue prompts", _add_generate),
}
