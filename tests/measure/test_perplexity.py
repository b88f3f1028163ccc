"""Perplexity: every token scored once, in the windows that are stated, as transformers scores them."""

import json
import math
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from checkpoints import make_checkpoint
from tokenizers_ import SENTENCES, make_tokenizer
from transformers import AutoModelForCausalLM

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.cli.main import main
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.perplexity import Perplexity, Window, perplexity, windows
from gyrfalcon.text.tokenizer import Tokenizer

TEXT = "\n".join(SENTENCES[:4]) + " Größe: 3 µm."
SHAPE: dict[str, object] = dict(hidden_size=64, num_attention_heads=8)


@pytest.fixture(scope="module", params=["40b", "rw-1b"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape = SHAPE | ({"num_kv_heads": 2} if request.param == "40b" else {})
    make_checkpoint(folder, request.param, **shape)  # type: ignore[arg-type]
    return make_tokenizer(folder)


def score(model: Path, window: int, stride: int, text: str = TEXT) -> Perplexity:
    with Engine(EngineConfig(model=str(model), max_len=256)) as engine:
        return perplexity(engine, text, window, stride, lambda _: None)


def nats_of_transformers(model: Path, ids: list[int], window: int, stride: int) -> float:
    """The recipe of transformers' documentation: labels of -100 for what an earlier window scored."""
    reference = AutoModelForCausalLM.from_pretrained(model, attn_implementation="sdpa").eval()
    total, previous = 0.0, 0
    for start in range(0, len(ids), stride):
        stop = min(start + window, len(ids))
        tokens = torch.tensor([ids[start:stop]])
        labels = tokens.clone()
        labels[:, : previous - start] = -100
        with torch.no_grad():
            logits = reference(tokens).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum").item()
        previous = stop
        if stop == len(ids):
            break
    return total


@pytest.mark.parametrize(("window", "stride"), [(256, 128), (64, 20), (33, 32), (17, 3)])
def test_it_equals_transformers_on_the_same_windows(model: Path, window: int, stride: int) -> None:
    ids = Tokenizer.load(model).encode(TEXT)
    found = score(model, window, stride)
    expected = nats_of_transformers(model, ids, window, stride)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert found.num_tokens == len(ids) - 1
    assert found.perplexity == pytest.approx(math.exp(expected / (len(ids) - 1)), rel=1e-4)


@pytest.mark.parametrize("num_tokens", [2, 9, 10, 11, 57])
@pytest.mark.parametrize("stride", [1, 3, 9])
def test_each_token_but_the_first_is_scored_once_with_tokens_before_it(
    num_tokens: int, stride: int
) -> None:
    parts = windows(num_tokens, 10, stride)
    scored = [token for part in parts for token in range(part.first, part.stop)]
    assert scored == list(range(1, num_tokens))
    assert all(part.stop - part.start <= 10 for part in parts)
    assert all(part.first - part.start >= 10 - stride for part in parts[1:])
    assert parts[0] == Window(0, 1, min(10, num_tokens))


def test_bits_are_counted_by_token_and_by_byte() -> None:
    found = Perplexity(nats=8 * math.log(2), num_tokens=4, num_bytes=16)
    assert found.perplexity == pytest.approx(4.0)
    assert found.bits_per_token == pytest.approx(2.0)
    assert found.bits_per_byte == pytest.approx(0.5)


def test_the_bytes_are_those_of_the_scored_tokens(model: Path) -> None:
    tokenizer = Tokenizer.load(model)
    text = "größer als 7"
    rest = tokenizer.encode(text)[1:]
    assert score(model, 64, 32, text).num_bytes == sum(len(tokenizer.token_bytes(i)) for i in rest)


def test_after_a_begin_token_all_of_the_text_is_scored(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "copy")
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 11)]
    )
    library.save(str(folder / "tokenizer.json"))
    found, ids = score(folder, 256, 128), library.encode(TEXT).ids
    assert ids[0] == 11
    assert found.nats == pytest.approx(nats_of_transformers(model, ids, 256, 128), rel=1e-5)
    assert (found.num_tokens, found.num_bytes) == (len(ids) - 1, len(TEXT.encode()))


@pytest.mark.parametrize(
    ("window", "stride", "text", "told"),
    [
        (257, 8, TEXT, "a window of 2 to 256 tokens, got 257"),
        (1, 1, TEXT, "a window of 2 to 256 tokens, got 1"),
        (16, 16, TEXT, "a stride of 1 to 15"),
        (16, 0, TEXT, "a stride of 1 to 15"),
        (16, 8, "A", "at least 2 tokens, got 1"),
        (16, 8, "", "at least 2 tokens, got 0"),
    ],
)
def test_windows_and_texts_that_cannot_be_scored_are_refused(
    model: Path, window: int, stride: int, text: str, told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        score(model, window, stride, text)
    assert told in str(caught.value)


def test_the_command_states_window_and_stride(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.replace("\n", "\r\n").encode())
    words = ["perplexity", str(model), str(file), "--max-len", "64", "--json"]
    assert main([*words, str(tmp_path / "result.json")]) == 0
    assert "window 64, stride 32" in capsys.readouterr().out
    document = json.loads((tmp_path / "result.json").read_text())
    result = document["result"]
    assert (document["kind"], result["window"], result["stride"]) == ("perplexity", 64, 32)
    first = Tokenizer.load(model).encode(TEXT)[0]
    first_bytes = len(Tokenizer.load(model).token_bytes(first))
    assert result["num_bytes"] == file.stat().st_size - first_bytes
    assert result["perplexity"] == pytest.approx(2 ** result["bits_per_token"])


def test_a_file_that_is_no_text_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_bytes(b"gr\xf6\xdfe")
    assert main(["perplexity", str(model), str(tmp_path / "text.txt")]) == 2
    assert "wanted UTF-8 in" in capsys.readouterr().err
