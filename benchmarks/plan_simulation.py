"""The simulation of `gyrfalcon plan --trace` against a real server: step times that were not measured before,
and latencies end to end.

    python benchmarks/plan_simulation.py --json FILE [--resume] [--minutes 6] [--models nestling,A]
        [--loads 0.3,0.6,0.8,0.9] [--seeds 5] [--requests 200] [--in uniform:16-128] [--out uniform:8-64]
        [--sequences 16] [--threads 1] [--folder DIR] [--steps FOLDER] [--raw FOLDER]

Serves a model on the CPU from this process, with `gyrfalcon load` as the client in another, and notes
what each step computes and how long it takes, to the start of the next one. A piece is a model with one
seed. Capacity is what a closed loop of --sequences sustains; each share of it arrives as an open loop.
Before and after each of these come closed loops of 1, 2, 4, … requests at a time, and a few requests at a
tenth of the capacity: to the steps of all of these the step times are fitted. The machine's pace drifts, so
those of an open loop are scaled by how much longer steps took just before and after it; where these two are
more than 10 % apart, that loop is void. Its requests are simulated, with what requests take beside steps in
the other loops; those of the first fifth of the time are dropped. At last the requests of the capacity come
again: where it has moved by more than 10 %, or others used more than 5 % of the processors meanwhile, the
piece is void. Wanted, of the medians over the seeds: first token, time per token and end to end within 15 %
at their median and 25 % at their 90th percentile, up to 80 % of capacity. How far single steps lie from
their prediction is told only: plan_steps.py measures each load many times and tells what the prediction
misses, and what the machine moves.

FILE is written after each piece. With --resume those in it are kept, but for void ones, which are
measured again; with --minutes none begins that would not end in time, judged by the longest of its model.
--folder keeps the models that are made, --raw all that was measured: what is found there is not measured
again. --steps writes MODEL.json for `gyrfalcon plan --step-times`. A is that of cpu_peers_model.py, 1.17
billion weights in bf16. Run nothing else beside it.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from plan_simulation_errors import (
    Piece,
    at_pace,
    end_to_end,
    errors_of_steps,
    is_moved,
    is_void,
    misses,
    outside_ms,
    pace,
    percentiles_of,
    summary,
)
from plan_simulation_machine import Used
from plan_simulation_raw import OpenLoop, Raw
from plan_simulation_server import Rows, Served, ServerSettings, Steps, opened

from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import parsed_json
from gyrfalcon.load.lengths import LengthsOption
from gyrfalcon.measure.result import machine_facts
from gyrfalcon.plan.simulate_measured import fit_single_steps, write_steps

BENCHMARK = "plan_simulation"
SAME_MACHINE = ("processor", "kind", "system")
MINUTE = 60.0
IDLE_SHARE = 0.1  # of the capacity


def measured(own: Served, seed: int, args: argparse.Namespace) -> Raw:
    """Runs all loops of one model with one seed. Those that steps are fitted to lie between those that are
    predicted, since the machine's speed drifts.
    """
    begun = Used.now()
    own.capacity(args.requests // 2, 100)  # warms up
    own.log.pop()
    before = own.capacity(args.requests, seed)
    fitted, fewer, opened_loops = list[Steps](), list[Rows](), list[OpenLoop]()
    few = args.requests // len(args.loads)
    for place, load in enumerate(args.loads):
        fewer += other_loops(own, before, few, 100 * place + seed)
        fitted.append(own.log.pop())
        rows = own.opened(load * before, args.requests, seed)
        opened_loops.append(OpenLoop(load, rows, own.log.pop()))
    fewer += other_loops(own, before, few, 100 * len(args.loads) + seed)
    capacity, end = (before, own.capacity(args.requests, seed)), Used.now()
    fitted.append(own.log.pop())
    share = begun.others_share(end)
    seconds = end.wall - begun.wall
    return Raw(seconds, capacity, share, fitted, fewer, opened_loops, own.simulated)


def other_loops(own: Served, capacity: float, requests: int, seed: int) -> list[Rows]:
    """The requests of loops of 1, 2, 4, … at a time, fewer than run at once, and of some that mostly find
    nothing to do.
    """
    found, concurrency = list[Rows](), 1
    while concurrency < own.settings.sequences:
        number = requests // 8 + concurrency
        found.append(own.closed(concurrency, number, 1000 * concurrency + seed)["requests"])
        concurrency *= 2
    return [*found, own.opened(IDLE_SHARE * capacity, requests // 8 + 1, seed)]


def piece_of(name: str, seed: int, args: argparse.Namespace, raw: Raw) -> dict[str, Any]:
    """All figures of one model with one seed."""
    fitted = [step for steps in raw.fitted for step in steps]
    times = fit_single_steps(fitted)
    if args.steps is not None:
        facts = {"machine": machine_facts(), "model": name}
        write_steps(args.steps / f"{name}.json", facts, fitted)
    outside = outside_ms(raw.closed, raw.simulated, times)
    speeds = pace(raw.fitted, times)
    runs, errors = list[dict[str, Any]](), list[float]()
    for one, (before, after) in zip(raw.opened, pairwise(speeds), strict=True):
        own = at_pace(times, math.sqrt(before * after))
        errors += errors_of_steps(one.steps, own)
        found = end_to_end(one.rows, raw.simulated, own, outside)
        runs.append(
            {"load": one.load, "pace": (before, after), "void": is_moved((before, after)), **found}
        )
    return {
        "model": name,
        "seed": seed,
        "settings": settings_of(args),
        "seconds": raw.seconds,
        "capacity": raw.capacity,
        "others": raw.others,
        "void": is_void(raw.capacity, raw.others),
        "outside_ms": outside,
        "step_times": asdict(times),
        "steps": {"fitted": len(fitted), **percentiles_of(errors)},
        "runs": runs,
    }


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What must be alike in all pieces of a model."""
    names = ("loads", "requests", "sequences", "max_len", "threads")
    lengths = {name: str(getattr(args, name)) for name in ("input_lens", "output_lens")}
    return {**{name: getattr(args, name) for name in names}, **lengths}


def kept_pieces(file: Path, args: argparse.Namespace) -> list[Piece]:
    """The sound pieces in a file, if there is one; UsageError of other settings or another machine."""
    if not file.exists():
        return []
    found = cast(Any, parsed_json(file.read_bytes(), str(file), "name another file"))
    if not isinstance(found, dict) or found.get("benchmark") != BENCHMARK:
        raise UsageError(f"a result of {BENCHMARK}.py in {file}", "another", "name another file")
    machine = machine_facts()
    differing = [name for name in SAME_MACHINE if found["machine"].get(name) != machine[name]]
    for piece in found["pieces"]:
        if piece["model"] in args.models and piece["settings"] != settings_of(args):
            differing.append(f"settings of {piece['model']}")
    if differing:
        do = "repeat its command, or name another file"
        raise UsageError(f"the pieces in {file} to be of this run", f"other {differing[0]}", do)
    return [piece for piece in found["pieces"] if not piece["void"]]


def missing_seeds(pieces: Sequence[Piece], name: str, seeds: int) -> list[int]:
    """Of a model, in order."""
    had = {piece["seed"] for piece in pieces if piece["model"] == name}
    return [seed for seed in range(seeds) if seed not in had]


def is_in_time(pieces: Sequence[Piece], name: str, begun: float, minutes: float | None) -> bool:
    """Whether one piece more of a model would end in time: one that was never measured may try."""
    longest = max((piece["seconds"] for piece in pieces if piece["model"] == name), default=0.0)
    return minutes is None or time.monotonic() - begun + longest <= minutes * MINUTE


def measure(args: argparse.Namespace, folder: Path) -> list[Piece]:
    """The pieces that there are, and those that are missing as far as the time allows."""
    begun, pieces = time.monotonic(), kept_pieces(args.json, args) if args.resume else []
    settings = ServerSettings(
        args.input_lens, args.output_lens, args.max_len, args.sequences, args.threads
    )
    for name in args.models:
        for seed in missing_seeds(pieces, name, args.seeds):
            raw = kept_raw(args.raw, name, seed)
            if raw is not None:
                add(args, pieces, piece_of(name, seed, args, raw))
        missing = missing_seeds(pieces, name, args.seeds)
        if not missing or not is_in_time(pieces, name, begun, args.minutes):
            continue
        with opened(name, folder, settings) as own:
            for seed in missing:
                if not is_in_time(pieces, name, begun, args.minutes):
                    break
                raw = measured(own, seed, args)
                if args.raw is not None:
                    raw.write(raw_path(args.raw, name, seed))
                add(args, pieces, piece_of(name, seed, args, raw))
    return pieces


def add(args: argparse.Namespace, pieces: list[Piece], piece: Piece) -> None:
    """Takes one more piece."""
    pieces.append(piece)
    write(args, pieces)
    show_piece(piece)


def kept_raw(folder: Path | None, name: str, seed: int) -> Raw | None:
    """What was measured before, unless it is void."""
    if folder is None or not raw_path(folder, name, seed).exists():
        return None
    raw = Raw.read(raw_path(folder, name, seed))
    return None if is_void(raw.capacity, raw.others) else raw


def raw_path(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-{seed}.json"


def write(args: argparse.Namespace, pieces: Sequence[Piece]) -> None:
    """Everything that was measured, and what of it counts."""
    names = dict.fromkeys(piece["model"] for piece in pieces)
    document = {
        "benchmark": BENCHMARK,
        "machine": machine_facts(),
        "summary": {name: summary(of_model(pieces, name)) for name in names},
        "pieces": pieces,
    }
    args.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def of_model(pieces: Sequence[Piece], name: str) -> list[Piece]:
    """Those of one model."""
    return [piece for piece in pieces if piece["model"] == name]


def show_piece(piece: Piece) -> None:
    """A line of a piece."""
    steps, (before, after) = piece["steps"], piece["capacity"]
    print(
        f"{piece['model']} seed {piece['seed']}, {piece['seconds']:.0f} s: capacity {before:.2f}/s before,"
        f" {after:.2f}/s after, {piece['others']:.1%} used by others{' (void)' if piece['void'] else ''};"
        f" {steps['fitted']} steps fitted, {steps['predicted']} predicted, single ones off by"
        f" {steps['median_error']:.1%} and {steps['p90_error']:.1%}; {piece['outside_ms']:.1f} ms outside"
    )
    for run in piece["runs"]:
        errors = ", ".join(f"{key} {error:+.1%}" for key, error in run["errors"].items())
        before, after = run["pace"]
        void = " (void)" if run["void"] else ""
        print(f"  {run['load']:g}{void}, pace {before:.2f} and {after:.2f}: {errors}", flush=True)


def show_summary(name: str, found: Mapping[str, Any], seeds: int) -> None:
    """A model's medians over the seeds, and what misses."""
    steps = ", ".join(f"{key} {error:.1%}" for key, error in found["steps"].items())
    print(f"{name}, {found['seeds']} seeds: single steps {steps}")
    for share, one in found["loads"].items():
        errors = ", ".join(f"{key} {error:.1%}" for key, error in one["errors"].items())
        print(f"  load {share}, {one['seeds']} seeds: {errors}")
    for line in misses(found, seeds):
        print(f"  MISSED {line}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep the sound pieces in the file")
    parser.add_argument("--minutes", type=float, help="in which pieces have to end")
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
    parser.add_argument("--max-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--folder", type=Path, help="of models that are made")
    parser.add_argument("--raw", type=Path, help="a folder for all that is measured")
    parser.add_argument("--steps", type=Path, help="a folder for measured step times")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what is missing; 1 where a model misses a limit, or seeds are still missing."""
    args = parse(argv)
    if args.json.exists() and not args.resume:
        print(f"wanted a new file for --json, got {args.json}; add --resume", file=sys.stderr)
        return 2
    for folder in (args.raw, args.steps):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        try:
            pieces = measure(args, args.folder or Path(made))
        except UsageError as error:
            print(error, file=sys.stderr)
            return 2
    failed = False
    for name in args.models:
        found = summary(of_model(pieces, name))
        show_summary(name, found, args.seeds)
        failed = failed or bool(misses(found, args.seeds))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
