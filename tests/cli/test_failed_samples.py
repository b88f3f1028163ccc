"""What a command prints and writes when the model's logits are NaN: one line, exit code 1, and no result."""

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import make_model
from safetensors.torch import load_file, save_file
from tokenizers_ import SENTENCES, make_tokenizer

from gyrfalcon.checkpoint.hub import NESTLING
from gyrfalcon.cli.main import main
from gyrfalcon.text.tokenizer import Tokenizer

ERROR = "gyrfalcon: error: wanted finite logits, got NaN or infinity "
DO = "; use --dtype bf16 or fp32, or verify"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nestling, whose every logit is NaN."""
    folder = tmp_path_factory.mktemp("model") / "nan"
    shutil.copytree(NESTLING, folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def check_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of an error; returns what came on standard output."""
    captured = capsys.readouterr()
    [line] = [line for line in captured.err.splitlines() if "error" in line]
    assert line.startswith(ERROR)
    assert line.endswith(DO)
    return captured.out


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "A bird", "--max-new-tokens", "2"],
        ["generate", "A bird", "--max-new-tokens", "0"],
        ["generate", "A bird", "--max-new-tokens", "2", "-w", "2"],
        ["mmlu", "-d", "nestling", "--limit", "2", "--shots", "0"],
        ["mmlu", "-d", "nestling", "--limit", "1", "--shots", "2"],
        ["mmlu", "-d", "nestling", "--limit", "1", "--protocol", "generate"],
        ["speed", "--in", "8", "--out", "4", "--repeats", "1"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("brief_limits")
def test_a_command_ends_with_one_line_and_no_result(
    words: list[str],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *options = words
    assert main([name, str(model), *options, "--json", "result.json"]) == 1
    assert check_error(capsys).strip() == ""
    assert not Path("result.json").exists()


def test_perplexity_of_nan_is_an_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("\n".join(SENTENCES))
    assert main(["perplexity", str(model), str(tmp_path / "text"), "--json", "-"]) == 1
    assert check_error(capsys) == ""


def test_generate_names_the_prompt_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(
        "40b", hidden_size=64, num_attention_heads=8, num_kv_heads=2, tie_word_embeddings=False
    )
    tokenizer = Tokenizer.load(make_tokenizer(tmp_path))
    prompts = ("The falcon", "The quick brown fox", "Once upon a time")
    first, bad, last = (tokenizer.encode(prompt) for prompt in prompts)
    token = next(token for token in bad if token not in (*first, *last))
    with torch.no_grad():
        model.transformer.word_embeddings.weight[token] = torch.nan
    model.save_pretrained(tmp_path)
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert main(["generate", str(tmp_path), *words, "--max-new-tokens", "4", "--json", "-"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"at position {len(bad) - 1} of request 1, sample 0; use --dtype" in captured.err
