"""What torch alone offers for the same work, timed in the same run: cuBLAS in bfloat16, torch's own int8 and
int4 products, and a step in plain torch, compiled by torch.compile. Nothing is installed; what a torch
does not have, or refuses, is named with its reason.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import transformers
from gpu_gemlite import TOKENS, _difference, _ms, _tokens, _words
from gpu_models import (
    BLOCK_SIZE,
    FAMILY,
    SHAPES,
    config_of,
    decode_batch,
    make_pool,
    random_model,
)
from gpu_speed import seconds_of
from gpu_worker import Rows, Skipped
from torch import Tensor

from gyrfalcon import ops
from gyrfalcon.batch import Batch
from gyrfalcon.device.lookup import device_of
from gyrfalcon.engine.decode_graphs import DecodeGraph
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.falcon import Falcon, ParallelBlock
from gyrfalcon.ops import reference
from gyrfalcon.quant import Quantised, dequantise

if TYPE_CHECKING:
    from gpu_plan import Plan

NUM_LAYERS = 4  # of the compiled step: compiling more takes a minute more
GROUP = 64  # columns of an int4 scale
SPARE_REPLAYS = 16  # beyond those that are timed: of the capture, and before
INNER_TILES = 8  # of torch's int4 layout

LinearCall = Callable[[Tensor], Tensor]


def peers(plan: "Plan") -> Rows:
    """(7) A block's products of every kind, and a step of a few layers."""
    rows: dict[str, Callable[[], dict[str, Any]]] = {}
    for shape in plan.shapes:
        for kind, make in PRODUCTS.items():
            rows[f"{shape} {kind}"] = partial(_products, plan, shape, kind, make)
        rows[f"{shape} compiled step"] = partial(_compiled_step, plan, shape)
        rows[f"{shape} transformers step"] = partial(_transformers_step, plan, shape)
    return {name: partial(_tried, plan, work) for name, work in rows.items()}


def _tried(plan: "Plan", work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` finds, or why it does not: theirs is no fault of what the gate checks."""
    if device_of(plan.device).on_host:
        raise Skipped("times of a card only")
    try:
        return work()
    except Exception as error:
        return {"error": _words(error)}


def cublas(weight: Tensor | Quantised, dtype: torch.dtype) -> LinearCall:
    assert isinstance(weight, Tensor)
    return lambda x: F.linear(x, weight)


def torch_int8(weight: Tensor | Quantised, dtype: torch.dtype) -> LinearCall:
    """Weights as we store them, scales in the dtype of the tokens."""
    assert isinstance(weight, Quantised)
    scales = weight.scales.to(dtype)
    return lambda x: torch._weight_int8pack_mm(x, weight.data, scales)


def torch_int4(weight: Tensor | Quantised, dtype: torch.dtype) -> LinearCall:
    """Value + 8 in each half of a byte, and for each group its scale and what its middle stands for."""
    assert isinstance(weight, Quantised)
    unscaled = torch.ones_like(weight.scales)
    values = (dequantise(Quantised(weight.kind, weight.data, unscaled), torch.float32) + 8).byte()
    packed = torch._convert_weight_to_int4pack(values[:, ::2] << 4 | values[:, 1::2], INNER_TILES)
    scales = weight.by_rows().scales.to(dtype)  # [in / GROUP, out]
    both = torch.stack((scales, torch.zeros_like(scales)), dim=-1).contiguous()
    return lambda x: torch._weight_int4pack_mm(x, packed, GROUP, both)


PRODUCTS: Mapping[str, Callable[[Tensor | Quantised, torch.dtype], LinearCall]] = {
    "none": cublas,
    "int8": torch_int8,
    "int4": torch_int4,
}


@torch.inference_mode()
def _products(
    plan: "Plan",
    shape: str,
    kind: str,
    make: Callable[[Tensor | Quantised, torch.dtype], LinearCall],
) -> dict[str, Any]:
    """The four products of a block one after the other in a graph, theirs and ours, in ms."""
    config, device = config_of(shape, num_hidden_layers=1), device_of(plan.device)
    ours = ops.choose(device)
    settings = {"dtype": plan.dtype, "quant": kind}
    stored = random_model(config, reference, plan.device, **settings).blocks[0]
    linears = (stored.attention.qkv, stored.attention.dense, stored.mlp.up, stored.mlp.down)
    theirs = [make(one.weight, plan.dtype) for one in linears]
    weights = [_prepacked(ours, one.weight) for one in linears]
    mine = [lambda x, weight=weight: ours.linear(x, weight) for weight in weights]
    rows = []
    for tokens in TOKENS:
        drawn = [_tokens(tokens, one.weight, plan) for one in linears]
        row: dict[str, Any] = {"tokens": tokens, "relative_l2": _difference(mine, theirs, drawn)}
        row |= {"ours_ms": _ms(mine, drawn, plan), "theirs_ms": _ms(theirs, drawn, plan)}
        rows.append(row)
    return {"rows": rows}


def _prepacked(ours: Any, weight: Tensor | Quantised) -> Tensor | Quantised:
    packed: Tensor | Quantised = weight if isinstance(weight, Tensor) else ours.prepack(weight)
    return packed


def _our_step(plan: "Plan", shape: str) -> tuple[Falcon, KVPool, Batch, DecodeGraph]:
    """A decoding step of a few layers at batch 1 as a graph."""
    config, device = config_of(shape, num_hidden_layers=NUM_LAYERS), device_of(plan.device)
    context = plan.contexts[0]
    model = random_model(config, ops.choose(device), plan.device, dtype=plan.dtype)
    pool = make_pool(config, context + BLOCK_SIZE, plan.device, plan.dtype)
    batch = decode_batch(config, 1, context)
    graph = DecodeGraph.of(model, pool, 1, context + BLOCK_SIZE, device)
    graph.run(batch)
    return model, pool, batch, graph


@torch.inference_mode()
def _transformers_step(plan: "Plan", shape: str) -> dict[str, Any]:
    """The same by transformers, with a static cache and weights of its own, captured by hand."""
    context, (_, _, _, graph) = plan.contexts[0], _our_step(plan, shape)
    replays = plan.steps * plan.rounds + SPARE_REPLAYS
    _, step = static_step(shape, plan.device, plan.dtype, context - 1, replays)
    replay = device_of(plan.device).capture(step)
    return {
        "peer": f"transformers {transformers.__version__}, static cache",
        "layers": NUM_LAYERS,
        "context": context,
        "ours_ms": 1000 * seconds_of(graph.replay, plan, plan.steps),
        "theirs_ms": 1000 * seconds_of(replay, plan, plan.steps),
    }


def static_step(
    shape: str, device: torch.device, dtype: torch.dtype, num_cached: int, num_steps: int
) -> tuple[Any, Callable[[], Tensor]]:
    """transformers' model, and a step of it behind a prompt of so many tokens; its cache has room for so many
    steps, each of which makes the context a token longer.
    """
    settings = {**FAMILY, **SHAPES[shape], "num_hidden_layers": NUM_LAYERS}
    config = transformers.FalconConfig(**settings)
    with torch.device(device):
        model = transformers.FalconForCausalLM._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        tokens = torch.arange(num_cached + 1)[None] % config.vocab_size
    cache = transformers.StaticCache(config=config, max_cache_len=num_cached + num_steps)
    model(tokens[:, :-1], past_key_values=cache, use_cache=True)
    last = tokens[:, -1:]
    return model, lambda: model(last, past_key_values=cache, use_cache=True).logits[:, -1]


@torch.inference_mode()
def _compiled_step(plan: "Plan", shape: str) -> dict[str, Any]:
    """The same without embedding in plain torch, by torch.compile and captured, with the same weights."""
    device, context = device_of(plan.device), plan.contexts[0]
    model, pool, batch, graph = _our_step(plan, shape)
    on_device = batch.on(plan.device)
    caches = [
        [tensor.flatten(0, 1)[:context].contiguous() for tensor in (layer.k, layer.v)]
        for layer in pool.layers
    ]
    compiled = torch.compile(plain_step)
    replay = device.capture(
        lambda: compiled(model, on_device.token_ids, on_device.positions, caches)
    )
    wanted, got = graph.logits.float(), replay().float()
    return {
        "peer": "torch.compile",
        "layers": NUM_LAYERS,
        "context": context,
        "relative_l2": float((got - wanted).norm() / wanted.norm()),
        "ours_ms": 1000 * seconds_of(graph.replay, plan, plan.steps),
        "theirs_ms": 1000 * seconds_of(replay, plan, plan.steps),
    }


def plain_step(
    model: Falcon, token_ids: Tensor, positions: Tensor, caches: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Logits of one token by torch's operators alone; caches [context, kv_heads, head_dim], whose last row is
    the token's own.
    """
    assert model.rotary is not None
    cos, sin = model.rotary.angles(positions, positions + 1)
    x = model.embedding.weight[token_ids].to(model.embedding.dtype)
    for block, (keys, values) in zip(model.blocks, caches, strict=True):
        assert isinstance(block, ParallelBlock)
        size = (x.shape[-1],)
        normed = [F.layer_norm(x, size, *one, block.norms.eps) for one in block.norms.each]
        qkv = F.linear(normed[0], _full(block.attention.qkv.weight))
        q, k, v = reference.split_qkv(qkv, *keys.shape[1:])
        q, k = reference.rotate(q, cos, sin), reference.rotate(k, cos, sin)
        k, v = torch.cat((keys[:-1], k)), torch.cat((values[:-1], v))
        q, k, v = (one.transpose(0, 1)[None] for one in (q, k, v))
        heads = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        attended = heads[0].transpose(0, 1).flatten(1)
        inner = F.gelu(F.linear(normed[-1], _full(block.mlp.up.weight)))
        x = x + F.linear(attended, _full(block.attention.dense.weight))
        x = x + F.linear(inner, _full(block.mlp.down.weight))
    weight, bias = model.final_norm.each[0]
    normed = [F.layer_norm(x, (x.shape[-1],), weight, bias, model.final_norm.eps)]
    return F.linear(normed[0], _full(model.head.weight)).float()


def _full(weight: Tensor | Quantised) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight
