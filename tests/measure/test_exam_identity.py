"""An exam is known by its questions, whatever its folder is called."""

import shutil
from pathlib import Path

import pytest
from exams import Data

from gyrfalcon.measure.mmlu.exam import MMLU, questions_in, subjects_in
from gyrfalcon.measure.mmlu.exam_identity import (
    Identity,
    KnownSubject,
    digest,
    identify,
    mmlu_table,
)
from gyrfalcon.nestling.exam import write_exam

WHOLE = Identity("MMLU", 57, 14042)


@pytest.mark.parametrize(("split", "total"), [("dev", 285), ("val", 1531), ("test", 14042)])
def test_the_checksums_of_mmlu_are_those_of_its_files(data: Data, split: str, total: int) -> None:
    folder, found = data("mmlu"), {}
    for name in subjects_in(folder, split):
        questions = questions_in(folder, split, name)
        found[name] = KnownSubject(len(questions), digest(questions))
    assert found == mmlu_table(split)
    assert found.keys() == {name for names in MMLU.values() for name in names}
    assert sum(known.num_questions for known in found.values()) == total


def test_mmlu_is_known_under_any_name_and_in_parts(data: Data, tmp_path: Path) -> None:
    assert identify(str(data("mmlu")), "test") == WHOLE
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        shutil.copy(data(f"mmlu/{split}/virology_{split}.csv"), tmp_path / split)
    assert identify(str(tmp_path), "test") == WHOLE
    assert WHOLE.part(14042) == "14042 questions"
    assert WHOLE.part(1) == "1 of 14042 questions"
    shutil.rmtree(tmp_path / "dev")
    assert identify(str(tmp_path), "test") == WHOLE


@pytest.mark.parametrize("split", ["dev", "test"])
def test_other_questions_under_the_names_of_mmlu_are_another_exam(
    data: Data, tmp_path: Path, split: str
) -> None:
    folder = tmp_path / "mmlu"
    for part in ("dev", "test"):
        (folder / part).mkdir(parents=True)
        shutil.copy(data(f"mmlu/{part}/virology_{part}.csv"), folder / part)
    path = folder / split / f"virology_{split}.csv"
    path.write_text(path.read_text("utf-8").replace("virus", "phage", 1), "utf-8")
    assert identify(str(folder), "test").name == "the exam in mmlu/"


def test_nestlings_exam_is_known_in_a_folder_too(tmp_path: Path) -> None:
    shipped = identify("nestling", "val")
    assert shipped == Identity("nestling's exam", 17, 340)
    write_exam(tmp_path)
    assert identify(str(tmp_path), "val") == shipped


def test_any_other_exam_is_called_by_its_folder(exam_folder: Path) -> None:
    assert identify(str(exam_folder), "test") == Identity(f"the exam in {exam_folder.name}/", 2, 7)
