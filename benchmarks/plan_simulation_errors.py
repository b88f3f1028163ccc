"""What benchmarks/plan_simulation.py compares: steps predicted and measured, latencies simulated and real,
and which errors are too large.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from plan_simulation_server import Rows, Steps

from gyrfalcon.plan.simulate import Ended, SimulatedSettings
from gyrfalcon.plan.simulate_figures import latencies
from gyrfalcon.plan.simulate_measured import MeasuredSteps, TimedStep
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.trace import TraceRequest

NAMES = ("first_token_ms", "time_per_token_ms", "end_to_end_ms")
SHARES = (50, 90)  # percentiles that are compared
MOST_MOVED = 0.1  # of the capacity
MOST_OTHERS = 0.05  # of the processors' time
WARM_UP_SHARE = 0.2
STEP_LIMITS = {"median_error": 0.10, "p90_error": 0.25}
SPREADS = ("median_spread", "p90_spread")
END_LIMITS = {50: 0.15, 90: 0.25}  # of errors at percentiles
ALIKE, FEWEST_ALIKE = 0.1, 8  # contexts, in logarithms; steps
LOAD_OF_LIMITS = 0.8  # above, errors are reported only

Piece = Mapping[str, Any]  # a model with one seed, as in the JSON


def is_void(capacity: Sequence[float], others: float) -> bool:
    """Whether the machine was not the same before and after, or not for the benchmark alone."""
    before, after = capacity
    return abs(after / before - 1) > MOST_MOVED or others > MOST_OTHERS


def step_errors(steps: Steps, times: MeasuredSteps) -> dict[str, float]:
    """Relative errors of predicted steps that the fit has not seen."""
    errors = [abs(predicted(one, times) / one.seconds - 1) for one in steps]
    median, p90 = np.percentile(errors, SHARES).tolist()
    return {"predicted": len(errors), "median_error": median, "p90_error": p90, **spread(steps)}


def predicted(step: TimedStep, times: MeasuredSteps) -> float:
    """Seconds of a step during which so many requests arrive."""
    return times.seconds(step.load) + step.arrivals * times.arrival_seconds


def spread(steps: Steps) -> dict[str, float]:
    """How far decoding steps lie from the median of those of the same run that are alike, with as many
    sequences and contexts within a tenth, and no arrival: what no prediction by these numbers can tell.
    """
    alike: dict[tuple[int, int], list[float]] = {}
    for load, seconds, arrivals in steps:
        if not load.prompt_tokens and not arrivals:
            place = round(math.log(load.context_tokens) / ALIKE)
            alike.setdefault((load.decoding, place), []).append(seconds)
    errors = [
        abs(float(np.median(same)) / one - 1)
        for same in alike.values()
        if len(same) >= FEWEST_ALIKE
        for one in same
    ]
    if not errors:
        return {}
    median, p90 = np.percentile(errors, SHARES).tolist()
    return {"alike": len(errors), "median_spread": median, "p90_spread": p90}


def outside_ms(loops: Sequence[Rows], settings: SimulatedSettings, times: MeasuredSteps) -> float:
    """What requests take to their first token beside their steps, HTTP and tokenising: the median over
    closed loops, whose requests are simulated as they were sent.
    """
    beyond: list[float] = []
    for rows in loops:
        ordered = sorted(rows, key=lambda row: row["due"])
        trace = [TraceRequest(row["due"], row["input_len"], row["output_len"]) for row in ordered]
        found = [latencies(one).ttft for one in _simulated(trace, settings, times)]
        beyond += [row["first_token_ms"] - ms for row, ms in zip(ordered, found, strict=True)]
    return max(float(np.median(beyond)), 0.0)


def end_to_end(
    rows: Rows, settings: SimulatedSettings, times: MeasuredSteps, outside: float
) -> dict[str, Any]:
    """Percentiles of a run, real and simulated with its own arrivals and lengths, and relative errors."""
    ordered = sorted(rows, key=lambda row: row["due"])
    trace = [TraceRequest(row["due"], row["input_len"], row["output_len"]) for row in ordered]
    found = _simulated(trace, settings, times)
    warm_up = WARM_UP_SHARE * trace[-1].arrival_s
    real = {name: [row[name] for row in ordered if row["due"] >= warm_up] for name in NAMES}
    counted = [latencies(one) for one in found if one.request.arrival_s >= warm_up]
    predicted: dict[str, list[Any]] = {
        "first_token_ms": [one.ttft + outside for one in counted],
        "time_per_token_ms": [one.tpot for one in counted],
        "end_to_end_ms": [one.e2e + outside for one in counted],
    }
    result: dict[str, Any] = {"real": {}, "simulated": {}, "errors": {}}
    for name in NAMES:
        for share in SHARES:
            key = f"{name[:-3]}_p{share}"
            was, said = (
                float(np.percentile([one for one in values[name] if one is not None], share))
                for values in (real, predicted)
            )
            result["real"][key], result["simulated"][key] = was, said
            result["errors"][key] = said / was - 1
    return result


def summary(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Medians over the seeds of one model: of the errors of steps, and of each load's errors without their
    sign. Void pieces count for nothing.
    """
    sound = [piece for piece in pieces if not piece["void"]]
    runs = [run for piece in sound for run in piece["runs"]]
    loads = dict.fromkeys(run["load"] for run in runs)
    return {
        "seeds": len(sound),
        "steps": {key: _median(one["steps"][key] for one in sound) for key in STEP_LIMITS if sound},
        "spread": {
            key: _median(one["steps"][key] for one in sound if key in one["steps"])
            for key in SPREADS
            if any(key in one["steps"] for one in sound)
        },
        "loads": {f"{load:g}": _errors(runs, load) for load in loads},
    }


def misses(found: Mapping[str, Any], seeds: int) -> list[str]:
    """What of a summary is not within its limit, or is not there."""
    lines = [f"{found['seeds']} sound seeds, wanted {seeds}"] if found["seeds"] < seeds else []
    for key, error in found["steps"].items():
        if error > STEP_LIMITS[key]:
            lines.append(f"steps {key} {error:.1%}, wanted {STEP_LIMITS[key]:.0%}")
    for share, errors in found["loads"].items():
        for key, error in errors.items():
            limit = END_LIMITS[int(key.rpartition("_p")[2])]
            if float(share) <= LOAD_OF_LIMITS and error > limit:
                lines.append(f"load {share} {key} {error:.1%}, wanted {limit:.0%}")
    return lines


def _errors(runs: Sequence[Mapping[str, Any]], load: float) -> dict[str, float]:
    own = [run["errors"] for run in runs if run["load"] == load]
    return {key: _median(abs(errors[key]) for errors in own) for key in own[0]}


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _simulated(
    trace: Sequence[TraceRequest], settings: SimulatedSettings, times: MeasuredSteps
) -> list[Ended]:
    """What becomes of each request, in order."""
    found: list[Ended] = []
    own = replace(settings, arrival_seconds=times.arrival_seconds)
    Simulation(own, times).run(trace, ended=found.append)
    return sorted(found, key=lambda one: one.number)
