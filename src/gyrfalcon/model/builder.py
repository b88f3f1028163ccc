"""Makes the layers of one rank's model from its share of the weights, whatever the architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.config import ModelConfig
from gyrfalcon.kv.pool import KVPool, LayerCache
from gyrfalcon.model.layout import Layout
from gyrfalcon.model.linear import ColumnLinear, Head, Norms, RowLinear, VocabEmbedding
from gyrfalcon.model.positions import Rotary, alibi_slopes
from gyrfalcon.ops import Angles, Ops
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.shards import Share
from gyrfalcon.quant import Weight, equal

# Computes a batch's tokens, caches their keys and values, and returns this rank's logits.
Model = Callable[[Batch, KVPool], Tensor]


class Block(Protocol):
    """One layer of a model."""

    def __call__(
        self, x: Tensor, part: Tensor | None, angles: Angles | None, batch: Batch, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """The residual stream x [tokens, hidden] with `part`, the output of the block before, added;
        and the output of this block.
        """
        ...


class Weights(Protocol):
    """One rank's share of a model's tensors."""

    @property
    def layout(self) -> Layout: ...

    @property
    def share(self) -> Share: ...

    def tensor(self, name: str) -> Tensor:
        """In the dtype to compute in, on the rank's device."""
        ...

    def matrix(self, name: str) -> Weight:
        """A weight of a linear layer or a table, quantised where that is asked for."""
        ...


@dataclass(frozen=True, slots=True)
class LayerBuilder:
    """Makes layers by the names of their tensors."""

    weights: Weights
    group: Group
    ops: Ops
    device: torch.device
    dtype: torch.dtype  # to compute in

    @property
    def config(self) -> ModelConfig:
        return self.weights.layout.config

    def column(self, name: str, activation: str | None = None) -> ColumnLinear:
        """A column-parallel linear layer."""
        weight = self.weights.matrix(f"{name}.weight")
        return ColumnLinear(weight, self.bias(name), activation, self.ops)

    def row(self, name: str) -> RowLinear:
        """A row-parallel linear layer."""
        return RowLinear(self.weights.matrix(f"{name}.weight"), self.bias(name), self.ops)

    def bias(self, name: str) -> Tensor | None:
        """The bias of a linear layer, where the model has them."""
        return self.weights.tensor(f"{name}.bias") if self.config.bias else None

    def norms(self, *names: str) -> Norms:
        """Layer normalisations of the same input."""
        tensor = self.weights.tensor
        each = [(tensor(f"{name}.weight"), tensor(f"{name}.bias")) for name in names]
        return Norms(each, self.config.norm_eps, self.ops)

    def embedding(self) -> VocabEmbedding:
        """The embedding of the rank's tokens."""
        weight = self.weights.matrix(self.weights.layout.scheme.embedding)
        return VocabEmbedding(weight, self.dtype, self.weights.share.vocab, self.group)

    def head(self, embedding: Weight) -> Head:
        """The embedding serves as the head when none is stored, or the stored one is the same."""
        layout, weight = self.weights.layout, embedding
        if layout.has_head:
            stored = self.weights.matrix(layout.scheme.head)
            weight = embedding if equal(stored, embedding) else stored
        return Head(weight, self.ops)

    def rotary(self) -> Rotary | None:
        """Rotary position embedding; None for ALiBi."""
        rope = self.config.rope
        if rope is None:
            return None
        return Rotary(rope, self.config.head_dim, self.config.max_positions, self.device)

    def slopes(self) -> Tensor | None:
        """The ALiBi slopes of the rank's heads; they depend on how many heads the whole model has."""
        if self.config.rope is not None:
            return None
        heads = self.weights.share.query_heads
        return alibi_slopes(self.config.num_heads)[heads.start : heads.stop].to(self.device)
