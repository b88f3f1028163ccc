"""How much of a speed sweep is not the engine's: prompts, timing, percentages, writing files.

    python benchmarks/speed_overhead.py MODEL [--in 32,128] [--out 32,128] [--repeats 3]

Runs the cases on an engine that notes the time spent in it; the rest of the cases' time is overhead.
Gate: at most 1 % of the time.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.measure.passage import passage_ids
from gyrfalcon.measure.result import envelope
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.measure.speed.bench import Bench, deployment_of, with_percent
from gyrfalcon.measure.speed.cases import Case
from gyrfalcon.measure.speed.files import Files, Sweep
from gyrfalcon.request import Delta

MOST_PERCENT = 1.0
LIMITS = MachineLimits(bandwidth_bytes_per_second=1e10, matrix_flops_per_second=1e11)  # any will do


class Watched(Engine):
    """An engine that adds up the time spent in it."""

    inside_seconds = 0.0

    def add(self, *arguments: Any, **named: Any) -> int:
        with self._counted():
            return super().add(*arguments, **named)

    def step(self) -> list[Delta]:
        with self._counted():
            return super().step()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.inside_seconds += time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--in", dest="input_lens", default="32,128")
    parser.add_argument("--out", dest="output_lens", default="32,128")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    lengths = itertools.product(
        *(map(int, text.split(",")) for text in (args.input_lens, args.output_lens))
    )
    config = EngineConfig(model=args.model, reuse_prefixes=False, max_sequences=1)
    engine = Watched(config)
    with engine, tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        bench = Bench(engine, passage_ids(engine.tokenizer))
        head = envelope("speed", engine, ["speed"], {})
        once = time.perf_counter() - start
        run_cases(bench, [Case(1, *pair) for pair in lengths], args.repeats, head, Path(folder))
        seconds = time.perf_counter() - start - once
        outside = seconds - engine.inside_seconds
    percent = 100 * outside / seconds
    print(
        f"before the first case: {1000 * once:.1f} ms for the text's tokens and the machine's facts"
    )
    print(f"cases: {seconds:.2f} s, {1000 * outside:.1f} ms outside the engine: {percent:.3f} %")
    return int(percent > MOST_PERCENT)


def run_cases(
    bench: Bench,
    cases: Sequence[Case],
    repeats: int,
    head: Mapping[str, object],
    folder: Path,
) -> None:
    """What the command does for each case, from the prompt to the files."""
    files = Files(folder / "out.csv", folder / "out.json")
    sweep = Sweep(repeats, LIMITS)
    for case in cases:
        row = bench.measure(case, repeats, lambda tokens: None)
        sweep.rows[case] = with_percent(row, deployment_of(bench.engine), LIMITS)
        files.write(head, sweep)


if __name__ == "__main__":
    sys.exit(main())
