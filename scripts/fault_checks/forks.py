"""Runs a command of gyrfalcon in a fork of this warmed process, so that thousands of runs take minutes."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fault_checks.ending import ENDING
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


def in_forks(
    work: Callable[[int], "dict[str, object]"], number: int, folder: Path
) -> "list[dict[str, Any]]":
    """What `work` returns for each number, by as many forks of this process as it may use cores."""
    num_forks = len(os.sched_getaffinity(0))
    files = [folder / f"fork-{fork}" for fork in range(num_forks)]
    with _ended_by(signal.SIGTERM) as children:
        for fork, file in enumerate(files):
            _fork(partial(_work, work, range(fork, number, num_forks), file), children)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    found = {each["number"]: each["found"] for each in map(json.loads, lines)}
    if any(codes) or len(found) != number:
        raise RuntimeError(f"wanted {number} results of forks, got {len(found)}, {codes}")
    return [found[each] for each in range(number)]


def _work(work: Callable[[int], object], numbers: range, file: Path) -> int:
    with file.open("w") as out:
        for number in numbers:
            out.write(json.dumps({"number": number, "found": work(number)}) + "\n")
    return 0


def _fork(work: Callable[[], int], children: list[int]) -> None:
    """Adds to `children` a fork of this process that ends with what `work` returns.

    No signal is taken meanwhile: it would leave a fork that nobody knows, or be lost in what modules do after
    each fork, where exceptions are only printed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    child = os.fork()
    if not child:
        code = BROKEN
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = work()
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    children.append(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _ended_by(number: signal.Signals) -> Iterator[list[int]]:
    """A list for forks, which get a signal when this process is asked to end."""
    children: list[int] = []
    try:
        yield children
    except BaseException:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, number)
            with suppress(ChildProcessError):
                os.waitpid(child, 0)
        raise


def nothing() -> None:
    """Does nothing."""


def run(
    words: Sequence[str],
    log: Path,
    before: Callable[[], object] = nothing,
    after: Callable[[], object] = nothing,
) -> Ended:
    """The command in a fork of this process, between `before` and `after`; its output goes to `log`."""
    with _ended_by(signal.SIGKILL) as children:
        _fork(partial(_child, words, log, before, after), children)
        _, status = os.waitpid(children[0], 0)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text("utf-8", "replace"))


def _child(
    words: Sequence[str], log: Path, before: Callable[[], object], after: Callable[[], object]
) -> int:
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
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
