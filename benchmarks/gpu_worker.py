"""Rows are computed in a process of their own: a kernel that hangs cannot be interrupted from Python, and an
error of the card's stays with the process that had it. Such a process is ended, and another one goes on.
"""

import gc
import multiprocessing
import signal
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

START_SECONDS = 90.0  # to load torch and find the card
END_SECONDS = 5.0  # for the driver to take back what an ended process had

Found = dict[str, Any]
Rows = Mapping[str, Callable[[], Found]]


class Skipped(Exception):
    """A row cannot be had here; str() says why."""


class CannotStart(Exception):
    """There is no device, or its process did not start; str() says what."""


@dataclass(frozen=True)
class Loaded:
    """What the process can find, and on what."""

    facts: Found
    deadlines: Mapping[str, float]  # seconds of each step
    steps: Mapping[str, Callable[[], Rows]]
    is_usable: Callable[[], bool]  # whether the device still is, after an error


Load = Callable[[Namespace], Loaded]  # CannotStart where there is no device


class RowProcess:
    """The process, as the gate sees it."""

    def __init__(self, load: Load, options: Namespace) -> None:
        self._load, self._options = load, options
        self._process: BaseProcess | None = None
        self._connection: Connection
        self.facts: Found
        self.deadlines: Mapping[str, float]
        self.rows: Mapping[str, Sequence[str]]  # of each step
        self._start()

    def find(self, step: str, row: str, until: float) -> Found:
        """What a row finds, an error included; TimeoutError where it does not by then (time.monotonic)."""
        try:
            if self._process is None:
                self._start()
            self._connection.send((step, row))
            found, is_usable = self._answer(until)
        except TimeoutError:
            self.end()
            raise
        except (EOFError, OSError):
            return {"passed": False, "error": self._how_it_ended()}
        if not is_usable:
            self.end()
        return dict(found)

    def end(self) -> None:
        """Ends it, whatever it does."""
        if self._process is not None:
            self._process.terminate()
            self._process.join(END_SECONDS)
            self._process.kill()
            self._process.join(END_SECONDS)
            self._connection.close()
        self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._load, self._options))
        self._process.start()
        theirs.close()
        try:
            said = self._answer(time.monotonic() + START_SECONDS)
        except (EOFError, OSError, TimeoutError):
            raise CannotStart(self._how_it_ended()) from None
        if isinstance(said, str):
            self._process.join(END_SECONDS)  # it ends by itself
            self.end()
            raise CannotStart(said)
        self.facts, self.deadlines, self.rows = said

    def _answer(self, until: float) -> Any:
        if not self._connection.poll(max(0.0, until - time.monotonic())):
            raise TimeoutError
        return self._connection.recv()

    def _how_it_ended(self) -> str:
        assert self._process is not None
        self._process.join(END_SECONDS)
        code = self._process.exitcode
        self.end()
        return f"its process ended with code {code}"


def _serve(connection: Connection, load: Load, options: Namespace) -> None:
    """Answers with what is asked for, row by row, until the other end is closed."""
    signal.signal(signal.SIGTERM, _exit)  # so that commands it started are ended, too
    try:
        loaded = load(options)
    except CannotStart as error:
        connection.send(str(error))
        return
    names = {step: list(rows()) for step, rows in loaded.steps.items()}
    connection.send((loaded.facts, dict(loaded.deadlines), names))
    current: str | None = None
    rows: Rows = {}
    while True:
        try:
            step, row = connection.recv()
        except EOFError:
            return
        if step != current:
            rows = {}  # and with them the models that they share
            gc.collect()
            current, rows = step, loaded.steps[step]()
        found = _found(rows[row])
        connection.send((found, "error" not in found or loaded.is_usable()))


def _found(work: Callable[[], Found]) -> Found:
    start = time.monotonic()
    try:
        found = work()
    except Skipped as skipped:
        found = {"skipped": str(skipped)}
    except Exception as error:  # the other rows still have something to tell
        traceback.print_exc()
        found = {"passed": False, "error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def _exit(*_: object) -> NoReturn:
    sys.exit(1)
