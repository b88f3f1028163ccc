"""Lengths in tokens that follow a distribution: 128, uniform:64-256, lognormal:MEAN,SD."""

import math
import re
from dataclasses import dataclass
from random import Random
from typing import Protocol

from gyrfalcon.bounds import ONE_TOKEN_OR_MORE, shown
from gyrfalcon.errors import UsageError

NUMBER = r"(\d{1,8}(?:\.\d{1,6})?)"


class Lengths(Protocol):
    """A distribution of lengths; str() is how it is typed."""

    def draw(self, random: Random) -> int:
        """One length, at least 1."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each length from `least` to `most` is equally likely; both equal: always that one."""

    least: int
    most: int

    def __str__(self) -> str:
        same = self.least == self.most
        return str(self.least) if same else f"uniform:{self.least}-{self.most}"

    def draw(self, random: Random) -> int:
        """One length."""
        return random.randint(self.least, self.most)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Lengths whose logarithm is normal; `mean` and `deviation` are those of the lengths themselves."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"lognormal:{self.mean:g},{self.deviation:g}"

    def draw(self, random: Random) -> int:
        """One length, rounded; at least 1."""
        variance = math.log1p((self.deviation / self.mean) ** 2)
        value = random.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return int(min(max(round(value), ONE_TOKEN_OR_MORE.least), ONE_TOKEN_OR_MORE.most))


@dataclass(frozen=True, slots=True)
class LengthsOption:
    """Takes the text of an option such as --in; UsageError for anything else."""

    option: str

    def __call__(self, text: str) -> Lengths:
        if found := re.fullmatch(r"(\d{1,8})|uniform:(\d{1,8})-(\d{1,8})", text, re.ASCII):
            fixed, least, most = found.groups()
            lengths = Uniform(int(fixed or least), int(fixed or most))
            if 1 <= lengths.least <= lengths.most <= ONE_TOKEN_OR_MORE.most:
                return lengths
        elif found := re.fullmatch(rf"lognormal:{NUMBER},{NUMBER}", text, re.ASCII):
            normal = LogNormal(float(found[1]), float(found[2]))
            if normal.mean in ONE_TOKEN_OR_MORE:
                return normal
        wanted = (
            f"128, uniform:64-256 or lognormal:MEAN,SD, {ONE_TOKEN_OR_MORE} tokens,"
            f" for {self.option}"
        )
        raise UsageError(wanted, shown(text), "correct the option")
