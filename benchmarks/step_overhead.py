"""The host's share of a decoding step: scheduling, building the batch, sampling, committing and text.

    python benchmarks/step_overhead.py [PYTHON ...] [--counts 1,16,64,256] [--rounds 6] [--json FILE]
        [--sampling greedy,top_k,top_p,all,schema] [--model nestling] [--quant none]

Decodes a model on the CPU with each number of sequences, greedily, with top_k or top_p, from all tokens, or
greedily under a JSON schema, and prints medians in milliseconds: a step, the model's run in it, and the
host's share, which is their difference, with its parts. A PYTHON is that of an environment in which a
checkout is installed; two are run by turns, and compared round by round with a 95 % interval of the median
ratio. Without one, this Python. `--clock thread` counts processor time of the engine's thread alone, for
machines that others use, too. Run nothing else beside it.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

from checkouts import FEWEST_PAIRS, interval

from gyrfalcon import Engine, SamplingParams, StructuredOutput
from gyrfalcon.batch import Batch
from gyrfalcon.engine import sampler
from gyrfalcon.measure.result import machine_facts

CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "thread": time.thread_time,
}
PEOPLE = {  # more of them than any text that is timed
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    },
    "minItems": 500,
}
SAMPLING = {  # beside the same length for all
    "greedy": SamplingParams(),
    "top_k": SamplingParams(temperature=0.8, top_k=40, seed=1),
    "top_p": SamplingParams(temperature=0.8, top_p=0.95, seed=1),
    "all": SamplingParams(temperature=1.0, seed=1),  # what the server does unless asked otherwise
    "schema": SamplingParams(structured=StructuredOutput(json=PEOPLE)),
}
PROMPT_LEN = 32
WARM_UP_STEPS = 8
COLUMNS = ("step", "model", "host", "schedule", "build", "sample", "commit", "deliver")

Seconds = dict[str, float]  # of one step, by COLUMNS


@dataclass(frozen=True, slots=True)
class Case:
    """What is decoded: this many sequences side by side."""

    count: int
    sampling: str  # a key of SAMPLING


@dataclass(frozen=True, slots=True)
class Row:
    """The medians of a case's steps in one round of one checkout."""

    case: Case
    ms: Mapping[str, float]  # by COLUMNS

    @property
    def tokens_per_second(self) -> float:
        return 1000 * self.case.count / self.ms["step"]


@contextlib.contextmanager
def watched(engine: Engine, clock: Callable[[], float]) -> Iterator[Seconds]:
    """Adds up what the parts of an engine's steps take; `core` is all that deliver is not."""
    core = engine._core
    parts = {
        "core": (engine, "_take_step"),
        "schedule": (core.scheduler, "next_chunks"),
        "build": (Batch, "build"),
        "model": (core, "model_runner"),
        "sample": (sampler, "pick"),
        "commit": (core.scheduler, "commit"),
    }
    spent = dict.fromkeys(parts, 0.0)
    with contextlib.ExitStack() as patches:
        for part, (owner, name) in parts.items():
            timed = _timed(getattr(owner, name), part, spent, clock)
            patches.enter_context(patch.object(owner, name, timed))
        yield spent


def _timed(
    call: Callable[..., object], part: str, spent: Seconds, clock: Callable[[], float]
) -> Callable[..., object]:
    def timed(*args: object, **named: object) -> object:
        start = clock()
        result = call(*args, **named)
        spent[part] += clock() - start
        return result

    return timed


def timed_steps(
    engine: Engine, case: Case, num_steps: int, clock: Callable[[], float]
) -> list[Seconds]:
    """Decoding steps of all sequences of a case, after those that read their prompts."""
    most = engine.max_len - PROMPT_LEN
    params = SAMPLING[case.sampling]
    params = replace(params, max_new_tokens=most, ignore_eos=params.structured is None)
    requests = [
        engine.add([100 + (7 * row + 3 * i) % 1000 for i in range(PROMPT_LEN)], params)
        for row in range(case.count)
    ]
    while engine.stats().num_waiting:
        engine.step()
    for _ in range(WARM_UP_STEPS):
        engine.step()
    with watched(engine, clock) as spent:
        steps = [_step(engine, spent, clock) for _ in range(num_steps)]
    for request in requests:
        engine.abort(request)
    return steps


def _step(engine: Engine, spent: Seconds, clock: Callable[[], float]) -> Seconds:
    """One step's seconds by COLUMNS."""
    spent.update(dict.fromkeys(spent, 0.0))
    start = clock()
    engine.step()
    step = clock() - start
    return {**spent, "step": step, "host": step - spent["model"], "deliver": step - spent["core"]}


def measure(
    cases: Sequence[Case],
    num_steps: int,
    clock_name: str,
    model: str = "nestling",
    quant: str = "none",
) -> list[Row]:
    """One round of every case, in this process."""
    most, length = max(case.count for case in cases), PROMPT_LEN + WARM_UP_STEPS + num_steps + 8
    rows = []
    with Engine(
        model,
        device="cpu",
        quant=quant,
        max_len=length,
        max_sequences=most,
        max_batch_tokens=most * length,
        reuse_prefixes=False,
    ) as engine:
        for case in cases:
            steps = timed_steps(engine, case, num_steps, CLOCKS[clock_name])
            ms = {name: 1000 * statistics.median(step[name] for step in steps) for name in COLUMNS}
            rows.append(Row(case, ms))
    return rows


def measured_by(python: str, argv: Sequence[str]) -> list[Row]:
    """One round in the environment of a checkout."""
    command = [python, __file__, *argv, "--worker"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [Row(Case(**row["case"]), row["ms"]) for row in json.loads(output)]


def by_turns(pythons: Sequence[str], num_rounds: int, argv: Sequence[str]) -> list[list[list[Row]]]:
    """The rounds of each checkout; who comes first changes from round to round."""
    rounds: list[list[list[Row]]] = [[] for _ in pythons]
    for number in range(num_rounds):
        order = list(zip(pythons, rounds, strict=True))
        for python, own in order if number % 2 == 0 else reversed(order):
            own.append(measured_by(python, argv))
    return rounds


def typical(rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """The medians over all rounds of one checkout."""
    return [
        Row(
            rows[0].case,
            {name: statistics.median(row.ms[name] for row in rows) for name in COLUMNS},
        )
        for rows in zip(*rounds, strict=True)
    ]


def table(rows: Sequence[Row]) -> str:
    head = f"{'sequences':>9} {'sampling':9}" + "".join(f"{name:>9}" for name in COLUMNS)
    lines = [
        f"{row.case.count:9} {row.case.sampling:9}"
        + "".join(f"{row.ms[name]:9.3f}" for name in COLUMNS)
        + f" ms, {row.tokens_per_second:7.0f} tokens/s"
        for row in rows
    ]
    return "\n".join([head, *lines])


def comparison(old: Sequence[Sequence[Row]], new: Sequence[Sequence[Row]]) -> str:
    """For each case how much faster the second checkout is, round by round."""
    lines = []
    for before, after in zip(zip(*old, strict=True), zip(*new, strict=True), strict=True):
        case = before[0].case
        shown = [f"{case.count:9} {case.sampling:9}"]
        for name in ("step", "host"):
            ratios = [a.ms[name] / b.ms[name] for a, b in zip(before, after, strict=True)]
            low, high = interval(ratios)
            shown.append(f"{name} {statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})")
        lines.append("  ".join(shown))
    return "\n".join(["old ÷ new, above 1 is faster:", *lines])


def document(
    pythons: Sequence[str], rounds: Sequence[Sequence[Sequence[Row]]], clock: str
) -> dict[str, object]:
    """What --json writes: every round's medians in milliseconds."""
    return {
        "benchmark": "step_overhead",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "clock": clock,
        "checkouts": [
            {"python": python, "rounds": [[asdict(row) for row in rows] for rows in each]}
            for python, each in zip(pythons, rounds, strict=True)
        ],
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pythons", nargs="*", help="one or two; two are compared, the old one first"
    )
    parser.add_argument("--counts", default="1,16,64,256", help="sequences side by side")
    parser.add_argument("--sampling", default="greedy,top_k", help=f"of {', '.join(SAMPLING)}")
    parser.add_argument("--model", default="nestling", help="a folder, or nestling")
    parser.add_argument("--quant", default="none", help="as gyrfalcon generate takes it")
    parser.add_argument("--steps", type=int, default=60, help="of each case and round")
    parser.add_argument("--rounds", type=int, default=FEWEST_PAIRS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write every round's medians to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := set(args.sampling.split(",")) - set(SAMPLING):
        parser.error(f"wanted --sampling of {', '.join(SAMPLING)}, got {', '.join(unknown)}")
    if len(args.pythons) > 2:
        parser.error(f"wanted one or two Pythons, got {len(args.pythons)}")
    if len(args.pythons) == 2 and args.rounds < FEWEST_PAIRS:
        parser.error(f"wanted --rounds of at least {FEWEST_PAIRS} to compare, got {args.rounds}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.worker:
        counts = map(int, args.counts.split(","))
        cases = [Case(count, each) for count in counts for each in args.sampling.split(",")]
        rows = measure(cases, args.steps, args.clock, args.model, args.quant)
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    pythons = args.pythons or [sys.executable]
    names = ("counts", "steps", "clock", "sampling", "model", "quant")
    options = [f"--{name}={getattr(args, name)}" for name in names]
    rounds = by_turns(pythons, args.rounds, options)
    for python, each in zip(pythons, rounds, strict=True):
        print(python, table(typical(each)), sep="\n")
    if len(rounds) == 2:
        print(comparison(*rounds))
    if args.json is not None:
        found = document(pythons, rounds, args.clock)
        args.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
