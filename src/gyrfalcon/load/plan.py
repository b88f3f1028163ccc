"""What is asked of a server and when: arrivals, prompts and output lengths, the same for the same seed.
Arrivals, lengths and words are drawn apart, so that one can change without the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice, repeat
from random import Random

from gyrfalcon.load.lengths import Lengths
from gyrfalcon.load.prompts import TokensOfText, words
from gyrfalcon.load.trace import TraceLine, has_arrivals

POISSON, CONSTANT = "poisson", "constant"


@dataclass(frozen=True, slots=True)
class Load:
    """The load that was asked for.

    rate: arrivals a second, independent of the answers (open loop). concurrency: instead, that many
    requests at a time, the next one when one ends (closed loop). Neither: the arrivals of `trace`.
    """

    rate: float | None
    arrivals: str  # POISSON or CONSTANT
    concurrency: int | None
    requests: int | None  # None: as many as arrive within `duration`
    duration: float | None  # seconds in which requests are sent
    input_lens: Lengths
    output_lens: Lengths
    trace: tuple[TraceLine, ...]
    seed: int

    @property
    def description(self) -> str:
        """How requests arrive, in a few words."""
        if self.concurrency is not None:
            return f"{self.concurrency} at a time (closed loop)"
        if self.rate is None:
            return "arrivals of the trace"
        return f"{'Poisson' if self.arrivals == POISSON else 'constant'} {self.rate:g}/s"


@dataclass(frozen=True, slots=True)
class Planned:
    """A request to be sent at `arrival`, in seconds after the start; None: as soon as one has ended."""

    arrival: float | None
    prompt: str
    input_len: int | None  # asked for; None: the prompt came from a file
    output_len: int


def plan(load: Load, tokens: TokensOfText) -> Iterator[Planned]:
    """The requests in the order in which they are sent, made one by one."""
    lengths = Random(f"{load.seed} lengths")
    texts = Random(f"{load.seed} words")
    lines = cycle(load.trace) if load.trace else repeat(TraceLine(None, None, None, None))
    for arrival, line in zip(_arrivals(load), lines, strict=False):
        input_len, output_len = line.input_len, line.output_len
        if line.prompt is None and input_len is None:
            input_len = load.input_lens.draw(lengths)
        if output_len is None:
            output_len = load.output_lens.draw(lengths)
        prompt = line.prompt
        if prompt is None:
            assert input_len is not None
            prompt = words(tokens.num_words(input_len), texts)
        yield Planned(arrival, prompt, input_len, output_len)


def _arrivals(load: Load) -> Iterator[float | None]:
    """When each request arrives, up to the number or the duration that was asked for."""
    times: Iterator[float | None]
    if load.concurrency is not None:
        times = repeat(None)
    elif has_arrivals(load.trace):
        times = iter([line.arrival for line in load.trace])
    else:
        assert load.rate is not None
        times = _poisson(load.rate, load.seed) if load.arrivals == POISSON else _even(load.rate)
    for time in islice(times, load.requests):
        if time is not None and load.duration is not None and time >= load.duration:
            return
        yield time


def _poisson(rate: float, seed: int) -> Iterator[float]:
    random, time = Random(f"{seed} arrivals"), 0.0
    while True:
        time += random.expovariate(rate)
        yield time


def _even(rate: float) -> Iterator[float]:
    return (number / rate for number in count())
