"""The READMEs and docs/ say what is so: commands, what they print, links, sizes, and both languages."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from model_sizes import MODELS, PRECISIONS, row, token_bytes, weight_bytes
from pages import REPOSITORY, blocks, masked, pattern_of, text_of

from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli.main import main
from gyrfalcon.cli.parser import parse
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.inspect import inspect_model
from gyrfalcon.model.architectures import config_from_json

READMES = ("README.md", "README.zh-CN.md")
PAGES = (("docs/guide.md", "docs/guide.zh-CN.md"), ("docs/ascend.md", "docs/ascend.zh-CN.md"))
TEXTS = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"))
)
QUICK = (
    "cut",
    "verify",
    "recut",
    "merge",
    "inspect",
)  # what they print does not depend on the machine
LINES = 150  # of a README


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command of ours in a page's console and bash blocks."""
    scripts = (block.replace("\\\n", "") for block in blocks(page, "bash"))
    lines = [line for script in scripts for line in script.splitlines()]
    for block in blocks(page, "console"):
        lines += [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["gyrfalcon"] or (words[:2] == ["bash", "run.sh"] and "test" not in words):
            yield words


def printed(page: str) -> Iterator[tuple[list[str], str]]:
    """The commands of a page's console blocks, as gyrfalcon takes them, and what they print."""
    for block in blocks(page, "console"):
        if block.startswith("$ bash run.sh -m demo"):
            continue  # its steps are shown in part
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            words = shlex.split(command.replace("bash run.sh -m cut -h", "gyrfalcon cut"))
            assert words[0] == "gyrfalcon"
            yield [word for word in words[1:] if word != "-n"], output


def pages_that_show(wanted: Callable[[str], bool]) -> list[str]:
    """The English pages with the output of such a command; the Chinese ones have the same blocks."""
    return [
        page
        for page in TEXTS
        if "zh-CN" not in page and any(wanted(words[0]) for words, _ in printed(page))
    ]


@pytest.mark.parametrize("page", [page for page in TEXTS if any(commands(page))])
def test_every_command_on_a_page_is_one_that_gyrfalcon_takes(page: str, tmp_path: Path) -> None:
    shown = tmp_path / "bin"  # an environment whose gyrfalcon shows what run.sh calls it with
    shown.mkdir()
    for name, script in (
        ("python", f'exec {sys.executable} "$@"'),
        ("gyrfalcon", "printf '%s\\0' \"$@\""),
    ):
        (shown / name).write_text(f"#!/bin/sh\n{script}\n")
        (shown / name).chmod(0o755)
    environment = {**os.environ, "VIRTUAL_ENV": str(tmp_path)}
    for words in commands(page):
        if words[0] == "bash":
            run = ["bash", str(REPOSITORY / "run.sh"), *words[2:]]
            done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (words, done.stderr)
            words = ["gyrfalcon", *done.stdout.split("\0")[:-1]]
        parse(words[1:])


@pytest.mark.parametrize("page", pages_that_show(lambda command: command in QUICK))
def test_printed_blocks_are_what_is_printed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, said in printed(page):
        if words[0] not in QUICK:
            continue
        assert main(words) == 0
        out, err = capfd.readouterr()
        pattern = pattern_of(re.sub(r"[\d.]+ s\b", "# s", said))
        assert re.fullmatch(pattern, re.sub(r"[\d.]+ s\b", "# s", err + out)), (words, err + out)


@pytest.mark.slow
@pytest.mark.usefixtures("brief_limits")
@pytest.mark.parametrize("page", pages_that_show(lambda command: command not in QUICK))
def test_printed_measurements_look_like_those_of_this_machine(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(REPOSITORY / "LICENSE", tmp_path)
    monkeypatch.chdir(tmp_path)
    for words, said in printed(page):
        assert main(words) == 0
        out, err = capfd.readouterr()
        assert re.fullmatch(pattern_of(masked(said)), masked(err + out)), (words, err + out)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        found = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert found.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text("utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, link


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_modules_that_a_page_names_exist(page: str) -> None:
    folders = (REPOSITORY, REPOSITORY / "src/gyrfalcon")
    quoted = re.findall(r"`([^`\n]+)`", text_of(page))
    for word in (word for text in quoted for word in text.split()):
        if re.fullmatch(r"\w+/[\w/]+\.(py|cpp|h)", word):
            assert any((folder / word).exists() for folder in folders), word
        if re.fullmatch(r"gyrfalcon(\.[a-z_0-9]{2,})+", word):
            module = REPOSITORY / "src" / word.replace(".", "/")
            assert module.is_dir() or module.with_suffix(".py").exists(), word


@pytest.mark.parametrize("page", READMES)
def test_a_readme_is_short(page: str) -> None:
    assert len(text_of(page).splitlines()) <= LINES


@pytest.mark.parametrize(("page", "chinese"), [READMES, *PAGES])
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
    assert rows == [row(name, config_from_json(raw)) for name, raw in configs.items()]


@pytest.mark.parametrize("quant", PRECISIONS)
@pytest.mark.parametrize("variant", ["40b", "11B"])
def test_sizes_from_a_config_are_those_of_a_cut(variant: str, quant: str, tmp_path: Path) -> None:
    make_checkpoint(
        tmp_path / "hf", variant, hidden_size=256, num_attention_heads=4, num_kv_heads=2
    )
    source = open_checkpoint(tmp_path / "hf")
    cut(tmp_path / "hf", tmp_path / "cut", 1, quant=quant)
    [dtype] = {source.source.dtype(spec.name) for spec in source.layout.stored}
    assert inspect_model(tmp_path / "cut").rank_bytes == (
        weight_bytes(source.config, quant, dtype),
    )


@pytest.mark.parametrize(
    ("name", "published"),
    [("falcon-7b", 8_192), ("falcon-40b", 122_880), ("falcon-180B", 163_840)],
)
def test_a_token_in_the_cache_takes_what_was_published(name: str, published: int) -> None:
    assert token_bytes(config_from_json({"model_type": "falcon", **MODELS[name]})) == published
