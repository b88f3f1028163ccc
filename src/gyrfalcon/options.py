"""Values of command-line options: each function takes the text of one option or refuses it in one line."""

import math
import re
from collections.abc import Callable
from fractions import Fraction

from gyrfalcon.errors import UsageError

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


def whole(option: str, least: int) -> Callable[[str], int]:
    """Takes a whole number of `least` or more."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise _refused(option, f"a whole number of {least} or more", text)
        return value

    return parse


def wholes(option: str, least: int) -> Callable[[str], tuple[int, ...]]:
    """Takes whole numbers of `least` or more with commas between them: 32,64,128."""
    one = whole(option, least)
    return lambda text: tuple(dict.fromkeys(map(one, text.split(","))))


def number(option: str) -> Callable[[str], float]:
    """Takes a finite number; what it may be is for SamplingParams to say."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _refused(option, "a number", text)
        return value

    return parse


def one_of(option: str, *choices: str, planned: tuple[str, ...] = ()) -> Callable[[str], str]:
    """Takes one of the words; `planned` ones are refused as not built yet."""

    def parse(text: str) -> str:
        if text in choices:
            return text
        got = f"{text}, which is not built yet" if text in planned else repr(text)
        raise UsageError(
            f"{option} {' | '.join(choices)}", got, f"leave {option} out or choose one of these"
        )

    return parse


def size(option: str) -> Callable[[str], int]:
    """Takes bytes: 5GB (10⁹), 512MiB (2²⁰), 1.5GB or a plain number of bytes."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text, re.IGNORECASE | re.ASCII)
        unit = UNITS.get(match[2].upper()) if match else None
        value = Fraction(match[1]) * unit if match and unit else Fraction(0)
        if value < 1 or value.denominator > 1:
            raise _refused(option, "a size such as 5GB, 512MiB or a number of bytes", text)
        return int(value)

    return parse


def cache_memory(text: str) -> int | float:
    """Takes a share of the free memory (0.5: a float of at most 1) or a size (an int of bytes)."""
    if re.fullmatch(r"0?\.\d+|1\.0*", text, re.ASCII) and 0 < float(text) <= 1:
        return float(text)
    return size("--cache-memory")(text)


def _refused(option: str, wanted: str, text: str) -> UsageError:
    return UsageError(f"{wanted} for {option}", repr(text), "mend the option")
