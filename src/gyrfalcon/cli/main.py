"""The gyrfalcon command: runs what was asked for, turns every error into one line and an exit code."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from functools import partial

from gyrfalcon.cli.commands import COMMANDS
from gyrfalcon.cli.parser import flags, parse
from gyrfalcon.console.format import printable
from gyrfalcon.console.interrupted import interrupt_message
from gyrfalcon.console.suggestion import path_meant
from gyrfalcon.errors import DISK_FULL, DiskFull, GyrfalconError, UsageError, lack
from gyrfalcon.files.output import open_output
from gyrfalcon.parallel.interrupts import ending_interrupts
from gyrfalcon.parallel.torchrun import Torchrun

INTERRUPTED = 130
RUN_SH = "GYRFALCON_RUN_SH"  # set by run.sh, which takes other options than gyrfalcon
READER_GONE = 141  # what a shell reports for a program that wrote to a closed pipe


class _Notes(io.TextIOWrapper):
    """Standard error that may fill up: what it cannot take is dropped, the work goes on."""

    def write(self, text: str, /) -> int:
        """Writes all of it, or after an error such as a full disk nothing from here on."""
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    has_output = sys.stdout is not None
    _settle_streams()
    try:
        if not has_output:
            wanted, do = (
                "an open standard output for the result",
                "send it to a file, or to /dev/null",
            )
            raise UsageError(wanted, "a closed one", do)
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except GyrfalconError as error:
        return _complain(error)
    except KeyboardInterrupt as interrupt:
        print("gyrfalcon:", interrupt_message(interrupt), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _settle_last_flush()
        return READER_GONE
    except OSError as error:
        _settle_last_flush()
        return _complain(lack(error, "to go on") or _explained(error))
    except (MemoryError, RuntimeError, ImportError) as error:
        shortage = lack(error, "to go on")
        if shortage is None:
            raise
        return _complain(shortage)


def _settle_streams() -> None:
    """A closed stream is an empty one (main() refuses such an output), what a stream cannot show is
    escaped, and what standard error has no room for is dropped: never an error.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # for the whole run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Notes(sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", None, True)


def _settle_last_flush() -> None:
    """Python flushes once more on its way out: where that would fail, the rest goes nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str]) -> int:
    try:
        args = parse(argv)
    except SystemExit:  # --help or --version, which have printed
        return 0
    torchrun = Torchrun.found()
    if torchrun is None:
        return _run_command(args)
    with ending_interrupts():
        from gyrfalcon.cli import torchrun_rank
    return torchrun_rank.run(torchrun, partial(_run_command, args))


def _run_command(args: argparse.Namespace) -> int:
    if args.json is not None:
        args.json = open_output(args.json, "--json")
    return COMMANDS[args.command].run(args)


def _explained(error: OSError) -> GyrfalconError:
    got = error.strerror or str(error)
    if error.errno in DISK_FULL:
        return DiskFull(f"room for {error.filename or 'the output'}", got, "free some space")
    where = f": {error.filename}" if error.filename else ""
    do = "check its path and permissions"
    if error.errno == errno.ENOENT:
        do = path_meant(str(error.filename), do)
    return UsageError(f"a file or folder that can be used{where}", got, do)


def _complain(error: GyrfalconError) -> int:
    line = printable(error.on_command_line(flags()))
    if RUN_SH in os.environ and " --" in line.rpartition("; ")[2]:
        line += " (with run.sh: after --)"
    print("gyrfalcon: error:", line, file=sys.stderr)
    return error.exit_code
