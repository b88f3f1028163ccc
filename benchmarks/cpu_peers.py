"""Times gyrfalcon beside other engines on the CPU: prefill and decoding, alone and in batches, with
weights of 16, 8 and 4 bits; the same random checkpoint, as many threads, one run, engines in turn.

    python benchmarks/cpu_peers.py [--quick|--long] [--json FILE] [--plot FILE]
        [--python ENGINE=PYTHON]

Engines: gyrfalcon, transformers (bf16, or fp32 where that is faster), llama.cpp (BF16, Q8_0, Q4_0),
openvino (bf16, int8, int4 with a scale for 64 weights), ctranslate2 (int8; bf16 where the processor
has it), vllm (bf16, int8 with activations of 8 bits, int4 with a scale for 64 weights), ik_llama.cpp
(as llama.cpp, repacked). One that is not installed is named and left out; one that fails in a case has
a row that says why. --python names the interpreter of an engine with an environment of its own:
docs/performance.md tells how to set up each.

    pip install -c constraints.txt -e ".[bench]"              transformers, llama.cpp, ctranslate2
    python -m venv ov && ov/bin/pip install torch==2.13.0 "optimum-intel[openvino,nncf]" && \\
        python benchmarks/cpu_peers.py --python openvino=ov/bin/python

Models: A, 40b-style with 1.17 B weights; B, 8 of the 32 layers of falcon-7b; C, all 32, which only
gyrfalcon runs. They are made below --folder and removed, whatever happens. In a round each engine has
its turn in a process of its own, and the next round begins with another one; beside each, the machine's
limits are measured. A turn begins with one prompt that is not timed. "of limit" is the least work in
our own format against the memory bandwidth when decoding, against the matrix peak in a prefill.

With --long prompts have 2,048 tokens: their prefill, and steps of one and 8 sequences after so much context,
where attention counts most.

All takes hours: before each model the script says what it would take at the machine's limits, and with
--resume the rounds that are in the JSON file already are kept, and those that lack to --rounds are run.

Exit code: 1 when a row of gyrfalcon is behind a peer or failed, 2 when the run was refused.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cpu_peers_plan import Plan, check_room, parse_options, plan_of
from cpu_peers_race import find_engines, race
from cpu_peers_results import Turn, draw, rows_of, table, to_json
from cpu_peers_resume import kept_turns, rounds_of

from gyrfalcon.config import ModelConfig
from gyrfalcon.console.format import write_json
from gyrfalcon.errors import GyrfalconError
from gyrfalcon.files.output import open_output
from gyrfalcon.measure.result import machine_facts, model_facts
from gyrfalcon.model.architectures import config_from_json

FORMAT, VERSION = "gyrfalcon-cpu-peers", 1
Facts = dict[str, object]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; see the exit codes above."""
    try:
        options = parse_options(argv, __doc__)
        plan = plan_of(options)
        folder = options.folder or Path(tempfile.gettempdir())
        check_room(plan, folder)
        with cores(plan.threads), workplace(folder) as work:
            versions, missing = find_engines(plan, work)
            facts = facts_of(plan, versions, missing, sys.argv[1:] if argv is None else argv)
            turns = kept_turns(plan, facts, options.json) if options.resume else []
            for model in plan.configs:
                done = rounds_of(turns, model)
                for turns_of_round in race(plan, model, missing, work, done):
                    turns += turns_of_round
                    save(plan, turns, facts, options.json)
    except GyrfalconError as error:
        print(f"cpu_peers: {error}", file=sys.stderr)
        return error.exit_code
    return report(plan, turns, options.plot)


@contextmanager
def cores(threads: int) -> Iterator[None]:
    """Pins this process, and those it starts, to as many cores as there are threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A temporary folder below `folder`, removed at the end and on SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    work = Path(tempfile.mkdtemp(prefix="gyrfalcon-peers-", dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work)
        signal.signal(signal.SIGTERM, before)


def facts_of(
    plan: Plan,
    versions: Mapping[str, Mapping[str, str]],
    missing: Mapping[str, str],
    argv: Sequence[str],
) -> Facts:
    """What was run, where and when."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["benchmarks/cpu_peers.py", *argv],
        "machine": machine_facts(),
        "device": "cpu",
        "threads": plan.threads,
        "dtype": "bf16",
        "models": {model: model_facts(model, config) for model, config in configs_of(plan).items()},
        "versions": versions,
        "missing": missing,
    }


def save(plan: Plan, turns: Sequence[Turn], facts: Facts, json: Path | None) -> None:
    """Saves the rounds so far, so that an interrupted run is not lost."""
    if json:
        rounds = {model: rounds_of(turns, model) for model in plan.configs}
        there = to_json(rows_of(turns, configs_of(plan)), turns)
        write_json({**facts, "rounds": rounds, **there}, open_output(str(json), "--json"))


def configs_of(plan: Plan) -> dict[str, ModelConfig]:
    """The config of each model."""
    return {model: config_from_json(config) for model, config in plan.configs.items()}


def report(plan: Plan, turns: Sequence[Turn], plot: Path | None) -> int:
    """Prints the table, draws it; 1 when a row of ours is behind."""
    rows = rows_of(turns, configs_of(plan))
    print(table(rows, turns))
    behind = [row for row in rows if row.behind]
    print(f"rows of gyrfalcon behind a peer or failed: {len(behind)}")
    if plot:
        draw(rows, plot)
    return int(bool(behind))


if __name__ == "__main__":
    sys.exit(main())
