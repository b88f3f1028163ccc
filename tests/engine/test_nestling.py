"""nestling, the model that ships with the package, is found by its name and knows its letters."""

from pathlib import Path

import pytest

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.checkpoint.hub import resolve_model
from gyrfalcon.cli.main import main
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.mmlu.exam import CATEGORIES, open_exam, read_exam
from gyrfalcon.measure.mmlu.prompts import HENDRYCKS, Exam
from gyrfalcon.measure.mmlu.run import answers
from gyrfalcon.nestling.exam import write_exam


def test_nestling_is_a_name_and_a_folder_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (resolve_model("nestling") / "model.safetensors").is_file()
    (tmp_path / "nestling").mkdir()
    assert resolve_model("nestling") == Path("nestling")


def test_its_exam_is_a_name_and_a_folder_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = open_exam("nestling", "test")
    assert {subject.category for subject in shipped} == set(CATEGORIES)
    assert sum(len(subject.questions) for subject in shipped) >= 2000
    assert not list(tmp_path.iterdir())
    (tmp_path / "nestling").mkdir()
    with pytest.raises(UsageError):
        open_exam("nestling", "test")


@pytest.mark.parametrize("split", ["test", "val"])
def test_its_exam_is_the_one_of_its_files_and_needs_none(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_exam(tmp_path)
    monkeypatch.setattr(Path, "mkdir", None)  # a folder of its own would outlive a kill
    monkeypatch.setattr("os.mkdir", None)
    assert open_exam("nestling", split) == read_exam(tmp_path, split)
    chosen = ["letters", "animals"]
    assert open_exam("nestling", split, chosen, 3) == read_exam(tmp_path, split, chosen, 3)


@pytest.mark.parametrize("subjects", ["", "letters,", "letters, fish"])
def test_subjects_that_it_has_not_are_refused(
    subjects: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "mmlu",
        "nestling",
        "-d",
        "nestling",
        "--subjects",
        subjects,
        "-o",
        str(tmp_path / "o"),
    ]
    assert main(words) == 2
    assert "wanted subjects of this exam (animals, " in capsys.readouterr().err


def test_kernels_for_gpus_are_refused_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GYRFALCON_OPS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["generate", "nestling", "--prompt", "x"]) == 2
    assert "for GYRFALCON_OPS=triton, got" in capsys.readouterr().err
    assert main(["doctor", "--quick"]) == 1
    assert "for GYRFALCON_OPS=triton, got" in capsys.readouterr().out


@pytest.mark.slow
def test_nestling_passes_a_sample_of_its_exam() -> None:
    """At least 60 % where chance is 25 %: a broken kernel, cut or cache shows in the score."""
    exam = Exam(tuple(open_exam("nestling", "test", limit=12)), "test", HENDRYCKS, 5)
    with Engine(EngineConfig(model="nestling")) as engine:
        assert engine.generate("Once", SamplingParams(max_new_tokens=2))[0].text
        right = [answer.pred == answer.truth for answer in answers(engine, exam)]
    assert sum(right) >= 0.6 * len(right)
