"""The exception tree: each class says who can mend it, each message what was wanted, came and is to do."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system calls it


class GyrfalconError(Exception):
    """Base of everything this package raises on purpose.

    The three parts make one line: "wanted …, got …; do …". `exit_code` is what a command ends with.
    """

    exit_code = 2

    def __init__(self, wanted: str, got: str, do: str) -> None:
        super().__init__(wanted, got, do)
        self.wanted, self.got, self.do = wanted, got, do

    def __str__(self) -> str:
        return f"wanted {self.wanted}, got {self.got}; {self.do}"


class UsageError(GyrfalconError):
    """An option or argument is wrong: whoever typed it can mend it."""


class ConfigError(GyrfalconError):
    """A config.json says something this package does not compute: its author can mend it."""


class CheckpointError(GyrfalconError):
    """A checkpoint or cut is missing, damaged or of the wrong shape: whoever made the files can mend it."""


class WorldSizeError(GyrfalconError):
    """The model cannot be shared by that many ranks: ask for fewer."""


class DiskFull(GyrfalconError):
    """The disk took no more: free some space and run the same command again."""


class RequestError(GyrfalconError):
    """A prompt, mask or sampling parameter is wrong: the caller can mend it."""


class PromptTooLong(RequestError):
    """The prompt does not fit the engine's longest sequence."""


class CacheTooSmall(GyrfalconError):
    """The KV cache cannot hold one sequence of the asked length: give it more memory or a shorter length."""


class NotFinite(GyrfalconError):
    """The model computed something that is no number: another dtype or other weights can mend it."""

    exit_code = 1


class RankDied(GyrfalconError):
    """One of the rank processes ended early: look at what it said, then start again."""

    exit_code = 1


class CheckFailed(GyrfalconError):
    """A check ran to its end and did not hold."""

    exit_code = 1
