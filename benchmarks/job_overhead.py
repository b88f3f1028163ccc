"""What a job of `gyrfalcon score` costs beside the engine alone: parts, checksums, lines of JSON.

    python benchmarks/job_overhead.py [--model nestling] [--prompts 2000] [--tokens 64] [--rounds 3]

Scores prompts of random tokens with one engine: by `Engine.generate` in one call, and as jobs of parts of 500
and of 100 rows, by turns and each round with prompts of its own, which no cache has. Prints prompts a second,
medians of all rounds. Run nothing else beside it.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.jobs.answers import answer_part
from gyrfalcon.jobs.folder import open_job
from gyrfalcon.jobs.identity import identity
from gyrfalcon.jobs.plan import make_plan
from gyrfalcon.jobs.rows import Row
from gyrfalcon.jobs.source import Start, rows_from, source_files
from gyrfalcon.jobs.task import SCORE, RowEncoder, Task
from gyrfalcon.jobs.work import work
from gyrfalcon.measure.result import machine_facts

PART_ROWS = (500, 100)
FIRST_TOKEN, NUM_TOKENS = 300, 1000  # of those that are drawn


def nothing(seen: object) -> None:
    """Shows no progress."""


def encoder(engine: Engine, task: Task) -> RowEncoder:
    """What makes requests of rows."""
    return RowEncoder.of(task, engine.config, engine.model_config, engine.tokenizer, engine.max_len)


def alone_seconds(engine: Engine, source: Path) -> float:
    """All prompts in one call."""
    task = Task(SCORE)
    [file] = source_files(str(source))
    rows = [row for _, row in rows_from(file, Start(), task.columns, scored=True)]
    tokens = [encoder(engine, task)(row) for row in rows if isinstance(row, Row)]
    begin = time.perf_counter()
    outputs = engine.generate([list(one.ids) for one in tokens], tokens[0].params)
    assert all(output.prompt_logprobs for output in outputs)
    return time.perf_counter() - begin


def job_seconds(engine: Engine, source: Path, out: Path, part_rows: int) -> float:
    """A job from its plan to its result."""
    task = Task(SCORE, part_rows=part_rows)
    encode, files = encoder(engine, task), source_files(str(source))
    settings, plan = identity(task, engine.config, None), partial(make_plan, files, encode, nothing)
    with open_job(str(out), settings, files, plan, print, overwrite=False) as folder:
        answer = partial(answer_part, engine, folder.job, encode, seen=nothing)
        begin = time.perf_counter()
        work(folder, answer, nothing, print)
        return time.perf_counter() - begin


def rounds_of(args: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Seconds of each way in each round."""
    found, chance = [], random.Random(1)
    config = EngineConfig(args.model, threads=args.threads, max_len=args.tokens + 16)
    with Engine(config) as engine:
        for number in range(args.rounds):
            ways = ("alone", *PART_ROWS)
            seconds = {}
            for way in ways if number % 2 else reversed(ways):
                source, out = folder / f"{number}-{way}.jsonl", folder / f"{number}-{way}"
                drawn = (
                    [
                        chance.randrange(FIRST_TOKEN, FIRST_TOKEN + NUM_TOKENS)
                        for _ in range(args.tokens)
                    ]
                    for _ in range(args.prompts)
                )
                source.write_text("".join(f'{{"prompt": {ids}}}\n' for ids in drawn))
                seconds[str(way)] = (
                    alone_seconds(engine, source)
                    if isinstance(way, str)
                    else job_seconds(engine, source, out, way)
                )
            found.append(seconds)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nestling")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rounds = rounds_of(args, Path(folder))
    rates = {way: args.prompts / statistics.median(one[way] for one in rounds) for way in rounds[0]}
    for way, rate in sorted(rates.items(), reverse=True):
        name = "the engine alone" if way == "alone" else f"a job of parts of {way} rows"
        print(f"{name}: {rate:.1f} prompts/s, {rate / rates['alone']:.1%}")
    if args.json:
        options = {name: value for name, value in vars(args).items() if name != "json"}
        result = {
            "benchmark": "job_overhead",
            "machine": machine_facts(),
            "options": options,
            "prompts_per_second": rates,
            "rounds": rounds,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
