"""The layers with weights, each holding one rank's share of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gyrfalcon.ops import LinearCall, Ops
from gyrfalcon.parallel.group import Group
from gyrfalcon.quant import Weight


@dataclass(frozen=True, slots=True)
class Norms:
    """Layer normalisations of the same input: one, or two (40b). Every rank holds them whole."""

    each: Sequence[tuple[Tensor, Tensor]]  # weight and bias, both [hidden]
    eps: float
    ops: Ops

    def __call__(self, x: Tensor, part: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """x + part, and its normalisations."""
        return self.ops.add_layer_norms(x, part, self.each, self.eps)


@dataclass(frozen=True, slots=True)
class ColumnLinear:
    """A column-parallel linear layer: this rank's outputs, from the whole input."""

    weight: Weight  # [own outputs, inputs]
    bias: Tensor | None  # [own outputs]
    activation: str | None
    ops: Ops

    def of(self, x: Tensor) -> LinearCall:
        """The deferred linear for x."""
        return LinearCall(x, self.weight, self.bias, self.activation)

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.linear(*self.of(x))


@dataclass(frozen=True, slots=True)
class RowLinear:
    """A row-parallel linear layer: this rank's summand, from its own inputs. The block all-reduces the
    summands and then adds the bias, once.
    """

    weight: Weight  # [outputs, own inputs]
    bias: Tensor | None  # [outputs]
    ops: Ops

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class VocabEmbedding:
    """Token ids → vectors. Each rank looks up the tokens of `vocab`, has zeros for the others, and all
    ranks are summed.
    """

    weight: Weight  # [own tokens, hidden]
    dtype: torch.dtype  # of the vectors
    vocab: range
    group: Group

    def __call__(self, token_ids: Tensor) -> Tensor:
        if self.group.size == 1:
            return self.weight[token_ids].to(self.dtype)
        others = (token_ids < self.vocab.start) | (token_ids >= self.vocab.stop)
        rows = (token_ids - self.vocab.start).masked_fill(others, 0)
        vectors = self.weight[rows].to(self.dtype)
        return self.group.all_reduce(vectors.masked_fill(others[:, None], 0))


@dataclass(frozen=True, slots=True)
class Head:
    """Hidden states → the logits of this rank's tokens, float32."""

    weight: Weight  # [own tokens, hidden]
    ops: Ops

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.logits(x, self.weight)
