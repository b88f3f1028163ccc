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
END_LIMITS = {50: 0.15, 90: 0.25}  # of errors at percentiles
LOAD_OF_LIMITS = 0.8  # above, errors are reported only

Piece = Mapping[str, Any]  # a model with one seed, as in the JSON


def is_void(capacity: Sequence[float], others: float) -> bool:
    """Whether the machine was not the same before and after, or not for the benchmark alone."""
    before, after = capacity
    return abs(after / before - 1) > MOST_MOVED or others > MOST_OTHERS


def is_moved(paces: Sequence[float]) -> bool:
    """Whether the machine's pace was another before an open loop than after it."""
    before, after = paces
    return abs(math.log(after / before)) > math.log(1 + MOST_MOVED)


def pace(segments: Sequence[Steps], times: MeasuredSteps) -> list[float]:
    """How much longer than predicted the steps of each segment took: the median."""
    return [
        float(np.median([one.seconds / predicted(one, times) for one in steps]))
        for steps in segments
    ]


def at_pace(times: MeasuredSteps, factor: float) -> MeasuredSteps:
    """The same where everything takes so much longer."""
    return MeasuredSteps(
        times.knots,
        tuple(factor * one for one in times.at_knots),
        factor * times.sequence_seconds,
        factor * times.context_seconds,
        factor * times.attended_seconds,
        factor * times.arrival_seconds,
    )


def errors_of_steps(steps: Steps, times: MeasuredSteps) -> list[float]:
    """Relative errors of predicted steps that the fit has not seen."""
    return [abs(predicted(one, times) / one.seconds - 1) for one in steps]


def percentiles_of(errors: Sequence[float]) -> dict[str, float]:
    """Of the errors of single steps."""
    median, p90 = np.percentile(errors, SHARES).tolist()
    return {"predicted": len(errors), "median_error": median, "p90_error": p90}


def predicted(step: TimedStep, times: MeasuredSteps) -> float:
    """Seconds of a step during which so many requests arrive."""
    return times.seconds(step.load) + step.arrivals * times.arrival_seconds


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
    sign. Void pieces count for nothing, nor do void runs.
    """
    sound = [piece for piece in pieces if not piece["void"]]
    runs = [run for piece in sound for run in piece["runs"]]
    loads = dict.fromkeys(run["load"] for run in runs)
    own = {load: [run for run in runs if run["load"] == load and not run["void"]] for load in loads}
    return {
        "seeds": len(sound),
        "steps": {key: _median(one["steps"][key] for one in sound) for key in STEP_LIMITS if sound},
        "loads": {
            f"{load:g}": {"seeds": len(kept), "errors": _errors(kept)} for load, kept in own.items()
        },
    }


def misses(found: Mapping[str, Any], seeds: int) -> list[str]:
    """What of a summary is not within its limit, or is not there."""
    lines = [f"{found['seeds']} sound seeds, wanted {seeds}"] if found["seeds"] < seeds else []
    for share, one in found["loads"].items():
        if float(share) > LOAD_OF_LIMITS:
            continue
        if one["seeds"] < seeds and not lines:
            lines.append(f"load {share} {one['seeds']} sound seeds, wanted {seeds}")
        for key, error in one["errors"].items():
            limit = END_LIMITS[int(key.rpartition("_p")[2])]
            if error > limit:
                lines.append(f"load {share} {key} {error:.1%}, wanted {limit:.0%}")
    return lines


def _errors(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    own = [run["errors"] for run in runs]
    return {key: _median(abs(errors[key]) for errors in own) for key in own[0]} if own else {}


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
