import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cpu_compressed_tensors import GROUP, write_compressed
from cpu_peers_model import SHAPES, make_checkpoint
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed") / "checkpoint"
    make_checkpoint(folder, replace(SHAPES["A"], num_layers=1, hidden_size=256).config(300))
    return folder


def int8_weights(tensors: Tensors, name: str) -> torch.Tensor:
    return tensors[name].float() * tensors[f"{name}_scale"].float()


def int4_weights(tensors: Tensors, name: str) -> torch.Tensor:
    words = tensors[f"{name}_packed"].view(torch.uint32).to(torch.int64)
    nibbles = (words[..., None] >> torch.arange(0, 32, 4)) & 15
    values = (nibbles.flatten(1) - 8).unflatten(1, (-1, GROUP)).float()
    found = (values * tensors[f"{name}_scale"].float()[..., None]).flatten(1)
    assert tuple(tensors[f"{name}_shape"]) == found.shape
    return found


@pytest.mark.parametrize(
    ("precision", "weights", "error"), [("int8", int8_weights, 0.01), ("int4", int4_weights, 0.15)]
)
def test_compressed_weights_are_the_checkpoints(
    checkpoint: Path,
    tmp_path: Path,
    precision: str,
    weights: Callable[[Tensors, str], torch.Tensor],
    error: float,
) -> None:
    target = tmp_path / precision
    write_compressed(checkpoint, target, precision)
    before, after = (load_file(each / "model.safetensors") for each in (checkpoint, target))
    name = "transformer.h.0.mlp.dense_h_to_4h.weight"
    exact = before[name].float()
    assert ((weights(after, name) - exact).norm() / exact.norm()) < error
    embedding = "transformer.word_embeddings.weight"
    assert torch.equal(after[embedding], before[embedding])
    config = json.loads((target / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert config["hidden_size"] == 256
