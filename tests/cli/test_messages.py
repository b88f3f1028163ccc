"""A message names an option as the reader gave it: max_len in Python, --max-len on the command line."""

import ast
import dataclasses
import inspect
import json
import pickle
import re
from pathlib import Path

import pytest
from engines import make_engine, small
from tokenizers_ import make_tokenizer

import gyrfalcon
from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.cli.main import main
from gyrfalcon.cli.parser import flags
from gyrfalcon.errors import OPTION, GyrfalconError, PromptTooLong, UsageError
from gyrfalcon.replicas.settings import ReplicasConfig

PACKAGE = Path(gyrfalcon.__file__).parent
# What Python code reaches through Engine; cut, merge and the measurements have the command line alone.
FACE = ("engine/", "parallel/", "model/", "kv/", "ops/", "device/")
FACE_FILES = (
    "request.py",
    "engine_config.py",
    "batch.py",
    "text/detokenizer.py",
    "checkpoint/load.py",
)


def messages() -> list[tuple[str, str]]:
    """The constant texts of the package, docstrings left out, with their file."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            constants = [] if isinstance(node, ast.Expr) else ast.iter_child_nodes(node)
            found += [
                (str(path.relative_to(PACKAGE)), one.value)
                for one in constants
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
    return found


def test_python_and_the_command_line_each_read_their_own_name_of_an_option() -> None:
    error = UsageError("a `max_len` of 5", "`max_len`", "lower `max_len` or use `world_size=2`")
    assert str(error) == "wanted a max_len of 5, got `max_len`; lower max_len or use world_size=2"
    assert (
        error.on_command_line({"max_len": "--max-len", "world_size": "-w"})
        == "wanted a --max-len of 5, got `max_len`; lower --max-len or use -w 2"
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_switch_has_no_value_and_what_has_no_flag_keeps_its_name() -> None:
    error = GyrfalconError("x", "y", "add `ignore_eos=True`, lower `block_size=4`")
    line = error.on_command_line({"ignore_eos": "--ignore-eos"})
    assert line.endswith("; add --ignore-eos, lower block_size=4")


def test_a_prompt_that_is_too_long_is_told_in_the_words_of_its_caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tokenizer(small(tmp_path))
    with make_engine(folder, max_len=4) as engine, pytest.raises(PromptTooLong) as caught:
        engine.generate("the falcon and the gyrfalcon")
    assert str(caught.value).endswith("; shorten it or raise max_len")
    words = ["generate", str(folder), "--max-len", "4", "--prompt", "the falcon and the gyrfalcon"]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("; shorten it or raise --max-len")


def test_flags_are_those_of_all_commands() -> None:
    known = flags()
    assert known["world_size"] == "-w"
    assert known["max_new_tokens"] == "--max-new-tokens"


def test_messages_that_python_sees_name_its_options_and_no_flags_of_ours() -> None:
    there = [
        (file, text) for file, text in messages() if file.startswith(FACE) or file in FACE_FILES
    ]
    assert len(there) > 100
    others = {"--device"}  # Docker's, too: it gives a container its cards
    ours = re.compile(rf" ({'|'.join(set(flags().values()) - others)})(?![\w-])| --device [a-z]")
    assert ours.search("write --device cpu")
    assert ours.search("lower -w")
    assert not [(file, text) for file, text in there if ours.search(text)]


def test_every_option_in_a_message_is_one() -> None:
    parameters = [
        inspect.signature(method).parameters for method in vars(Engine).values() if callable(method)
    ]
    known = {
        field.name
        for kind in (EngineConfig, SamplingParams, ReplicasConfig)
        for field in dataclasses.fields(kind)
    }
    known |= {name for names in parameters for name in names}
    known |= flags().keys()  # of what has the command line alone
    named = {
        match[1]
        for file, text in messages()
        if not file.startswith("serve/")  # names fields of HTTP requests
        for match in OPTION.finditer(text)
    }
    assert {"max_len", "cache_memory", "logit_bias"} <= named
    assert named <= known, named - known


@pytest.mark.parametrize("field", ["bias", "unknown", "x" * 100_000, "rope_scaling"])
def test_a_huge_value_in_a_file_makes_no_huge_line(
    field: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path / "model", "7b") / "config.json"
    raw = json.loads(config.read_text("utf-8")) | {field: "y" * 1_000_000}
    config.write_text(json.dumps(raw), "utf-8")
    assert main(["inspect", str(tmp_path / "model")]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("gyrfalcon: error: wanted")
    assert len(line) < 10_000
    assert str(config) in line
