"""The READMEs and the guide's pages say what is so: printed blocks, sizes, and the same in both languages."""

import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from model_sizes import MODELS, PRECISIONS, row, token_bytes, weight_bytes

from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli.main import main
from gyrfalcon.config import ModelConfig
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.inspect import inspect_model

REPOSITORY = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh-CN.md")
PAGES = ("docs/guide.md", "docs/guide.zh-CN.md")
QUICK = (
    "cut",
    "verify",
    "recut",
    "merge",
    "inspect",
)  # what they print does not depend on the machine


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text("utf-8")


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def printed(page: str) -> Iterator[tuple[list[str], str]]:
    """The quick commands of a page's console blocks, as gyrfalcon takes them, and what they print."""
    for block in blocks(page, "console"):
        if block.startswith("$ bash run.sh -m demo"):
            continue  # its steps are shown in part
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            words = shlex.split(command.replace("bash run.sh -m cut -h", "gyrfalcon cut"))
            words = [word for word in words if word != "-n"]
            if words[0] == "gyrfalcon" and words[1] in QUICK:
                yield words[1:], output


@pytest.mark.parametrize("page", [READMES[0], PAGES[0]])
def test_printed_blocks_are_what_is_printed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = list(printed(page))
    assert commands
    for words, said in commands:
        assert main(words) == 0
        out, err = capfd.readouterr()
        pattern = re.escape(re.sub(r"[\d.]+ s\b", "# s", said)).replace("…\\\n", "(?:.*\n)*")
        assert re.fullmatch(pattern, re.sub(r"[\d.]+ s\b", "# s", err + out)), (words, err + out)


@pytest.mark.parametrize(("page", "chinese"), [READMES, PAGES])
def test_the_chinese_page_has_what_the_english_one_has(page: str, chinese: str) -> None:
    def shape(name: str) -> list[tuple[str, int]]:
        """Headings, rows and points in their order, runs of the latter two as their number."""
        text = re.sub(r"^```.*?^```$", "```", text_of(name), flags=re.MULTILINE | re.DOTALL)
        kinds = re.findall(r"^(#+|\||- |```)", text, re.MULTILINE)
        return [(kind, len(list(run))) for kind, run in groupby(kinds)]

    def options(name: str) -> list[str]:
        return sorted(set(re.findall(r"`(--?[a-z][a-z-]*)", text_of(name))))

    for kind in ("console", "bash", "text"):
        assert blocks(chinese, kind) == blocks(page, kind)
    assert shape(chinese) == shape(page)
    assert options(chinese) == options(page)


@pytest.mark.parametrize("page", READMES)
def test_the_sizes_of_the_models_are_those_of_their_shapes(page: str) -> None:
    rows = [line for line in text_of(page).splitlines() if line.startswith("| falcon-")]
    configs = {name: {"model_type": "falcon", **raw} for name, raw in MODELS.items()}
    assert rows == [row(name, ModelConfig.from_json(raw)) for name, raw in configs.items()]


@pytest.mark.parametrize("quant", PRECISIONS)
@pytest.mark.parametrize("variant", ["40b", "11B"])
def test_sizes_from_a_config_are_those_of_a_cut(variant: str, quant: str, tmp_path: Path) -> None:
    make_checkpoint(
        tmp_path / "hf", variant, hidden_size=256, num_attention_heads=4, num_kv_heads=2
    )
    source = open_checkpoint(tmp_path / "hf")
    cut(tmp_path / "hf", tmp_path / "cut", 1, quant=quant)
    [dtype] = {source.source.dtype(spec.name) for spec in source.stored()}
    assert inspect_model(tmp_path / "cut").rank_bytes == (
        weight_bytes(source.config, quant, dtype),
    )


@pytest.mark.parametrize(
    ("name", "published"),
    [("falcon-7b", 8_192), ("falcon-40b", 122_880), ("falcon-180B", 163_840)],
)
def test_a_token_in_the_cache_takes_what_was_published(name: str, published: int) -> None:
    assert token_bytes(ModelConfig.from_json({"model_type": "falcon", **MODELS[name]})) == published
