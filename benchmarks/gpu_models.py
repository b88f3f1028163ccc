"""Falcon models with random weights, made where they are to run: any shape, any precision, no files."""

from typing import Any

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.config import ModelConfig
from gyrfalcon.kv.pool import CacheShape, KVPool
from gyrfalcon.model.architectures import config_from_json, make_layout
from gyrfalcon.model.builder import LayerBuilder
from gyrfalcon.model.falcon import Falcon, build_falcon
from gyrfalcon.ops import Ops
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.shards import share_of
from gyrfalcon.quant import Quantised, Weight, dequantise, quantise
from gyrfalcon.request import Chunk, Request, SamplingParams, Sequence

BLOCK_SIZE = 16
FAMILY: dict[str, object] = {
    "model_type": "falcon",
    "architectures": ["FalconForCausalLM"],
    "parallel_attn": True,
    "bias": False,
    "alibi": False,
    "vocab_size": 65024,
    "max_position_embeddings": 4096,
}
SHAPES: dict[str, dict[str, object]] = {
    "40b": {
        "new_decoder_architecture": True,
        "hidden_size": 8192,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
    },
    "7b": {
        "new_decoder_architecture": False,
        "multi_query": True,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
    },
    "tiny": {
        "new_decoder_architecture": True,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "ffn_hidden_size": 256,
        "vocab_size": 256,
    },
}


def quant_word(precision: str) -> str:
    """What a model of this precision quantises its weights to: nothing in bf16."""
    return "none" if precision == "bf16" else precision


def config_of(shape: str, **changed: object) -> ModelConfig:
    """The config of one of SHAPES."""
    return config_from_json({**FAMILY, **SHAPES[shape], **changed})


class RandomWeights:
    """Tensors that come from a seeded generator instead of a file. Matrices keep the size
    of what goes through them; quantised ones are drawn as they are stored, unless `exact`: then
    they are quantised like real weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        group: Group,
        ops: Ops,
        device: torch.device,
        dtype: torch.dtype,
        quant: str = "none",
        exact: bool = False,
        restore: bool = False,
    ) -> None:
        self.layout = make_layout(config, not config.tied)
        self.share = share_of(config, group.size, group.rank)
        self.ops, self.device, self.dtype, self.quant = ops, device, dtype, quant
        self.exact = exact
        self.restore = restore  # whether to dequantise the weights
        self.generator = torch.Generator(device).manual_seed(0)

    def tensor(self, name: str) -> Tensor:
        shape = self._local_shape(name)
        spec = self.layout.by_name[name]
        drawn = torch.randn(
            shape, generator=self.generator, device=self.device, dtype=torch.bfloat16
        )
        if spec.role == "norm":
            return (drawn * 0.1 + (1 if name.endswith("weight") else 0)).to(self.dtype)
        return (drawn * spec.shape[-1] ** -0.5).to(self.dtype)

    def matrix(self, name: str) -> Weight:
        kind = self.layout.quantised(self.quant).kind_of(self.layout.by_name[name])
        if kind == "none" or self.exact:
            weight = self.tensor(name)
            if kind == "none":
                return weight
            quantised = quantise(weight.bfloat16(), kind)
            return (
                dequantise(quantised, self.dtype) if self.restore else self.ops.prepack(quantised)
            )
        rows, columns = self._local_shape(name)
        return self.ops.prepack(random_quantised(kind, rows, columns, self.device))

    def _local_shape(self, name: str) -> tuple[int, ...]:
        return self.layout.local_shape(self.layout.by_name[name], self.share)


def random_quantised(kind: str, rows: int, columns: int, device: torch.device) -> Quantised:
    """A quantised matrix with random values, not quantised from real ones: fast at any size."""
    small = quantise(torch.randn(64, columns, device=device) * columns**-0.5, kind)
    repeats = -(-rows // 64)
    data = torch.cat([small.data.view(torch.uint8)] * repeats).view(small.data.dtype)
    return Quantised(kind, data, torch.cat([small.scales] * repeats)).rows((range(rows),))


def random_model(config: ModelConfig, ops: Ops, device: torch.device, **settings: Any) -> Falcon:
    """One rank's model; settings: dtype, quant, exact, restore, and ranks for rank 0's share of this many."""
    group = Group(0, settings.pop("ranks", 1), None)  # no ranks to sum over
    weights = RandomWeights(config, group, ops, device, **settings)
    return build_falcon(LayerBuilder(weights, group, ops, device, weights.dtype))


def make_pool(
    config: ModelConfig, tokens: int, device: torch.device, dtype: torch.dtype, ranks: int = 1
) -> KVPool:
    """A cache for this many tokens, of random numbers: a card takes less power for zeros."""
    kv_heads = len(share_of(config, ranks, 0).kv_heads)
    shape = CacheShape(config.num_layers, kv_heads, config.head_dim, BLOCK_SIZE, dtype)
    pool = KVPool(shape, -(-tokens // BLOCK_SIZE), device)
    for layer in pool.layers:
        layer.k.normal_()
        layer.v.normal_()
    return pool


def prompt_batch(config: ModelConfig, length: int) -> Batch:
    """One whole prompt of this many tokens, with logits for its last row."""
    return _batch(config, [range(length)])


def decode_batch(config: ModelConfig, size: int, context: int) -> Batch:
    """This many sequences that decode one token each, at this context, the token included."""
    return _batch(config, [range(context - 1, context)] * size)


def _batch(config: ModelConfig, steps: list[range]) -> Batch:
    """Of sequences that compute these positions, each up to its end."""
    num_blocks = -(-max(step.stop for step in steps) // BLOCK_SIZE)
    generator = torch.Generator().manual_seed(len(steps))
    chunks = []
    for place, step in enumerate(steps):
        ids = torch.randint(config.vocab_size, (step.stop,), generator=generator).tolist()
        request = Request(0, tuple(ids), SamplingParams(), seed=0)
        blocks = list(range(place * num_blocks, (place + 1) * num_blocks))
        sequence = Sequence(request, 0, ids, step.stop + 1, blocks=blocks)
        chunks.append(Chunk(sequence, step.start, step.stop))
    return Batch.build(chunks, BLOCK_SIZE)
