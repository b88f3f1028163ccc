"""Compiles a grammar in a process of its own first: nothing ends a thread that compiles for minutes, and
what runs out of memory or stack takes its process along.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

from gyrfalcon.errors import EngineClosed, QueueFull, RequestError, UsageError

PROGRAM = Path(__file__).with_name("grammar_child.py")
SECONDS = 0.5  # for a grammar and its first mask
WAIT_SECONDS = 10.0  # for those of other threads, one after the other
WANTED = f"structured output that compiles within {SECONDS} s and 1 GiB"
SIMPLIFY = "simplify it"


class GrammarCheck:
    """One process for one vocabulary. Any thread may call it."""

    def __init__(self, vocabulary: Mapping[str, list[str]], limits: Mapping[str, object]) -> None:
        """`vocabulary`: "tokens", whose bytes are Latin-1 letters, and the "special" ones' ids."""
        content = {**vocabulary, "limits": dict(limits), "seconds": SECONDS}
        self._first_line = json.dumps(content) + "\n"
        self._lock, self._closed = threading.Lock(), False
        self._child = _Child(self._first_line)

    def error(self, grammar: str) -> str | None:
        """What the library says against a grammar; None for a good one. RequestError for one that takes
        too long or too much memory, QueueFull where too many others come before it, EngineClosed.
        """
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise QueueFull(WANTED, "too many others before it", "ask again later")
        try:
            self._begin_again()
            return self._child.answer(grammar)
        except RequestError:
            self._refuse_if_closed()  # that ended the process, not the grammar
            raise
        finally:
            with contextlib.suppress(EngineClosed):
                self._begin_again()  # the next finds one that is ready
            self._lock.release()

    def _begin_again(self) -> None:
        self._refuse_if_closed()
        if self._child.is_gone:
            self._child = _Child(self._first_line)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineClosed("a working engine", "one that was closed", "make a new one")

    def close(self) -> None:
        """Ends the process; whoever waits for it gets EngineClosed."""
        self._closed = True
        self._child.end()


class _Child:
    """The process, until it dies of a grammar."""

    def __init__(self, first_line: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.end = weakref.finalize(self, _end, self._process)
        self._first_line = first_line
        self._is_ready = False

    @property
    def is_gone(self) -> bool:
        """Whether it has died or was ended."""
        return not self.end.alive

    def answer(self, grammar: str) -> str | None:
        """What it answers to a grammar; RequestError where it dies of that."""
        if not self._is_ready and self._told(self._first_line) is None:
            self.end()
            do = "look whether llguidance works: python -c 'import llguidance'"
            raise UsageError("a process that compiles grammars", "one that ended", do)
        self._is_ready = True
        line = self._told(json.dumps(grammar) + "\n")
        if line is None:
            code = self.end()
            got = "one that takes longer" if code == -signal.SIGALRM else "one that takes more"
            raise RequestError(WANTED, got, SIMPLIFY)
        error: str | None = json.loads(line)
        return error

    def _told(self, line: str) -> str | None:
        """Its answer to a line; None where it has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()
        return self._process.stdout.readline() or None


def _end(process: "subprocess.Popen[str]") -> int:
    """Ends it, if it lives; its exit code."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    return process.wait()
