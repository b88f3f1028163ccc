"""The arguments of generate: prompts, how tokens are chosen, how the model runs."""

import argparse
from collections.abc import Callable

from gyrfalcon.arguments_engine import add_engine
from gyrfalcon.errors import UsageError
from gyrfalcon.options import number, whole


def _add_generate(parser: argparse.ArgumentParser) -> None:
    """Continue prompts. The text streams to standard output; all else goes to standard error."""
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder, a cut, a hub id or nestling"
    )
    parser.add_argument(
        "stdin", metavar="-", nargs="?", help="one prompt from each line of standard input"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", help="a prompt; may be given several times"
    )
    parser.add_argument("--prompt-file", metavar="FILE", help="one prompt from each line of a file")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="each prompt is a user's turn, written as the model's chat template says; the answer ends where"
        " the template ends it, unless --ignore-eos (example: --chat --prompt 'Name a bird.')",
    )
    _add_sampling(
        parser.add_argument_group("how the next token is chosen (default: always the likeliest)")
    )
    add_engine(parser.add_argument_group("how the model runs"))


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    def add(option: str, kind: Callable[[str], object], default: object, text: str) -> None:
        suffix = "" if default is None else f" (default {default})"
        group.add_argument(option, metavar="N", type=kind, default=default, help=text + suffix)

    add("--max-new-tokens", whole("--max-new-tokens", 0), 128, "stop after so many")
    add(
        "--temperature",
        number("--temperature"),
        0.0,
        "0 takes the likeliest; higher is more varied",
    )
    add("--top-k", whole("--top-k", 0), 0, "only among the K likeliest; 0: all")
    add(
        "--top-p",
        number("--top-p"),
        1.0,
        "only among the likeliest that together have probability P",
    )
    add("--min-p", number("--min-p"), 0.0, "only those at least P times as likely as the likeliest")
    add(
        "--repetition-penalty",
        number("--repetition-penalty"),
        1.0,
        "above 1: rarer to repeat prompt or output",
    )
    add(
        "--presence-penalty",
        number("--presence-penalty"),
        0.0,
        "taken off the logit of every token put out",
    )
    add(
        "--frequency-penalty",
        number("--frequency-penalty"),
        0.0,
        "taken off once for each time it was put out",
    )
    add("--seed", whole("--seed", 0), None, "makes sampling repeatable")
    add("--n", whole("--n", 1), 1, "so many independent continuations of each prompt")
    add(
        "--logprobs",
        whole("--logprobs", 0),
        None,
        "with --json: log-probabilities of the N likeliest tokens too",
    )
    group.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        help='end before this text or special token, such as "<|im_end|>"; may be given several times',
    )
    group.add_argument(
        "--stop-id",
        metavar="ID",
        dest="stop_ids",
        action="append",
        type=whole("--stop-id", 0),
        help="end at this token id of the vocabulary; may be given several times",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="go on after the tokens that end a text"
    )


def take_late_word(args: argparse.Namespace, unknown: list[str]) -> None:
    """argparse knows the "-" of standard input only right behind MODEL; options may stand between."""
    words = [word for word in unknown if word == "-" or not word.startswith("-")]
    if words and args.stdin is None:
        args.stdin = words[0]
        unknown.remove(words[0])


def settle_prompts(args: argparse.Namespace) -> None:
    """Exactly one kind of prompt; standard input becomes the prompt file "-"."""
    if args.stdin not in (None, "-"):
        raise UsageError(
            "a prompt after --prompt", repr(args.stdin), f'write --prompt "{args.stdin}"'
        )
    given = [args.prompt, args.prompt_file, args.stdin]
    if sum(kind is not None for kind in given) != 1:
        names = [
            name
            for name, kind in zip(("--prompt", "--prompt-file", "-"), given, strict=True)
            if kind is not None
        ]
        got = " and ".join(names) or "no prompt"
        raise UsageError(
            "one of --prompt TEXT, --prompt-file FILE and - (standard input)",
            got,
            "give one of them",
        )
    if args.stdin == "-":
        args.prompt_file = "-"
    del args.stdin


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "generate": ("continue prompts", _add_generate),
}
