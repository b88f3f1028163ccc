"""Goodput: requests a second that keep given limits of latency, such as ttft:500,itl:50."""

import re
from collections.abc import Mapping

from gyrfalcon.bounds import Bounds, shown
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import UsageError

LIMITS = {  # of one request, in milliseconds
    "ttft": "time to its first token",
    "itl": "99th percentile of its inter-token times",
    "tpot": "its mean time per output token after the first",
    "e2e": "time to the end of its answer",
}
OPTION = "--goodput"
MILLISECONDS = Bounds(0, 10_000_000, above=True)


def parse_limits(text: str) -> Mapping[str, float]:
    """Takes the text of the option; UsageError for anything else."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition(":")
        if name not in LIMITS or name in limits:
            do = did_you_mean(name, LIMITS, "write it as in ttft:500,itl:50")
            got = f"{name} twice" if name in limits else shown(part)
            raise UsageError(f"{OPTION} {'|'.join(LIMITS)}, each at most once", got, do)
        value = float(number) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", number, re.ASCII) else 0.0
        if value not in MILLISECONDS:
            wanted = f"milliseconds {MILLISECONDS.words} for {name} of {OPTION}"
            raise UsageError(wanted, shown(number), "write it as in ttft:500,itl:50")
        limits[name] = value
    return limits
