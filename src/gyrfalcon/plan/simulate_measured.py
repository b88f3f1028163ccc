"""Step times fitted to measured ones: of single steps, or of whole answers, as `gyrfalcon speed` has them."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gyrfalcon.errors import ConfigError, UsageError
from gyrfalcon.files.json_fields import Fields, parsed_json
from gyrfalcon.files.text import contents
from gyrfalcon.plan.simulate import NEVER, SimulatedEngine, SimulatedSettings
from gyrfalcon.plan.step_load import StepLoad
from gyrfalcon.plan.trace import TraceRequest

FORMAT = "gyrfalcon-step-times"
VERSION = 1
MOST_KNOTS = 12
FEWEST = 4  # times that a fit takes
DO = "name another file, or measure again"
WEIGHINGS = 4  # of errors, the first by what was measured
LEAST_SHARE = 0.01  # of a measured time: no error counts more than by that
MOST_ROUNDS = 200  # of the fit: far more than any takes


class Timed(NamedTuple):
    """Steps, how often each was taken, and how long all of them took together."""

    steps: Sequence[tuple[StepLoad, int]]
    seconds: float
    arrivals: int = 0  # requests that came meanwhile


class TimedStep(NamedTuple):
    """One step, and how long it took to the start of the next one."""

    load: StepLoad
    seconds: float
    arrivals: int = 0  # requests that came meanwhile


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """Predicts a step (a StepTimes): a piecewise linear function of its tokens, and an amount for each
    sequence that decodes, each key that is read and each that a token attends to. No part is below 0, and
    none becomes less by a token. What a request that arrives adds to the step under way is known beside it.
    """

    knots: tuple[int, ...]  # numbers of tokens, rising
    at_knots: tuple[float, ...]  # seconds there
    sequence_seconds: float
    context_seconds: float
    attended_seconds: float
    arrival_seconds: float = 0.0

    def seconds(self, load: StepLoad) -> float:
        """Seconds of a step; beyond the last knot as steep as before it."""
        return (
            self._of_tokens(load.prompt_tokens + load.decoding)
            + self.sequence_seconds * load.decoding
            + self.context_seconds * load.context_tokens
            + self.attended_seconds * load.attended
        )

    def _of_tokens(self, tokens: int) -> float:
        knots, values = self.knots, self.at_knots
        if tokens <= knots[0] or len(knots) == 1:
            return values[0]
        place = min(bisect_right(knots, tokens), len(knots) - 1)
        left, right = knots[place - 1], knots[place]
        steepness = (values[place] - values[place - 1]) / (right - left)
        return values[place - 1] + steepness * (tokens - left)


def fit_steps(measured: Sequence[Timed]) -> MeasuredSteps:
    """The MeasuredSteps with the least squares of errors, each relative to what is predicted: relative to
    what was measured, slow steps would count for less than quick ones, and all together come out too short.
    UsageError of too few times.
    """
    if len(measured) < FEWEST:
        raise UsageError(f"{FEWEST} measured times or more", str(len(measured)), DO)
    knots = _knots(measured)
    rows = np.array(
        [
            [
                *sum(
                    (n * _features(load, knots) for load, n in one.steps), np.zeros(len(knots) + 3)
                ),
                one.arrivals,
            ]
            for one in measured
        ]
    )
    seconds = np.array([one.seconds for one in measured])
    scale = seconds
    for _ in range(WEIGHINGS):
        found = _not_negative(rows / scale[:, None], seconds / scale)
        scale = np.maximum(rows @ found, LEAST_SHARE * seconds)
    *increases, sequence, context, attended, arrival = found.tolist()
    at_knots = np.cumsum(increases).tolist()
    return MeasuredSteps(tuple(knots), tuple(at_knots), sequence, context, attended, arrival)


def read_measured(path: str, settings: SimulatedSettings) -> MeasuredSteps:
    """Fits the times in a file: those of steps that benchmarks/plan_simulation.py wrote, or a result of
    `gyrfalcon speed`, whose engine had the step limits and block size of `settings`.
    """
    document = parsed_json(contents(path), path, DO)
    try:
        if isinstance(document, dict) and document.get("format") == FORMAT:
            return fit_single_steps(_steps(Fields(document, path)))
        if isinstance(document, dict) and document.get("kind") == "speed":
            return fit_steps(list(_answers(Fields(document, path), settings)))
    except ConfigError as error:
        raise UsageError(error.wanted, error.got, error.do) from None
    wanted = f"step times or a result of gyrfalcon speed in {path}"
    raise UsageError(wanted, "other JSON", "name another file")


def fit_single_steps(measured: Iterable[TimedStep]) -> MeasuredSteps:
    """fit_steps() of steps that were timed one by one."""
    return fit_steps([Timed([(one.load, 1)], one.seconds, one.arrivals) for one in measured])


def steps_document(facts: Mapping[str, object], steps: Iterable[TimedStep]) -> str:
    """Measured steps as JSON that read_measured() takes; `facts`: on which machine, of which model."""
    rows = [
        {**one.load._asdict(), "seconds": one.seconds, "arrivals": one.arrivals} for one in steps
    ]
    document = {"format": FORMAT, "version": VERSION, **facts, "steps": rows}
    return json.dumps(document, indent=1) + "\n"


def write_steps(path: Path, facts: Mapping[str, object], steps: Iterable[TimedStep]) -> None:
    """Writes steps_document() to a file."""
    path.write_text(steps_document(facts, steps), "utf-8")


def _steps(document: Fields) -> Iterable[TimedStep]:
    for row in document.objects("steps"):
        load = StepLoad(*(row.count(name) for name in StepLoad._fields))
        if not load.tokens:
            raise UsageError(f"a step with tokens in {row.where}", "none", DO)
        arrivals = row.count("arrivals") if "arrivals" in row.raw else 0
        yield TimedStep(load, _above_zero(row, "seconds"), arrivals)


def _answers(document: Fields, settings: SimulatedSettings) -> Iterable[Timed]:
    """Of each case of a speed sweep: the times of its first tokens, and of whole answers."""
    for row in document.inside("result").objects("rows"):
        if row.raw.get("status") != "measured":
            continue
        batch, input_len, output_len = (
            row.positive(name) for name in ("batch", "input_len", "output_len")
        )
        for length, name in ((1, "first_token_ms"), (output_len, "response_ms")):
            loads = _loads(settings, batch, input_len, length)
            yield Timed(loads, _above_zero(row, name) / 1000)


class _Noted:
    """A StepTimes that counts what it is asked for."""

    def __init__(self) -> None:
        self.loads: Counter[StepLoad] = Counter()

    def seconds(self, load: StepLoad) -> float:
        self.loads[load] += 1
        return 1.0


def _loads(
    settings: SimulatedSettings, batch: int, input_len: int, output_len: int
) -> list[tuple[StepLoad, int]]:
    """The steps that answer a batch of prompts, as the scheduler takes them."""
    noted, longest = _Noted(), input_len + output_len
    num_blocks = batch * -(-longest // settings.block_size)
    limits = replace(settings.limits, max_len=longest, max_sequences=batch)
    own = replace(
        settings, limits=limits, num_blocks=num_blocks, reuse_prefixes=False, step_target=None
    )
    engine = SimulatedEngine(own, noted, lambda _: None)
    for number in range(batch):
        engine.add(number, TraceRequest(0.0, input_len, output_len), 0.0)
    engine.advance(NEVER)
    return list(noted.loads.items())


def _above_zero(row: Fields, name: str) -> float:
    value = row.need(float, name)
    if value <= 0:
        raise UsageError(f"{name} above 0 in {row.where}", f"{value:g}", DO)
    return value


def _knots(measured: Sequence[Timed]) -> list[int]:
    """The numbers of tokens that were measured, or some of them, each this many times the one before."""
    tokens = sorted({load.tokens for one in measured for load, _ in one.steps})
    if len(tokens) <= MOST_KNOTS:
        return tokens
    wanted = np.geomspace(tokens[0], tokens[-1], MOST_KNOTS)
    return sorted({min(tokens, key=lambda one: abs(one - place)) for place in wanted.tolist()})


def _features(load: StepLoad, knots: Sequence[int]) -> np.ndarray:
    """What a step has of each part: of the first knot's seconds, of the increase to each further one (beyond
    the last more than all of it), sequences that decode, keys that are read, pairs.
    """
    of_tokens = [1.0]
    for left, right in pairwise(knots):
        share = (load.tokens - left) / (right - left)
        of_tokens.append(max(share, 0.0) if right == knots[-1] else min(max(share, 0.0), 1.0))
    return np.array([*of_tokens, load.decoding, load.context_tokens, load.attended])


def _not_negative(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The least squares solution without numbers below 0: the active set of Lawson and Hanson (Solving Least
    Squares Problems, 1974, chapter 23).
    """
    scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    rows = rows / scale
    found = np.zeros(rows.shape[1])
    free = np.zeros(rows.shape[1], bool)
    for _ in range(MOST_ROUNDS):
        slope = rows.T @ (wanted - rows @ found)
        slope[free] = -np.inf
        if free.all() or slope.max() <= 1e-10:
            break
        free[slope.argmax()] = True
        found = _kept_positive(rows, wanted, found, free)
    solution: np.ndarray = found / scale
    return solution


def _kept_positive(
    rows: np.ndarray, wanted: np.ndarray, found: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """The solution of the free columns, of which those that would pass 0 are bound again."""
    while True:
        tried = np.zeros_like(found)
        tried[free] = np.linalg.lstsq(rows[:, free], wanted, rcond=None)[0]
        below = free & (tried <= 0)
        if not below.any():
            return tried
        way = float(np.min(found[below] / (found[below] - tried[below])))
        found = np.add(found, way * (tried - found))
        free[free & (found <= 1e-15)] = False
