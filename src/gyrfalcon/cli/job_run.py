"""What `gyrfalcon score` and `gyrfalcon generate -o` do: one worker of a job over files of prompts."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.checkpoint.source import Checkpoint
from gyrfalcon.checkpoint.tokenizer import load_tokenizer
from gyrfalcon.cli.before_loading import check_structured, opened
from gyrfalcon.cli.engine_options import engine_config
from gyrfalcon.console.format import counted, say_ready, show_result
from gyrfalcon.console.interrupted import interrupts_tell
from gyrfalcon.console.progress import bar
from gyrfalcon.engine.build import longest_sequence
from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.jobs.answers import answer_part
from gyrfalcon.jobs.folder import JobFolder, open_job
from gyrfalcon.jobs.identity import identity
from gyrfalcon.jobs.plan import Plan, make_plan
from gyrfalcon.jobs.ray_data import RayWorkers, connect, work_on_ray
from gyrfalcon.jobs.rows import Columns
from gyrfalcon.jobs.source import SourceFile, source_files
from gyrfalcon.jobs.task import GENERATE, SCORE, RowEncoder, Task
from gyrfalcon.jobs.work import finished, unfinished, work
from gyrfalcon.request import SamplingParams


def score(args: argparse.Namespace) -> int:
    """Scores the rows of the files in args.input."""
    task = Task(
        SCORE,
        Columns(args.id_field, args.prompt_field, args.continuation_field),
        args.on_error,
        args.part_rows,
        per_token=not args.sums_only,
    )
    args.model = str(resolve_model(args.model))  # a hub is asked once
    return _run(args, task, engine_config(args), args.input)


def generate(args: argparse.Namespace, params: SamplingParams, config: EngineConfig) -> int:
    """Continues the prompts of the files in args.prompt_file."""
    columns = Columns(args.id_field, args.prompt_field)
    task = Task(GENERATE, columns, args.on_error, args.part_rows, chat=args.chat, params=params)
    return _run(args, task, config, args.prompt_file)


def _run(args: argparse.Namespace, task: Task, config: EngineConfig, source: str) -> int:
    files = source_files(source)
    checkpoint = opened(config)
    settings = identity(task, config, getattr(args, "seed", None))
    if (workers := _ray_workers(args)) is not None:
        connect(workers)
    plan = partial(_plan, files, config, checkpoint, task)
    with open_job(args.output, settings, files, plan, _say, overwrite=args.overwrite) as folder:
        result = _finish(folder, args, config)
    _show(args, result)
    return 0


def _plan(
    files: list[SourceFile], config: EngineConfig, checkpoint: Checkpoint, task: Task
) -> Plan:
    """Checks all prompts with the tokenizer alone."""
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer is not None  # opened() has seen to it
    check_structured(checkpoint, tokenizer, task.params)
    longest = longest_sequence(config, checkpoint)
    encode = RowEncoder.of(task, config, checkpoint.config, tokenizer, longest)
    with bar(0, "row", "check") as shown:
        plan = make_plan(files, encode, shown.update)
    if plan.unused:
        _say(f"note: fields that are not used: {', '.join(plan.unused)}")
    if plan.num_bad:
        _say(f"note: {counted(plan.num_bad, 'row')} will have an error in place of a result")
    return plan


def _finish(folder: JobFolder, args: argparse.Namespace, config: EngineConfig) -> dict[str, object]:
    """Does what is left of the job and returns its result."""
    left = unfinished(folder)
    if not left and (result := finished(folder)) is not None:
        return result
    num_left = sum(part.num_rows for part in left)
    kind = str(folder.job.settings["kind"])
    if num_left < folder.job.plan.num_rows:
        _say(f"{folder.job.plan.num_rows - num_left} of {_rows(folder)} finished before")
    with interrupts_tell(lambda: _kept(folder, args.output)):
        if (workers := _ray_workers(args)) is not None:
            with bar(num_left, "row", kind) as shown:
                return work_on_ray(folder, config, workers, shown.update)
        with Engine(config) as engine:
            say_ready(engine.description, engine.notes)
            start = time.perf_counter()
            with bar(num_left, "row", kind) as shown:
                result = _work(folder, engine, shown.update)
            if not engine.hardware.emulated:
                _say(f"{counted(num_left, 'row')} in {time.perf_counter() - start:.1f} s")
    return result


def _ray_workers(args: argparse.Namespace) -> RayWorkers | None:
    if args.ray_workers is None:
        return None
    return RayWorkers(args.ray_workers, args.ray_cpus, args.ray_gpus)


def _work(folder: JobFolder, engine: Engine, seen: Callable[[int], object]) -> dict[str, object]:
    """As a worker with this engine."""
    encode = RowEncoder.of(
        folder.job.task, engine.config, engine.model_config, engine.tokenizer, engine.max_len
    )
    answer = partial(answer_part, engine, folder.job, encode, seen=seen)
    return work(folder, answer, seen, _say)


def _kept(folder: JobFolder, out: str) -> str:
    num_parts = len(folder.job.plan.parts)
    kept = num_parts - len(unfinished(folder))
    if not kept:
        return ""
    return (
        f"{kept} of {counted(num_parts, 'part')} finished and kept in {out}; "
        "run the same command again to go on"
    )


def _rows(folder: JobFolder) -> str:
    return counted(folder.job.plan.num_rows, "row")


def _show(args: argparse.Namespace, result: Mapping[str, object]) -> None:
    rows, errors, prompt, tokens = (
        int(str(result[name]))
        for name in ("num_rows", "num_errors", "num_prompt_tokens", "num_tokens")
    )
    done = "scored" if result["kind"] == SCORE else "generated"
    lines = [
        f"{counted(rows, 'row')} in {args.output}, {counted(errors, 'error')}; "
        f"{counted(prompt, 'prompt token')}, {counted(tokens, 'token')} {done}"
    ]
    show_result(result, lines, args.json)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
