"""Fits the shares of the peaks that an engine reaches to observed times, and predicts each observation from
the others.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from gyrfalcon.plan.prediction import Efficiency

START = (0.6, 0.4, 0.4)  # bytes, flops, few_flops
LEAST_STEP = 0.004  # of the search, in logarithms
ALIKE = 0.02  # what few_flops other than flops costs: nothing else decides where no row tells
NUDGE = 1.05  # a share is known if changing it so changes a prediction
HOSTS = (0.0, 5e-5, 1e-4, 2e-4, 3e-4, 4e-4, 6e-4, 9e-4, 1.3e-3)  # seconds that are tried
DIRECTIONS = [way for way in itertools.product((-1, 0, 1), repeat=3) if any(way)]


class TimedStep(NamedTuple):
    """A step, in seconds at the peaks, and how often it counts."""

    bytes: float
    flops: float
    tokens: int
    fixed: float = 0.0  # launches, collectives, host
    weight: float = 1.0


class Key(NamedTuple):
    """What shares are fitted for."""

    platform: str
    engine: str
    precision: str


@dataclass(frozen=True, slots=True)
class Observation:
    """A time that somebody measured, and the steps that it consists of."""

    key: Key
    name: str
    steps: tuple[TimedStep, ...]
    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Shares:
    """Fitted shares of the peaks; None where no observation tells."""

    bytes: float | None
    flops: float | None
    few_flops: float | None
    num_rows: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An observation predicted from the others of its key; None where it is the only one."""

    observation: Observation
    predicted: float | None

    @property
    def error(self) -> float | None:
        """Relative: above 0 is predicted too slow."""
        return None if self.predicted is None else self.predicted / self.observation.seconds - 1


def predicted_seconds(observation: Observation, efficiency: Efficiency) -> float:
    """The time that these shares give."""
    return sum(
        step.weight
        * (
            max(
                step.bytes / efficiency.bytes,
                step.flops / efficiency.flops_at(step.tokens),
            )
            + step.fixed
        )
        for step in observation.steps
    )


def fit(observations: Sequence[Observation]) -> Shares:
    """The shares with the least sum of |log(predicted / observed)|, by a pattern search (Hooke and Jeeves
    1961) over their logarithms.
    """
    efficiency = _searched(observations)
    values = (efficiency.bytes, efficiency.flops, efficiency.few_flops)
    moved, computed, few = (
        value if _is_known(observations, efficiency, place) else None
        for place, value in enumerate(values)
    )
    return Shares(moved, computed, few, len(observations))


def fit_with_host(observations: Sequence[Observation]) -> Efficiency:
    """The same with the host's seconds of a step, which come to `fixed` of each: for observations of one
    machine, whose steps may be as short as that.
    """
    tried = []
    for host in HOSTS:
        each = [_with_fixed(one, host) for one in observations]
        found = _searched(each)
        logarithms = [math.log(one) for one in (found.bytes, found.flops, found.few_flops)]
        tried.append((_cost(each, logarithms), replace(found, host_seconds=host)))
    return min(tried, key=lambda one: one[0])[1]


def leave_one_out(observations: Sequence[Observation]) -> list[LeftOut]:
    """Each observation of one key, predicted from the others."""
    found = []
    for place, observation in enumerate(observations):
        others = [*observations[:place], *observations[place + 1 :]]
        predicted = predicted_seconds(observation, _searched(others)) if others else None
        found.append(LeftOut(observation, predicted))
    return found


def median_error(rows: Sequence[LeftOut]) -> float | None:
    """The median of |error| of those that could be predicted."""
    errors = [abs(row.error) for row in rows if row.error is not None]
    return median(errors) if errors else None


def by_key(observations: Sequence[Observation]) -> Mapping[Key, list[Observation]]:
    """Observations that share a fit, in order."""
    found: dict[Key, list[Observation]] = {}
    for one in observations:
        found.setdefault(one.key, []).append(one)
    return dict(sorted(found.items()))


def _searched(observations: Sequence[Observation]) -> Efficiency:
    place, step = [math.log(value) for value in START], 0.8
    best = _cost(observations, place)
    while step > LEAST_STEP:
        tried = [
            [at + step * way for at, way in zip(place, ways, strict=True)] for ways in DIRECTIONS
        ]
        costs = [_cost(observations, one) for one in tried]
        least = min(costs)
        if least < best - 1e-9:
            place, best = tried[costs.index(least)], least
        else:
            step /= 2
    return _efficiency(place)


def _cost(observations: Sequence[Observation], place: Sequence[float]) -> float:
    efficiency = _efficiency(place)
    errors = [math.log(predicted_seconds(one, efficiency) / one.seconds) for one in observations]
    spread = 1e-3 * sum(error * error for error in errors)  # one answer where many are as good
    return sum(map(abs, errors)) + spread + ALIKE * abs(place[1] - place[2])


def _with_fixed(observation: Observation, seconds: float) -> Observation:
    steps = [step._replace(fixed=step.fixed + seconds) for step in observation.steps]
    return replace(observation, steps=tuple(steps))


def _efficiency(logarithms: Sequence[float]) -> Efficiency:
    moved, computed, few = map(math.exp, logarithms)
    return Efficiency(moved, computed, few)


def _is_known(observations: Sequence[Observation], found: Efficiency, place: int) -> bool:
    logarithms = [math.log(value) for value in (found.bytes, found.flops, found.few_flops)]
    logarithms[place] += math.log(NUDGE)
    nudged = _efficiency(logarithms)
    return any(
        abs(predicted_seconds(one, nudged) / predicted_seconds(one, found) - 1) > (NUDGE - 1) / 4
        for one in observations
    )
