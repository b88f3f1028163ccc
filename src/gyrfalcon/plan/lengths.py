"""Distributions of lengths as a plan needs them: likely values, means, and the cache that many hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, exp, log, log1p, sqrt
from random import Random
from statistics import NormalDist, fmean

from gyrfalcon.load.lengths import Lengths, LogNormal, Uniform
from gyrfalcon.plan.trace import TraceRequest

NUM_VALUES = 48  # of a distribution


def default_lengths(context: int) -> tuple[Uniform, Uniform]:
    """Prompts and outputs of streams whose context is at most `context` tokens: prompts are a quarter to
    three quarters of it, outputs an eighth to a quarter, each length as likely as another.
    """
    prompts = Uniform(max(context // 4, 1), max(3 * context // 4, 1))
    return prompts, Uniform(max(context // 8, 1), max(context // 4, 1))


def values_of(lengths: Lengths, longest: int) -> list[int]:
    """NUM_VALUES equally likely lengths, from 1 to `longest`, ascending."""
    places = [(n + 0.5) / NUM_VALUES for n in range(NUM_VALUES)]
    if isinstance(lengths, Uniform):
        found = [lengths.least + place * (lengths.most - lengths.least) for place in places]
    else:
        assert isinstance(lengths, LogNormal)
        variance = log1p((lengths.deviation / lengths.mean) ** 2)
        normal = NormalDist(log(lengths.mean) - variance / 2, max(sqrt(variance), 1e-9))
        found = [exp(normal.inv_cdf(place)) for place in places]
    return [min(max(round(value), 1), longest) for value in found]


@dataclass(frozen=True)
class Streams:
    """Streams that decode: their prompts and outputs, as equally likely values."""

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    longest: int  # prompt and output together

    @classmethod
    def of(cls, prompts: Lengths, outputs: Lengths, longest: int) -> "Streams":
        """Those of two distributions; a stream ends at `longest` tokens at the latest."""
        most = max(longest - 1, 1)
        return cls(tuple(values_of(prompts, most)), tuple(values_of(outputs, most)), longest)

    @cached_property
    def prompt_mean(self) -> float:
        return fmean(self.prompts)

    @cached_property
    def output_mean(self) -> float:
        return fmean(min(output, self.longest - prompt) for prompt, output in self._pairs())

    @cached_property
    def context(self) -> tuple[float, float]:
        """Mean and standard deviation of the tokens that a decoding stream holds at some moment: one of a
        long output is met more often, at any token of it alike.
        """
        weight = mean = square = 0.0
        for prompt, wanted in self._pairs():
            output = min(wanted, self.longest - prompt)
            middle = prompt + output / 2
            weight += output
            mean += output * middle
            square += output * (middle**2 + output**2 / 12)
        mean /= weight
        return mean, sqrt(max(square / weight - mean**2, 0.0))

    def request(self, arrival_s: float, draw: Random) -> TraceRequest:
        """One that begins a stream, drawn at random."""
        prompt, wanted = draw.choice(self.prompts), draw.choice(self.outputs)
        return TraceRequest(arrival_s, prompt, min(wanted, self.longest - prompt))

    def held(self, num_streams: int, block_size: int, z: float) -> int:
        """Tokens of cache that this many streams hold with z standard deviations to spare: each has half a
        block more on average.
        """
        mean, deviation = self.context
        tokens = num_streams * (mean + block_size / 2) + z * deviation * sqrt(num_streams)
        most = num_streams * -(-self.longest // block_size) * block_size
        return min(ceil(tokens), most)

    def _pairs(self) -> Iterator[tuple[int, int]]:
        return ((prompt, output) for prompt in self.prompts for output in self.outputs)
