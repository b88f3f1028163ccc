"""Falcon's attention: one fused product, grouped keys and values, rotary positions or ALiBi."""

from dataclasses import dataclass

from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.model.linear import ColumnLinear, RowLinear
from gyrfalcon.ops import Ops

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
