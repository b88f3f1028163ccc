"""Cuts of rounded matrices: the numbers of a model rounded when it is loaded, bit for bit, on any number
of ranks; whole or not there; every fault named; taken back only on request.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, make_model
from engines import random_prompt
from forms import save
from safetensors.torch import load_file, save_file
from test_cut import contents, faults, file_size_limit, started
from torch import Tensor
from worlds import on_engines

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.checkpoint.load import effective_dtype, effective_quant, load_model
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli.main import main
from gyrfalcon.cut import quantise as rounded
from gyrfalcon.cut.cut import cut
from gyrfalcon.cut.inspect import inspect_model
from gyrfalcon.cut.recut import merge, recut
from gyrfalcon.errors import CheckpointError, DiskFull, UsageError
from gyrfalcon.model.falcon import Falcon, ParallelBlock
from gyrfalcon.model.falcon_layout import EMBEDDING, HEAD
from gyrfalcon.ops import reference
from gyrfalcon.parallel.group import Group
from gyrfalcon.quant import KINDS, Quantised, Weight, dequantise, equal, quantise

CutOf = Callable[..., Path]
CPU = torch.device("cpu")
SHARD_BYTES = 600_000  # makes many stages of these
# Rows, and the parts of 1, 2 and 4 ranks, are of whole groups of 128.
SHAPES: dict[str, dict[str, Any]] = {
    "40b": dict(
        hidden_size=640,
        num_attention_heads=10,
        num_kv_heads=5,
        ffn_hidden_size=1024,
        vocab_size=101,
    ),
    "7b": dict(hidden_size=512, num_attention_heads=8, vocab_size=101),
    "rw-1b": dict(hidden_size=512, num_attention_heads=4, vocab_size=101),
}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each shape, of a single layer."""
    target = tmp_path_factory.mktemp("hf") / request.param
    return a_checkpoint(target, request.param, num_hidden_layers=1)


@pytest.fixture(scope="module")
def cut_of(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CutOf:
    """Cuts of it for some ranks, in a kind, in files of a size; each is made once, to be read only."""

    @cache
    def make(world: int, kind: str, shard_bytes: int = 5_000_000_000) -> Path:
        target = tmp_path_factory.mktemp("cuts") / "cut"
        cut(folder, target, world, quant=kind, max_shard_bytes=shard_bytes)
        return target

    return make


@pytest.fixture(scope="module")
def folder_40b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_checkpoint(tmp_path_factory.mktemp("hf") / "40b", "40b")


def a_checkpoint(folder: Path, variant: str, **settings: object) -> Path:
    shape = SHAPES[variant] | settings
    return make_checkpoint(folder, variant, dtype=torch.bfloat16, **shape)


def loaded(folder: Path, kind: str = "none", world: int = 1, rank: int = 0) -> Falcon:
    """One rank's model, as an engine loads it."""
    checkpoint = open_checkpoint(folder)
    dtype, quant = effective_dtype(checkpoint, "auto"), effective_quant(checkpoint, kind)
    model = load_model(checkpoint, Group(rank, world, None), reference, CPU, dtype, quant)
    assert isinstance(model, Falcon)
    return model


def weights(model: Falcon) -> Iterator[Weight | None]:
    """Every weight and bias of a model."""
    yield from (model.embedding.weight, model.head.weight)
    norms = [model.final_norm]
    for block in model.blocks:
        for layer in (block.attention.qkv, block.attention.dense, block.mlp.up, block.mlp.down):
            yield from (layer.weight, layer.bias)
        if isinstance(block, ParallelBlock):
            norms.append(block.norms)
        else:
            norms += [block.attention_norm, block.mlp_norm]
    yield from (tensor for norm in norms for pair in norm.each for tensor in pair)


def assert_same(one: Falcon, other: Falcon) -> None:
    pairs = list(zip(weights(one), weights(other), strict=True))
    assert sum(isinstance(weight, Quantised) for weight, _ in pairs) == 2 + 4 * len(one.blocks)
    for ours, theirs in pairs:
        if ours is None or theirs is None:
            assert ours is theirs
        else:
            assert equal(ours, theirs)
            assert isinstance(ours, Quantised) or ours.dtype == theirs.dtype  # type: ignore[union-attr]


def logits(engine: Engine) -> Tensor:
    return engine.logits(torch.tensor([random_prompt(12)]) % 101)


# What it holds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 4])
def test_its_weights_are_those_that_are_rounded_when_loaded(
    world: int, kind: str, folder: Path, cut_of: CutOf
) -> None:
    assert faults(cut_of(world, kind)) == ()
    for rank in range(world):
        ours = loaded(cut_of(world, kind), "none", world, rank)
        assert_same(ours, loaded(folder, kind, world, rank))


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4", "int4-32"])
def test_uneven_parts_are_those_of_the_whole(kind: str, folder: Path, cut_of: CutOf) -> None:
    """Of three ranks, out of a cut for three and out of one for two."""
    for rank in range(3):
        wanted = loaded(folder, kind, 3, rank)
        assert_same(loaded(cut_of(3, kind), "none", 3, rank), wanted)
        assert_same(loaded(cut_of(2, kind), "none", 3, rank), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_runs_it_without_being_told(kind: str, folder_40b: Path, tmp_path: Path) -> None:
    cut(folder_40b, tmp_path / "cut", 2, quant=kind)
    wanted, in_fp32 = (one_rank(folder_40b, kind, dtype) for dtype in ("auto", "fp32"))
    for quant in ("none", kind):
        with Engine(EngineConfig(model=str(tmp_path / "cut"), world_size=1, quant=quant)) as engine:
            assert engine.config.quant == kind
            assert f"bf16, quantised to {kind}, cache" in engine.description
            assert logits(engine).equal(wanted)
    shared = on_engines(2, tmp_path / "cut", logits, dtype="fp32")
    torch.testing.assert_close(shared, in_fp32, rtol=1e-4, atol=1e-4)


def one_rank(folder: Path, quant: str, dtype: str) -> Tensor:
    with Engine(EngineConfig(model=str(folder), quant=quant, dtype=dtype)) as engine:
        return logits(engine)


def test_another_rounding_of_a_cut_is_refused_in_one_line(
    folder_40b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "cut"
    assert main(["cut", str(folder_40b), str(target), "-w", "1", "--quant", "int8"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("save succcessfully")
    assert out[-2].endswith("bfloat16+float32+int8, quantised to int8")
    assert main(["generate", str(target), "--prompt", "x", "--quant", "int4"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gyrfalcon: error: wanted --quant int8 for {target}, ")
    assert ", got int4; leave --quant out" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_whole_rows_stay_in_the_mapped_file(kind: str, folder_40b: Path, tmp_path: Path) -> None:
    cut(folder_40b, tmp_path / "cut", 2, quant=kind)
    checkpoint = open_checkpoint(tmp_path / "cut")
    model = load_model(checkpoint, Group(1, 2, None), reference, CPU, torch.bfloat16, kind)
    assert isinstance(model, Falcon)
    part = checkpoint.source.part  # type: ignore[attr-defined]
    layers = {
        EMBEDDING: model.embedding.weight,
        "transformer.h.1.self_attention.query_key_value.weight": model.blocks[
            1
        ].attention.qkv.weight,
        "transformer.h.1.mlp.dense_4h_to_h.weight": model.blocks[1].mlp.down.weight,
    }
    for name, weight in layers.items():
        assert isinstance(weight, Quantised)
        assert weight.data.data_ptr() == part(f"{name}.data", 1).data_ptr()
        assert weight.scales.data_ptr() == part(f"{name}.scales", 1).data_ptr()


def test_the_manifest_says_what_is_rounded_to_what(folder_40b: Path, tmp_path: Path) -> None:
    cut(folder_40b, tmp_path / "cut", 2, quant="int4-32")
    manifest = json.loads((tmp_path / "cut/manifest.json").read_text())
    assert manifest["quant"] == {"kind": "int4-32", "dtype": "bfloat16"}
    found = {
        name.removeprefix("transformer.").removeprefix("h.0."): (tensor["dtype"], tensor["shape"])
        for name, tensor in manifest["tensors"].items()
    }
    assert found["word_embeddings.weight.data"] == ("int8", [101, 640])
    assert found["word_embeddings.weight.scales"] == ("float32", [101])
    assert found["mlp.dense_4h_to_h.weight.data"] == ("uint8", [40, 16, 512])
    assert found["mlp.dense_4h_to_h.weight.scales"] == ("bfloat16", [40, 32, 16])
    assert found["ln_attn.weight"] == ("bfloat16", [640])
    cut(folder_40b, tmp_path / "plain", 2)
    assert "quant" not in json.loads((tmp_path / "plain/manifest.json").read_text())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_matrix_is_rounded_once_for_all_ranks_data_and_scales(
    kind: str, folder_40b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def counting(weight: Tensor, kind: str) -> Quantised:
        shapes.append(weight.shape)
        return quantise(weight, kind)

    monkeypatch.setattr(rounded, "quantise", counting)
    cut(folder_40b, tmp_path / "cut", 4, quant=kind)
    assert len(shapes) == 1 + 2 * 4


@pytest.mark.parametrize("dtype", ["auto", "fp32", "fp16"])
def test_what_is_not_rounded_has_the_dtype_asked_for(dtype: str, tmp_path: Path) -> None:
    """Mixed dtypes among it: a model computes in its embedding's, as without a cut."""
    model = make_model("40b", **SHAPES["40b"]).bfloat16()
    state = {
        name: tensor.detach().float() if "ln_" in name else tensor.detach()
        for name, tensor in model.state_dict().items()
        if name != HEAD
    }
    folder = save(tmp_path / "hf", json.loads(model.config.to_json_string()), state, "safetensors")
    cut(folder, tmp_path / "cut", 1, quant="int8", dtype=dtype)
    wanted = {"auto": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}[dtype]
    checkpoint = open_checkpoint(tmp_path / "cut")
    assert effective_dtype(checkpoint, "auto") == wanted
    ours = loaded(tmp_path / "cut")
    assert ours.embedding.dtype == wanted
    theirs = load_model(open_checkpoint(folder), Group(0, 1, None), reference, CPU, wanted, "int8")
    assert isinstance(theirs, Falcon)
    assert_same(ours, theirs)


@pytest.mark.parametrize("stored", ["tied", "equal", "other"])
def test_a_head_that_is_the_embedding_is_stored_and_held_once(stored: str, tmp_path: Path) -> None:
    folder = a_checkpoint(tmp_path / "hf", "7b", tie_word_embeddings=stored == "tied")
    if stored == "equal":
        tensors = load_file(folder / "model.safetensors")
        tensors[HEAD] = tensors[EMBEDDING].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    cut(folder, tmp_path / "cut", 2, quant="int4")
    names = open_checkpoint(tmp_path / "cut").source.names()
    assert (f"{HEAD}.data" in names) == (f"{HEAD}.scales" in names) == (stored == "other")
    for rank in range(2):
        ours = loaded(tmp_path / "cut", "none", 2, rank)
        assert (ours.head.weight is ours.embedding.weight) == (stored != "other")
        assert_same(ours, loaded(folder, "int4", 2, rank))
    merge(tmp_path / "cut", tmp_path / "merged", dequantise=True)
    assert (HEAD in open_checkpoint(tmp_path / "merged").source.names()) == (stored != "tied")


def test_inspect_tells_the_bytes_that_the_parts_hold(folder_40b: Path, tmp_path: Path) -> None:
    cut(folder_40b, tmp_path / "cut", 2, quant="int4")
    inspection = inspect_model(tmp_path / "cut")
    for rank in (0, 1):
        files = (tmp_path / f"cut/part_model/{rank}").glob("*.safetensors")
        tensors = [tensor for file in files for tensor in load_file(file).values()]
        assert inspection.rank_bytes[rank] == sum(tensor.nbytes for tensor in tensors)
    assert len(inspect_model(tmp_path / "cut", 4).rank_bytes) == 4


# Other numbers of ranks, and back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_bytes", [SHARD_BYTES, 5_000_000_000])
def test_cut_for_four_then_for_two_equals_cut_for_two(
    shard_bytes: int, kind: str, cut_of: CutOf, tmp_path: Path
) -> None:
    recut(cut_of(4, kind, shard_bytes), tmp_path / "again", 2, max_shard_bytes=shard_bytes)
    assert contents(tmp_path / "again") == contents(cut_of(2, kind, shard_bytes))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_merged_only_on_request_to_what_its_weights_stand_for(
    kind: str, folder: Path, cut_of: CutOf, tmp_path: Path
) -> None:
    recut(cut_of(2, kind), tmp_path / "four", 4)
    for cut_folder in (cut_of(2, kind), tmp_path / "four"):
        with pytest.raises(UsageError, match=rf"bfloat16 → {kind}: quantised.*add dequantise=True"):
            merge(cut_folder, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        notes = merge(cut_folder, tmp_path / "merged", dequantise=True, overwrite=True).notes
        assert f"bfloat16 → {kind}: quantised, with an unknown error" in notes[-1]
        merged = load_file(tmp_path / "merged/model.safetensors")
        source = load_file(folder / "model.safetensors")
        assert merged.keys() == source.keys()
        for name, tensor in source.items():
            if tensor.ndim == 2:
                table = name in (EMBEDDING, HEAD) and kind.startswith("int4")
                tensor = dequantise(quantise(tensor, "int8" if table else kind), torch.bfloat16)
            assert merged[name].equal(tensor), name


# Where it cannot be made


@pytest.mark.parametrize(
    ("kind", "world", "wanted"),
    [
        ("int3", 1, "none, int8, fp8, int4, int4-32, int4-128 to quantise to, got 'int3'"),
        ("int4-128", 3, "multiples of 128 for int4-128"),
        ("int4", 20, "multiples of 64 for int4"),
    ],
)
def test_what_cannot_be_rounded_is_refused_before_writing(
    kind: str, world: int, wanted: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(
        tmp_path / "hf", "40b", hidden_size=640, num_attention_heads=20, num_kv_heads=5
    )
    with pytest.raises(UsageError, match=wanted):
        cut(folder, tmp_path / "cut", world, quant=kind)
    assert os.listdir(tmp_path) == ["hf"]


def test_rows_that_are_no_whole_groups_are_refused_before_writing(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "hf", "7b", hidden_size=96, num_attention_heads=6)
    with pytest.raises(UsageError, match="multiple of 64 weights for int4, got 128 of 96"):
        cut(folder, tmp_path / "cut", 1, quant="int4")
    assert os.listdir(tmp_path) == ["hf"]


def test_weights_that_are_no_numbers_are_refused(folder_40b: Path, tmp_path: Path) -> None:
    tensors = load_file(folder_40b / "model.safetensors")
    tensors[EMBEDDING][3, 4] = float("nan")
    shutil.copytree(folder_40b, tmp_path / "hf")
    save_file(tensors, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="finite weights"):
        cut(tmp_path / "hf", tmp_path / "cut", 1, quant="int8")
    assert not (tmp_path / "cut").exists()


def test_no_reference_for_the_gate_comes_from_it(
    folder_40b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be that of the rounded weights, which hides what the rounding costs."""
    cut(folder_40b, tmp_path / "cut", 1, quant="int8")
    (tmp_path / "prompts").write_text("a\n")
    for kind in ("fp32", "transformers"):
        words = ["--reference", kind, "--save-reference", str(tmp_path / "r")]
        assert main(["precision", str(tmp_path / "cut"), *words]) == 2
        assert "wanted a model that is not quantised" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


# Ends before the end


@pytest.mark.parametrize(("kind", "shard_bytes"), [("int8", SHARD_BYTES), ("int4", 300_000)])
def test_a_stopped_cut_resumes_to_the_same_cut(
    kind: str, shard_bytes: int, folder_40b: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = dict(quant=kind, max_shard_bytes=shard_bytes)
    cut(folder_40b, tmp_path / "whole", 2, **settings)
    index = json.loads((tmp_path / "whole/part_model/0/model.safetensors.index.json").read_text())
    home = index["weight_map"]
    matrices = [name.removesuffix(".data") for name in home if name.endswith(".data")]
    assert len(set(home.values())) > 3
    assert all(home[f"{name}.data"] == home[f"{name}.scales"] for name in matrices)
    sizes = [path.stat().st_size for path in (tmp_path / "whole").rglob("*.safetensors")]
    with file_size_limit(max(sizes) - 1), pytest.raises(DiskFull):
        cut(folder_40b, tmp_path / "cut", 2, **settings)
    with pytest.raises(CheckpointError, match="unfinished"):
        open_checkpoint(tmp_path / "cut")
    assert cut(folder_40b, tmp_path / "cut", 2, **settings).resumed_bytes > 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["cut", "whole"]


def test_another_rounding_starts_afresh(folder_40b: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(quant="int8", max_shard_bytes=SHARD_BYTES)
    with file_size_limit(SHARD_BYTES - 40_000), pytest.raises(DiskFull):
        cut(folder_40b, tmp_path / "cut", 2, **settings)
    assert json.loads((tmp_path / "cut.partial/progress.json").read_text())["files"]
    with pytest.raises(UsageError, match="--quant int8;"):
        cut(folder_40b, tmp_path / "cut", 2, quant="fp8")
    summary = cut(folder_40b, tmp_path / "cut", 2, quant="fp8", overwrite=True)
    assert summary.resumed_bytes == 0
    cut(folder_40b, tmp_path / "direct", 2, quant="fp8")
    assert contents(tmp_path / "cut") == contents(tmp_path / "direct")


@pytest.mark.slow
def test_a_cut_killed_at_any_moment_resumes_to_the_same_cut(
    folder_40b: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = dict(quant="int4", max_shard_bytes=SHARD_BYTES)
    started(folder_40b, tmp_path / "first", **settings).join()  # starts the process server
    begin = time.monotonic()
    started(folder_40b, tmp_path / "whole", **settings).join()
    duration = time.monotonic() - begin
    moments = random.Random(7)
    for number in range(5):
        target = tmp_path / f"cut {number}"
        process = started(folder_40b, target, **settings)
        time.sleep(moments.random() * duration)
        process.kill()  # SIGKILL
        process.join()
        if not target.exists():
            cut(folder_40b, target, 2, **settings)
        assert contents(target) == contents(tmp_path / "whole")
        assert faults(target) == ()


# What is wrong with it


def without(part: Path, ending: str) -> None:
    """Writes a rank's file again without the first tensor of that ending."""
    tensors = load_file(part)
    del tensors[min(name for name in tensors if name.endswith(ending))]
    save_file(tensors, part, metadata={"format": "pt"})


@pytest.mark.parametrize("ending", [".scales", ".data"])
def test_a_missing_tensor_is_one_line(ending: str, folder_40b: Path, tmp_path: Path) -> None:
    cut(folder_40b, tmp_path / "cut", 2, quant="int8")
    part = tmp_path / "cut/part_model/1/model.safetensors"
    without(part, ending)
    size = part.stat().st_size
    assert any("part_model/1/model.safetensors" in fault for fault in faults(tmp_path / "cut"))
    with pytest.raises(CheckpointError, match=f"model.safetensors: {size} B instead of") as caught:
        open_checkpoint(tmp_path / "cut")
    assert "\n" not in str(caught.value)


def test_scales_of_another_shape_are_named(folder_40b: Path, tmp_path: Path) -> None:
    cut(folder_40b, tmp_path / "cut", 1, quant="int4")
    part = tmp_path / "cut/part_model/0/model.safetensors"
    content = part.read_bytes()
    name = "transformer.h.0.mlp.dense_4h_to_h.weight.scales"
    before = content.index(b'"shape":', content.index(name.encode()))
    shape = b'"shape":[40,16,16]'
    assert content[before:].startswith(shape)
    part.write_bytes(content[:before] + b'"shape":[16,40,16]' + content[before + len(shape) :])
    with pytest.raises(CheckpointError, match=rf"{name} is \[16, 40, 16\] bfloat16 instead of"):
        open_checkpoint(tmp_path / "cut")


def test_one_flipped_bit_is_found(folder_40b: Path, tmp_path: Path) -> None:
    cut(folder_40b, tmp_path / "cut", 2, quant="int4-32")
    places = random.Random(1)
    for part in (tmp_path / "cut").rglob("*.safetensors"):
        before = part.read_bytes()
        for place in places.choices(range(len(before)), k=4):
            changed = bytearray(before)
            changed[place] ^= 1 << places.randrange(8)
            part.write_bytes(changed)
            assert part.name in " ".join(faults(tmp_path / "cut")), place
        part.write_bytes(before)
    assert faults(tmp_path / "cut") == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"kind": "int8"', '"kind": "int3"'),
        ('"kind": "int8"', '"kind": "fp8"'),
        ('"dtype": "bfloat16"\n', '"dtype": "bf16"\n'),
        ('"quant"', '"quants"'),
    ],
)
def test_a_manifest_that_says_something_else_is_an_error(
    before: str, after: str, folder_40b: Path, tmp_path: Path
) -> None:
    cut(folder_40b, tmp_path / "cut", 1, quant="int8")
    manifest = tmp_path / "cut/manifest.json"
    assert before in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(before, after, 1))
    assert len(faults(tmp_path / "cut")) == 1
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        open_checkpoint(tmp_path / "cut")
