"""The gyrfalcon command: runs what was asked for, turns every error into one line and an exit code."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from gyrfalcon.arguments import parse
from gyrfalcon.errors import GyrfalconError, UsageError

INTERRUPTED = 130
READER_GONE = 141  # what a shell reports for a program that wrote to a closed pipe


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except GyrfalconError as error:
        return _complain(error)
    except KeyboardInterrupt:
        print("gyrfalcon: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # Python flushes once more on its way out
        return READER_GONE
    except OSError as error:
        wanted = f"a file or folder that can be used: {error.filename or 'unnamed'}"
        return _complain(
            UsageError(wanted, error.strerror or str(error), "check its path and permissions")
        )


def _run(argv: Sequence[str]) -> int:
    try:
        args = parse(argv)
    except SystemExit:  # --help or --version, which have printed
        return 0
    return _command(args.command)(args)


def _complain(error: GyrfalconError) -> int:
    print("gyrfalcon: error:", " ".join(str(error).split()), file=sys.stderr)
    return error.exit_code


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """The function behind a command. The imports stand here because torch comes with most of them."""
    match name:
        case "generate":
            from gyrfalcon.commands import generate

            return generate.run
        case "speed":
            from gyrfalcon.commands import speed

            return speed.run
        case "precision":
            from gyrfalcon.commands import precision

            return precision.run
        case "mmlu":
            from gyrfalcon.commands import mmlu

            return mmlu.run
        case "perplexity":
            from gyrfalcon.commands import perplexity

            return perplexity.run
        case "report":
            from gyrfalcon.commands import report

            return report.run
        case "demo":
            from gyrfalcon.commands import demo

            return demo.run
        case "doctor":
            from gyrfalcon import doctor

            return doctor.run
        case _:
            from gyrfalcon.commands import weights

            return weights.COMMANDS[name]
