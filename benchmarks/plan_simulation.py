"""The simulation of `gyrfalcon plan --trace` against a real server: step times that were not measured before,
and latencies end to end.

    python benchmarks/plan_simulation.py [--models nestling,A] [--loads 0.3,0.6,0.8,0.9] [--seeds 5]
        [--in uniform:16-128] [--out uniform:8-64] [--sequences 16] [--threads 1] [--json FILE]
        [--steps FOLDER]

Serves a model on the CPU from this process, with `gyrfalcon load` as the client in another, and notes
what each step computes and how long it takes, to the start of the next one. Step times are fitted to
closed loops of 1, 2, 4, … requests at a time. Capacity is what a closed loop of --sequences sustains;
then each share of it arrives as an open loop, with each seed. Of these runs the steps are predicted one
by one, and the same requests are simulated, with what a request alone takes beside its steps: requests of
the first fifth of the time are dropped. A model is void where its capacity, measured again at the end,
has moved by more than 10 %. Wanted: steps within 10 % (median) and 25 % (90th percentile); first token,
time per token and end to end within 15 % at their median and 25 % at their 90th percentile, up to 80 % of
capacity. --steps writes MODEL.json for `gyrfalcon plan --step-times`. A is that of cpu_peers_model.py,
1.17 billion weights in bf16. Run nothing else beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cpu_peers_model import SHAPES, VOCAB_SIZE, make_checkpoint
from serve_overhead import Loop, served

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.load.lengths import LengthsOption
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.plan.simulate import Ended, SimulatedSettings
from gyrfalcon.plan.simulate_figures import latencies
from gyrfalcon.plan.simulate_measured import MeasuredSteps, Timed, fit_steps, write_steps
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.simulate_steps import load_of_chunks
from gyrfalcon.plan.step_load import StepLoad
from gyrfalcon.plan.trace import TraceRequest
from gyrfalcon.request import Chunk, Delta

BODY = json.dumps({"ignore_eos": True, "temperature": 0})
NAMES = ("first_token_ms", "time_per_token_ms", "end_to_end_ms")
SHARES = (50, 90)  # percentiles that are compared
MOST_MOVED = 0.1  # of the capacity
WARM_UP_SHARE = 0.2
STEP_LIMITS = (0.10, 0.25)  # of the median error, and the 90th percentile
END_LIMITS = {50: 0.15, 90: 0.25}  # of errors at percentiles
LOAD_OF_LIMITS = 0.8  # above, errors are reported only

Steps = list[tuple[StepLoad, float]]
Rows = Sequence[Mapping[str, Any]]  # of requests, in load's JSON


class StepLog:
    """Notes the load of each step of an engine, and the seconds until the next one begins; not of one after
    which there was nothing to do.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._step = engine, engine.step
        self._compute: Callable[..., Any] = engine._core.compute
        self._steps: Steps = []
        self._last: StepLoad | None = None  # of the step under way
        self._begun: float | None = None  # of the last step, where there was more to do after it
        engine.step = self.step  # type: ignore[method-assign]
        engine._core.compute = self.compute  # type: ignore[method-assign]

    def step(self) -> list[Delta]:
        """The engine's step."""
        now = time.perf_counter()
        if self._begun is not None and self._last is not None:
            self._steps.append((self._last, now - self._begun))
        self._last = None
        deltas = self._step()
        self._begun = now if self._engine.has_work else None
        return deltas

    def compute(self, chunks: Sequence[Chunk]) -> Any:
        """What the step computes."""
        self._last = load_of_chunks(list(chunks))
        return self._compute(chunks)

    def pop(self) -> Steps:
        """The steps since the last call."""
        found, self._steps = self._steps, []
        return found


@dataclass(frozen=True, slots=True)
class Served:
    """A server under test."""

    loop: Loop
    log: StepLog
    args: argparse.Namespace

    def closed(self, concurrency: int, requests: int, seed: int) -> dict[str, Any]:
        """What load says of a closed loop."""
        words = ("--concurrency", str(concurrency), "--requests", str(requests))
        return self._load(*words, "--seed", str(seed))

    def capacity(self, requests: int, seed: int) -> float:
        """Requests a second of as many at a time as run at once."""
        found = self.closed(self.args.sequences, requests, seed)["result"]["finished_per_second"]
        assert isinstance(found, float)
        return found

    def opened(self, rate: float, requests: int, seed: int) -> Rows:
        """The requests of an open loop."""
        words = ("--rate", f"{rate:.6f}", "--requests", str(requests), "--seed", str(seed))
        return self._load(*words)["requests"]

    def _load(self, *words: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.loop.port}"
        lengths = ("--in", str(self.args.input_lens), "--out", str(self.args.output_lens))
        command = [sys.executable, "-m", "gyrfalcon", "load", url, "--extra-body", BODY, *lengths]
        done = subprocess.run(
            [*command, *words, "--json", "-"], check=True, capture_output=True, text=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["result"]["finished"] == found["result"]["sent"], "not all answered"
        return found


def compared(own: Served, settings: SimulatedSettings, name: str) -> dict[str, Any]:
    """All figures of one model."""
    args = own.args
    own.capacity(args.sequences, 100)  # warms up
    own.log.pop()
    alone = own.closed(1, args.requests // 4 + 1, 201)["requests"]
    concurrency = 2
    while concurrency < args.sequences:
        own.closed(concurrency, args.requests // 4 + concurrency, 200 + concurrency)
        concurrency *= 2
    before = own.capacity(args.requests, 300)
    measured = own.log.pop()
    times = fit_steps([Timed([(load, 1)], seconds) for load, seconds in measured])
    outside = outside_ms(alone, settings, times)
    if args.steps is not None:
        write_steps(
            args.steps / f"{name}.json", {"machine": machine_facts(), "model": name}, measured
        )
    runs, steps = [], []
    for share in args.loads:
        for seed in range(args.seeds):
            rows = own.opened(share * before, args.requests, seed)
            steps += own.log.pop()
            found = end_to_end(rows, settings, times, outside)
            runs.append({"load": share, "seed": seed, **found})
    after = own.capacity(args.requests, 301)
    return {
        "model": name,
        "capacity": [before, after],
        "void": abs(after / before - 1) > MOST_MOVED,
        "outside_ms": outside,
        "steps": {"fitted": len(measured), **step_errors(steps, times)},
        "runs": runs,
        "medians": medians(runs),
    }


def step_errors(steps: Steps, times: MeasuredSteps) -> dict[str, float]:
    """Relative errors of predicted steps that the fit has not seen."""
    errors = [abs(times.seconds(load) / seconds - 1) for load, seconds in steps]
    median, p90 = np.percentile(errors, SHARES).tolist()
    return {"predicted": len(errors), "median_error": median, "p90_error": p90}


def simulated(
    trace: Sequence[TraceRequest], settings: SimulatedSettings, times: MeasuredSteps
) -> list[Ended]:
    """What becomes of each request, in order."""
    found: list[Ended] = []
    Simulation(settings, times).run(trace, ended=found.append)
    return sorted(found, key=lambda one: one.number)


def outside_ms(rows: Rows, settings: SimulatedSettings, times: MeasuredSteps) -> float:
    """What requests alone take to their first token beside their steps: HTTP and tokenising."""
    trace = [
        TraceRequest(1000.0 * number, row["input_len"], row["output_len"])
        for number, row in enumerate(rows)
    ]
    found = [latencies(one).ttft for one in simulated(trace, settings, times)]
    beyond = [row["first_token_ms"] - ms for row, ms in zip(rows, found, strict=True)]
    return max(float(np.median(beyond)), 0.0)


def end_to_end(
    rows: Rows, settings: SimulatedSettings, times: MeasuredSteps, outside: float
) -> dict[str, Any]:
    """Percentiles of a run, real and simulated with its own arrivals and lengths, and relative errors."""
    ordered = sorted(rows, key=lambda row: row["due"])
    trace = [TraceRequest(row["due"], row["input_len"], row["output_len"]) for row in ordered]
    found = simulated(trace, settings, times)
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


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each load, each error's median over the seeds, without its sign."""
    found: dict[str, dict[str, float]] = {}
    for share in dict.fromkeys(run["load"] for run in runs):
        own = [run["errors"] for run in runs if run["load"] == share]
        found[f"{share:g}"] = {
            key: float(np.median([abs(errors[key]) for errors in own])) for key in own[0]
        }
    return found


def misses(result: Mapping[str, Any]) -> list[str]:
    """What is not within its limit."""
    found = ["capacity moved: void"] if result["void"] else []
    for key, limit in zip(("median_error", "p90_error"), STEP_LIMITS, strict=True):
        if result["steps"][key] > limit:
            found.append(f"steps {key} {result['steps'][key]:.1%}, wanted {limit:.0%}")
    for share, errors in result["medians"].items():
        for key, error in errors.items():
            limit = END_LIMITS[int(key.rpartition("_p")[2])]
            if float(share) <= LOAD_OF_LIMITS and error > limit:
                found.append(f"load {share} {key} {error:.1%}, wanted {limit:.0%}")
    return found


@contextmanager
def opened(name: str, folder: Path, args: argparse.Namespace) -> Any:
    """A server of a model, and the settings of its simulation."""
    model = name
    if name in SHAPES:
        model = str(folder / name)
        make_checkpoint(Path(model), SHAPES[name].config(VOCAB_SIZE))
    config = EngineConfig(
        model,
        device="cpu",
        max_len=args.max_len,
        max_sequences=args.sequences,
        threads=args.threads,
    )
    with served(config) as loop:
        engine = loop.service.engine
        scheduler = engine._core.scheduler
        settings = SimulatedSettings(
            scheduler.limits, scheduler.allocator.num_blocks, config.block_size
        )
        yield Served(loop, StepLog(engine), args), settings


def show(result: Mapping[str, Any]) -> None:
    """Prints a model's figures."""
    steps, (before, after) = result["steps"], result["capacity"]
    capacity = f"capacity {before:.2f}/s before, {after:.2f}/s after"
    print(f"{result['model']}: {capacity}; {result['outside_ms']:.1f} ms outside of steps")
    print(
        f"  steps: {steps['fitted']} fitted, {steps['predicted']} predicted,"
        f" error median {steps['median_error']:.1%}, p90 {steps['p90_error']:.1%}"
    )
    for share, errors in result["medians"].items():
        print(f"  load {share}: " + ", ".join(f"{key} {one:.1%}" for key, one in errors.items()))
    for line in misses(result):
        print(f"  MISSED {line}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=lambda text: text.split(","), default=["nestling", "A"])
    parser.add_argument(
        "--loads",
        type=lambda text: [float(one) for one in text.split(",")],
        default=[0.3, 0.6, 0.8, 0.9],
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200, help="of a run")
    parser.add_argument(
        "--in", dest="input_lens", type=LengthsOption("--in"), default="uniform:16-128"
    )
    parser.add_argument(
        "--out", dest="output_lens", type=LengthsOption("--out"), default="uniform:8-64"
    )
    parser.add_argument("--sequences", type=int, default=16, help="that run at once")
    parser.add_argument("--max-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=Path, help="a folder for measured step times")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compares every model; 1 where one misses a limit."""
    args, results = parse(argv), []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            with opened(name, Path(folder), args) as (own, settings):
                results.append(compared(own, settings, name))
            show(results[-1])
    if args.json is not None:
        settings = {**vars(args), "json": str(args.json), "steps": str(args.steps)}
        document = {
            "benchmark": "plan_simulation",
            "machine": machine_facts(),
            "settings": {
                name: value if isinstance(value, int | list) else str(value)
                for name, value in settings.items()
            },
            "models": results,
        }
        args.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return int(any(misses(result) for result in results))


if __name__ == "__main__":
    sys.exit(main())
