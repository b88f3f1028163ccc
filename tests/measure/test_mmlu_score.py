"""Scores, intervals, two runs beside each other, and published figures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from exams import Data, answer, result_of

from gyrfalcon.errors import UsageError
from gyrfalcon.measure.mmlu.compare import compare
from gyrfalcon.measure.mmlu.exam import read_exam
from gyrfalcon.measure.mmlu.prompts import (
    HENDRYCKS,
    Exam,
)
from gyrfalcon.measure.mmlu.proportions import mcnemar, wilson
from gyrfalcon.measure.mmlu.published import compare_published
from gyrfalcon.measure.mmlu.run import Answer
from gyrfalcon.measure.mmlu.score import score
from gyrfalcon.measure.published import MMLUFigure, PublishedFigures, known
from gyrfalcon.model.architectures import config_from_file


def test_micro_counts_questions_and_macro_subjects(exam_folder: Path) -> None:
    subjects = read_exam(exam_folder, "test")
    preds = {"birds": "AXB", "sums_of_two": "AAAA"}
    found = [
        answer(subject.name, question.id, question.answer, pred)
        for subject in subjects
        for question, pred in zip(subject.questions, preds[subject.name], strict=True)
    ]
    counted = score(subjects, found)
    assert (counted.all.right, counted.all.total) == (4, 7)
    assert counted.macro == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert counted.categories["STEM"].accuracy == 0.5
    assert counted.categories["humanities"].accuracy is None


def test_intervals_are_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (5, 0, 2 / 2**5),
        (1, 6, 2 * (1 + 7) / 2**7),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (3, 3, 1.0),
        (3, 4, 1.0),
    ],
)
def test_mcnemars_p_is_the_binomials(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == p


def test_mcnemars_p_of_many_pairs_is_a_number() -> None:
    assert mcnemar(5000, 5200) == pytest.approx(math.erfc(199 / math.sqrt(2 * 10200)), rel=2e-3)


def test_two_runs_are_compared_pair_by_pair() -> None:
    preds = [("A", "A"), ("B", "B"), ("A", "C"), ("A", "D"), ("C", "A"), ("D", "C"), (None, None)]
    one = [answer("birds", i, "A", pred) for i, (pred, _) in enumerate(preds)]
    two = [answer("birds", i, "A", pred) for i, (_, pred) in enumerate(preds)]
    one += [answer("sums", 0, "B", "B"), answer("sums", 1, "B", None, dropped=True)]
    two += [answer("sums", 0, "B", "A"), answer("sums", 1, "B", "B")]
    found = compare(result_of(one), result_of(list(reversed(two))))
    birds = found.categories["other"]
    assert (birds.total, birds.same, birds.both_right) == (7, 3, 1)
    assert (birds.only_first, birds.only_second, birds.p) == (2, 1, 1.0)
    assert (found.all.total, found.all.only_first, found.num_left_out) == (8, 3, 1)
    assert found.all.p == 2 * (1 + 4) / 2**4


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "lm-eval"},
        {"protocol_version": 2},
        {"split": "val"},
        {"shots": 0},
        {"exam_sha256": "1"},
    ],
    ids=str,
)
def test_runs_that_asked_something_else_are_not_compared(other: dict[str, object]) -> None:
    found = [answer("birds", 0, "A", "A")]
    with pytest.raises(UsageError, match="two runs with the same"):
        compare(result_of(found), result_of(found, **other))


@pytest.mark.parametrize(
    "changed",
    [[answer("birds", 0, "B", "A")], [answer("birds", 0, "A", "A"), answer("birds", 1, "A", "A")]],
    ids=["truth", "question"],
)
def test_runs_of_one_exam_whose_questions_differ_are_not_compared(changed: list[Answer]) -> None:
    """The same checksum of the exam: one of the files was edited."""
    with pytest.raises(UsageError, match="one that was changed"):
        compare(result_of([answer("birds", 0, "A", "A")]), result_of(changed))


def test_runs_that_asked_something_else_are_told_what() -> None:
    short = [answer("birds", 0, "A", "A")]
    whole = result_of([*short, answer("birds", 1, "B", "B")])
    other = result_of([answer("sums", 0, "A", "A")], exam_sha256="1")
    for one, two, got in (
        (whole, result_of(short, shots=0), "old: 5; new: 0"),
        (
            whole,
            result_of(short, exam_sha256="1"),
            "old: an exam, 2 questions of 1 subject; new: an exam, 1 question of 1 subject",
        ),
        (
            whole,
            other,
            "old: an exam, 2 questions of 1 subject, birds among them; "
            "new: an exam, 1 question of 1 subject, sums among them",
        ),
        (
            result_of(short),
            result_of(short, exam_sha256="1"),
            "old: an exam, 1 question of 1 subject, worded otherwise; "
            "new: an exam, 1 question of 1 subject, worded otherwise",
        ),
    ):
        with pytest.raises(UsageError) as caught:
            compare(one, two, ("old", "new"))
        assert caught.value.got == got


def test_the_figures_of_7b_and_40b_are_known_by_shape(data: Data) -> None:
    seven = known(config_from_file(data("falcon-configs/falcon-7b/config.rw-2023-07.json")))
    assert seven is not None
    (figure,) = seven.mmlu
    assert (figure.right, figure.total, len(figure.subjects)) == (3882, 14042, 57)
    reference = json.loads(data("reference-outputs/mmlu-falcon-7b.json").read_text())["subjects"]
    assert figure.subjects == {n: (c["right"], c["total"]) for n, c in reference.items()}
    forty = known(config_from_file(data("falcon-configs/derived/falcon-40b-instruct/config.json")))
    assert forty is not None
    assert [(f.right, f.total) for f in forty.mmlu[:2]] == [(841, 1531), (841, 1531)]
    assert [f.accuracy for f in forty.mmlu[2:]] == [0.558, 0.571, 0.527]
    for figure in forty.mmlu[:2]:
        assert sum(right for right, _ in figure.categories.values()) == 841


def test_no_figures_are_known_for_another_shape(data: Data) -> None:
    seven = config_from_file(data("falcon-configs/falcon-7b/config.rw-2023-07.json"))
    assert known(replace(seven, num_layers=31)) is None
    assert known(replace(seven, bias=True)) is None
    assert known(replace(seven, tied=False)) is not None


def stand_in(right: int, protocol: str = "hendrycks") -> PublishedFigures:
    subjects = {"birds": (right, 3), "sums_of_two": (1, 4)}
    figure = MMLUFigure("paper", protocol, "test", (right + 1) / 7, right + 1, 7, subjects, {})
    return PublishedFigures("stand-in", (figure,), None)


def test_a_score_is_compared_with_a_figure_for_the_same_questions(exam_folder: Path) -> None:
    subjects = [
        replace(subject, examples=subject.examples * 3)
        for subject in read_exam(exam_folder, "test")
    ]
    exam = Exam(subjects, "test", HENDRYCKS, 5)
    found = [
        answer(subject.name, question.id, question.answer, "A")
        for subject in subjects
        for question in subject.questions
    ]
    counted = score(subjects, found)
    (close,) = compare_published(stand_in(1), counted, exam)
    assert close.agrees is True
    assert (close.subjects_alike, close.subjects_compared) == (1, 2)
    (part,) = compare_published(
        stand_in(3), score(subjects[:1], found[:3]), replace(exam, subjects=subjects[:1])
    )
    assert (part.theirs, part.agrees) == (1.0, False)
    (other,) = compare_published(stand_in(1, "helm"), counted, exam)
    assert (other.agrees, other.why_not) == (None, "another way to ask")


def test_a_subject_without_an_answer_does_not_count_in_the_macro_average(exam_folder: Path) -> None:
    subjects = read_exam(exam_folder, "test")
    birds = next(subject for subject in subjects if subject.name == "birds")
    counted = score(subjects, [answer("birds", q.id, q.answer, q.answer) for q in birds.questions])
    assert counted.macro == 1.0
