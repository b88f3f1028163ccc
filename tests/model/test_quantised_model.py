"""Models whose weights are rounded when they are loaded: the same on any number of ranks, as good as
the precision gate asks, and refused where they cannot be made.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import random_prompt, small
from safetensors.torch import load_file, save_file
from torch import Tensor
from worlds import on_engines

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.cli.main import main
from gyrfalcon.errors import UsageError
from gyrfalcon.model.falcon import Falcon
from gyrfalcon.quant import Quantised, dequantise, quantise

KINDS = ("int8", "fp8", "int4", "int4-32", "int4-128")
TABLES = {kind: "fp8" if kind == "fp8" else "int8" for kind in KINDS}  # of embedding and head
# Every matrix of these has rows of a multiple of 128 weights, which int4-128 asks for.
SHAPES: dict[str, dict[str, Any]] = {
    "40b": dict(hidden_size=256, num_attention_heads=4, num_kv_heads=2),
    "7b": dict(hidden_size=384, num_attention_heads=6),
    "rw-1b": dict(hidden_size=128, num_attention_heads=2),
}


def logits(engine: Engine) -> Tensor:
    return engine.logits(torch.tensor([random_prompt(40)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", SHAPES)
def test_it_computes_with_the_rounded_weights(variant: str, kind: str, tmp_path: Path) -> None:
    """As a checkpoint whose matrices are what the rounded ones stand for."""
    folder = small(tmp_path / "model", variant, **SHAPES[variant])
    with Engine(EngineConfig(model=str(folder), quant=kind)) as engine:
        ours = logits(engine)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            table = "word_embeddings" in name or "lm_head" in name
            tensors[name] = dequantise(
                quantise(tensor, TABLES[kind] if table else kind), torch.float32
            )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with Engine(EngineConfig(model=str(folder))) as engine:
        torch.testing.assert_close(ours, logits(engine), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_ranks_runs_the_same_model(kind: str, tmp_path: Path) -> None:
    """The parts of three ranks differ in size; a KV group of two heads is a group of 128."""
    groups_of_128 = dict(
        hidden_size=640, num_attention_heads=10, num_kv_heads=5, ffn_hidden_size=768
    )
    shape = groups_of_128 if kind == "int4-128" else SHAPES["40b"]
    folder = small(tmp_path / "model", **shape)
    alone, shared = (on_engines(world, folder, logits, quant=kind) for world in (1, 3))
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-4)


def test_a_part_that_is_no_whole_groups_is_refused_by_name(tmp_path: Path) -> None:
    folder = small(tmp_path / "model", **SHAPES["40b"])
    with pytest.raises(UsageError, match="multiples of 128 for int4-128, got 0 to 64"):
        on_engines(4, folder, logits, quant="int4-128")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["tied", "equal", "other"])
def test_embedding_and_head_are_one_matrix_when_they_are_the_same(
    stored: str, kind: str, tmp_path: Path
) -> None:
    folder = small(tmp_path / "model", tie_word_embeddings=stored == "tied", **SHAPES["rw-1b"])
    if stored == "equal":
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with Engine(EngineConfig(model=str(folder), quant=kind)) as engine:
        model = engine._core.model_runner
        assert isinstance(model, Falcon)
        embedding, head = model.embedding.weight, model.head.weight
    assert isinstance(embedding, Quantised)
    assert embedding.kind == TABLES[kind]
    assert (head is embedding) == (stored != "other")
    assert isinstance(head, Quantised)
    assert head.kind == TABLES[kind]


def test_rows_that_are_no_groups_of_int4_are_refused(tmp_path: Path) -> None:
    folder = small(tmp_path / "model", "7b", hidden_size=96, num_attention_heads=6)
    with pytest.raises(UsageError, match="multiple of 64 weights for int4"):
        Engine(EngineConfig(model=str(folder), quant="int4"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nestling_keeps_the_gate_of_its_precision(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["precision", "nestling", "--quant", kind, "--json", str(tmp_path / "p.json")])
    assert code == 0, capsys.readouterr()
