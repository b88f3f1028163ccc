"""Values of command-line options: each function takes the text of one option or refuses it in one line."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from gyrfalcon.bounds import BYTES, FRACTIONS, Bounds, shown
from gyrfalcon.console.suggestion import did_you_mean
from gyrfalcon.errors import UsageError

MOST_NUMBERS = 100  # in a list
UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


@dataclass(frozen=True, slots=True)
class Whole:
    """Takes a whole number within its bounds."""

    option: str
    bounds: Bounds

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # thousands of digits, too
            value = None
        if value is None or value not in self.bounds:
            raise _refused(self.option, f"a whole number {self.bounds.words}", text)
        return value


@dataclass(frozen=True, slots=True)
class Wholes:
    """Takes whole numbers within the bounds of each, with commas between them: 32,64,128."""

    option: str
    bounds: Bounds

    def __call__(self, text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) > MOST_NUMBERS:
            raise _refused(self.option, f"at most {MOST_NUMBERS} numbers", text)
        return tuple(dict.fromkeys(map(Whole(self.option, self.bounds), parts)))


@dataclass(frozen=True, slots=True)
class Number:
    """Takes a number within its bounds."""

    option: str
    bounds: Bounds

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if value not in self.bounds:
            raise _refused(self.option, f"a number {self.bounds.words}", text)
        return value


def one_of(option: str, *choices: str) -> Callable[[str], str]:
    """Takes one of the words."""

    def parse(text: str) -> str:
        if text in choices:
            return text
        do = did_you_mean(text, choices, f"leave {option} out or choose one of these")
        raise UsageError(f"{option} {' | '.join(choices)}", shown(text), do)

    return parse


@dataclass(frozen=True, slots=True)
class Size:
    """Takes bytes: 5GB (10⁹), 512MiB (2²⁰), 1.5GB or a plain number of bytes."""

    option: str
    bounds: Bounds = BYTES

    def __call__(self, text: str) -> int:
        match = re.fullmatch(
            r"(\d{1,30}(?:\.\d{1,30})?)\s*([a-z]*)", text, re.IGNORECASE | re.ASCII
        )
        unit = UNITS.get(match[2].upper()) if match else None
        value = Fraction(match[1]) * unit if match and unit else Fraction(0)
        if float(value) not in self.bounds or value.denominator > 1:
            wanted = "a size such as 5GB, 512MiB or a number of bytes, at most 1000 TB,"
            raise _refused(self.option, wanted, text)
        return int(value)


def cache_memory(text: str) -> int | float:
    """Takes a share of the free memory (0.5: a float of at most 1) or a size (an int of bytes)."""
    if re.fullmatch(r"0?\.\d+|1\.0*", text, re.ASCII) and float(text) in FRACTIONS:
        return float(text)
    return Size("--cache-memory")(text)


def _refused(option: str, wanted: str, text: str) -> UsageError:
    return UsageError(f"{wanted} for {option}", shown(text), "correct the option")
