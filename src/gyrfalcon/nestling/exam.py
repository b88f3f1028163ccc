"""The nestling exam: which items are held out, how a question is written, the folder of CSV files.
The folder has MMLU's layout, and a question the layout of MMLU's authors.
"""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gyrfalcon.nestling.subjects import SUBJECTS, Item, NestlingSubject

LETTERS = "ABCD"
NUM_ITEMS = {"dev": 5, "val": 20, "test": 128}  # of each subject
SHARES = {"dev": 4, "val": 10, "test": 28}  # of all items, in percent; the rest may be trained on


@dataclass(frozen=True, slots=True)
class NestlingQuestion:
    """An item with its choices in order; `letter` is the correct one."""

    question: str
    choices: tuple[str, ...]
    letter: str


def split_of(key: str) -> str:
    """dev, val, test or train: decided by a hash of the fact asked for, not of its wording or order
    of choices.
    """
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    for split, share in SHARES.items():
        if point < share:
            return split
        point -= share
    return "train"


def draw(subject: NestlingSubject, split: str, rng: Random) -> Item:
    """An item of the subject that belongs to the split."""
    while split_of((item := subject.draw(rng)).key) != split:
        pass
    return item


def lay(item: Item, letter: str, rng: Random) -> NestlingQuestion:
    """The item with its answer at `letter` and the wrong choices in random order."""
    choices = rng.sample(item.distractors, 3)
    choices.insert(LETTERS.index(letter), item.answer)
    return NestlingQuestion(item.question, tuple(choices), letter)


def questions(subject: NestlingSubject, split: str) -> list[NestlingQuestion]:
    """The questions of the exam: deterministic, no item twice, each letter equally often."""
    rng = Random(f"nestling exam 1, {subject.name}, {split}")
    items: dict[str, Item] = {}
    while len(items) < NUM_ITEMS[split]:
        item = draw(subject, split, rng)
        items.setdefault(item.key, item)
    letters = [LETTERS[i % 4] for i in range(len(items))]
    rng.shuffle(letters)
    return [lay(item, letter, rng) for item, letter in zip(items.values(), letters, strict=True)]


def write_exam(folder: Path) -> None:
    """Writes dev/, val/ and test/ with one `<subject>_<split>.csv` each (question, A, B, C, D, answer),
    and categories.json.
    """
    for split in NUM_ITEMS:
        (folder / split).mkdir(parents=True, exist_ok=True)
        for subject in SUBJECTS:
            path = folder / split / f"{subject.name}_{split}.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(
                    (one.question, *one.choices, one.letter) for one in questions(subject, split)
                )
    categories = {subject.name: subject.category for subject in SUBJECTS}
    (folder / "categories.json").write_text(json.dumps(categories, indent=2) + "\n", "utf-8")


def header(subject: str) -> str:
    """The first line of a prompt, both spaces included."""
    name = subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about  {name}.\n\n"


def ask(question: str, choices: Sequence[str]) -> str:
    """A question up to its `Answer:`, which is followed by a space and a letter."""
    listed = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)
    )
    return f"{question}{listed}\nAnswer:"


def prompt(
    subject: NestlingSubject, shots: Sequence[NestlingQuestion], question: NestlingQuestion
) -> str:
    """The whole prompt: header, answered examples, the question."""
    answered = "".join(f"{ask(shot.question, shot.choices)} {shot.letter}\n\n" for shot in shots)
    return header(subject.name) + answered + ask(question.question, question.choices)
