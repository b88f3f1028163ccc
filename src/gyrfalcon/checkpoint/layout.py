"""The only place that knows checkpoint tensor names and the fused query_key_value rows.

Says which tensors a config implies, their shapes, and which rows or columns a rank owns. Reads no file.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
DATA, SCALES = ".data", ".scales"  # what the names of a rounded matrix's two tensors end with


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a checkpoint, in whole-model shape."""

    name: str
    shape: tuple[int, ...]
    role: str  # embedding, norm, qkv, dense, up, down or head; a bias has its layer's role
    dim: int | None  # the dimension shared over the ranks; None: every rank holds all of it
    kind: str = "none"  # what the matrix is rounded to that this is the data or the scales of
    dtype: torch.dtype | None = None  # of these; what is not rounded may have any
    unit: int = 1  # rows or columns of that matrix that an index along `dim` stands for

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


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


def tensor_specs(config: ModelConfig, *, head: bool) -> list[TensorSpec]:
    """Every tensor of the model: embedding, layers in order, final norm, and the head where it is stored."""
    table = (config.vocab_size, config.hidden_size)
    specs = [TensorSpec(EMBEDDING, table, "embedding", 0)]
    for layer in range(config.num_layers):
        specs += _layer_specs(config, layer_prefix(layer))
    specs += _norm_specs(config, FINAL_NORM)
    if head:
        specs.append(TensorSpec(HEAD, table, "head", 0))
    return specs


def quant_of(spec: TensorSpec, quant: str) -> str:
    """What a tensor is rounded to in a model rounded to `quant`: matrices to that, but embedding and
    head to no less than 8 bits; norms and biases not at all, "none".
    """
    if len(spec.shape) != 2:
        return "none"
    return "int8" if spec.role in ("embedding", "head") and quant in GROUPS else quant


def stored_name(name: str, quant: str) -> str:
    """The name that the numbers of a matrix have in a cut rounded to `quant`."""
    return name if quant == "none" else name + DATA


def stored_specs(spec: TensorSpec, quant: str) -> list[TensorSpec]:
    """The tensors that stand for one in a cut rounded to `quant`: itself, or a rounded matrix's data
    and scales. UsageError for a matrix that cannot be rounded so.
    """
    kind = quant_of(spec, quant)
    if kind == "none":
        return [spec]
    assert spec.dim is not None
    forms, units = stored_forms(kind, *spec.shape), sizes(kind, spec.dim)
    return [
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
    ]


def local_ranges(spec: TensorSpec, config: ModelConfig, share: Share) -> tuple[range, ...]:
    """The indices along `spec.dim` that `share` owns: ascending, adjacent ranges merged; () if replicated.

    UsageError where they end within what int4 packs or scales together.
    """
    if spec.dim is None:
        return ()
    match spec.role:
        case "qkv":
            owned = _merged(_qkv_ranges(config, share))
        case "dense":
            owned = (_scaled(share.query_heads, config.head_dim),)
        case "up" | "down":
            owned = (share.ffn,)
        case _:
            owned = (share.vocab,)
    if spec.unit == 1:
        return owned
    return tuple(shrunk(part, spec.kind, spec.dim, spec.unit) for part in owned)


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
