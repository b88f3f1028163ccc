"""The only place that knows checkpoint tensor names and the fused query_key_value rows.

`Layout` says which tensors a checkpoint has, how each is stored, and which rows or columns a rank owns. Reads
no file.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from gyrfalcon.config import ModelConfig
from gyrfalcon.parallel.shards import Share
from gyrfalcon.quant import GROUPS, shrunk, sizes, stored_forms

BASE = "transformer."  # what stands before all names but the head's, where nobody left it out
EMBEDDING = f"{BASE}word_embeddings.weight"
HEAD = "lm_head.weight"
FINAL_NORM = f"{BASE}ln_f"
QKV = "self_attention.query_key_value"
DENSE = "self_attention.dense"
UP = "mlp.dense_h_to_4h"
DOWN = "mlp.dense_4h_to_h"
DATA, SCALES = ".data", ".scales"  # what the names of a quantised matrix's two tensors end with


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a checkpoint, in whole-model shape."""

    name: str
    shape: tuple[int, ...]
    role: str  # embedding, norm, qkv, dense, up, down or head; a bias has its layer's role
    dim: int | None  # the dimension shared over the ranks; None: every rank holds all of it
    kind: str = "none"  # quantisation of the matrix whose data or scales this is
    dtype: torch.dtype | None = (
        None  # of data and scales; a tensor that is not quantised may have any
    )
    unit: int = 1  # rows or columns of that matrix that an index along `dim` stands for

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Every tensor of one checkpoint: what the model computes with, how it is stored, what a rank owns."""

    config: ModelConfig
    has_head: bool  # stored, so not the embedding
    quant: str = "none"  # of the stored matrices

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The model's tensors in whole shapes: embedding, layers in order, final norm, head."""
        table = (self.config.vocab_size, self.config.hidden_size)
        specs = [TensorSpec(EMBEDDING, table, "embedding", 0)]
        for layer in range(self.config.num_layers):
            specs += _layer_specs(self.config, layer_prefix(layer))
        specs += _norm_specs(self.config, FINAL_NORM)
        if self.has_head:
            specs.append(TensorSpec(HEAD, table, "head", 0))
        return tuple(specs)

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
        owned = _merged(_owned(spec.role, self.config, share))
        if spec.unit == 1:
            return owned
        return tuple(shrunk(part, spec.kind, spec.dim, spec.unit) for part in owned)

    def local_shape(self, spec: TensorSpec, share: Share) -> tuple[int, ...]:
        """The shape of what `share` owns of a tensor."""
        return local_shape(spec.shape, spec.dim, self.ranges(spec, share))


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with: layer_prefix(3) + QKV + ".weight"."""
    return f"{BASE}h.{layer}."


def layer_of(name: str) -> int:
    """The layer of a tensor whose name begins as layer_prefix says."""
    return int(name.removeprefix(f"{BASE}h.").split(".")[0])


def norm_names(config: ModelConfig) -> tuple[str, ...]:
    """A layer's norms in the order they are applied; with two parallel ones, attention's first."""
    if not config.parallel:
        return ("input_layernorm", "post_attention_layernorm")
    return ("ln_attn", "ln_mlp") if config.num_norms == 2 else ("input_layernorm",)


def local_shape(
    shape: tuple[int, ...], dim: int | None, ranges: Sequence[range]
) -> tuple[int, ...]:
    """The shape of the part that holds `ranges` along `dim`; all of it without `dim`."""
    if dim is None:
        return shape
    return (*shape[:dim], sum(len(part) for part in ranges), *shape[dim + 1 :])


def _layer_specs(config: ModelConfig, prefix: str) -> list[TensorSpec]:
    hidden, ffn = config.hidden_size, config.ffn_size
    specs = [spec for norm in norm_names(config) for spec in _norm_specs(config, prefix + norm)]
    for layer, role, rows, columns, dim in (
        (QKV, "qkv", config.qkv_rows, hidden, 0),
        (DENSE, "dense", hidden, hidden, 1),
        (UP, "up", ffn, hidden, 0),
        (DOWN, "down", hidden, ffn, 1),
    ):
        specs.append(TensorSpec(f"{prefix}{layer}.weight", (rows, columns), role, dim))
        if config.bias:  # added once per rank's rows, or once after the sum over ranks
            specs.append(
                TensorSpec(f"{prefix}{layer}.bias", (rows,), role, 0 if dim == 0 else None)
            )
    return specs


def _norm_specs(config: ModelConfig, name: str) -> list[TensorSpec]:
    return [
        TensorSpec(f"{name}.{part}", (config.hidden_size,), "norm", None)
        for part in ("weight", "bias")
    ]


def _owned(role: str, config: ModelConfig, share: Share) -> Iterable[range]:
    match role:
        case "qkv":
            return _qkv_ranges(config, share)
        case "dense":
            return (_scaled(share.query_heads, config.head_dim),)
        case "up" | "down":
            return (share.ffn,)
        case _:
            return (share.vocab,)


def _qkv_ranges(config: ModelConfig, share: Share) -> Iterable[range]:
    """Rows are [kv head, its queries | k | v, head_dim]: of each group the rank's queries, then k and v."""
    size = config.queries_per_kv_head
    for group in share.kv_heads:
        first = group * (size + 2)  # in heads, k and v counted as heads
        queries = range(
            max(share.query_heads.start, group * size),
            min(share.query_heads.stop, (group + 1) * size),
        )
        shift = first - group * size
        yield _scaled(range(queries.start + shift, queries.stop + shift), config.head_dim)
        yield _scaled(range(first + size, first + size + 2), config.head_dim)


def _scaled(items: range, size: int) -> range:
    return range(items.start * size, items.stop * size)


def _merged(ranges: Iterable[range]) -> tuple[range, ...]:
    merged: list[range] = []
    for part in ranges:
        if merged and merged[-1].stop == part.start:
            merged[-1] = range(merged[-1].start, part.stop)
        else:
            merged.append(part)
    return tuple(merged)
