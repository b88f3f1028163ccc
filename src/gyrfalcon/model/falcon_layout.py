"""The tensors of a Falcon checkpoint: their names, shapes and ranges, and the fused query_key_value rows."""

import re
from collections.abc import Iterable

from gyrfalcon.config import ModelConfig
from gyrfalcon.model.layout import TensorScheme, TensorSpec
from gyrfalcon.parallel.shards import Share

BASE = "transformer."  # what stands before all names but the head's, where nobody left it out
EMBEDDING = f"{BASE}word_embeddings.weight"
HEAD = "lm_head.weight"
FINAL_NORM = f"{BASE}ln_f"
QKV = "self_attention.query_key_value"
DENSE = "self_attention.dense"
UP = "mlp.dense_h_to_4h"
DOWN = "mlp.dense_4h_to_h"


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with: layer_prefix(3) + QKV + ".weight"."""
    return f"{BASE}h.{layer}."


def norm_names(config: ModelConfig) -> tuple[str, ...]:
    """A layer's norms in the order they are applied; with two parallel ones, attention's first."""
    if not config.parallel:
        return ("input_layernorm", "post_attention_layernorm")
    return ("ln_attn", "ln_mlp") if config.num_norms == 2 else ("input_layernorm",)


def _layer_specs(config: ModelConfig, index: int) -> list[TensorSpec]:
    prefix = layer_prefix(index)
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
        case _:
            return (share.ffn,)


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


FALCON_TENSORS = TensorScheme(
    base=BASE,
    embedding=EMBEDDING,
    head=HEAD,
    computes=re.compile(r"^(transformer|lm_head|h|word_embeddings|ln_f)\."),
    layer=_layer_specs,
    final_norm=lambda config: _norm_specs(config, FINAL_NORM),
    owned=_owned,
)
