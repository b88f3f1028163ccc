"""The Falcon model, all variants: this page follows the architecture; ranks show only where their
parts are summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.kv.pool import KVPool, LayerCache
from gyrfalcon.model.linear import ColumnLinear, Head, Norm, RowLinear, VocabEmbedding
from gyrfalcon.model.positions import Rotary
from gyrfalcon.ops import Ops
from gyrfalcon.parallel.group import Group

Angles = tuple[Tensor, Tensor]  # cos and sin, float32 [tokens, head_dim / 2]


@dataclass(frozen=True, slots=True)
class Attention:
    """This rank's heads; the result is its part of the sum."""

    qkv: ColumnLinear
    dense: RowLinear
    kv_heads: int  # of this rank
    head_dim: int
    slopes: Tensor | None  # float32 [own heads], ALiBi only
    ops: Ops

    def __call__(self, x: Tensor, angles: Angles | None, batch: Batch, cache: LayerCache) -> Tensor:
        q, k, v = self._split(self.qkv(x))
        if angles is not None:
            q, k = self.ops.rotate(q, *angles), self.ops.rotate(k, *angles)
        self.ops.write_kv(k, v, cache, batch.slots)
        return self.dense(self.ops.attention(q, cache, batch, self.slopes))

    def _split(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each KV head's rows are its queries, then k, then v: → [tokens, heads, head_dim], twice
        [tokens, kv_heads, …].
        """
        groups = fused.view(len(fused), self.kv_heads, -1, self.head_dim)
        return groups[:, :, :-2].flatten(1, 2), groups[:, :, -2], groups[:, :, -1]


@dataclass(frozen=True, slots=True)
class MLP:
    """This rank's columns of the feed-forward layer; the result is its part of the sum."""

    up: ColumnLinear
    down: RowLinear
    activation: str
    ops: Ops

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.ops.activate(self.up(x), self.activation))


@dataclass(frozen=True, slots=True)
class ParallelBlock:
    """Attention and MLP side by side (7b, 40b, 180B, 11B): one sum over ranks."""

    attention_norm: Norm
    mlp_norm: Norm | None  # None: the MLP reads what the attention reads
    attention: Attention
    mlp: MLP
    group: Group

    def __call__(self, x: Tensor, angles: Angles | None, batch: Batch, cache: LayerCache) -> Tensor:
        normed = self.attention_norm(x)
        part = self.attention(normed, angles, batch, cache)
        part = part + self.mlp(normed if self.mlp_norm is None else self.mlp_norm(x))
        total = self.group.all_reduce(part)
        for bias in (self.attention.dense.bias, self.mlp.down.bias):
            total = total if bias is None else total + bias
        return x + total


@dataclass(frozen=True, slots=True)
class SequentialBlock:
    """The MLP after the attention (rw): two sums over ranks."""

    attention_norm: Norm
    mlp_norm: Norm
    attention: Attention
    mlp: MLP
    group: Group

    def __call__(self, x: Tensor, angles: Angles | None, batch: Batch, cache: LayerCache) -> Tensor:
        x = x + self._summed(
            self.attention(self.attention_norm(x), angles, batch, cache), self.attention.dense
        )
        return x + self._summed(self.mlp(self.mlp_norm(x)), self.mlp.down)

    def _summed(self, part: Tensor, layer: RowLinear) -> Tensor:
        total = self.group.all_reduce(part)
        return total if layer.bias is None else total + layer.bias


@dataclass(frozen=True, slots=True)
class Falcon:
    """One rank's share of a Falcon model."""

    embedding: VocabEmbedding
    rotary: Rotary | None  # None: ALiBi, inside the attention
    blocks: Sequence[ParallelBlock | SequentialBlock]
    final_norm: Norm
    head: Head

    def __call__(self, batch: Batch, pool: KVPool) -> Tensor:
        """Computes the batch's tokens, caches their keys and values, returns logits float32 [rows,
        vocab].
        """
        x = self.embedding(batch.token_ids)  # [tokens, hidden]
        angles = (
            None if self.rotary is None else self.rotary.angles(batch.positions, batch.rope_lengths)
        )
        for block, cache in zip(self.blocks, pool.layers, strict=True):
            x = block(x, angles, batch, cache)
        return self.head(self.final_norm(x[batch.rows]))
