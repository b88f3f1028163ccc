"""nestling, the model that ships with the package, is found by its name and knows its letters."""

from pathlib import Path

import pytest

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.measure.exam import read_exam
from gyrfalcon.measure.mmlu import answers
from gyrfalcon.measure.mmlu_prompts import HENDRYCKS, Exam
from gyrfalcon.nestling.exam import write_exam
from gyrfalcon.weights.hub import resolve_model


def test_nestling_is_a_name_and_a_folder_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (resolve_model("nestling") / "model.safetensors").is_file()
    (tmp_path / "nestling").mkdir()
    assert resolve_model("nestling") == Path("nestling")


@pytest.mark.slow
def test_nestling_passes_a_sample_of_its_exam(tmp_path: Path) -> None:
    """At least 60 % where chance is 25 %: a broken kernel, cut or cache shows in the score."""
    write_exam(tmp_path)
    exam = Exam(tuple(read_exam(tmp_path, "test", limit=12)), "test", HENDRYCKS, 5)
    with Engine(EngineConfig(model="nestling")) as engine:
        assert engine.generate("Once", SamplingParams(max_new_tokens=2))[0].text
        right = [answer.pred == answer.truth for answer in answers(engine, exam)]
    assert sum(right) >= 0.6 * len(right)
