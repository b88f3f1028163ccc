"""The list of commands, in the order that --help shows them. A new one is a file in this package, an import
and a line of the list.
"""

import argparse
from collections.abc import Mapping
from typing import Protocol

from gyrfalcon.cli import (
    cut,
    demo,
    doctor,
    generate,
    inspect,
    load,
    merge,
    mmlu,
    perplexity,
    plan,
    precision,
    recut,
    report,
    score,
    serve,
    speed,
    verify,
)


class Command(Protocol):
    """What the file of a command holds. It imports torch, and whatever imports torch, in run() alone, so
    that --help and wrong usage answer at once.
    """

    __name__: str
    SUMMARY: str  # its line in `gyrfalcon --help`

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds its arguments; the docstring is its own --help. A function set as the default of `check`
        is given the parsed arguments and raises UsageError where they contradict each other.
        """

    def run(self, args: argparse.Namespace) -> int:
        """Runs it and returns the exit code."""


_LISTED: tuple[Command, ...] = (
    cut,
    verify,
    recut,
    merge,
    inspect,
    generate,
    score,
    serve,
    speed,
    precision,
    mmlu,
    perplexity,
    plan,
    load,
    report,
    demo,
    doctor,
)
COMMANDS: Mapping[str, Command] = {
    command.__name__.rpartition(".")[2]: command for command in _LISTED
}
