"""Runs a command of gyrfalcon in a fork of this warmed process, so that thousands of runs take minutes."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.cli.main import main

BROKEN = 70  # exit code of a program that raised


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its exit code, negative for a signal, and what it said on standard error."""

    code: int
    said: str

    @property
    def was_killed(self) -> bool:
        """Whether it was ended by SIGKILL."""
        return self.code == -signal.SIGKILL

    @property
    def last_line(self) -> str:
        """What it said last."""
        return (self.said.strip().splitlines() or [""])[-1]


def nothing() -> None:
    """Does nothing."""


def run(
    words: Sequence[str],
    log: Path,
    before: Callable[[], object] = nothing,
    after: Callable[[], object] = nothing,
) -> Ended:
    """The command in a fork of this process, between `before` and `after`; its output goes to `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os._exit(_child(words, log, before, after))
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text("utf-8", "replace"))


def _child(
    words: Sequence[str], log: Path, before: Callable[[], object], after: Callable[[], object]
) -> int:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    try:
        before()
        code = main(list(words))
        after()
        sys.stdout.flush()
        return code
    except BaseException:
        traceback.print_exc()
        return BROKEN
