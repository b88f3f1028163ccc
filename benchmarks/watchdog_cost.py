"""What the watchdog of two ranks costs: processor time of its threads, and time of a decoding step.

    python benchmarks/watchdog_cost.py [--model nestling] [--seconds 60]

A step during which the first rank's watchdog looks is compared with the eight before and after it, so that
other programs and the machine's clock disturb both alike. What looks take from steps is taken twice, as the
other rank's thread does the same at times that are not known here; moments without a look are the control.
Processor time is the system's count for the threads, of the first rank's watchdog and of all of the other
rank's but the one that computes. Gate: at most 0.5 % of a core in each rank and 1 % of a step.
"""

import argparse
import bisect
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.parallel.progress_monitor import ProgressMonitor, RankStatus

MOST_CPU, MOST_STEP = 0.005, 0.01  # of a core, of a step
IDLE_SECONDS = 10.0
NEIGHBOURS = 8  # steps on each side
APART = (0.03, 0.1)  # seconds between a look and a moment without one
TRIMMED = 0.1  # of the costs on each side, which other programs made
TOKENS = 1500
PROMPT = "The old captain looked at the sea"
Span = tuple[float, float]


def steps_of(engine: Engine, seconds: float) -> list[Span]:
    """Begin and end of each step of one stream after the other."""
    found: list[Span] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        engine.add(PROMPT, SamplingParams(max_new_tokens=TOKENS, ignore_eos=True))
        while engine.has_work:
            begin = time.monotonic()
            engine.step()
            found.append((begin, time.monotonic()))
    return found


def share_of_looks(steps: Sequence[Span], looks: Sequence[float]) -> float:
    """What looks took from the steps, of all their time: beside moments without a look, since a long step is
    more likely to have one.
    """
    chance, total = random.Random(1), steps[-1][1] - steps[0][0]
    inside = [look for look in looks if steps[0][0] <= look <= steps[-1][1]]
    moments = [look + sign * chance.uniform(*APART) for look in inside for sign in (-1, 1) * 5]
    cost = mean_excess(steps, inside) - mean_excess(steps, moments)
    return cost * len(inside) / total


def mean_excess(steps: Sequence[Span], moments: Sequence[float]) -> float:
    """How much longer, in seconds, the steps are that have these moments than those around them."""
    begins = [begin for begin, _ in steps]
    lengths = [end - begin for begin, end in steps]
    found = []
    for moment in moments:
        number = bisect.bisect_right(begins, moment) - 1
        near = range(max(number - NEIGHBOURS, 0), min(number + NEIGHBOURS + 1, len(steps)))
        if number >= 0 and moment <= steps[number][1]:
            others = [lengths[one] for one in near if one != number]
            found.append(lengths[number] - statistics.median(others))
    cut = int(TRIMMED * len(found))
    return statistics.mean(sorted(found)[cut : len(found) - cut])


def shares_of_core(before: Span, begin: float) -> Span:
    """Of the first rank's watchdog and of the other's threads, since then."""
    passed, now = time.monotonic() - begin, thread_seconds()
    return (now[0] - before[0]) / passed, (now[1] - before[1]) / passed


def thread_seconds() -> Span:
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


def noting_looks() -> list[float]:
    """When this process's watchdog looks, from here on."""
    looks: list[float] = []
    status = ProgressMonitor.status

    def noted(monitor: ProgressMonitor) -> RankStatus:
        looks.append(time.monotonic())
        return status(monitor)

    ProgressMonitor.status = noted  # type: ignore[assignment, method-assign]  # in this process alone
    return looks


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nestling")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    looks = noting_looks()
    with Engine(args.model, world_size=2, threads=1) as engine:
        steps_of(engine, 1.0)
        before, begin = thread_seconds(), time.monotonic()
        steps = steps_of(engine, args.seconds)
        working = shares_of_core(before, begin)
        before, begin = thread_seconds(), time.monotonic()
        time.sleep(IDLE_SECONDS)
        idle = shares_of_core(before, begin)
    step = 2 * share_of_looks(steps, looks)
    length = statistics.median(end - begin for begin, end in steps)
    for name, (first, other) in (("computing", working), ("idle", idle)):
        print(f"{name}: {first:.2%} of a core in the first rank, {other:.2%} in the other")
    print(
        f"a step of {1000 * length:.2f} ms: {step:+.2%} by {len(looks)} looks in {len(steps)} steps"
    )
    holds = step <= MOST_STEP and max(*working, *idle) <= MOST_CPU
    if args.json:
        result = {
            "benchmark": "watchdog_cost",
            "machine": machine_facts(),
            "options": {name: value for name, value in vars(args).items() if name != "json"},
            "step_ms": 1000 * length,
            "step_share_added": step,
            "core_shares_computing": working,
            "core_shares_idle": idle,
            "num_steps": len(steps),
            "num_looks": len(looks),
            "holds": holds,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
