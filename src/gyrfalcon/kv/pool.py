"""The KV cache tensors of one rank and their size arithmetic. Keys and values of KV heads only,
never expanded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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
    """`num_blocks` blocks in every layer, shared by all sequences.

    They start as whatever the memory holds: no token is read before it was written, and memory
    that no token needs is never touched.
    """

    def __init__(self, shape: CacheShape, num_blocks: int, device: torch.device) -> None:
        sizes = (num_blocks, shape.block_size, shape.kv_heads, shape.head_dim)
        self.block_size = shape.block_size
        self.layers = [
            LayerCache(*(torch.empty(sizes, dtype=shape.dtype, device=device) for _ in range(2)))
            for _ in range(shape.num_layers)
        ]

    def copy(self, source: int, target: int) -> None:
        """Copies the keys and values of a block to another."""
        for layer in self.layers:
            layer.k[target] = layer.k[source]
            layer.v[target] = layer.v[source]
