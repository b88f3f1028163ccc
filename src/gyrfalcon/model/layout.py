"""`Layout`: the tensors of a checkpoint, how each is stored, and which rows or columns a rank owns.

Knows no architecture, which says in a `TensorScheme` what its tensors are; reads no file.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from gyrfalcon.config import ModelConfig
from gyrfalcon.parallel.shards import Share
from gyrfalcon.quant import GROUPS, shrunk, sizes, stored_forms

DATA, SCALES = ".data", ".scales"  # what the names of a quantised matrix's two tensors end with


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a checkpoint, in whole-model shape."""

    name: str
    shape: tuple[int, ...]
    role: str  # embedding, norm, head, or one of its architecture's; a bias has its layer's role
    dim: int | None  # the dimension shared over the ranks; None: every rank holds all of it
    kind: str = "none"  # quantisation of the matrix whose data or scales this is
    # Of data and scales; a tensor that is not quantised may have any.
    dtype: torch.dtype | None = None
    unit: int = 1  # rows or columns of that matrix that an index along `dim` stands for

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorScheme:
    """The tensors of an architecture."""

    base: str  # prefix of all names but the head's, which some writers leave out
    embedding: str
    head: str
    computes: re.Pattern[str]  # names that take part in computing logits
    layer: Callable[[ModelConfig, int], Sequence[TensorSpec]]  # in the order they are stored
    final_norm: Callable[[ModelConfig], Sequence[TensorSpec]]
    owned: Callable[[str, ModelConfig, Share], Iterable[range]]  # what a share has, by role


@dataclass(frozen=True)
class Layout:
    """Every tensor of one checkpoint: what the model computes with, how it is stored, what a rank owns."""

    config: ModelConfig
    scheme: TensorScheme
    has_head: bool  # stored, so not the embedding
    quant: str = "none"  # of the stored matrices

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The model's tensors in whole shapes: embedding, layers in order, final norm, head."""
        table = (self.config.vocab_size, self.config.hidden_size)
        specs = [TensorSpec(self.scheme.embedding, table, "embedding", 0)]
        specs += [spec for layer in self.layers for spec in layer]
        specs += self.scheme.final_norm(self.config)
        if self.has_head:
            specs.append(TensorSpec(self.scheme.head, table, "head", 0))
        return tuple(specs)

    @cached_property
    def layers(self) -> tuple[Sequence[TensorSpec], ...]:
        """The tensors of each layer."""
        return tuple(self.scheme.layer(self.config, i) for i in range(self.config.num_layers))

    @cached_property
    def layer_of(self) -> dict[str, int]:
        """The layer of a tensor, by name."""
        return {spec.name: i for i, layer in enumerate(self.layers) for spec in layer}

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        """The model's tensors by name."""
        return {spec.name: spec for spec in self.tensors}

    @cached_property
    def stored(self) -> tuple[TensorSpec, ...]:
        """Every stored tensor in the same order; UsageError for a matrix that cannot be quantised so."""
        return tuple(part for spec in self.tensors for part in self.stored_as(spec))

    def with_head(self, has_head: bool) -> "Layout":
        """The same checkpoint with or without a head of its own."""
        return replace(self, has_head=has_head)

    def quantised(self, quant: str) -> "Layout":
        """The same tensors, stored in another precision."""
        return replace(self, quant=quant)

    def kind_of(self, spec: TensorSpec) -> str:
        """The precision a tensor is stored in: matrices in `quant`, but embedding and head in no less than
        8 bits; norms and biases are not quantised, "none".
        """
        if len(spec.shape) != 2:
            return "none"
        return "int8" if spec.role in ("embedding", "head") and self.quant in GROUPS else self.quant

    def stored_name(self, name: str) -> str:
        """The name under which the numbers of a matrix are stored."""
        return name if self.quant == "none" else name + DATA

    def stored_as(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The stored tensors of one of the model's: itself, or a quantised matrix's data and scales.
        UsageError for a matrix that cannot be quantised so.
        """
        kind = self.kind_of(spec)
        if kind == "none":
            return (spec,)
        assert spec.dim is not None
        forms, units = stored_forms(kind, *spec.shape), sizes(kind, spec.dim)
        return tuple(
            replace(
                spec,
                name=spec.name + ending,
                shape=shape,
                kind=kind,
                dtype=dtype,
                dim=spec.dim if unit else None,
                unit=max(unit, 1),
            )
            for ending, (shape, dtype), unit in zip((DATA, SCALES), forms, units, strict=True)
        )

    def ranges(self, spec: TensorSpec, share: Share) -> tuple[range, ...]:
        """The indices along `spec.dim` that `share` owns: ascending, adjacent ranges merged; () if every
        rank holds the whole tensor.

        UsageError where they end within what int4 packs or scales together.
        """
        if spec.dim is None:
            return ()
        owned = _merged(self._owned(spec, share))
        if spec.unit == 1:
            return owned
        return tuple(shrunk(part, spec.kind, spec.dim, spec.unit) for part in owned)

    def local_shape(self, spec: TensorSpec, share: Share) -> tuple[int, ...]:
        """The shape of what `share` owns of a tensor."""
        return local_shape(spec.shape, spec.dim, self.ranges(spec, share))

    def _owned(self, spec: TensorSpec, share: Share) -> Iterable[range]:
        if spec.role in ("embedding", "head"):
            return (share.vocab,)
        return self.scheme.owned(spec.role, self.config, share)


def local_shape(
    shape: tuple[int, ...], dim: int | None, ranges: Sequence[range]
) -> tuple[int, ...]:
    """The shape of the part that holds `ranges` along `dim`; all of it without `dim`."""
    if dim is None:
        return shape
    return (*shape[:dim], sum(len(part) for part in ranges), *shape[dim + 1 :])


def _merged(ranges: Iterable[range]) -> tuple[range, ...]:
    merged: list[range] = []
    for part in ranges:
        if merged and merged[-1].stop == part.start:
            merged[-1] = range(merged[-1].start, part.stop)
        else:
            merged.append(part)
    return tuple(merged)
