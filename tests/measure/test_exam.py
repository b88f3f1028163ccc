"""The nestling exam: MMLU's layout, no score without knowing, nothing held out in the training texts."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from gyrfalcon.nestling.curriculum import document
from gyrfalcon.nestling.exam import LETTERS, draw, lay, prompt, questions, split_of, write_exam
from gyrfalcon.nestling.subjects import CATEGORIES, SUBJECTS

Rows = dict[str, dict[str, list[list[str]]]]  # split → subject → rows

EXAM_SHA256 = "58c94f7fb4a2757d9249af114c95ee9834859d5fb74e0b14f45bdd12b11bde36"


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exam")
    write_exam(folder)
    return folder


@pytest.fixture(scope="module")
def rows(exam: Path) -> Rows:
    read: Rows = {}
    for path in sorted(exam.glob("*/*.csv")):
        split = path.parent.name
        assert path.stem.endswith(f"_{split}")
        with path.open(encoding="utf-8", newline="") as file:
            read.setdefault(split, {})[path.stem.removesuffix(f"_{split}")] = list(csv.reader(file))
    return read


@pytest.fixture(scope="module")
def lessons() -> list[str]:
    rng = Random(7)
    return ["".join(text for text, _ in document(rng, 0.1)) for _ in range(6000)]


def test_the_folder_has_the_layout_of_mmlu(rows: Rows) -> None:
    assert sorted(rows) == ["dev", "test", "val"]
    names = sorted(subject.name for subject in SUBJECTS)
    assert len(names) >= 8
    for split in rows.values():
        assert sorted(split) == names
        for row in (row for of_subject in split.values() for row in of_subject):
            assert len(row) == 6
            assert row[5] in LETTERS
            assert len(set(row[1:5])) == 4
            assert all(row)


def test_there_are_five_examples_and_two_thousand_questions(rows: Rows) -> None:
    assert {len(of_subject) for of_subject in rows["dev"].values()} == {5}
    assert min(len(of_subject) for of_subject in rows["val"].values()) >= 10
    assert sum(len(of_subject) for of_subject in rows["test"].values()) >= 2000


def test_the_subjects_fall_into_the_four_categories_of_mmlu() -> None:
    assert {subject.category for subject in SUBJECTS} == set(CATEGORIES)


def test_the_exam_is_always_the_same(exam: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(exam.glob("*/*.csv")):
        digest.update(path.name.encode() + path.read_bytes())
    assert digest.hexdigest() == EXAM_SHA256


def test_no_question_comes_twice(rows: Rows) -> None:
    asked = Counter(
        (row[0], *sorted(row[1:5]))
        for split in rows.values()
        for of_subject in split.values()
        for row in of_subject
    )
    assert asked.most_common(1)[0][1] == 1


def _longest(row: list[str]) -> str:
    return LETTERS[max(range(4), key=lambda i: len(row[1 + i]))]


def _shortest(row: list[str]) -> str:
    return LETTERS[min(range(4), key=lambda i: len(row[1 + i]))]


def _first_in_order(row: list[str]) -> str:
    return LETTERS[row.index(min(row[1:5]), 1) - 1]


def _second_number(row: list[str]) -> str:
    ordered = sorted(row[1:5], key=lambda choice: (len(choice), choice))
    return LETTERS[row.index(ordered[1], 1) - 1]


def _always(letter: str) -> Callable[[list[str]], str]:
    return lambda row: letter


STRATEGIES = {
    "longest": _longest,
    "shortest": _shortest,
    "first in order": _first_in_order,
    "one from the middle": _second_number,
    **{f"always {letter}": _always(letter) for letter in LETTERS},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_that_knows_nothing_fails(name: str, rows: Rows) -> None:
    asked = [row for of_subject in rows["test"].values() for row in of_subject]
    right = sum(STRATEGIES[name](row) == row[5] for row in asked)
    assert right / len(asked) < 0.28


def test_choices_that_were_often_right_are_not_likelier_to_be_right(rows: Rows) -> None:
    right = total = 0
    for name, asked in rows["test"].items():
        known = [*rows["dev"][name], *rows["val"][name]]
        often = Counter(row[1 + LETTERS.index(row[5])] for row in known)
        for row in asked:
            right += (
                max(LETTERS, key=lambda letter: often[row[1 + LETTERS.index(letter)]]) == row[5]
            )
        total += len(asked)
    assert right / total < 0.35


def test_the_split_of_an_item_does_not_hang_on_its_wording() -> None:
    rng = Random(3)
    wordings: dict[str, set[str]] = {}
    for _ in range(40_000):
        item = SUBJECTS[0].draw(rng)
        wordings.setdefault(item.key, set()).add(re.sub(r"\d+", "", item.question))
    assert all(len(of_item) == 2 for of_item in wordings.values())


def test_a_sum_is_held_out_in_both_orders() -> None:
    rng = Random(4)
    seen: dict[frozenset[str], set[str]] = {}
    while len(seen) < 200:
        item = SUBJECTS[0].draw(rng)
        numbers = re.findall(r"\d+", item.question)
        if " plus " in item.question or "+" in item.question:
            seen.setdefault(frozenset(numbers), set()).add(split_of(item.key))
    assert all(len(splits) == 1 for splits in seen.values())
    assert {"test", "train"} <= set.union(*seen.values())


def test_no_held_out_question_is_in_the_training_texts(rows: Rows, lessons: list[str]) -> None:
    held_out = {
        (row[0], frozenset(row[1:5]))
        for split in rows.values()
        for of_subject in split.values()
        for row in of_subject
    }
    layout = re.compile(r"(.+)\nA\. (.+)\nB\. (.+)\nC\. (.+)\nD\. (.+)\nAnswer: [A-D]\n")
    taught = {
        (found[0], frozenset(found[1:])) for text in lessons for found in layout.findall(text)
    }
    assert len(taught) > 5000
    assert not taught & held_out


def test_no_held_out_calculation_is_in_the_training_texts(lessons: list[str]) -> None:
    taught = {
        frozenset(found)
        for text in lessons
        for found in re.findall(r"(\d+) (?:plus|\+) (\d+)\b", text)
    }
    rng = Random(5)
    held_out = {
        frozenset(re.findall(r"\d+", item.question))
        for item in (draw(SUBJECTS[0], "test", rng) for _ in range(2000))
        if "plus" in item.statement
    }
    assert len(held_out) > 50
    assert len(taught) > 100
    assert not taught & held_out


def test_every_word_of_the_exam_is_in_the_training_texts(lessons: list[str]) -> None:
    words = set(re.findall(r"[a-zA-Z]+", " ".join(lessons)))
    for subject in SUBJECTS:
        for one in questions(subject, "test"):
            assert set(re.findall(r"[a-zA-Z]+", " ".join((one.question, *one.choices)))) <= words


def test_a_prompt_is_laid_out_as_the_authors_of_mmlu_do() -> None:
    subject = next(subject for subject in SUBJECTS if subject.name == "number_sequences")
    rng = Random(0)
    first, second = (lay(draw(subject, "dev", rng), letter, rng) for letter in "BD")
    text = prompt(subject, [first], second)
    assert text == (
        "The following are multiple choice questions (with answers) about  number sequences.\n\n"
        f"{first.question}\nA. {first.choices[0]}\nB. {first.choices[1]}\nC. {first.choices[2]}\n"
        f"D. {first.choices[3]}\nAnswer: B\n\n"
        f"{second.question}\nA. {second.choices[0]}\nB. {second.choices[1]}\nC. {second.choices[2]}\n"
        f"D. {second.choices[3]}\nAnswer:"
    )


def test_training_texts_give_weight_to_letters_and_end_as_they_should() -> None:
    rng = Random(1)
    for spans in (document(rng, 1.0) for _ in range(50)):
        letters = [text for text, weight in spans if weight == 4.0]
        assert letters
        assert all(re.fullmatch(" [A-D]", text) for text in letters)
        for (before, _), (text, weight) in pairwise(spans):
            assert weight == 4.0 or not before.endswith("\nAnswer:"), text
