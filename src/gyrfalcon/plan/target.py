"""What a deployment is to reach, as typed: "40 tok/s, 2k context, 500 users"."""

import re
from dataclasses import dataclass

from gyrfalcon.bounds import Bounds, shown
from gyrfalcon.errors import UsageError

RATES = Bounds(0, 100_000, above=True)
CONTEXTS = Bounds(2, 10_000_000)
USERS = Bounds(1, 1_000_000_000)
DO = 'write it as "40 tok/s, 2k context, 500 users"'
WANTED = "a speed, a context and a number of users for --target"
NUMBER = r"(\d{1,12}(?:\.\d{1,6})?)\s*(k|m)?\s*"
PARTS = {
    "tokens_per_second": re.compile(NUMBER + r"(?:tok|tokens|t)\s*/\s*s", re.ASCII | re.IGNORECASE),
    "context": re.compile(NUMBER + r"(?:tokens?\s+)?(?:context|ctx)", re.ASCII | re.IGNORECASE),
    "users": re.compile(NUMBER + r"(?:users?|streams?)", re.ASCII | re.IGNORECASE),
}
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True, slots=True)
class Target:
    """Each of `users` gets `tokens_per_second` or more, in contexts of up to `context` tokens."""

    tokens_per_second: float
    context: int
    users: int | None  # None where requests come at a rate instead


def target_of(text: str) -> Target:
    """The target in a text of three parts in any order; k and m are thousands and millions, of a context
    1,024 each. UsageError for anything else.
    """
    found: dict[str, float] = {}
    for part in THOUSANDS.sub("", text).split(","):
        name, value = _part(part.strip(), text)
        if name in found:
            raise UsageError(WANTED, f"two of the kind of {shown(part.strip())}", DO)
        found[name] = value
    for name in ("tokens_per_second", "context"):
        if name not in found:
            raise UsageError(WANTED, f"{shown(text)} without one of them", DO)
    users = found.get("users")
    context = int(found["context"])
    for value, bounds in (
        (found["tokens_per_second"], RATES),
        (context, CONTEXTS),
        (1 if users is None else users, USERS),
    ):
        if value not in bounds:
            raise UsageError(f"numbers {bounds.words} there", shown(text), DO)
    return Target(found["tokens_per_second"], context, None if users is None else int(users))


def _part(part: str, text: str) -> tuple[str, float]:
    for name, pattern in PARTS.items():
        match = pattern.fullmatch(part)
        if match is not None:
            thousand = 1024 if name == "context" else 1000
            power = {"": 0, "k": 1, "m": 2}[(match[2] or "").lower()]
            return name, float(match[1]) * thousand**power
    raise UsageError(WANTED, f"{shown(part)} in {shown(text)}" if part != text else shown(text), DO)
