"""What the watchdog of two ranks costs: processor time of its threads, and time of a decoding step.

    python benchmarks/watchdog_cost.py [--model nestling] [--pairs 12] [--steps 1500] [--json FILE]

Steps are compared in pairs of engines that are made one after the other, one of which has its beats stopped
once it is made; which comes first alternates. Processor time is the system's count for the threads, of the
first rank's watchdog and of all of the other rank's but the one that computes. Gate: at most 0.5 % of a core
in each rank, and a median step that is at most 1 % longer. Run nothing else beside it.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.measure.result import machine_facts

MOST_CPU, MOST_STEP = 0.005, 0.01  # of a core, of a step
IDLE_SECONDS = 10.0
WARM_UP_STEPS = 50
PROMPT = "The old captain looked at the sea"


@dataclass(frozen=True, slots=True)
class Made:
    """What was seen of one engine."""

    beats: bool
    step_ms: float  # median
    first_rank_cpu: float  # shares of a core that its beats took while it computed
    other_rank_cpu: float
    first_rank_idle: float
    other_rank_idle: float


def measured(model: str, num_steps: int, *, beats: bool) -> Made:
    """An engine of two ranks on a core each."""
    with Engine(model, world_size=2, threads=1) as engine:
        if not beats:
            assert engine._ranks is not None
            assert engine._ranks.beats is not None
            engine._ranks.beats.stop()
        steps: list[float] = []
        engine.add(PROMPT, SamplingParams(max_new_tokens=num_steps, ignore_eos=True))
        for _ in range(WARM_UP_STEPS):
            engine.step()
        before, begin = _seconds(), time.monotonic()
        while engine.has_work:
            start = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - start)
        computing = _shares(before, begin)
        before, begin = _seconds(), time.monotonic()
        time.sleep(IDLE_SECONDS if beats else 0.1)
        return Made(beats, 1000 * statistics.median(steps), *computing, *_shares(before, begin))


def _shares(before: tuple[float, float], begin: float) -> tuple[float, float]:
    passed, now = time.monotonic() - begin, _seconds()
    return (now[0] - before[0]) / passed, (now[1] - before[1]) / passed


def _seconds() -> tuple[float, float]:
    """Processor time so far: of the first rank's watchdog, and of all threads of the other rank but the one
    that computes.
    """
    own = psutil.Process()
    named = [one.native_id for one in threading.enumerate() if one.name == "watchdog"]
    [rank] = [one for one in own.children() if "spawn_main" in " ".join(one.cmdline())]
    tasks = [int(path.name) for path in Path(f"/proc/{rank.pid}/task").iterdir()]
    others = [task for task in tasks if task != rank.pid]
    return _of_threads(own.pid, named), _of_threads(rank.pid, others)


def _of_threads(process: int, threads: Sequence[int | None]) -> float:
    paths = [Path(f"/proc/{process}/task/{thread}/schedstat") for thread in threads]
    return sum(int(path.read_text().split()[0]) for path in paths) / 1e9


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nestling")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    found, ratios = [], []
    for number in range(args.pairs):
        order = (True, False) if number % 2 else (False, True)
        pair = {beats: measured(args.model, args.steps, beats=beats) for beats in order}
        found += [pair[True], pair[False]]
        ratios.append(pair[True].step_ms / pair[False].step_ms - 1)
        print(f"pair {number + 1}: {pair[False].step_ms:.3f} ms, {ratios[-1]:+.1%} with beats")
    watched = [one for one in found if one.beats]
    shares = {
        name: statistics.median(getattr(one, name) for one in watched)
        for name in ("first_rank_cpu", "other_rank_cpu", "first_rank_idle", "other_rank_idle")
    }
    step = statistics.median(ratios)
    holds = step <= MOST_STEP and max(shares.values()) <= MOST_CPU
    print(", ".join(f"{name} {share:.2%}" for name, share in shares.items()))
    print(f"a step takes {step:+.2%} (median of {args.pairs} pairs)")
    if args.json:
        result = {
            "benchmark": "watchdog_cost",
            "machine": machine_facts(),
            "options": {name: value for name, value in vars(args).items() if name != "json"},
            "step_share_added": step,
            **shares,
            "holds": holds,
            "engines": [asdict(one) for one in found],
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
