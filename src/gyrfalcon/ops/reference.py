"""Every operation of the model in plain torch: the definition, the fallback, and what faster twins
are tested against.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata, Batch
from gyrfalcon.device.lookup import device_of, lacks_matrix_units
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.shared_memory import SharedMemory
from gyrfalcon.quant import TILE_ROWS, Quantised, Weight, dequantise

CAPTURABLE = False  # a context's length decides, on the host, how much is gathered
Angles = Iterable[Tensor]  # cos and sin, float32 [tokens, head_dim / 2]
WIDENED_WEIGHTS = 1 << 24  # of a matrix at a time: 64 MiB in float32
MANY_TOKENS = 16  # from here on widening the weights pays

# Falcon's own is the exact GELU, x Φ(x) by erf (Hendrycks & Gimpel 2016).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True, slots=True)
class AngleRows:
    """Angles in a table: cos and sin float32 [rows, head_dim / 2], of which each token has one of the `rows`,
    int64 [tokens]. As Angles, those of the tokens.
    """

    cos: Tensor
    sin: Tensor
    rows: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.cos[self.rows], self.sin[self.rows]))


class LinearCall(NamedTuple):
    """What `linear` is given."""

    x: Tensor
    weight: Weight
    bias: Tensor | None = None
    activation: str | None = None


def own_threads(quant: str) -> bool:
    """Torch's threads compute."""
    return False


def prepack(weight: Quantised) -> Quantised:
    """A quantised matrix in the order in which these operations read it: as stored."""
    return weight


class BlockWeights(NamedTuple):
    """One rank's weights of a parallel block without biases."""

    norms: Seq[tuple[Tensor, Tensor]]  # weight and bias; one serves both attention and MLP
    eps: float
    qkv: Weight
    up: Weight
    activation: str | None
    dense: Weight
    down: Weight
    slopes: Tensor | None


Attend = Callable[[Tensor], Tensor]  # qkv, for rotary_and_cache → the heads' outputs
# All blocks of a step: x, angles, batch, caches → x as the last block reads it, and the last block's
# output, summed over ranks, which is still to be added to it; both of the batch's rows alone.
RunBlocks = Callable[[Tensor, Angles | None, Batch, Seq[LayerCache]], tuple[Tensor, Tensor | None]]


def fuse_blocks(
    loop: RunBlocks,
    weights: Seq[BlockWeights],
    memory: SharedMemory | None,
    heartbeat: Heartbeat,
) -> RunBlocks:
    """What runs the blocks of a step: here `loop`, block by block; a faster twin may return one call
    that computes the same from the blocks' weights, sums ranks in their shared memory and raises the
    heartbeat after each block.
    """
    return loop


def branches(qkv: LinearCall, attend: Attend, up: LinearCall) -> tuple[Tensor, Tensor]:
    """What `attend` makes of the linear qkv, and the linear `up`; neither branch needs the other."""
    return attend(linear(*qkv)), linear(*up)


def sum_of_linears(*each: tuple[Tensor, Weight], as_parts: bool = False) -> Tensor:
    """The sum of several linears, each of its own x [tokens, in] and weight [out, in]. A faster twin
    rounds only the sum, and with `as_parts` may leave it to add_layer_norms: [parts, tokens, out].
    """
    return reduce(torch.add, (linear(*one) for one in each))


def linear(
    x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """activation(x weightᵀ + bias): [tokens, in], [out, in], [out] → [tokens, out], in x's dtype."""
    if isinstance(weight, Quantised) or (len(x) >= MANY_TOKENS and lacks_matrix_units(x)):
        return _widened_linear(x, weight, bias, activation)
    y = F.linear(x, weight, bias)
    return y if activation is None else activate(y, activation)


def logits(x: Tensor, weight: Weight) -> Tensor:
    """The linear of a head, [tokens, in] → float32 [tokens, out]; a faster twin does not round it to x's
    dtype in between.
    """
    return linear(x, weight).float()


def _widened_linear(
    x: Tensor, weight: Weight, bias: Tensor | None, activation: str | None
) -> Tensor:
    """The linear on the CPU in float32, also with quantised weights, dequantised some rows at a time."""
    dtype = torch.float32 if device_of(x.device).on_host else x.dtype
    outputs, inputs = weight.shape
    size = max(1, WIDENED_WEIGHTS // (inputs * TILE_ROWS)) * TILE_ROWS
    ranges = [range(i, min(i + size, outputs)) for i in range(0, outputs, size)]
    y = torch.cat([F.linear(x.to(dtype), _rows(weight, part, dtype)) for part in ranges], dim=-1)
    y = y if bias is None else y + bias.to(dtype)
    return (y if activation is None else activate(y, activation)).to(x.dtype)


def _rows(weight: Weight, rows: range, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Quantised):
        return dequantise(weight.rows([rows]), dtype)
    return weight[rows.start : rows.stop].to(dtype)


def activate(x: Tensor, name: str) -> Tensor:
    """The MLP's non-linearity, by one of the names that ModelConfig.activation may have."""
    return ACTIVATIONS[name](x)


def add_layer_norms(
    x: Tensor, part: Tensor | None, norms: Seq[tuple[Tensor, Tensor]], eps: float
) -> tuple[Tensor, list[Tensor]]:
    """x + part, and its layer normalisations (Ba et al. 2016) by each weight and bias.

    x, part [tokens, hidden]; weights and biases [hidden]. The sum is rounded to x's dtype before
    its mean and variance are taken, in float32.
    """
    x = x if part is None else x + part
    return x, [F.layer_norm(x, (x.shape[-1],), weight, bias, eps) for weight, bias in norms]


def rotary_and_cache(
    qkv: Tensor, angles: Angles | None, cache: LayerCache, slots: Tensor
) -> Tensor:
    """Splits a fused qkv, rotates queries and keys, writes keys and values to the cache.

    qkv [tokens, (heads + 2 × kv_heads) × head_dim]; angles: cos and sin, None with ALiBi; slots
    int64 [tokens]. Returns the queries [tokens, heads, head_dim].
    """
    q, k, v = split_qkv(qkv, *cache.k.shape[2:])
    if angles is not None:
        cos, sin = angles
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    write_kv(k, v, cache, slots)
    return q


def split_qkv(qkv: Tensor, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each KV head's columns are its queries, then k, then v: → [tokens, heads, head_dim], twice
    [tokens, kv_heads, head_dim].
    """
    groups = qkv.view(len(qkv), kv_heads, -1, head_dim)
    return groups[:, :, :-2].flatten(1, 2), groups[:, :, -2], groups[:, :, -1]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), half rotation: dimensions i and i + d/2 rotate together
    by one angle.

    x [tokens, heads, head_dim]; cos, sin float32 [tokens, head_dim / 2]. Computed in float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]  # [tokens, 1, head_dim / 2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def write_kv(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Writes keys and values [tokens, kv_heads, head_dim] to their cache slots [tokens]."""
    cache.k.view(-1, *k.shape[1:]).index_copy_(0, slots, k)
    cache.v.view(-1, *v.shape[1:]).index_copy_(0, slots, v)


def attention(
    q: Tensor, cache: LayerCache, batch: AttentionMetadata, slopes: Tensor | None
) -> Tensor:
    """Causal attention of every sequence's new queries to its own cached keys, theirs included.

    q [tokens, heads, head_dim]; heads are spread evenly over the cache's KV heads, group after
    group. slopes float32 [heads] are this rank's ALiBi slopes: softmax((q·k + slope × key position)
    / √d). Returns [tokens, heads × head_dim].
    """
    outputs = []
    queries = q.split(batch.query_lens)
    for new, context, table in zip(queries, batch.context_lens, batch.block_tables, strict=True):
        k, v = (_pages(tensor, table, context) for tensor in (cache.k, cache.v))
        outputs.append(_attend(new, k, v, slopes))
    return torch.cat(outputs)


def alibi_bias(slopes: Tensor, positions: Tensor) -> Tensor:
    """What ALiBi adds to a head's scores before they are scaled, float32 [heads, keys].

    slopes: float32 [heads]; positions: int64 [keys], 0 for the first real token. Falcon was trained
    with slope, position and product rounded to bfloat16: the bias is not the same for all equally
    distant pairs.
    """
    return (slopes.bfloat16()[:, None] * positions.bfloat16()).float()


def _pages(tensor: Tensor, table: Tensor, context: int) -> Tensor:
    """One sequence's cached vectors in order: [context, kv_heads, head_dim]."""
    return tensor[table[: -(-context // tensor.shape[1])]].flatten(0, 1)[:context]


def _attend(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None) -> Tensor:
    """q [queries, heads, d], k and v [context, kv_heads, d]; the queries are the last of the
    context. Inside: [kv_heads, heads of a group, queries or context, d].
    """
    (queries, heads, dim), (context, groups, _) = q.shape, k.shape
    q = q.view(queries, groups, heads // groups, dim).permute(1, 2, 0, 3)
    k, v = (x.transpose(0, 1)[:, None].expand(-1, heads // groups, -1, -1) for x in (k, v))
    fresh = slopes is None and queries == context > 1
    mask = None if fresh or (slopes is None and queries == 1) else _mask(q, context, slopes)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=fresh)
    return out.permute(2, 0, 1, 3).reshape(queries, heads * dim)


def _mask(q: Tensor, context: int, slopes: Tensor | None) -> Tensor:
    """The bias of the scaled scores: -inf for keys after the query, and ALiBi's where there is one."""
    groups, size, queries, dim = q.shape
    keys = torch.arange(context, device=q.device)
    later = keys > keys[context - queries :, None]  # [queries, context]
    if slopes is None:
        return ~later
    bias = alibi_bias(slopes, keys) / math.sqrt(dim)  # [heads, context]
    bias = bias.view(groups, size, 1, context).expand(-1, -1, queries, -1)
    return bias.masked_fill(later, -math.inf).to(q.dtype)
