"""An exam in MMLU's folder layout (dev/, val/, test/ with one `<subject>_<split>.csv` each): its
questions, worked examples and the categories of its subjects.
"""

import csv
import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from gyrfalcon.errors import UsageError
from gyrfalcon.nestling import exam as nestling
from gyrfalcon.nestling.subjects import SUBJECTS
from gyrfalcon.text_file import decoded

LETTERS = "ABCD"
CATEGORIES = ("STEM", "other", "social sciences", "humanities")
SPLITS = ("test", "val")
NESTLING = "nestling"
CATEGORIES_FILE = "categories.json"

# Hendrycks et al. 2021: each subject through its field (physics, law, …) to one of four categories.
MMLU: Mapping[str, tuple[str, ...]] = {
    "STEM": tuple(
        """
        abstract_algebra astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics
        electrical_engineering elementary_mathematics high_school_biology high_school_chemistry
        high_school_computer_science high_school_mathematics high_school_physics
        high_school_statistics machine_learning
        """.split()
    ),
    "other": tuple(
        """
        anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging
        management marketing medical_genetics miscellaneous nutrition professional_accounting
        professional_medicine virology
        """.split()
    ),
    "social sciences": tuple(
        """
        econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology
        human_sexuality professional_psychology public_relations security_studies sociology
        us_foreign_policy
        """.split()
    ),
    "humanities": tuple(
        """
        formal_logic high_school_european_history high_school_us_history
        high_school_world_history international_law jurisprudence logical_fallacies
        moral_disputes moral_scenarios philosophy prehistory professional_law world_religions
        """.split()
    ),
}


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a CSV file; `id` is its number in the file, from 0."""

    id: int
    text: str
    choices: tuple[str, ...]  # four
    answer: str  # one of LETTERS


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject's questions, and its worked examples from dev/ in their order."""

    name: str
    category: str
    examples: tuple[Question, ...]
    questions: tuple[Question, ...]

    @property
    def title(self) -> str:
        """The name as prompts write it."""
        return self.name.replace("_", " ")


def read_exam(
    folder: Path, split: str, names: Collection[str] | None = None, limit: int | None = None
) -> list[Subject]:
    """The exam in a folder, subjects in alphabetical order; UsageError when it is no such folder.

    names: only these subjects. limit: only the first so many questions of each. A subject that
    neither MMLU nor the folder's categories.json knows belongs to "other".
    """
    suffix = f"_{split}.csv"
    there = sorted(path.name.removesuffix(suffix) for path in folder.glob(f"{split}/*{suffix}"))
    if not there:
        raise UsageError(f"files like {split}/astronomy{suffix} in {folder}", "none", "check -d")
    categories = _categories(folder)
    return [
        Subject(
            name=name,
            category=categories.get(name, "other"),
            examples=_questions(folder / "dev" / f"{name}_dev.csv"),
            questions=_questions(folder / split / f"{name}{suffix}")[:limit],
        )
        for name in _chosen(there, names)
    ]


def open_exam(
    name: str, split: str, names: Collection[str] | None = None, limit: int | None = None
) -> list[Subject]:
    """The exam of a folder; or the nestling exam, called nestling, where there is no folder of that name."""
    if name != NESTLING or Path(name).is_dir():
        return read_exam(Path(name), split, names, limit)
    subjects = {subject.name: subject for subject in SUBJECTS}
    return [
        Subject(
            name=name,
            category=subjects[name].category,
            examples=_numbered(nestling.questions(subjects[name], "dev")),
            questions=_numbered(nestling.questions(subjects[name], split))[:limit],
        )
        for name in _chosen(sorted(subjects), names)
    ]


def fingerprint(exam: Sequence[Subject]) -> str:
    """SHA-256 of all that is asked and shown: equal for equal questions, wherever they lie."""
    text = json.dumps([astuple(subject) for subject in exam])
    return hashlib.sha256(text.encode()).hexdigest()


def _chosen(there: Sequence[str], names: Collection[str] | None) -> list[str]:
    """The subjects that are wanted, in the order in which they are there."""
    unknown = sorted(set(names or ()) - set(there))
    if unknown:
        raise UsageError(f"subjects of this exam ({', '.join(there)})", repr(unknown[0]), "choose")
    return [name for name in there if names is None or name in names]


def _numbered(questions: Sequence[nestling.Question]) -> tuple[Question, ...]:
    return tuple(
        Question(number, one.question, one.choices, one.letter)
        for number, one in enumerate(questions)
    )


def _categories(folder: Path) -> dict[str, str]:
    """MMLU's own categories and those that the folder states, which win."""
    known = {name: category for category, names in MMLU.items() for name in names}
    path = folder / CATEGORIES_FILE
    if not path.exists():
        return known
    try:
        stated = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UsageError(f"JSON in {path}", str(error), "mend the file") from None
    if not isinstance(stated, dict):
        raise UsageError(f"subjects and their categories in {path}", str(stated), "mend the file")
    for name, category in stated.items():
        if category not in CATEGORIES:
            wanted = f"one of {', '.join(CATEGORIES)} in {path}"
            raise UsageError(wanted, f"{category!r} for {name}", "mend the file")
    return known | stated


def _questions(path: Path) -> tuple[Question, ...]:
    """The rows of one file: question, four choices, answer. Everything is text, None too."""
    text = decoded(path.read_bytes(), str(path))
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UsageError(f"a CSV file {path}", str(error), "mend the file") from None
    for number, row in enumerate(rows, 1):
        if len(row) != 6 or row[5] not in tuple(LETTERS):
            wanted = f"a question, four choices and A, B, C or D in row {number} of {path}"
            raise UsageError(wanted, f"{len(row)} fields ending in {row[-1:]}", "mend the file")
    return tuple(
        Question(number, text, tuple(choices), answer)
        for number, (text, *choices, answer) in enumerate(rows)
    )
