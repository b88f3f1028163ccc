"""What `gyrfalcon speed` does: the guide's sweep over input and output lengths, as CSV, JSON and table."""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Mapping, Sequence

from gyrfalcon.cli.before_loading import opened
from gyrfalcon.cli.engine_options import engine_config
from gyrfalcon.console.format import counted, goes_to_stdout, say_ready, write_json
from gyrfalcon.console.interrupted import interrupts_tell
from gyrfalcon.console.progress import bar
from gyrfalcon.engine.build import longest_sequence
from gyrfalcon.errors import UsageError
from gyrfalcon.files.output import OutputFile, open_output
from gyrfalcon.measure.published import kind_of
from gyrfalcon.measure.result import envelope, num_parameters
from gyrfalcon.measure.speed.baseline import baselines, compare
from gyrfalcon.measure.speed.bench import Bench, deployment_of, measure_limits, with_percent
from gyrfalcon.measure.speed.cases import Case
from gyrfalcon.measure.speed.files import Files, Sweep, csv_text
from gyrfalcon.measure.speed.table import describe


def run(args: argparse.Namespace) -> int:
    """Times every case that the files do not hold yet, and shows all they hold."""
    config = engine_config(args)
    lengths = itertools.product(args.prompt_lens, args.output_lens)
    cases = [Case(args.batch, input_len, output_len) for input_len, output_len in lengths]
    csv = open_output(args.csv, "-f") if args.csv else None
    files = Files.select(csv, args.json)
    checkpoint = opened(config)
    model = kind_of(checkpoint.config.facts(), num_parameters(checkpoint.config))
    against = baselines(args.baseline, model) if args.baseline else ()
    earlier = None if args.overwrite else files.earlier()
    _check_lengths(cases, longest_sequence(config, checkpoint))
    with contextlib.closing(Bench.start(config, args.batch)) as bench:
        engine = bench.engine
        if engine.is_first_rank:
            say_ready(engine.description, engine.notes)
        head = envelope("speed", engine, args.words, {})
        sweep = files.resume(earlier, head, args.repeats)
        with interrupts_tell(lambda: _kept(cases, sweep, files)):
            _measure(bench, cases, sweep, files, head)
        if not engine.is_first_rank:
            return 0
    sweep.baselines = [compare(sweep.in_order, baseline, model) for baseline in against]
    files.write(head, sweep)
    _warn(sweep)
    _tell(head, sweep, csv, args.json)
    return 0


def _tell(
    head: Mapping[str, object], sweep: Sweep, csv: OutputFile | None, json: OutputFile | None
) -> None:
    """What goes to no regular file, once and whole; then the table for people."""
    if csv is not None and csv.file is None:
        csv.write(csv_text(sweep.in_order))
    if json is not None and json.file is None:
        write_json({**head, "result": sweep.to_json()}, json)
    if not goes_to_stdout(csv) and not goes_to_stdout(json):
        print(describe(sweep))


def _kept(cases: Sequence[Case], sweep: Sweep, files: Files) -> str:
    measured = sum(case in sweep.rows for case in cases)
    if not measured or files.json is None:
        return ""
    kept = f"{measured} of {counted(len(cases), 'case')} measured and kept in {files.json}"
    return f"{kept}; run the same command again to go on"


def _warn(sweep: Sweep) -> None:
    """Says what makes a baseline no comparison of like with like."""
    for comparison in sweep.baselines:
        warnings = comparison["warnings"]
        assert isinstance(warnings, list)
        for warning in warnings:
            line = f"gyrfalcon: WARNING: not comparable with {comparison['name']}: {warning}"
            print(line, file=sys.stderr)


def _measure(
    bench: Bench, cases: Sequence[Case], sweep: Sweep, files: Files, head: Mapping[str, object]
) -> None:
    """Measures what is missing; the files get every case as soon as it is done."""
    first_rank = bench.engine.is_first_rank
    missing = [case for case in cases if case not in sweep.rows]
    if len(missing) < len(cases):
        found = f"{len(cases) - len(missing)} of {counted(len(cases), 'case')}"
        _say(bench, f"{found} {'is' if len(cases) == 1 else 'are'} in {files.json}")
    if missing and first_rank and sweep.limits is None:
        sweep.limits = measure_limits(bench.engine)
    deployment = deployment_of(bench.engine)
    tokens = sweep.repeats * sum(case.output_len for case in missing)
    with bar(tokens, "tokens", "speed", shown=first_rank) as progress:
        for case in missing:
            row = bench.measure(case, sweep.repeats, progress.update)
            sweep.rows[case] = with_percent(row, deployment, sweep.limits) if sweep.limits else row
            if first_rank:
                files.write(head, sweep)


def _check_lengths(cases: Sequence[Case], longest: int) -> None:
    largest = max(cases, key=lambda case: case.input_len + case.output_len)
    if largest.input_len + largest.output_len > longest:
        raise UsageError(
            f"input and output of at most {longest} tokens together, as far as the model goes",
            f"{largest.input_len} + {largest.output_len}",
            "lower --in or --out",
        )


def _say(bench: Bench, line: str) -> None:
    if bench.engine.is_first_rank:
        print(line, file=sys.stderr)
