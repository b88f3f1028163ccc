"""`gyrfalcon generate`: where its prompts come from, and what is wrong with them or with its options."""

import io
import json
import sys
from pathlib import Path

import pytest
from engines import small
from tokenizers_ import make_tokenizer

from gyrfalcon.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


def prompts_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["prompt"] for line in capsys.readouterr().out.split("\n")[:-1]]


def generate(model: Path, *words: str) -> int:
    return main(["generate", str(model), "--max-new-tokens", "1", *words])


LINES = "\ufeffone\r\n\n  \ntwo\u2028still two\x0cand still\n three "
PROMPTS = ["one", "two\u2028still two\x0cand still", " three "]


def test_each_line_of_a_file_is_a_prompt_and_only_line_ends_end_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts").write_bytes(LINES.encode())
    assert generate(model, "--prompt-file", str(tmp_path / "prompts"), "--json", "-") == 0
    assert prompts_of(capsys) == PROMPTS


def test_standard_input_is_read_like_a_file(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode()), "ascii"))
    assert generate(model, "-", "--json", "-") == 0
    assert prompts_of(capsys) == PROMPTS


def test_prompts_that_are_no_utf8_are_one_line(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "prompts").write_bytes(b"fine\nbad \xff\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bad \xff")))
    for words in (["--prompt-file", str(tmp_path / "prompts")], ["-"]):
        assert generate(model, *words) == 2
        err = capsys.readouterr().err
        assert err.startswith("gyrfalcon: error: wanted UTF-8 in ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--temperature", "-1"], "a number from 0 to 1,000 for --temperature, got '-1'"),
        (["--top-p", "0"], "a number above 0, at most 1 for --top-p, got '0'"),
        (["--stop", ""], "--stop strings that are not empty"),
        (["--min-p", "2"], "a number from 0 to 1 for --min-p, got '2'"),
    ],
)
def test_wrong_sampling_is_told_before_the_model_is_loaded(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "no-such-model", "--prompt", "a", *words]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_draft_tokens_are_told_and_change_no_text(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, texts = ["--prompt", "a b a b a b a b", "--ignore-eos"], []
    for words in ([], ["--num-speculative-tokens", "4"]):
        assert generate(model, *prompt, "--max-new-tokens", "60", *words) == 0
        said = capsys.readouterr()
        texts.append(said.out)
        assert ("draft tokens accepted" in said.err) == bool(words)
    assert texts[0] == texts[1]
