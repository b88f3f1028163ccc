"""A small model and a LoRA adapter of it, each a folder."""

from pathlib import Path

import pytest
from adapters import LINEAR, State, layers_of, make_pairs, save_adapter, small


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small 40b-shaped model in fp32, its head tied."""
    folder = tmp_path_factory.mktemp("base") / "hf"
    small().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs() -> State:
    """Pairs for all linear layers of it."""
    model = small()
    return make_pairs(model, layers_of(model, *LINEAR))


@pytest.fixture(scope="module")
def adapter(pairs: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They, as peft saves them."""
    return save_adapter(tmp_path_factory.mktemp("adapter") / "sft", pairs)
