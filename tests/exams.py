"""A made-up exam, and answers as the tests of mmlu want them."""

import csv
from collections.abc import Callable
from pathlib import Path

from gyrfalcon.files.json_fields import Fields
from gyrfalcon.measure.mmlu.exam import Subject, read_exam
from gyrfalcon.measure.mmlu.prompts import HENDRYCKS, Exam, Protocol
from gyrfalcon.measure.mmlu.result import ExamResult
from gyrfalcon.measure.mmlu.run import Answer
from gyrfalcon.measure.mmlu.score import answer_json, score, score_json

Data = Callable[[str], Path]

# Small, with a None, a comma, quotes and a line break in its cells.
ROWS = {
    "dev/birds_dev.csv": [
        ("Which bird is white?", "raven", "swan", "rook", "crow", "B"),
        ("Which bird runs?", "ostrich", "swift", "kite", "tern", "A"),
    ],
    "dev/sums_of_two_dev.csv": [
        ("1 + 1 =", "1", "2", "3", "4", "B"),
        ("2 + 3 =", "6", "4", "5", "7", "C"),
    ],
    "test/birds_test.csv": [
        ("Which falcon nests in the north?", "gyrfalcon", "None", "kestrel", "hobby", "A"),
        ('Which bird\nsays "who", at night?', "wren", "gull", "duck", "owl", "D"),
        ("Which bird dives?", "hen", "gannet", "dodo", "rhea", "B"),
    ],
    "test/sums_of_two_test.csv": [
        ("2 + 2 =", "5", "3", "4", "None", "C"),
        ("0 + 1 =", "1", "0", "2", "10", "A"),
        ("3 + 1 =", "3", "2", "13", "4", "D"),
        ("1 + 2 =", "3", "1", "2", "12", "A"),
    ],
}


def write_rows(folder: Path) -> Path:
    """The folder with the made-up exam in it."""
    for name, rows in ROWS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    (folder / "categories.json").write_text('{"sums_of_two": "STEM"}')
    return folder


def exam_of(
    folder: Path, protocol: Protocol = HENDRYCKS, num_examples: int = 2, split: str = "test"
) -> Exam:
    return Exam(read_exam(folder, split), split, protocol, num_examples)


def answer(
    subject: str, number: int, truth: str, pred: str | None, dropped: bool = False
) -> Answer:
    text = None if dropped else f"{pred}." if pred else "?"
    return Answer(subject, number, truth, pred, 5, 100, text=text, dropped=dropped)


def document(found: list[Answer], **settings: object) -> dict[str, object]:
    """A result file with these answers, to questions on birds and sums; `settings` change it."""
    return {
        **{"format": "gyrfalcon-result", "version": 1, "kind": "mmlu"},
        "model": {"name": "falcon-x"},
        "result": run_of(found, **settings),
    }


def run_of(found: list[Answer], **settings: object) -> dict[str, object]:
    """The `result` in document()."""
    subjects = [Subject("birds", "other", (), ()), Subject("sums", "STEM", (), ())]
    return {
        "exam": {"name": "an exam", "num_subjects": 2, "num_questions": 10},
        **{"protocol": "generate", "protocol_version": 1, "split": "test", "shots": 5},
        "exam_sha256": "0",
        "num_questions": len(found),
        **score_json(score(subjects, found), subjects),
        "predictions": [answer_json(one) for one in found],
        **settings,
    }


def result_of(found: list[Answer], **settings: object) -> ExamResult:
    """The same, as a comparison reads it."""
    return ExamResult.from_json(Fields(run_of(found, **settings), "a test"), "falcon-x")
