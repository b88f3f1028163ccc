"""The program of a process that compiles grammars for grammar_check.py, and dies of those that take too
much. It imports nothing of ours, so that it is there in a moment.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any, cast

import llguidance

MEMORY_BYTES = 1 << 30  # for what a grammar takes


class Vocabulary:
    """The tokens that came in the first line. The order in which a text is split does not matter here."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.tokens = [token.encode("latin-1") for token in content["tokens"]]
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = [int(i) for i in content["special"]]
        self._letters = {token: i for i, token in enumerate(self.tokens) if len(token) == 1}

    def __call__(self, text: str) -> list[int]:
        return [self._letters[bytes([byte])] for byte in text.encode()]


def main() -> None:
    """First line: the vocabulary, limits, and seconds that a grammar may take. Then a grammar a line, each
    answered by a line: its error, or none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # not the one core of the thread that started it
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    content = json.loads(sys.stdin.readline())
    tokenizer = llguidance.LLTokenizer(cast("llguidance.TokenizerWrapper", Vocabulary(content)))
    limits = llguidance.LLParserLimits(**content["limits"], verbose_errors=False)
    _limit_memory()
    _answer(None)
    for line in sys.stdin:
        grammar = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, content["seconds"])  # ends this process
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        matcher.compute_bitmask()  # finds errors that compiling does not
        error = matcher.get_error() if matcher.is_error() else None
        signal.setitimer(signal.ITIMER_REAL, 0)
        del matcher
        _answer(error)


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(error: str | None) -> None:
    print(json.dumps(error), flush=True)


if __name__ == "__main__":
    main()
