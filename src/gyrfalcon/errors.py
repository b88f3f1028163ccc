"""The exception tree: each class says who can fix it, each message what was wanted, came and is to do."""

import errno
import re
import sys
from collections.abc import Callable, Mapping

OPTION = re.compile(r"`(\w+)(?:=([^`]*))?`")  # `max_len`, `world_size=2`
NO_MEMORY = re.compile("allocate memory|out of memory|start new thread", re.IGNORECASE)
FIX_LOGITS = "use `dtype=bf16` or fp32, or verify"
MOST_LETTERS = 2000  # shown of each part: a foreign file may hold values of megabytes
SHOWN_LETTERS = 40  # of a value that is wrong
ON_CARD = re.compile(r"\b[A-Z]{3,} (?:error: )?out of memory")  # torch's name of a kind of card
NO_FILES = re.compile("too many open files", re.IGNORECASE)
PIP_INSTALL = f"{sys.executable} -m pip install"  # into the environment that runs this
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system calls it


class GyrfalconError(Exception):
    """Base of everything this package raises on purpose.

    The three parts make one line: "wanted …, got …; do …". `exit_code` is what a command ends with.
    What is wanted and what to do name an option as Python does, in backquotes, `max_len` or
    `world_size=2`: str() shows just that, on_command_line() the flag instead.

    >>> Engine("nestling", max_len=4).generate("A text that is longer than that")
    Traceback (most recent call last):
    gyrfalcon.errors.PromptTooLong: wanted a prompt of at most 3 tokens, got ...; shorten it or raise max_len
    """

    exit_code = 2

    def __init__(self, wanted: str, got: str, do: str) -> None:
        super().__init__(wanted, got, do)
        self.wanted, self.got, self.do = wanted, got, do

    def __str__(self) -> str:
        return self._line(lambda option: option[0].strip("`"))

    def on_command_line(self, flags: Mapping[str, str]) -> str:
        """The line with an option's flag, if it has one in `flags`, in place of its Python name."""

        def flag(option: re.Match[str]) -> str:
            name, value = option.groups()
            if name not in flags:
                return option[0].strip("`")
            return flags[name] if value in (None, "True") else f"{flags[name]} {value}"

        return self._line(flag)

    def _line(self, shown: Callable[[re.Match[str]], str]) -> str:
        wanted, do = (OPTION.sub(shown, part) for part in (self.wanted, self.do))
        wanted, got, do = (
            part if len(part) <= MOST_LETTERS else f"{part[:MOST_LETTERS]}…"
            for part in (wanted, self.got, do)
        )
        return f"wanted {wanted}, got {got}; {do}"


class UsageError(GyrfalconError):
    """An option or argument is wrong: whoever typed it can correct it."""


class MissingExtra(UsageError, ImportError):
    """A package that only an extra needs is not installed: whoever installed this one can install it."""


class ConfigError(GyrfalconError):
    """A config.json says something this package does not compute: its author can fix it."""


class CheckpointError(GyrfalconError):
    """A checkpoint or cut is missing, damaged or of the wrong shape: whoever made the files can fix it."""


class WorldSizeError(GyrfalconError):
    """The model cannot be shared by that many ranks: ask for fewer."""


class DiskFull(GyrfalconError):
    """The disk took no more: free some space and run the same command again."""


class OutOfMemory(GyrfalconError):
    """The machine gave no more memory: free some, or ask for less at a time."""

    exit_code = 1


class TooManyOpenFiles(GyrfalconError):
    """The process may not open another file: whoever started it can raise the limit."""

    exit_code = 1


class RequestError(GyrfalconError):
    """A prompt, mask or sampling parameter is wrong: the caller can correct it."""


class NoTokenAllowed(RequestError):
    """Structured output, and biases or `min_tokens` beside it, allow no token: the caller can relax them."""


class PromptTooLong(RequestError):
    """The prompt does not fit the engine's longest sequence."""


class QueueFull(GyrfalconError):
    """As much waits as the engine was told to queue: ask again later."""

    exit_code = 1


class CacheTooSmall(GyrfalconError):
    """The KV cache cannot hold one sequence of the asked length: give it more memory or a shorter length."""


class NotFinite(GyrfalconError):
    """The model computed NaN or infinity: another dtype or other weights can help."""

    exit_code = 1

    @classmethod
    def logits(cls, where: str) -> "NotFinite":
        """The error for logits `where` they stand; its str() is the `error` of a sample that failed."""
        return cls("finite logits", f"NaN or infinity {where}", FIX_LOGITS)


class RankDied(GyrfalconError):
    """One of the rank processes ended early: look at what it said, then start again."""

    exit_code = 1


class EngineClosed(GyrfalconError):
    """The engine was closed before the call or while it waited: make a new one."""

    exit_code = 1


class CheckFailed(GyrfalconError):
    """A check ran to its end and did not hold."""

    exit_code = 1


def shortened(text: str) -> str:
    """A wrong value as an error shows it: a long one is cut short."""
    return text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 1]}…"


def lack(error: BaseException, wanted: str) -> GyrfalconError | None:
    """The error for memory or open files that ran out, whoever noticed; None for anything else."""
    code = error.errno if isinstance(error, OSError) else None
    # By torch, the loader.
    told = str(error) if isinstance(error, RuntimeError | ImportError) else ""
    if code in (errno.EMFILE, errno.ENFILE) or NO_FILES.search(told):
        return TooManyOpenFiles(
            f"one more open file {wanted}", "the system's limit", "raise it, as with ulimit -n 4096"
        )
    if isinstance(error, MemoryError) or code == errno.ENOMEM or NO_MEMORY.search(told):
        do = "free some, raise its limits (ulimit -v, -u), or use a smaller dtype or model"
        if ON_CARD.search(told):
            do = "lower `cache_memory`, use more ranks, or a smaller dtype or model"
        return OutOfMemory(f"memory {wanted}", "no more from the system", do)
    return None
