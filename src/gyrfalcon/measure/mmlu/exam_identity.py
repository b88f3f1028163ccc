"""Identifies an exam by its questions, whatever its folder is called."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from gyrfalcon.console.format import counted
from gyrfalcon.measure.mmlu.exam import (
    Question,
    is_shipped,
    questions_in,
    shipped_questions,
    subjects_in,
)
from gyrfalcon.nestling.subjects import SUBJECTS

MMLU_NAME = "MMLU"
NESTLING_NAME = "nestling's exam"
DIGITS = 12  # of a checksum


@dataclass(frozen=True, slots=True)
class Identity:
    """The name of an exam and its size in one split."""

    name: str
    num_subjects: int
    num_questions: int

    def part(self, num_questions: int) -> str:
        """How much of it a run asked: "14042 questions", or "40 of 14042 questions"."""
        if num_questions == self.num_questions:
            return counted(num_questions, "question")
        return f"{num_questions} of {counted(self.num_questions, 'question')}"


@dataclass(frozen=True, slots=True)
class KnownSubject:
    """A subject's questions in one split: how many, and the checksum of their text."""

    num_questions: int
    digest: str


Table = Mapping[str, KnownSubject]  # by subject


def identify(exam: str, split: str) -> Identity:
    """The exam that open_exam() opens under this name: MMLU or nestling's where all its subjects
    match word for word, even if the folder has only some of them; others are named after their
    folder.
    """
    if is_shipped(exam):
        return _whole(NESTLING_NAME, nestling_table(split))
    folder = Path(exam)
    questions = {
        part: {name: questions_in(folder, part, name) for name in subjects_in(folder, split)}
        for part in ("dev", split)
    }
    for known, table_of in ((MMLU_NAME, mmlu_table), (NESTLING_NAME, nestling_table)):
        if all(_is_of(table_of(part), found) for part, found in questions.items()):
            return _whole(known, table_of(split))
    total = sum(map(len, questions[split].values()))
    return Identity(f"the exam in {folder.resolve().name}/", len(questions[split]), total)


def unnamed(checksum: str) -> str:
    """The name of an exam whose result does not name it."""
    return f"unnamed exam {checksum[:DIGITS]}"


def digest(questions: Sequence[Question]) -> str:
    """Of questions, choices and answers; blanks around them do not count."""
    rows = [[one.text.strip(), *map(str.strip, one.choices), one.answer] for one in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:DIGITS]


@cache
def mmlu_table(split: str) -> Table:
    """MMLU's own, as Hendrycks et al. published it."""
    text = resources.files(__package__).joinpath("exam_digests.json").read_text("utf-8")
    return {name: KnownSubject(*known) for name, known in json.loads(text)[split].items()}


@cache
def nestling_table(split: str) -> Table:
    """That of the exam that ships with the package."""
    return {
        subject.name: KnownSubject(len(found), digest(found))
        for subject in SUBJECTS
        if (found := shipped_questions(subject, split))
    }


def _is_of(table: Table, found: Mapping[str, Sequence[Question]]) -> bool:
    """Whether all questions of these subjects are in the table."""
    return found.keys() <= table.keys() and all(
        digest(questions) == table[name].digest for name, questions in found.items() if questions
    )


def _whole(name: str, table: Table) -> Identity:
    return Identity(name, len(table), sum(known.num_questions for known in table.values()))
