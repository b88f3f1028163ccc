"""An exam in MMLU's folder layout (dev/, val/, test/ with one `<subject>_<split>.csv` each): its
questions, worked examples and the categories of its subjects.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from gyrfalcon.console.suggestion import did_you_mean, path_meant
from gyrfalcon.errors import UsageError
from gyrfalcon.files.json_fields import parsed_json, shown
from gyrfalcon.files.text import contents, decoded
from gyrfalcon.nestling import exam as nestling
from gyrfalcon.nestling.subjects import SUBJECTS, NestlingSubject

LETTERS = "ABCD"
CATEGORIES = ("STEM", "other", "social sciences", "humanities")
SPLITS = ("test", "val")
NESTLING = "nestling"
CATEGORIES_FILE = "categories.json"
ROW_WITHIN = re.compile(r',[ \t]*"?[A-D]"?[ \t]*[\r\n]')  # the end of one row in a cell of another

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
    """The exam in a folder, subjects in alphabetical order; UsageError for a folder without one.

    names: only these subjects. limit: only the first questions of each. A subject that neither MMLU
    nor the folder's categories.json knows belongs to "other".
    """
    there = subjects_in(folder, split)
    categories = _categories(folder)
    return [
        Subject(
            name=name,
            category=categories.get(name, "other"),
            examples=questions_in(folder, "dev", name),
            questions=questions_in(folder, split, name)[:limit],
        )
        for name in _select(there, names)
    ]


def subjects_in(folder: Path, split: str) -> list[str]:
    """The subjects of a split, in alphabetical order; UsageError, with what to pass instead, where
    there are none. Hidden files (macOS leaves ._x_test.csv beside x_test.csv) are skipped.
    """
    suffix = f"_{split}.csv"
    there = sorted(
        path.name.removesuffix(suffix)
        for path in folder.glob(f"{split}/[!.]*{suffix}")
        if path.is_file()
    )
    if not there:
        wanted = f"a folder with files like {split}/astronomy{suffix} for `data`"
        raise UsageError(wanted, *_what_it_is(folder, split))
    return there


def _what_it_is(folder: Path, split: str) -> tuple[str, str]:
    """What a folder without an exam contains, and what to do about it."""
    if not folder.exists():
        do = path_meant(str(folder), "check `data`", NESTLING)
        return f"{folder}, which does not exist", do
    if not folder.is_dir():
        return f"the file {folder}", "give the folder that holds dev/, val/ and test/"
    if any(folder.glob("[!.]*_*.csv")):
        parent = folder.parent if folder.name else folder.resolve().parent
        return f"{folder} with the files of one split", f"give its parent, `data={parent}`"
    for inner in sorted(folder.glob(f"*/{split}")):
        if inner.is_dir():
            return f"{folder}, which holds it in a folder", f"give that one, `data={inner.parent}`"
    others = [name for name in SPLITS if any(folder.glob(f"{name}/[!.]*_{name}.csv"))]
    if others:
        return f"{folder} with {others[0]}/ alone", f"give `split={others[0]}`"
    return f"{folder} without them", "check `data`"


def questions_in(folder: Path, split: str, name: str) -> tuple[Question, ...]:
    """A subject's questions; none where dev/ does not have it, UsageError for other empty files."""
    path = folder / split / f"{name}_{split}.csv"
    if split == "dev":
        return read_questions(path) if path.exists() else ()
    found = read_questions(path)
    if not found:
        raise UsageError(f"a question or more in {path}", "none", "remove the file or fill it")
    return found


def open_exam(
    name: str, split: str, names: Collection[str] | None = None, limit: int | None = None
) -> list[Subject]:
    """The exam of a folder; or the exam that ships with the package, named nestling, unless a
    folder has that name.
    """
    if not is_shipped(name):
        return read_exam(Path(name), split, names, limit)
    subjects = {subject.name: subject for subject in SUBJECTS}
    return [
        Subject(
            name=name,
            category=subjects[name].category,
            examples=shipped_questions(subjects[name], "dev"),
            questions=shipped_questions(subjects[name], split)[:limit],
        )
        for name in _select(sorted(subjects), names)
    ]


def is_shipped(name: str) -> bool:
    """Whether the exam of this name is the one that ships with the package."""
    return name == NESTLING and not Path(name).is_dir()


def shipped_questions(subject: NestlingSubject, split: str) -> tuple[Question, ...]:
    """A subject's questions in the exam that ships with the package."""
    return tuple(
        Question(number, one.question, one.choices, one.letter)
        for number, one in enumerate(nestling.questions(subject, split))
    )


def fingerprint(exam: Sequence[Subject]) -> str:
    """SHA-256 of all questions and worked examples: equal for equal exams, wherever they are
    stored.
    """
    text = json.dumps([astuple(subject) for subject in exam])
    return hashlib.sha256(text.encode()).hexdigest()


def _select(there: Sequence[str], names: Collection[str] | None) -> list[str]:
    """The requested subjects, in the order of the exam."""
    unknown = sorted(set(names or ()) - set(there))
    if unknown:
        raise UsageError(
            f"subjects of this exam ({', '.join(there)})",
            repr(unknown[0]),
            did_you_mean(unknown[0], there, "choose one of these"),
        )
    return [name for name in there if names is None or name in names]


def _categories(folder: Path) -> dict[str, str]:
    """MMLU's own categories, overridden by those that the folder states."""
    known = {name: category for category, names in MMLU.items() for name in names}
    path = folder / CATEGORIES_FILE
    if not path.exists():
        return known
    stated = parsed_json(path.read_bytes(), str(path), "fix the file")
    if not isinstance(stated, dict):
        raise UsageError(f"subjects and their categories in {path}", shown(stated), "fix the file")
    for name, category in stated.items():
        if category not in CATEGORIES:
            wanted = f"one of {', '.join(CATEGORIES)} in {path}"
            raise UsageError(wanted, f"{shown(category)} for {name}", "fix the file")
    return known | stated


def read_questions(path: Path) -> tuple[Question, ...]:
    """The rows of one file: question, four choices, answer. Everything is text, including None.

    Empty lines are skipped; the answer's case and the blanks around it do not matter. An unclosed
    quote swallows the rows after it: it is refused wherever it can be detected.
    """
    text = decoded(contents(path), str(path))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[Question] = []
    start = 1  # the line that a row begins on
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                found.append(_question(len(found), row, f"line {start} of {path}"))
            start = reader.line_num + 1
    except csv.Error as error:
        wanted = f"a CSV file, every quote closed, {path}"
        raise UsageError(wanted, f"{error} in the row of line {start}", "fix the file") from None
    return tuple(found)


def _question(number: int, row: Sequence[str], where: str) -> Question:
    letter = row[-1].strip().upper()
    if len(row) != 6 or letter not in tuple(LETTERS):
        wanted = f"a question, four choices and A, B, C or D in {where}"
        raise UsageError(wanted, f"{len(row)} fields ending in {row[-1]!r}", "fix the file")
    text, *choices, _ = row
    if any(ROW_WITHIN.search(cell) for cell in row):
        wanted = f"one question from {where}"
        raise UsageError(wanted, "a cell with the end of a row in it", "close the quote before it")
    return Question(number, text, tuple(choices), letter)
