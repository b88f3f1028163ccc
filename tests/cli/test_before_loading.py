"""All that can be checked is checked before weights are loaded; a misspelt name is asked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engines import small
from exams import write_rows
from tokenizers_ import make_tokenizer

from gyrfalcon.cli.main import main
from gyrfalcon.console.suggestion import path_meant
from gyrfalcon.engine import build

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model, one without a tokenizer, an exam and texts."""
    folder = tmp_path_factory.mktemp("folder")
    model = make_tokenizer(small(folder / "model"))
    shutil.copytree(model, folder / "deaf")
    for file in (folder / "deaf").iterdir():
        if "token" in file.name or "vocab" in file.name or "merges" in file.name:
            file.unlink()
    (folder / "exam").mkdir()
    write_rows(folder / "exam")
    (folder / "text").write_text("the falcon and the gyrfalcon")
    (folder / "long").write_text("the falcon " * 5000)
    (folder / "latin").write_bytes(b"\xff\xfe\xfd")
    (folder / "blank").write_text("\n\n")
    return folder


@pytest.fixture(autouse=True)
def no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr(build, "load_model", load)
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("generate deaf x", "wanted tokenizer files beside the model"),
        ("generate model --prompt-file latin", "wanted UTF-8 in latin"),
        ("generate model --prompt-file blank", "wanted a prompt on each line of blank"),
        ("generate model x --max-len 9999", "--max-len of at most 2048"),
        ("generate model --prompt=", "wanted a prompt of at least one token"),
        ("generate model --prompt-file long", "wanted a prompt of at most 2048 tokens, got 3"),
        ("generate model --prompt-file text --max-len 4", "wanted a prompt of at most 3 tokens"),
        ("generate model x --stop-id 99999", "wanted --stop-id below"),
        ("generate model x -w 99", "use -w 8 or less"),
        ("generate modle x", "did you mean model?"),
        ("generate nestlin x", "did you mean nestling?"),
        ("generate model --prompt-file txt", "did you mean text?"),
        ("generate model x --prompt-file", "a value for --prompt-file"),
        ("speed deaf", "wanted tokenizer files beside the model"),
        ("speed model --in 4000", "lower --in or --out"),
        ("speed model --in 8 --out 8 --baseline txt", "did you mean text?"),
        ("speed model --in 8 --out 8 --baseline text", "wanted JSON in text"),
        ("mmlu deaf -d exam --shots 2", "wanted tokenizer files beside the model"),
        ("mmlu model -d exma", "did you mean exam?"),
        ("mmlu model -d nestlin", "did you mean nestling?"),
        ("mmlu model -d exam --subjects bird", "did you mean birds?"),
        ("mmlu model -d exam --compare text", "wanted JSON in text"),
        ("mmlu model -d exam --shots 2 --published", "leave --published out"),
        ("perplexity deaf text", "wanted tokenizer files beside the model"),
        ("perplexity model latin", "wanted UTF-8 in latin"),
        ("perplexity model text --window 9999", "wanted a window of 2 to 2048 tokens"),
        ("perplexity model text --window 9 --stride 9", "wanted a stride of 1 to 8"),
        ("precision model --prompts latin", "wanted UTF-8 in latin"),
        ("precision model --prompts txt", "did you mean text?"),
        ("precision model --published", "none are known"),
        ("precision model --reference text", "wanted a safetensors file text"),
        ("precision model --reference transfomers", "did you mean transformers?"),
        ("inspect modle", "did you mean model?"),
        ("cut modle new -w 2", "did you mean model?"),
    ],
    ids=lambda value: value if " " in value and "did" not in value else "",
)
def test_it_is_refused_before_the_weights_are_loaded(
    line: str, told: str, folder: Path, capsys: Captured
) -> None:
    before = sorted(folder.iterdir())
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("gyrfalcon: error: ")
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_weights_are_what_this_file_watches(folder: Path) -> None:
    with pytest.raises(AssertionError, match="the weights are loaded"):
        main(["generate", "model", "the falcon"])


def test_a_hub_id_that_is_a_misspelt_path_is_asked_for(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "falcon-7b").mkdir(exist_ok=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["inspect", "models/falcn-7b"]) == 2
    assert capsys.readouterr().err.endswith("did you mean models/falcon-7b?\n")


@pytest.mark.parametrize("value", ["there", "fifo", ".", "text"])
def test_a_native_library_that_is_none_is_refused_in_one_line(
    value: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    if not (folder / "fifo").exists():
        os.mkfifo(folder / "fifo")
    monkeypatch.setenv("GYRFALCON_NATIVE", value)
    assert main(["generate", "model", "x"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gyrfalcon: error: wanted the native library at GYRFALCON_NATIVE=")
    assert err.count("\n") == 1


def test_a_variable_that_is_not_utf_8_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gyrfalcon", "generate", "nestling", "x"],
        env={**os.environb, b"GYRFALCON_NATIVE": b"\xff"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        b"gyrfalcon: error: wanted the native library at GYRFALCON_NATIVE="
    )
    assert done.stderr.count(b"\n") == 1


def test_a_name_that_is_not_near_is_not_proposed_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "exam").mkdir()
    assert path_meant(str(tmp_path / "nowhere"), "check -d") == "check -d"
    assert path_meant(str(tmp_path / "exma"), "check -d") == f"did you mean {tmp_path / 'exam'}?"
    assert path_meant("", "check -d") == path_meant("/", "check -d") == "check -d"
    assert path_meant(str(tmp_path / "no/such/folder"), "check -d") == "check -d"
