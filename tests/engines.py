"""Tiny models and engines on them, for the tests of what an engine does for its callers."""

from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.native.library import library

GREEDY = SamplingParams()
# Values of GYRFALCON_OPS on a CPU.
OPERATORS = [
    pytest.param(
        "native",
        marks=pytest.mark.skipif(library() is None, reason="the native kernels are not built"),
    ),
    "reference",
]


def small(folder: Path, variant: str = "40b", **settings: object) -> Path:
    shape: dict[str, object] = dict(hidden_size=64, num_attention_heads=8)
    if variant == "40b":
        shape["num_kv_heads"] = 2
    make_checkpoint(folder, variant, **{**shape, **settings})  # type: ignore[arg-type]
    return folder


def make_engine(folder: Path, **settings: object) -> Engine:
    return Engine(EngineConfig(model=str(folder), **{"max_len": 64, **settings}))  # type: ignore[arg-type]


def cache_of(engine: Engine, num_blocks: int) -> int:
    """The bytes of a cache of this many blocks."""
    layers = engine._core.pool.layers
    return num_blocks * sum(t[0].nbytes for layer in layers for t in (layer.k, layer.v))


def random_prompt(length: int) -> list[int]:
    return torch.randint(
        20, 509, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()
