"""nestling as a model to chat with, whose tokenizer begins every text with a token, and a server of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_templates import FALCON_180B
from serve_client import Server, engine_of, serving

from gyrfalcon import Engine
from gyrfalcon.checkpoint.hub import NESTLING

BEGIN = ">>TITLE<<"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder."""
    return make_model(tmp_path_factory.mktemp("serve") / "nestling", FALCON_180B)


def make_model(folder: Path, template: str) -> Path:
    """nestling with a chat template and a begin token, in a new folder."""
    folder.mkdir()
    for file in NESTLING.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((NESTLING / "tokenizer_config.json").read_text("utf-8"))
    rewrite(folder / "tokenizer_config.json", config | {"chat_template": template})
    tokenizer = json.loads((NESTLING / "tokenizer.json").read_text("utf-8"))
    [begin] = [one["id"] for one in tokenizer["added_tokens"] if one["content"] == BEGIN]
    frame = [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": frame,
        "pair": [*frame, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BEGIN: {"id": BEGIN, "ids": [begin], "tokens": [BEGIN]}},
    }
    rewrite(folder / "tokenizer.json", tokenizer)
    return folder


def rewrite(file: Path, content: object) -> None:
    file.unlink()
    file.write_text(json.dumps(content), "utf-8")


@pytest.fixture(scope="session")
def engine(model: Path) -> Iterator[Engine]:
    """The same model without a server."""
    with engine_of(model) as engine:
        yield engine


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[Server]:
    """A server that all tests of a file share."""
    with serving(lambda: engine_of(model), names=("nestling", "small")) as server:
        yield server
