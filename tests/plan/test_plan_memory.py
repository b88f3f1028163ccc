"""What a plan says of memory and of a step's bytes and operations, beside models that are really loaded."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint

from gyrfalcon import Engine, ops
from gyrfalcon.checkpoint.load import load_model
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.config import ModelConfig
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.cuda import Cuda
from gyrfalcon.device.npu import Npu
from gyrfalcon.errors import UsageError, WorldSizeError
from gyrfalcon.measure.roofline import Deployment, prefill_flops
from gyrfalcon.model.architectures import config_from_file
from gyrfalcon.model.falcon import Falcon
from gyrfalcon.ops import reference
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.shards import largest_matrix, share_of
from gyrfalcon.plan.hardware import known_hardware
from gyrfalcon.plan.memory import block_bytes, num_cache_blocks, rank_memory, weight_bytes
from gyrfalcon.plan.step_load import decoding_load, load_of
from gyrfalcon.plan.work import work_of
from gyrfalcon.quant import Quantised

SHAPE = dict(hidden_size=256, num_attention_heads=4, num_kv_heads=2)  # cut for int4, too
SPLITS = [
    ("40b", 1, "none"),
    ("40b", 2, "int8"),
    ("40b", 2, "int4"),
    ("7b", 2, "none"),
    ("7b", 3, "fp8"),
    ("rw-1b", 2, "int8"),
    ("11B", 1, "int4"),
    ("11B", 4, "none"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Made":
    return Made(tmp_path_factory.mktemp("models"))


class Made:
    """Checkpoints in bf16, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.of = cache(self._of)

    def _of(self, variant: str) -> Path:
        shape = SHAPE if variant in ("40b", "11B") else {}
        return make_checkpoint(
            self._folder / variant, variant, dtype=torch.bfloat16, vocab_size=512, **shape
        )


def config_of(folder: Path) -> ModelConfig:
    return config_from_file(folder / "config.json")


def held(thing: object) -> Iterator[torch.Tensor]:
    """Every tensor of a loaded model, whatever holds it."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, Quantised):
        yield from (thing.data, thing.scales)
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from held(part)
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from held(getattr(thing, field.name))


def loaded(folder: Path, ranks: int, rank: int, quant: str) -> dict[str, int]:
    """Bytes of a rank's weights, and those of its embedding; a tensor in two places counts once."""
    group = Group(rank, ranks, None)
    device = torch.device("cpu")
    model = load_model(open_checkpoint(folder), group, reference, device, torch.bfloat16, quant)
    assert isinstance(model, Falcon)
    parts = [model.embedding, model.blocks, model.final_norm, model.head]
    tensors = {tensor.data_ptr(): tensor.nbytes for part in parts for tensor in held(part)}
    slopes = [
        tensor.data_ptr() for block in model.blocks for tensor in held(block.attention.slopes)
    ]
    embedding = {tensor.data_ptr(): tensor.nbytes for tensor in held(model.embedding)}
    return {
        "all": sum(size for place, size in tensors.items() if place not in slopes),
        "embedding": sum(embedding.values()),
    }


@pytest.mark.parametrize(("variant", "ranks", "quant"), SPLITS)
def test_a_rank_s_weights_are_those_that_are_loaded(
    made: Made, variant: str, ranks: int, quant: str
) -> None:
    folder = made.of(variant)
    said = weight_bytes(config_of(folder), ranks, "bf16", quant)
    assert said == [loaded(folder, ranks, rank, quant)["all"] for rank in range(ranks)]


@pytest.mark.parametrize(("variant", "quant"), [("40b", "none"), ("7b", "int8"), ("11B", "int4")])
def test_a_step_reads_every_tensor_once_but_the_embedding_s_rows(
    made: Made, variant: str, quant: str
) -> None:
    folder = made.of(variant)
    config, weights = config_of(folder), loaded(folder, 1, 0, quant)
    work = work_of(config, 1, "bf16", quant, on_cards=True)
    untied = 0 if config.tied else weights["embedding"]
    assert work.weight_bytes == weights["all"] - untied
    row = weights["embedding"] // config.vocab_size
    assert work.bytes_read(decoding_load(3, 0)) == work.weight_bytes + 3 * row


def test_a_context_is_read_as_it_is_cached(made: Made) -> None:
    folder = made.of("40b")
    with Engine(str(folder), max_len=64, cache_memory=10**6) as engine:
        layers = engine._core.pool.layers
        token = sum(part[0].nbytes for layer in layers for part in (layer.k, layer.v)) // 16
    work = work_of(config_of(folder), 1, "bf16", "none", on_cards=True)
    empty, full = decoding_load(2, 0), decoding_load(2, 50)
    assert work.bytes_read(full) - work.bytes_read(empty) == 50 * token


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("on_cards", [True, False])
def test_operations_are_those_of_a_prompt(made: Made, ranks: int, on_cards: bool) -> None:
    config = config_of(made.of("7b"))
    work = work_of(config, ranks, "bf16", "none", on_cards)
    deployment = Deployment(config, ranks, 2, "none", on_cards)
    assert work.flops(load_of([range(37)])) == prefill_flops(deployment, 1, 37)


@pytest.mark.parametrize(("max_len", "cache_memory"), [(64, 10**6), (64, 10**9), (200, 300_000)])
def test_the_cache_has_the_blocks_that_the_engine_makes(
    made: Made, max_len: int, cache_memory: int
) -> None:
    folder = made.of("40b")
    with Engine(str(folder), max_len=max_len, cache_memory=cache_memory) as engine:
        blocks = len(engine._core.pool.layers[0].k)
        most = engine.config.max_sequences
    said = num_cache_blocks(config_of(folder), 1, "bf16", cache_memory, max_len, most)
    assert said == blocks


def test_of_uneven_ranks_the_one_with_the_most_kv_heads_bounds_the_cache(made: Made) -> None:
    config = replace(config_of(made.of("40b")), num_heads=6, num_kv_heads=3)
    sizes = [block_bytes(config, share_of(config, 2, rank), "bf16") for rank in range(2)]
    assert sizes[0] != sizes[1]
    assert num_cache_blocks(config, 2, "bf16", 10 * max(sizes), 10**6, 64) == 10


def test_the_cache_gets_the_engine_s_part_of_what_the_weights_leave(made: Made) -> None:
    card, config = known_hardware()["a10g"], config_of(made.of("40b"))
    memory = rank_memory(config, 2, "bf16", "none", card, 512, 64)
    free = memory.total - memory.reserved - memory.weights
    assert memory.cache == int(0.8 * free)
    cpu = replace(card, on_cards=False)
    shared = rank_memory(config, 2, "bf16", "none", cpu, 512, 64)
    assert shared.total == memory.total // 2
    assert shared.cache == int(Cpu.cache_share * (shared.total - shared.reserved - shared.weights))


def test_a_card_s_own_block_size_counts(made: Made) -> None:
    """Ascend's operators read blocks of 128 tokens alone."""
    card, config = known_hardware()["910b3"], config_of(made.of("40b"))
    assert card.block_size == Npu.block_size(16) == 128
    memory = rank_memory(config, 1, "bf16", "none", card, 512, 64)
    share = share_of(config, 1, 0)
    assert (
        memory.block
        == block_bytes(config, share, "bf16", 128)
        == 8 * block_bytes(config, share, "bf16")
    )
    assert memory.sequences(129) == memory.cache // memory.block // 2


@pytest.mark.parametrize(("ranks", "quant"), [(1, "int8"), (3, "int4"), (2, "none")])
def test_the_cache_leaves_what_dequantising_prompts_takes(
    made: Made, monkeypatch: pytest.MonkeyPatch, ranks: int, quant: str
) -> None:
    """As the engine leaves it on a card with Triton's operators."""
    monkeypatch.setenv("GYRFALCON_OPS", "triton")
    card, device = replace(known_hardware()["a10g"], memory_bytes=4 * 10**9), Cuda.at(0)
    config = replace(config_of(made.of("11B")), vocab_size=500_000)
    share = share_of(config, ranks, ranks - 1)
    scratch = ops.scratch_bytes(device, largest_matrix(config, share), torch.bfloat16)
    scratch = 0 if quant == "none" else scratch
    memory = rank_memory(config, ranks, "bf16", quant, card, 512, 64)
    free = memory.total - memory.reserved - memory.weights
    assert free > 0
    assert memory.cache == int(Cuda.cache_share * (free - scratch))
    plain = rank_memory(config, ranks, "bf16", quant, replace(card, triton=False), 512, 64)
    assert memory.workspace == plain.workspace + scratch


def test_weights_that_do_not_fit_leave_no_cache(made: Made) -> None:
    card = replace(known_hardware()["a10g"], memory_bytes=200_000, reserved_bytes=0)
    memory = rank_memory(config_of(made.of("40b")), 1, "bf16", "none", card, 512, 64)
    assert (memory.cache, memory.cache_tokens) == (0, 0)


def test_a_split_that_no_rank_can_have_is_refused(made: Made) -> None:
    with pytest.raises(WorldSizeError, match="world size from 1 to 4"):
        weight_bytes(config_of(made.of("40b")), 5, "bf16", "none")
    with pytest.raises(UsageError, match="for int4"):
        weight_bytes(config_of(made.of("7b")), 1, "bf16", "int4")
