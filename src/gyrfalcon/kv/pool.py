"""The KV cache tensors of one rank and their size arithmetic. Keys and values of KV heads only,
never expanded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NOWHERE = -1  # the slot of a token that is not cached


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, each [blocks, block_size, kv_heads, head_dim]."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one token costs this rank: a key and a value per layer and KV head."""

    num_layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        return (
            2
            * self.num_layers
            * self.block_size
            * self.kv_heads
            * self.head_dim
            * self.dtype.itemsize
        )


class KVPool:
    """`num_blocks` blocks in every layer, shared by all sequences, and `spare` ones that none gets.

    They start as whatever the memory holds: no token is read before it was written, and memory
    that no token needs is never touched.
    """

    def __init__(
        self, shape: CacheShape, num_blocks: int, device: torch.device, spare: int = 0
    ) -> None:
        self.num_blocks, self.spare = num_blocks, spare
        sizes = (num_blocks + spare, shape.block_size, shape.kv_heads, shape.head_dim)
        self.block_size = shape.block_size
        self.layers = [
            LayerCache(*(torch.empty(sizes, dtype=shape.dtype, device=device) for _ in range(2)))
            for _ in range(shape.num_layers)
        ]

    def padding_slots(self, count: int) -> Tensor:
        """Where tokens that only pad a batch are cached, int64 [count]: in the spare blocks, or nowhere."""
        if not self.spare:
            return torch.full((count,), NOWHERE)
        first = self.num_blocks * self.block_size
        assert count <= self.spare * self.block_size
        return torch.arange(first, first + count)

    def copy(self, source: int, target: int) -> None:
        """Copies the keys and values of a block to another."""
        for layer in self.layers:
            layer.k[target] = layer.k[source]
            layer.v[target] = layer.v[source]
