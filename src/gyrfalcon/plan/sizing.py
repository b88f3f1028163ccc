"""How many cards a target needs, and in which split: for each number of ranks the most streams that a replica
serves within the target, by formulas.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gyrfalcon.errors import UsageError, WorldSizeError
from gyrfalcon.plan.estimate import HOUR, Setting, Split
from gyrfalcon.plan.lengths import Streams
from gyrfalcon.plan.prediction import Parts, Predicted
from gyrfalcon.plan.step_load import StepLoad, decoding_load
from gyrfalcon.plan.target import Target

UTILISATION = 0.8  # at most
PERCENTILE = 0.9  # of first tokens and inter-token times that meet the target
# 99 % of the time cache, and streams that think or arrive at random, are enough.
SPARE_DEVIATIONS = 2.33
MACHINES = (2, 4, 8)  # that share a replica where one machine cannot hold it


@dataclass(frozen=True, slots=True)
class Demand:
    """What users ask for."""

    target: Target
    first_token: float  # seconds, PERCENTILE of the requests
    streams: Streams
    think_seconds: float = 0.0  # between an answer and the next request of a user
    requests_per_second: float | None = None  # instead of users
    spare: int = 0  # replicas beyond those that are needed

    @property
    def stream_seconds(self) -> float:
        """How long a stream is open when it just meets the target."""
        return self.first_token + self.streams.output_mean / self.target.tokens_per_second

    @property
    def num_streams(self) -> int:
        """Streams that are open at a time, in 99 % of the time: all users, of those that think a part
        (binomial), of those that arrive at random a mean by Little's law (Poisson).
        """
        if self.requests_per_second is not None:
            mean = self.requests_per_second * self.stream_seconds
            return math.ceil(mean + SPARE_DEVIATIONS * math.sqrt(mean))
        assert self.target.users is not None
        share = self.stream_seconds / (self.stream_seconds + self.think_seconds)
        mean = self.target.users * share
        return math.ceil(mean + SPARE_DEVIATIONS * math.sqrt(mean * (1 - share)))


@dataclass(frozen=True, slots=True)
class Pace:
    """A replica with this many decoding streams. Times in seconds."""

    num_streams: int
    chunk: int  # prompt tokens of a step that has some: --step-target keeps them so few
    decoding: Parts  # a step without prompt tokens
    mixed: Parts  # one with
    mixed_share: float  # of the steps
    first_token: float  # PERCENTILE
    inter_token: float  # PERCENTILE
    utilisation: float
    # What does not hold: cache, sequences, inter-token, first token or utilisation.
    lacks: str | None

    @property
    def mean_step(self) -> float:
        return _mean_step(self.decoding, self.mixed, self.mixed_share)


@dataclass(frozen=True, slots=True)
class Sized:
    """A split that meets the target, and what bounds it."""

    split: Split
    machines: int
    pace: Pace  # at the streams that each replica gets
    most: int  # streams that a replica could serve
    bound: str  # what one stream more would lack

    def cost_per_million(self, demand: Demand, price_per_hour: float) -> float:
        """What a million output tokens cost at the target's speed, spare cards included."""
        rate = demand.num_streams * demand.target.tokens_per_second
        return price_per_hour * self.split.cards / HOUR / rate * 1e6


def size(setting: Setting, demand: Demand) -> list[Sized]:
    """The splits that meet the target, the one with the fewest cards first; among equals the one on fewer
    machines, then the faster. UsageError where none does, with what the best lacks.
    """
    found, lacking = [], list[tuple[int, Pace | str]]()
    for ranks in _worlds(setting):
        try:
            one = _sized(setting, demand, ranks)
        except (WorldSizeError, UsageError) as error:  # too many ranks, or matrices not cut so
            lacking.append((ranks, str(error)))
            continue
        if isinstance(one, Sized):
            found.append(one)
        else:
            lacking.append((ranks, one))
    if not found:
        raise _nothing_meets(setting, demand, lacking)
    return sorted(found, key=lambda one: (one.split.cards, one.machines, one.pace.mean_step))


def _worlds(setting: Setting) -> Sequence[int]:
    """Ranks that share a replica: those that fill a machine without a rest, else whole machines."""
    cards = setting.hardware.cards_per_machine
    within = [ranks for ranks in range(1, cards + 1) if cards % ranks == 0]
    if not setting.hardware.on_cards:
        return (1,)
    try:
        if setting.memory(cards).cache > 0:
            return within
    except (WorldSizeError, UsageError):
        return within
    return [cards * machines for machines in MACHINES]


def _sized(setting: Setting, demand: Demand, ranks: int) -> Sized | Pace:
    """The fewest replicas of this many ranks; what one stream lacks where not even that is served."""
    cache_tokens = setting.memory(ranks).cache_tokens
    predicted = setting.predicted(ranks)
    limit = min(setting.max_sequences, demand.num_streams)

    def pace(num_streams: int) -> Pace:
        return _pace(setting, demand, predicted, cache_tokens, num_streams)

    if pace(1).lacks is not None:
        return pace(1)
    most = _last(limit, lambda num: pace(num).lacks is None)
    bound = pace(most + 1).lacks or "sequences"
    return serving(setting, demand, ranks, most, "users" if most == demand.num_streams else bound)


def serving(setting: Setting, demand: Demand, ranks: int, most: int, bound: str) -> Sized:
    """The fewest replicas of this many ranks when each serves at most `most` streams, because of `bound`."""
    replicas = -(-demand.num_streams // most)
    each = -(-demand.num_streams // replicas)
    split = Split(ranks, replicas + demand.spare)
    per_machine = max(setting.hardware.cards_per_machine // ranks, 1)
    machines = -(-split.replicas // per_machine) * -(-ranks // setting.hardware.cards_per_machine)
    tokens = setting.memory(ranks).cache_tokens
    pace = _pace(setting, demand, setting.predicted(ranks), tokens, each)
    return Sized(split, machines, pace, most, bound)


def _last(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that holds, where 1 does and each below one that holds does."""
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _pace(
    setting: Setting, demand: Demand, predicted: Predicted, cache_tokens: int, num_streams: int
) -> Pace:
    """With the largest chunk of prompts that keeps the inter-token times: all that a step may take, where few
    steps have one; else fewer, as --step-target does.
    """
    block = setting.hardware.block_size
    largest = max(setting.max_batch_tokens - num_streams, block)
    whole = _at_chunk(setting, demand, predicted, cache_tokens, num_streams, largest)
    if whole.lacks != "inter-token":
        return whole
    steps = largest // block
    longest = 1 / demand.target.tokens_per_second

    def is_short(blocks: int) -> bool:
        load = _mixed(demand.streams, num_streams, blocks * block)
        return predicted.seconds(load) <= longest

    if steps < 1 or not is_short(1):
        return whole
    chunk = _last(steps, is_short) * block
    return _at_chunk(setting, demand, predicted, cache_tokens, num_streams, chunk)


def _at_chunk(
    setting: Setting,
    demand: Demand,
    predicted: Predicted,
    cache_tokens: int,
    num_streams: int,
    chunk: int,
) -> Pace:
    """Each decoding stream ends after its output, and another prompt follows: this many prompt tokens come
    with each step, and this share of the steps has a chunk of them.
    """
    streams, rate = demand.streams, demand.target.tokens_per_second
    context = round(num_streams * streams.context[0])
    decoding = predicted.parts(decoding_load(num_streams, context))
    mixed = predicted.parts(_mixed(streams, num_streams, chunk))
    chunks = sum(-(-prompt // chunk) for prompt in streams.prompts) / len(streams.prompts)
    share = num_streams / streams.output_mean * chunks
    mean = _mean_step(decoding, mixed, min(share, 1.0))
    inter_token = decoding.seconds if share <= 1 - PERCENTILE else mixed.seconds
    first = _first_token(streams, chunk, mixed.seconds, share, mean)
    utilisation = max(rate * mean, share)
    pace = Pace(num_streams, chunk, decoding, mixed, share, first, inter_token, utilisation, None)
    held = streams.held(num_streams, setting.hardware.block_size, SPARE_DEVIATIONS)
    checks = {
        "cache": held <= cache_tokens and streams.longest <= cache_tokens,
        "sequences": num_streams <= setting.max_sequences,
        "inter-token": inter_token <= 1 / rate,
        "utilisation": utilisation <= UTILISATION,
        "first token": first <= demand.first_token,
    }
    return replace(pace, lacks=next((name for name, holds in checks.items() if not holds), None))


def _mixed(streams: Streams, num_streams: int, chunk: int) -> StepLoad:
    """A step of decoding streams and a chunk from the middle of a prompt."""
    context = round(num_streams * streams.context[0])
    prompt = round(streams.prompt_mean)
    attended = chunk * (prompt + 1) // 2
    return StepLoad(chunk, num_streams, context + prompt, context + attended)


def _mean_step(decoding: Parts, mixed: Parts, share: float) -> float:
    return (1 - share) * decoding.seconds + share * mixed.seconds


def _first_token(
    streams: Streams, chunk: int, mixed_seconds: float, share: float, mean_step: float
) -> float:
    """PERCENTILE of a request's wait for the prompts before it, its own chunks, and the step under way.

    Prompts are served one after the other, `mixed_seconds` for each chunk; they arrive at random, which for a
    single server gives the Pollaczek-Khinchine mean. The wait is 0 with probability 1 − share, else
    exponential about that mean: close for the tail (Kleinrock 1975, "Queueing Systems", volume 1).
    """
    if share >= 1:
        return math.inf
    services = [-(-prompt // chunk) * mixed_seconds for prompt in streams.prompts]
    mean = sum(services) / len(services)
    square = sum(one * one for one in services) / len(services)
    waiting = share / mean * square / (2 * (1 - share))  # of all requests
    places = [(n + 0.5) / len(services) for n in range(len(services))]
    waits = [
        0.0 if place <= 1 - share else waiting / share * math.log(share / (1 - place))
        for place in places
    ]
    totals = sorted(wait + service for wait in waits for service in services)
    return totals[min(math.ceil(PERCENTILE * len(totals)), len(totals)) - 1] + mean_step


def _nothing_meets(
    setting: Setting, demand: Demand, lacking: Sequence[tuple[int, Pace | str]]
) -> UsageError:
    """What the split that comes nearest lacks with a single stream."""
    paces = [(ranks, one) for ranks, one in lacking if isinstance(one, Pace)]
    wanted = f"a split of {setting.model.name} on {setting.hardware.name} that meets the target"
    if not paces:
        return UsageError(wanted, f"none: {lacking[-1][1]}", "take other hardware or --quant")
    ranks, best = min(paces, key=lambda one: (one[1].lacks == "cache", one[1].inter_token))
    got = (
        f"none: with {ranks} ranks a single stream lacks {best.lacks} "
        f"({1 / best.inter_token:.1f} tok/s, first token {best.first_token:.2f} s)"
    )
    do = "lower the target, raise --ttft, or take --quant int8 or faster hardware"
    return UsageError(wanted, got, do)
