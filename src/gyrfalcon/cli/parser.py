"""Reads what was typed after `gyrfalcon`: a command of cli/commands.py and its arguments."""

import argparse
import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from gyrfalcon import __version__
from gyrfalcon.cli.commands import COMMANDS
from gyrfalcon.cli.option_types import Number, Whole, Wholes
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import UsageError

PIPELINES = ("--pipeline-parallel-size", "-pp", "--pp", "--pipeline-parallel", "--pp-size")
DESCRIPTION = "Run Falcon language models, cut for any number of ranks."
EPILOG = """\
examples:
  gyrfalcon cut falcon-40b falcon-40b-4 -w 4          cut a Hugging Face folder for 4 ranks
  gyrfalcon verify falcon-40b-4                       check every file of the cut
  gyrfalcon generate falcon-40b-4 --prompt "Once"     continue a prompt on those 4 ranks
  gyrfalcon generate falcon-40b -w 2 --prompt "Once"  straight from the folder, cut in memory for 2 ranks

MODEL is a Hugging Face folder, a cut, a hub id such as tiiuae/falcon-7b (needs huggingface_hub), or
nestling, the small model that ships with the package.
exit codes: 0 done; 1 a check failed, or the run failed midway; 2 wrong usage or bad input;
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
    args, rest = parser.parse_known_args(argv)
    args.rest = rest
    for word in rest:
        if word.startswith("-") and word != "-":
            raise _unknown(args.command, word)
    if args.check is not None:
        args.check(args)
    if args.rest:  # words that the command has not taken as its own
        raise _unknown(args.command, args.rest[0])
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
    return {
        action.dest: action.option_strings[0]
        for command in COMMANDS
        for action in _shown_options(command)
    }


def _shown_options(command: str) -> list[argparse.Action]:
    """The options of a command that its --help shows: not the former names of others."""
    parser = argparse.ArgumentParser()
    COMMANDS[command].add_arguments(parser)
    actions = [action for action in parser._actions if action.option_strings]
    return [action for action in actions if action.help != argparse.SUPPRESS]


def _check_command(argv: Sequence[str]) -> None:
    word = argv[0] if argv else ""
    if word in COMMANDS or (word.startswith("-") and word != "-m"):
        return
    got, do = repr(word) if word else "none", "see gyrfalcon --help"
    if word == "-m":
        got, do = "-m, a flag of run.sh", "write the mode alone: gyrfalcon generate MODEL"
    elif word == "test":
        got, do = "test, a mode of run.sh", "run bash run.sh -m test beside the source"
    elif word:
        do = did_you_mean(word, [*COMMANDS, "help", "version"], do)
    raise UsageError(f"a command ({', '.join(COMMANDS)})", got, do)


def _unknown(command: str, word: str) -> UsageError:
    """An argument that the command does not take."""
    options = [option for action in _shown_options(command) for option in action.option_strings]
    do = did_you_mean(
        word.partition("=")[0], [*options, "--json"], f"see gyrfalcon {command} --help"
    )
    if word.partition("=")[0] in ("-m", "--model"):
        do = f"write the model alone: gyrfalcon {command} MODEL"
    elif word.partition("=")[0] in PIPELINES:
        do = "use -w: gyrfalcon shares each layer among ranks and has no pipeline stages"
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
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.add_arguments.__doc__,
            formatter_class=_Help,
            allow_abbrev=False,
        )
        subparser.set_defaults(check=None, has_result=True)
        command.add_arguments(subparser)
        text = "also write the whole result as JSON; - prints it instead of the text (default: no JSON)"
        shown = text if subparser.get_default("has_result") else argparse.SUPPRESS
        subparser.add_argument("--json", metavar="FILE", help=shown)
        for action in subparser._actions:
            _state_range_and_default(action)
    return parser


def _state_range_and_default(action: argparse.Action) -> None:
    """Adds the range of its numbers to an option's help, and its default where the help has none."""
    if action.help == argparse.SUPPRESS:
        return
    text = action.help or ""
    if isinstance(action.type, Whole | Wholes | Number):
        text += f"; {action.type.bounds}"
    if (
        action.option_strings
        and action.nargs != 0
        and action.default is not None
        and "default" not in text
    ):
        shown = (
            ",".join(map(str, action.default))
            if isinstance(action.default, tuple)
            else action.default
        )
        text += f" (default {shown})"
    action.help = text
