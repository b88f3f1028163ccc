"""What the gyrfalcon command can be told: all its commands, and reading what was typed. Most commands'
arguments stand on pages of their own (arguments_*.py).

None of them imports anything that computes, so that --help and wrong usage answer at once.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from gyrfalcon import __version__
from gyrfalcon.cli import arguments_generate, arguments_measure, arguments_weights
from gyrfalcon.cli.option_types import Number, Whole, Wholes
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import UsageError

PLANNED = ("plan", "serve")

DESCRIPTION = "Run Falcon language models, cut for any number of ranks."
EPILOG = """\
examples:
  gyrfalcon cut falcon-40b falcon-40b-4 -w 4          cut a Hugging Face folder for 4 ranks
  gyrfalcon verify falcon-40b-4                       check every file of the cut
  gyrfalcon generate falcon-40b-4 --prompt "Once"     continue a prompt on those 4 ranks
  gyrfalcon generate falcon-40b -w 2 --prompt "Once"  straight from the folder, cut in memory for 2 ranks

MODEL is a Hugging Face folder, a cut, a hub id such as tiiuae/falcon-7b (needs huggingface_hub), or
nestling, the small model that ships with the package.
exit codes: 0 done; 1 a check did not hold, or the run failed on its way; 2 wrong usage or bad input;
130 interrupted.
`gyrfalcon COMMAND --help` explains a command."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command, `words` as they were typed; raises UsageError. --help and --version
    print and end the process.
    """
    typed, argv = argv, _with_options_for_words(argv)
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
    _check_command(argv)
    args, unknown = parser.parse_known_args(argv)
    if args.command == "generate":
        arguments_generate.take_late_words(args, unknown)
    if unknown:
        raise _unknown(args.command, unknown[0])
    if args.command == "generate":
        arguments_generate.settle_prompts(args)
    if args.command == "mmlu":
        arguments_measure.settle_runs(args)
    args.words = tuple(typed)
    return args


def _with_options_for_words(argv: Sequence[str]) -> Sequence[str]:
    """`help cut` is `cut --help`, `version` is `--version`."""
    match argv:
        case ["help"]:
            return ["--help"]
        case ["help", command, *_]:
            return [command, "--help"]
        case ["version", *_]:
            return ["--version"]
    return argv


def flags() -> dict[str, str]:
    """What an option is called on the command line, by its name in Python: "-w" for world_size."""
    parsers = [argparse.ArgumentParser() for _ in COMMANDS]
    for parser, (_, add_arguments) in zip(parsers, COMMANDS.values(), strict=True):
        add_arguments(parser)
    actions = [action for parser in parsers for action in parser._actions]
    return {action.dest: action.option_strings[0] for action in actions if action.option_strings}


def _check_command(argv: Sequence[str]) -> None:
    word = argv[0] if argv else ""
    if word in COMMANDS or (word.startswith("-") and word != "-m"):
        return
    got, do = repr(word) if word else "none", "see gyrfalcon --help"
    if word in PLANNED:
        got = f"{word}, which is not built yet"
    elif word == "-m":
        got, do = "-m, a flag of run.sh", "write the mode alone: gyrfalcon generate MODEL"
    elif word == "test":
        got, do = "test, a mode of run.sh", "run bash run.sh -m test beside the source"
    elif word:
        do = did_you_mean(word, [*COMMANDS, "help", "version"], do)
    raise UsageError(f"a command ({', '.join(COMMANDS)})", got, do)


def _unknown(command: str, word: str) -> UsageError:
    """An argument that the command does not take."""
    parser = argparse.ArgumentParser()
    COMMANDS[command][1](parser)
    options = [option for action in parser._actions for option in action.option_strings]
    do = did_you_mean(
        word.partition("=")[0], [*options, "--json"], f"see gyrfalcon {command} --help"
    )
    if word.partition("=")[0] in ("-m", "--model"):
        do = f"write the model alone: gyrfalcon {command} MODEL"
    return UsageError(f"arguments that gyrfalcon {command} takes", repr(word), do)


class _Help(argparse.HelpFormatter):
    """Fills the paragraphs of a description, but leaves examples as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = inspect.cleandoc(text).split("\n\n")
        return "\n\n".join(
            paragraph
            if paragraph.startswith("examples:")
            else super(_Help, self)._fill_text(paragraph, width, indent)
            for paragraph in paragraphs
        )


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose own errors are UsageErrors."""

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """`--prompt=--` has the value "--", which argparse would drop."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise UsageError(missing, "none", f"see {self.prog} --help")
        lacking = re.fullmatch(r"argument (\S+): expected (at least )?one argument", message)
        if lacking:
            option = lacking[1].split("/")[-1]
            raise UsageError(f"a value for {option}", "none", f"write {option}=VALUE")
        raise UsageError(f"arguments as in {self.prog} --help", message, "correct them")


def _parser() -> _Parser:
    parser = _Parser(
        prog="gyrfalcon",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gyrfalcon {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name, (summary, add_arguments) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=add_arguments.__doc__,
            formatter_class=_Help,
            allow_abbrev=False,
        )
        add_arguments(command)
        command.add_argument(
            "--json",
            metavar="FILE",
            help="also write the whole result as JSON; - for stdout alone (default: none is written)",
        )
        for action in command._actions:
            _state_range_and_default(action)
    return parser


def _state_range_and_default(action: argparse.Action) -> None:
    """Adds to an option's help which numbers it takes, and its default where the help has none."""
    text = action.help or ""
    if isinstance(action.type, Whole | Wholes | Number):
        text += f"; {action.type.bounds}"
    if action.nargs != 0 and action.default is not None and "default" not in text:
        shown = (
            ",".join(map(str, action.default))
            if isinstance(action.default, tuple)
            else action.default
        )
        text += f" (default {shown})"
    action.help = text


def _add_demo(parser: argparse.ArgumentParser) -> None:
    """Run the whole chain on nestling with 2 ranks: cut, verify, generate, speed, exam, precision, report.

    Exits 1 when the exam is under 60 % or the precision gate does not hold.

    examples:
      gyrfalcon demo
      gyrfalcon demo -o /tmp/demo
    """
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="gyrfalcon-demo",
        help="where everything is written (default gyrfalcon-demo); an earlier demo's files are replaced",
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    """Show what this machine has: versions, processor, memory, disk, devices, the operators used and why.

    examples:
      gyrfalcon doctor
      gyrfalcon doctor --json machine.json
    """


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    **arguments_weights.COMMANDS,
    **arguments_generate.COMMANDS,
    **arguments_measure.COMMANDS,
    "demo": ("run the whole chain on nestling, the model that ships with the package", _add_demo),
    "doctor": ("show what this machine has and which operators are used", _add_doctor),
}
