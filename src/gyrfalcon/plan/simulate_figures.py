"""What a simulation comes to: percentiles, goodput, cache and prefix hits. Requests that have ended are
counted and forgotten, so a million of them take no more memory than a thousand.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gyrfalcon.load.figures import Goodput, Latencies, Spread
from gyrfalcon.plan.simulate import Ended, SimulatedEngine

BINS_OF_E = 1000  # bins from one value to e times as much: a bin is 0.1 % wide
LEAST, MOST = 1e-4, 1e10  # what is told apart, in milliseconds
NUM_BINS = int(math.log(MOST / LEAST) * BINS_OF_E) + 1
MOST_NEW = 1 << 16  # values that are not in their bins yet


@dataclass(frozen=True, slots=True)
class Replicas:
    """What all replicas have used after the warm-up; shares are between 0 and 1."""

    count: int
    steps: int
    busy_share: float  # of the time, on average
    busiest_share: float
    cache_share: float  # of the blocks while steps run, on average
    most_cache_share: float  # of one replica
    prompt_tokens: int
    cached_tokens: int  # of them taken over from the cache

    @property
    def hit_share(self) -> float:
        """Prompt tokens that were not computed, because an earlier prompt began alike."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class SimulatedFigures:
    """All figures of a simulation. Latencies are those of finished requests, from their arrival. What
    arrived within `warm_up` seconds is in none of the counts; what replicas use is counted from then on.
    """

    seconds: float  # from the start to the last end
    warm_up: float
    requests: int
    finished: int
    expired: int  # their deadline passed
    preemptions: int
    finished_per_second: float
    output_tokens_per_second: float
    first_token_ms: Spread | None
    inter_token_ms: Spread | None
    end_to_end_ms: Spread | None
    queued_ms: Spread | None  # until the first step begins that computes a request
    goodput: Goodput | None
    replicas: Replicas


class Collector:
    """Counts requests as they end."""

    def __init__(self, limits: Mapping[str, float], warm_up: float = 0.0) -> None:
        """`limits` of goodput in milliseconds, by name as in load/goodput.py; {} for none."""
        self._limits = limits
        self._warm_up = warm_up
        self._num_finished = self._num_expired = self._num_good = 0
        self._num_output_tokens = self._num_preemptions = 0
        self._last_end = 0.0
        names = ("first_token", "inter_token", "end_to_end", "queued")
        self._spreads = {name: Distribution() for name in names}

    def ended(self, request: Ended) -> None:
        """Takes in a request."""
        self._last_end = max(self._last_end, request.end)
        arrival = request.request.arrival_s
        if arrival < self._warm_up:
            return
        self._num_preemptions += request.num_preemptions
        if request.expired:
            self._num_expired += 1
            return
        assert request.admitted is not None
        self._num_finished += 1
        self._num_output_tokens += len(request.token_times)
        found = latencies(request)
        self._spreads["first_token"].add((found.ttft,))
        self._spreads["inter_token"].add(found.gaps)
        self._spreads["end_to_end"].add((found.e2e,))
        self._spreads["queued"].add((1000 * (request.admitted - arrival),))
        self._num_good += found.keeps(self._limits)

    def figures(self, engines: Sequence[SimulatedEngine]) -> SimulatedFigures:
        """The figures of all that has ended, on these replicas."""
        seconds = max(self._last_end - self._warm_up, 0.0)
        total = self._num_finished + self._num_expired
        spreads = {f"{name}_ms": one.spread() for name, one in self._spreads.items()}
        good, goodput = self._num_good, None
        if self._limits:
            share = good / total if total else 0.0
            goodput = Goodput(self._limits, good, share, _rate(good, seconds))
        return SimulatedFigures(
            seconds=self._last_end,
            warm_up=self._warm_up,
            requests=total,
            finished=self._num_finished,
            expired=self._num_expired,
            preemptions=self._num_preemptions,
            finished_per_second=_rate(self._num_finished, seconds),
            output_tokens_per_second=_rate(self._num_output_tokens, seconds),
            goodput=goodput,
            replicas=_replicas(engines, seconds),
            **spreads,
        )


def latencies(request: Ended) -> Latencies:
    """The latencies of a finished request, in milliseconds, as load/figures.py has them."""
    arrival, times = request.request.arrival_s, request.token_times
    gaps = [1000 * (after - before) for before, after in pairwise(times)]
    return Latencies(
        ttft=1000 * (times[0] - arrival),
        itl=_percentile(gaps, 0.99) if gaps else None,
        tpot=sum(gaps) / len(gaps) if gaps else None,
        e2e=1000 * (request.end - arrival),
        gaps=tuple(gaps),
    )


class Distribution:
    """Values of 0 or more, in bins that are 0.1 % wide. Mean and maximum are exact."""

    def __init__(self) -> None:
        self._counts = np.zeros(NUM_BINS, np.int64)
        self._new: list[float] = []
        self._num, self._sum = 0, 0.0
        self._least, self._most = math.inf, 0.0

    def add(self, values: Iterable[float]) -> None:
        """Takes in some values."""
        self._new += values
        if len(self._new) > MOST_NEW:
            self._sort_in()

    def spread(self) -> Spread | None:
        """Their distribution; None of none."""
        self._sort_in()
        if not self._num:
            return None
        below = np.cumsum(self._counts)
        p50, p90, p99 = (self._percentile(below, share) for share in (0.5, 0.9, 0.99))
        return Spread(p50, p90, p99, self._sum / self._num, self._most)

    def _percentile(self, below: np.ndarray, share: float) -> float:
        """The middle of the bin that has it."""
        place = int(np.searchsorted(below, share * (self._num - 1), side="right"))
        value = LEAST * math.exp((place + 0.5) / BINS_OF_E)
        return min(max(value, self._least), self._most)

    def _sort_in(self) -> None:
        if not self._new:
            return
        values = np.array(self._new)
        self._new.clear()
        bins = np.log(np.clip(values, LEAST, MOST) / LEAST) * BINS_OF_E
        self._counts += np.bincount(bins.astype(np.int64), minlength=NUM_BINS)[:NUM_BINS]
        self._num += len(values)
        self._sum += float(values.sum())
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))


def _percentile(values: Sequence[float], share: float) -> float:
    """Interpolated between the two values next to it, as numpy does."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _replicas(engines: Sequence[SimulatedEngine], seconds: float) -> Replicas:
    uses, stats = [one.use for one in engines], [one.stats() for one in engines]
    busy = [use.busy_seconds for use in uses]
    num_blocks = stats[0].num_blocks
    return Replicas(
        count=len(engines),
        steps=sum(use.num_steps for use in uses),
        busy_share=_rate(sum(busy), seconds * len(engines)),
        busiest_share=_rate(max(busy), seconds),
        cache_share=_rate(sum(use.block_seconds for use in uses), sum(busy) * num_blocks),
        most_cache_share=max(use.most_blocks for use in uses) / num_blocks,
        prompt_tokens=sum(one.num_prompt_tokens for one in stats),
        cached_tokens=sum(one.num_cached_tokens for one in stats),
    )


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
