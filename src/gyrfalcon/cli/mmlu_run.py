"""What `gyrfalcon mmlu` does: runs a multiple-choice exam, or compares two runs of one."""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from gyrfalcon.checkpoint.fingerprint import model_identity
from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli import mmlu_tables as tables
from gyrfalcon.cli.before_loading import opened
from gyrfalcon.cli.engine_options import engine_config
from gyrfalcon.console.format import counted, say_ready, show_result
from gyrfalcon.console.interrupted import interrupts_tell
from gyrfalcon.console.progress import bar
from gyrfalcon.engine.engine import Engine
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import CheckFailed, UsageError
from gyrfalcon.files.output import check_folder
from gyrfalcon.measure import result
from gyrfalcon.measure.mmlu import published as mmlu_published
from gyrfalcon.measure.mmlu import score as mmlu_score
from gyrfalcon.measure.mmlu.compare import (
    Comparison,
    ExamSetup,
    check_alike,
    compare,
    comparison_json,
)
from gyrfalcon.measure.mmlu.exam import open_exam
from gyrfalcon.measure.mmlu.exam_identity import MMLU_NAME, Identity, identify
from gyrfalcon.measure.mmlu.files import OPTIONS, Recorder, alone_in, unfinished
from gyrfalcon.measure.mmlu.prompts import PROTOCOLS, Exam
from gyrfalcon.measure.mmlu.result import ExamResult
from gyrfalcon.measure.mmlu.run import Answer, answers
from gyrfalcon.measure.mmlu.score import Score, score
from gyrfalcon.measure.published import PublishedFigures, known, models_with_mmlu


@dataclass(frozen=True, slots=True)
class Done:
    """A finished run: all answers in the exam's order, and how long the new ones took."""

    model: str
    exam: Exam
    identity: Identity
    answers: Sequence[Answer]
    score: Score
    num_new: int
    seconds: float | None  # None: other hardware computed in the device's place

    def as_result(self) -> ExamResult:
        categories = {subject.name: subject.category for subject in self.exam.subjects}
        return ExamResult(
            model=self.model,
            exam=self.identity,
            settings=self.exam.settings,
            categories=categories,
            answers=tuple(self.answers),
            score=self.score,
        )

    def as_json(self) -> dict[str, object]:
        return {
            "exam": asdict(self.identity),
            **self.exam.settings,
            "num_questions": self.exam.num_questions,
            **mmlu_score.score_json(self.score, self.exam.subjects),
            "seconds": self.seconds,
            "num_computed": self.num_new,
            "num_resumed": len(self.answers) - self.num_new,
            "questions_per_second": None if self.seconds is None else self.num_new / self.seconds,
            "predictions": [mmlu_score.answer_json(answer) for answer in self.answers],
        }


def run(args: argparse.Namespace) -> int:
    """Answers the open questions and shows the score; or compares two results."""
    output = None if args.model is None else check_folder(args.output, "-o")
    others = [ExamResult.load(Path(name)) for name in args.compare]
    if output is None:
        return _compare_alone(others, args)
    names = None if args.subjects is None else [_name(word) for word in args.subjects.split(",")]
    subjects = open_exam(args.data, args.split, names, args.limit)
    exam = Exam(subjects, args.split, PROTOCOLS[args.protocol], args.shots)
    which = identify(args.data, args.split)
    for other, path in zip(others, args.compare, strict=True):
        asked = ExamSetup.in_exam(exam, which)
        check_alike(asked, ExamSetup.in_result(other), ("A (this run)", f"B ({path})"))
    published = _published(engine_config(args), which) if args.published else None
    opened(engine_config(args))
    identity = _identity(args, exam)
    earlier = [] if args.overwrite else unfinished(output, identity, exam.subjects)
    with Engine(engine_config(args)) as engine:
        say_ready(engine.description, engine.notes)
        with (
            alone_in(output),
            closing(_recorder(args, exam, identity, earlier)) as recorder,
            interrupts_tell(lambda: _kept(recorder, exam, args.output)),
        ):
            done = _ask(engine, exam, earlier, recorder, which)
            facts = done.as_json()
            rows = None
            if published is not None:
                rows = mmlu_published.compare_published(published, done.score, exam)
                facts["published"] = mmlu_published.rows_json(rows)
            comparison = compare(done.as_result(), others[0]) if others else None
            if comparison is not None:
                facts["comparison"] = _compared_with(others[0], args.compare[0], comparison)
            document = result.envelope("mmlu", engine, args.words, facts)
            recorder.finish(done.score, document)
    _say_speed(done, args.output)
    show_result(document, _lines(done, rows, comparison), args.json)
    return _verdict(rows or ())


def _compare_alone(others: Sequence[ExamResult], args: argparse.Namespace) -> int:
    (one, other), (first, second) = others, args.compare
    pairs = compare(one, other, (f"A ({first})", f"B ({second})"))
    lines = [f"A: {first}, B: {second}", one.heading]
    if one.model != other.model:
        lines.append(f"two models: A is {one.model}, B is {other.model}")
    lines += tables.comparison_lines(pairs)
    document = {
        "exam": one.heading,
        "runs": [{"file": first, "model": one.model}, {"file": second, "model": other.model}],
        **comparison_json(pairs),
    }
    show_result(document, lines, args.json)
    return 0


def _compared_with(other: ExamResult, file: str, comparison: Comparison) -> dict[str, object]:
    return {"with": {"file": file, "model": other.model}, **comparison_json(comparison)}


def _recorder(
    args: argparse.Namespace, exam: Exam, identity: Mapping[str, object], earlier: Sequence[Answer]
) -> Recorder:
    """UsageError where another run wrote to the folder while the model was loaded."""
    folder = check_folder(args.output, "-o")
    if not args.overwrite and unfinished(folder, identity, exam.subjects) != earlier:
        do = "run the same command again, or name another folder with -o"
        raise UsageError(f"{folder} as it was", "the answers of another run since", do)
    return Recorder(folder, identity, earlier)


def _name(word: str) -> str:
    """The name of a subject's file, from what was typed."""
    return word.strip().replace(" ", "_")


def _identity(args: argparse.Namespace, exam: Exam) -> dict[str, object]:
    """All that can change an answer: an interrupted run resumes only where this is the same."""
    return {
        "model": args.model,
        **model_identity(engine_config(args)),
        "device": args.device,
        "dtype": args.dtype,
        "quant": args.quant,
        "max_len": args.max_len,
        **exam.settings,
        OPTIONS: {"data": args.data, "limit": args.limit, "subjects": args.subjects},
    }


def _ask(
    engine: Engine, exam: Exam, earlier: Sequence[Answer], recorder: Recorder, which: Identity
) -> Done:
    """Answers what is missing and writes each answer as it comes."""
    asked = counted(exam.num_questions, "question")
    recorder.log(f"{len(earlier)} of {asked} answered; {which.name}; {exam.settings}")
    found = list(earlier)
    start = time.perf_counter()
    with bar(exam.num_questions - len(earlier), "question", "mmlu") as shown:
        missing = answers(engine, exam, _keys(earlier))
        for name, group in groupby(missing, attrgetter("subject")):
            new = []
            for answer in group:
                recorder.write(answer)
                new.append(answer)
                shown.update()
            count = mmlu_score.count(new)
            recorder.log(f"{name}: {count.right} of {count.total} right")
            found += new
    seconds = None if engine.hardware.emulated else time.perf_counter() - start
    in_order = sorted(found, key=attrgetter("subject", "id"))
    num_new = len(found) - len(earlier)
    model, found_score = engine.config.model_name, score(exam.subjects, in_order)
    return Done(model, exam, which, in_order, found_score, num_new, seconds)


def _kept(recorder: Recorder, exam: Exam, output: str) -> str:
    if not recorder.num_answers:
        return ""
    asked = counted(exam.num_questions, "question")
    return (
        f"{recorder.num_answers} of {asked} answered and kept in {output}; "
        "run the same command again to go on"
    )


def _published(config: EngineConfig, which: Identity) -> PublishedFigures:
    """The figures published for a model; UsageError where there are none, and for another exam."""
    checkpoint = open_checkpoint(resolve_model(config.model), config.adapter)
    published = None if checkpoint.adapter_name else known(checkpoint.config)
    if published is None or not published.mmlu:
        wanted = f"a model with published MMLU figures ({', '.join(models_with_mmlu())})"
        raise UsageError(
            wanted, f"{config.model_name}, for which none are known", "leave --published out"
        )
    if which.name != MMLU_NAME:
        wanted = f"{MMLU_NAME} after -d, which all published figures are of"
        raise UsageError(wanted, which.name, "leave --published out")
    return published


def _lines(
    done: Done,
    rows: Sequence[mmlu_published.PublishedComparison] | None,
    comparison: Comparison | None,
) -> Iterator[str]:
    """All that people are shown."""
    yield from tables.score_lines(done.as_result())
    if rows is not None:
        yield from tables.published_lines(rows)
    if comparison is not None:
        yield "A: this run, B: the other"
        yield from tables.comparison_lines(comparison)


def _say_speed(done: Done, output: str) -> None:
    text = counted(done.num_new, "question")
    if done.seconds is not None:
        text += f" in {done.seconds:.1f} s, {done.num_new / done.seconds:.2f} questions/s"
    print(f"{text}; written to {output}", file=sys.stderr)


def _verdict(rows: Sequence[mmlu_published.PublishedComparison]) -> int:
    """CheckFailed when a published accuracy should agree and does not."""
    for row in rows:
        if row.agrees is False:
            raise CheckFailed(
                f"{100 * row.theirs:.2f} % ({row.figure.source}) within our interval",
                f"{100 * (row.ours.accuracy or 0):.2f} %",
                "check the checkpoint; an instruct or fine-tuned model has figures of its own",
            )
    return 0


def _keys(found: Sequence[Answer]) -> set[tuple[str, int]]:
    return {(answer.subject, answer.id) for answer in found}
