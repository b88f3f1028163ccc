"""Are two checkouts equally fast? Runs them by turns on the CPU and compares pair by pair.

    python benchmarks/checkouts.py OLD/.venv/bin/python NEW/.venv/bin/python [--pairs 15]

Each argument is the Python of an environment in which that checkout is installed. Rows: a decoding step
of nestling with 1 and with 64 sequences; with --large also a step and a prompt of 128 tokens of model A of
benchmarks/cpu_peers.py (1.3 billion parameters, random, bf16: 3 GB of disk, removed at the end, and
twice 4 GB of memory). Exits 1 when a row's whole 95 % interval of the median ratio new/old lies above 1.02.
Run nothing else beside it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import IO

from cpu_peers_model import SHAPES, VOCAB_SIZE, make_checkpoint

LARGEST_RATIO = 1.02
FEWEST_PAIRS = 6  # with fewer not even the smallest and the largest ratio enclose 95 %
WORKER = """
import json, sys, time
from gyrfalcon import Engine, EngineConfig, SamplingParams
model, batch, prompt_len, steps = json.loads(sys.argv[1])
length = prompt_len + steps + 2
config = EngineConfig(model=model, device="cpu", max_len=length, max_sequences=batch,
                      max_batch_tokens=batch * length, reuse_prefixes=False)
params = SamplingParams(max_new_tokens=steps + 1, ignore_eos=True)
with Engine(config) as engine:
    for _ in sys.stdin:
        for row in range(batch):
            engine.add([100 + (7 * row + 3 * i) % 1000 for i in range(prompt_len)], params)
        start = time.perf_counter()
        engine.step()
        first = time.perf_counter()
        while engine.has_work:
            engine.step()
        end = time.perf_counter()
        print(json.dumps([first - start, (end - first) / max(steps, 1)]), flush=True)
"""


@dataclass(frozen=True)
class Row:
    """What is timed: the prompt's step, or else the mean of the decoding steps after it."""

    name: str
    model: str
    batch: int
    prompt_len: int
    steps: int

    @property
    def times_prompt(self) -> bool:
        return self.steps == 0


class Checkout:
    """An engine of one checkout in a process of its own, which waits while the other runs."""

    def __init__(self, python: str, row: Row) -> None:
        job = json.dumps([row.model, row.batch, row.prompt_len, row.steps])
        self._row = row
        self._process = subprocess.Popen(
            [python, "-c", WORKER, job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self) -> float:
        """One run."""
        asked, answer = self._stream(self._process.stdin), self._stream(self._process.stdout)
        asked.write("\n")
        asked.flush()
        first, step = json.loads(answer.readline() or "[]")
        return float(first if self._row.times_prompt else step)

    def close(self) -> None:
        self._stream(self._process.stdin).close()
        self._process.wait()

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


def compare(row: Row, pythons: Sequence[str], pairs: int) -> list[tuple[float, float]]:
    """Seconds (old, new) of each pair; who comes first changes from pair to pair."""
    old, new = (Checkout(python, row) for python in pythons)
    try:
        for checkout in (old, new):
            checkout.seconds()  # warm-up
        timed = []
        for number in range(pairs):
            order = (old, new) if number % 2 == 0 else (new, old)
            seconds = {checkout: checkout.seconds() for checkout in order}
            timed.append((seconds[old], seconds[new]))
        return timed
    finally:
        old.close()
        new.close()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the median, whatever the distribution: the order statistics between
    which it lies by the binomial distribution (Conover, Practical Nonparametric Statistics, 3.2).
    """
    ranked, count = sorted(values), len(values)
    below, rank = 0.0, 0
    while below + comb(count, rank) / 2**count <= 0.025:
        below += comb(count, rank) / 2**count
        rank += 1
    return ranked[rank - 1], ranked[count - rank]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="Python of the old checkout's environment")
    parser.add_argument("new", help="Python of the new one's")
    parser.add_argument("--pairs", type=int, default=15, help="of each row (default 15)")
    parser.add_argument(
        "--large", action="store_true", help="a model of 1.3 billion parameters too"
    )
    args = parser.parse_args(argv)
    if args.pairs < FEWEST_PAIRS:
        parser.error(f"wanted --pairs of at least {FEWEST_PAIRS}, got {args.pairs}")
    rows = [
        Row("nestling, a step of 1", "nestling", 1, 32, 400),
        Row("nestling, a step of 64", "nestling", 64, 32, 100),
    ]
    slower = False
    with tempfile.TemporaryDirectory() as folder:
        if args.large:
            model = Path(folder, "A")
            make_checkpoint(model, SHAPES["A"].config(VOCAB_SIZE))
            rows.append(Row("model A in bf16, a step of 1", str(model), 1, 32, 12))
            rows.append(Row("model A in bf16, a prompt of 128", str(model), 1, 128, 0))
        for row in rows:
            timed = compare(row, (args.old, args.new), args.pairs)
            ratios = [new / old for old, new in timed]
            low, high = interval(ratios)
            slower |= low > LARGEST_RATIO
            old, new = (1000 * statistics.median(side) for side in zip(*timed, strict=True))
            ratio = f"{statistics.median(ratios):.3f} ({low:.3f}-{high:.3f})"
            print(f"{row.name:34} {old:9.3f} → {new:9.3f} ms, ratio {ratio}", flush=True)
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
