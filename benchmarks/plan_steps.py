"""Step times of `gyrfalcon plan --step-times` predicted for loads that were not measured.

    python benchmarks/plan_steps.py --json FILE [--models nestling,A] [--rounds 15] [--max-len 512]
        [--threads 1] [--sequences 16] [--unseen 60] [--clock wall] [--seconds 200] [--folder DIR]

What a step takes is one number for each (prompt tokens, sequences that decode, contexts), but a single
measurement of it is off by what the machine does just then. So each load is measured once in each of many
rounds, in a new order, and counts with its median; beside it stands how far its single times lie from that.
MeasuredSteps is fitted to the medians of a grid of loads, and predicts those of others, drawn at random, none
of which is in the grid: steps that decode, that prefill a prompt or several, and that do both. Wanted: within
10 % at the median, 25 % at the 90th percentile.

Prompts whose beginning is cached bring sequences to a context at once. A is that of cpu_peers_model.py, 1.17
billion weights in bf16. `--clock thread` counts the processor time of the engine's thread, for machines that
others use, too: with one thread only. Run nothing else beside it.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from plan_simulation_errors import MOST_OTHERS, SHARES, STEP_LIMITS
from plan_simulation_machine import Used
from plan_simulation_server import model_folder

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.engine.heap import freeze_heap
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.plan.simulate_measured import MeasuredSteps, TimedStep, fit_single_steps
from gyrfalcon.plan.simulate_steps import load_of_chunks
from gyrfalcon.plan.step_load import StepLoad, load_of
from gyrfalcon.request import Chunk

BENCHMARK = "plan_steps"
BLOCK = 16
CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "thread": time.thread_time,
}
IDS = (100, 400)  # of random tokens
MOST_TRIES = 20
GRID_SEQUENCES, GRID_CONTEXTS = (1, 2, 4, 8, 16), (1, 8, 28)  # these in blocks
GRID_PROMPTS = (1, 3, 6, 11, 19, 30, 45, 70, 110, 170, 260, 490)
GRID_MIXED = tuple((count, tokens) for count in (1, 4, 15) for tokens in (9, 35, 130, 390))
FEWEST_ROUNDS = 3
MOST_PROMPTS = 3  # of one step


@dataclass(frozen=True, slots=True)
class Wanted:
    """A step: these prompts' tokens, and sequences that decode with these whole blocks before them."""

    prompts: tuple[int, ...]
    blocks: tuple[int, ...]

    @property
    def kind(self) -> str:
        """In a word."""
        if not self.prompts:
            return "decoding"
        return "mixed" if self.blocks else "prompts"

    @property
    def load(self) -> StepLoad:
        """A sequence that decodes has its cached blocks, a token that was prefilled, and its new one."""
        return load_of(map(range, self.prompts), [BLOCK * one + 2 for one in self.blocks])


def grid(sequences: int, most_tokens: int, most_blocks: int) -> list[Wanted]:
    """The loads to which times are fitted."""
    counts = sorted({min(one, sequences) for one in GRID_SEQUENCES})
    contexts = sorted({min(one, most_blocks) for one in GRID_CONTEXTS})
    found = [Wanted((), (blocks,) * count) for count in counts for blocks in contexts]
    found += [Wanted((min(one, most_tokens),), ()) for one in GRID_PROMPTS]
    for count, tokens in GRID_MIXED:
        own = min(count, sequences - 1)
        found.append(
            Wanted((min(tokens, most_tokens - own),), (contexts[len(contexts) // 2],) * own)
        )
    return list(dict.fromkeys(found))


def unseen(
    number: int, sequences: int, most_tokens: int, most_blocks: int, seed: int
) -> list[Wanted]:
    """Others, a third of each kind; UsageError where there are not so many."""
    draw, seen = Random(seed), set(grid(sequences, most_tokens, most_blocks))
    found: list[Wanted] = []
    for _ in range(MOST_TRIES * number):
        if len(found) == number:
            return found
        place = len(found) % 3
        decoding = 0 if place == 1 else draw.randint(1, sequences - (place == 2))
        prompts = 0 if place == 0 else draw.randint(1, min(MOST_PROMPTS, sequences - decoding))
        room = (most_tokens - decoding) // max(prompts, 1)
        lengths = tuple(round(room ** draw.random()) for _ in range(prompts))
        one = Wanted(lengths, tuple(draw.randint(1, most_blocks) for _ in range(decoding)))
        if one not in seen:
            seen.add(one)
            found.append(one)
    wanted = f"{number} loads of at most {most_tokens} tokens that are not in the grid"
    raise UsageError(wanted, str(len(found)), "ask for fewer with --unseen")


class Bench:
    """An engine that takes steps of any load."""

    def __init__(self, engine: Engine, clock: Callable[[], float], seed: int) -> None:
        self._engine, self._clock, self._draw = engine, clock, Random(seed)
        self._scheduler = engine._core.scheduler
        rows, length = self._scheduler.limits.max_sequences, engine.max_len
        self._texts = [self._ids(length) for _ in range(rows)]
        self._load: StepLoad | None = None  # of the last step
        self._compute: Callable[..., Any] = engine._core.compute
        engine._core.compute = self._noted  # type: ignore[method-assign]

    @property
    def most_tokens(self) -> int:
        """Of the prompts of a step."""
        limits = self._scheduler.limits
        return min(limits.max_batch_tokens, limits.max_len - BLOCK)

    @property
    def most_blocks(self) -> int:
        """Of a context."""
        return self._scheduler.limits.max_len // BLOCK - 2

    def seconds(self, wanted: Wanted) -> float:
        """Of one step, tried again where the cache had lost some of its contexts."""
        for _ in range(MOST_TRIES):
            seconds, load = self._tried(wanted)
            if load == wanted.load:
                return seconds
        raise AssertionError(f"{load} instead of {wanted.load}")

    def _tried(self, wanted: Wanted) -> tuple[float, StepLoad | None]:
        engine = self._engine
        contexts = zip(self._texts, wanted.blocks, strict=False)
        numbers = [self._add(text[: BLOCK * blocks + 1]) for text, blocks in contexts]
        while self._scheduler.num_decoding < len(numbers):
            engine.step()
        numbers += [self._add(self._ids(tokens)) for tokens in wanted.prompts]
        start = self._clock()
        engine.step()
        seconds = self._clock() - start
        for number in numbers:
            engine.abort(number)
        while engine.has_work:
            engine.step()
        return seconds, self._load

    def _noted(self, chunks: Sequence[Chunk]) -> Any:
        self._load = load_of_chunks(list(chunks))
        return self._compute(chunks)

    def _add(self, ids: Sequence[int]) -> int:
        left = self._engine.max_len - len(ids)
        return self._engine.add(ids, SamplingParams(max_new_tokens=left, ignore_eos=True))

    def _ids(self, count: int) -> list[int]:
        return [self._draw.randrange(*IDS) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Point:
    """A load and how long its steps took."""

    wanted: Wanted
    seconds: Sequence[float]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def measured(bench: Bench, loads: Sequence[Wanted], rounds: int, limit: float) -> list[Point]:
    """Each load once a round, in a new order; a first round, in which caches fill, counts for nothing. Ends
    after `limit` seconds, but not before FEWEST_ROUNDS.
    """
    begun, draw = time.monotonic(), Random(0)
    found: dict[Wanted, list[float]] = {one: [] for one in loads}
    for number in range(rounds + 1):
        if number > FEWEST_ROUNDS and time.monotonic() - begun > limit:
            break
        for one in draw.sample(loads, len(loads)):
            found[one].append(bench.seconds(one))
    return [Point(one, seconds[1:]) for one, seconds in found.items()]


def report(fitted: Sequence[Point], others: Sequence[Point]) -> dict[str, Any]:
    """Errors of the predictions of others, of all and by kind, and how far single times lie from medians."""
    times = fit_single_steps(TimedStep(one.wanted.load, one.median) for one in fitted)
    kinds = dict.fromkeys(one.wanted.kind for one in others)
    singles = [
        abs(seconds / one.median - 1) for one in (*fitted, *others) for seconds in one.seconds
    ]
    return {
        "repeats": len(others[0].seconds),
        "fitted": len(fitted),
        "predicted": len(others),
        **_errors(others, times),
        "kinds": {
            kind: _errors([one for one in others if one.wanted.kind == kind], times)
            for kind in kinds
        },
        "spread_of_singles": dict(
            zip(("median", "p90"), np.percentile(singles, SHARES), strict=True)
        ),
        "step_times": asdict(times),
        "points": [_row(one, times, one in fitted) for one in (*fitted, *others)],
    }


def _errors(points: Sequence[Point], times: MeasuredSteps) -> dict[str, float]:
    errors = [abs(times.seconds(one.wanted.load) / one.median - 1) for one in points]
    return dict(zip(STEP_LIMITS, np.percentile(errors, SHARES).tolist(), strict=True))


def _row(point: Point, times: MeasuredSteps, fitted: bool) -> dict[str, Any]:
    load = point.wanted.load
    return {
        "kind": point.wanted.kind,
        "fitted": fitted,
        "load": load._asdict(),
        "ms": [round(1000 * one, 3) for one in point.seconds],
        "predicted_ms": round(1000 * times.seconds(load), 3),
    }


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One model."""
    begun = Used.now()
    config = EngineConfig(
        model_folder(name, folder),
        device="cpu",
        max_len=args.max_len,
        max_sequences=args.sequences,
        threads=args.threads,
    )
    with Engine(config) as engine:
        freeze_heap()
        bench = Bench(engine, CLOCKS[args.clock], args.seed)
        sizes = (args.sequences, bench.most_tokens, bench.most_blocks)
        fitted, others = grid(*sizes), unseen(args.unseen, *sizes, args.seed)
        points = measured(bench, [*fitted, *others], args.rounds, args.seconds)
    share = begun.others_share(Used.now())
    found = report(points[: len(fitted)], points[len(fitted) :])
    return {"settings": settings_of(args), "others": share, **found}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    names = ("max_len", "sequences", "threads", "clock", "seed")
    return {name: getattr(args, name) for name in names}


def misses(found: Mapping[str, Any]) -> list[str]:
    """What is beyond its limit."""
    missed = [
        f"{key} {found[key]:.1%}, wanted {limit:.0%}"
        for key, limit in STEP_LIMITS.items()
        if found[key] > limit
    ]
    if found["others"] > MOST_OTHERS and found["settings"]["clock"] == "wall":
        missed.append(f"{found['others']:.1%} of the processors used by others")
    return missed


def show(name: str, found: Mapping[str, Any]) -> None:
    """A model's lines."""
    spread = found["spread_of_singles"]
    print(
        f"{name}: {found['predicted']} loads predicted, {found['fitted']} fitted, {found['repeats']} repeats;"
        f" single steps lie {spread['median']:.1%} from their median, p90 {spread['p90']:.1%}"
    )
    for kind, errors in {"all": found, **found["kinds"]}.items():
        print(
            f"  {kind:<9} median {errors['median_error']:6.1%}, p90 {errors['p90_error']:6.1%}",
            flush=True,
        )
    for line in misses(found):
        print(f"  MISSED {line}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="models in it are kept")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["nestling", "A"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=200.0, help="no round begins after them")
    parser.add_argument("--unseen", type=int, default=60, help="loads that are predicted")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--max-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of models that are made")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the models; 1 where one misses a limit."""
    args, models = parse(argv), dict[str, Any]()
    if args.json.exists():
        models = json.loads(args.json.read_text("utf-8"))["models"]
    with tempfile.TemporaryDirectory() as made:
        for name in args.models:
            try:
                models[name] = measure(name, args.folder or Path(made), args)
            except UsageError as error:
                print(error, file=sys.stderr)
                return 2
            document = {"benchmark": BENCHMARK, "machine": machine_facts(), "models": models}
            args.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
            show(name, models[name])
    return int(any(misses(models[name]) for name in args.models))


if __name__ == "__main__":
    sys.exit(main())
