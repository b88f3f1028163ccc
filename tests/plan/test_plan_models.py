"""Which model a word names, and that the published shapes are those of the family."""

import json
from pathlib import Path

import pytest

from gyrfalcon.checkpoint.hub import NESTLING
from gyrfalcon.cut.cut import cut
from gyrfalcon.errors import CheckpointError, ConfigError, UsageError
from gyrfalcon.measure.result import num_parameters
from gyrfalcon.plan.models import PUBLISHED, planned_model

SIZES = {  # parameters in thousands of millions, a tied head once
    "falcon-rw-1b": 1.312,
    "falcon-rw-7b": 7.52,
    "falcon-7b": 6.92,
    "falcon-40b": 41.30,
    "falcon-180b": 178.6,
    "falcon-11b": 11.10,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_size(name: str) -> None:
    found = num_parameters(planned_model(name).config) / 1e9
    assert found == pytest.approx(SIZES[name], rel=1.5e-3)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("tiiuae/falcon-40b-instruct", "falcon-40b"),
        ("falcon-180B-chat", "falcon-180b"),
        ("tiiuae/falcon2-11B", "falcon-11b"),
    ],
)
def test_other_names_of_a_model_are_known(word: str, name: str) -> None:
    assert planned_model(word).config == planned_model(name).config


def test_a_config_a_folder_and_nestling_are_read(tmp_path: Path) -> None:
    raw = {**PUBLISHED["falcon-7b"], "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    folder, file = planned_model(str(tmp_path)), planned_model(str(tmp_path / "config.json"))
    assert folder.config == file.config == planned_model("falcon-7b").config
    assert (folder.dtype, planned_model("falcon-7b").dtype) == ("fp16", "bf16")
    assert planned_model("nestling").config == planned_model(str(NESTLING)).config


def test_a_cut_says_what_its_matrices_are_quantised_to(tmp_path: Path) -> None:
    cut(NESTLING, tmp_path / "cut", 2, quant="int8")
    assert planned_model(str(tmp_path / "cut")).quant == "int8"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("falcon-40", "did you mean falcon-40b?"),
        ("llama", "name one of these"),
        ("", "name one of these"),
    ],
)
def test_a_word_that_names_no_model_is_told_those_that_do(word: str, said: str) -> None:
    with pytest.raises(
        UsageError, match=r"wanted a config\.json, a model folder, nestling or"
    ) as caught:
        planned_model(word)
    assert said in str(caught.value)


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(CheckpointError):
        planned_model(str(file))
    file.write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="model_type"):
        planned_model(str(file))
