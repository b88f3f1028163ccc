"""Quantised checkpoints in the format of compressed-tensors, for vLLM in benchmarks/cpu_peers.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

GROUP = 64  # weights of int4 that share a scale
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
SCHEMES = {
    "int8": {"weights": WEIGHTS, "input_activations": TOKENS},
    "int4": {"weights": {**WEIGHTS, "num_bits": 4, "strategy": "group", "group_size": GROUP}},
}
FORMATS = {"int8": "int-quantized", "int4": "pack-quantized"}


def write_compressed(checkpoint: Path, target: Path, precision: str) -> None:
    """A Hugging Face folder with one .safetensors file → `target`, which does not exist, with the linear
    layers in int8 or int4. Embedding and head stay as they are.
    """
    shutil.copytree(checkpoint, target)
    quantised: dict[str, torch.Tensor] = {}
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            tensor = file.get_tensor(name)
            linear = tensor.dim() == 2 and "embeddings" not in name
            quantised |= QUANTISERS[precision](name, tensor) if linear else {name: tensor}
    save_file(quantised, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text("utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": FORMATS[precision],
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **SCHEMES[precision]}},
        "ignore": ["lm_head"],
    }
    (target / "config.json").write_text(json.dumps(config), "utf-8")


def quantise_int8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    values = (weight.float() / scale).round().clamp(-127, 127).to(torch.int8)
    return {name: values, f"{name}_scale": scale.bfloat16()}


def quantise_int4(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eight weights in a word of 32 bits, the first in its lowest bits, each with 8 added to it."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    nibbles = (groups / scale).round().clamp(-8, 7).add(8).flatten(1).to(torch.int64)
    words = (nibbles.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
    return {
        f"{name}_packed": words.to(torch.uint32).view(torch.int32),
        f"{name}_scale": scale.flatten(1).bfloat16(),
        f"{name}_shape": torch.tensor(weight.shape),
    }


QUANTISERS: dict[str, Callable[[str, torch.Tensor], dict[str, torch.Tensor]]] = {
    "int8": quantise_int8,
    "int4": quantise_int4,
}
