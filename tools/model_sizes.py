"""What each model of the family takes: bytes of weights in each precision, and of keys and values.

    python tools/model_sizes.py     # the table of README.md

Weights: for each matrix rows × columns × 2 bytes in bf16, rows × columns + 4 × rows in int8 (a scale for a
row) and rows × columns × (1/2 + 2/64) in int4 (a scale for 64 weights; embedding and head stay in int8);
norms and biases 2 bytes each. Keys and values: 2 × layers × KV heads × head_dim × 2 bytes for each token.
"""

from math import prod

import torch

from gyrfalcon.config import ModelConfig
from gyrfalcon.kv.pool import CacheShape
from gyrfalcon.model.architectures import config_from_json, make_layout

PRECISIONS = ("none", "int8", "int4")  # as --quant takes them
CONTEXT = 2048  # tokens
_RW: dict[str, object] = dict(
    vocab_size=65024, alibi=True, bias=True, parallel_attn=False, multi_query=False
)
_7B: dict[str, object] = dict(vocab_size=65024, multi_query=True, bias=False, parallel_attn=True)
_40B: dict[str, object] = dict(
    vocab_size=65024, new_decoder_architecture=True, bias=False, num_kv_heads=8
)
MODELS: dict[str, dict[str, object]] = {
    "falcon-rw-1b": _RW
    | dict(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, vocab_size=50304),
    "falcon-rw-7b": _RW | dict(hidden_size=4096, num_hidden_layers=36, num_attention_heads=64),
    "falcon-7b": _7B | dict(hidden_size=4544, num_hidden_layers=32, num_attention_heads=71),
    "falcon-11B": _40B
    | dict(hidden_size=4096, num_hidden_layers=60, num_attention_heads=32)
    | dict(ffn_hidden_size=16384, num_ln_in_parallel_attn=1, tie_word_embeddings=False),
    "falcon-40b": _40B | dict(hidden_size=8192, num_hidden_layers=60, num_attention_heads=128),
    "falcon-180B": _40B | dict(hidden_size=14848, num_hidden_layers=80, num_attention_heads=232),
}


def main() -> None:
    """Prints a row for each model."""
    for name, raw in MODELS.items():
        config = config_from_json({"model_type": "falcon", **raw})
        print(row(name, config))


def row(name: str, config: ModelConfig) -> str:
    """Weights in each precision and the cache of CONTEXT tokens, in GB."""
    weights = [f"{weight_bytes(config, quant) / 1e9:.1f}" for quant in PRECISIONS]
    return f"| {name} | {' | '.join(weights)} | {CONTEXT * token_bytes(config) / 1e9:.2f} |"


def weight_bytes(config: ModelConfig, quant: str, dtype: torch.dtype = torch.bfloat16) -> int:
    """The bytes of a cut for one rank in `quant`, or in `dtype` with "none": the same in memory and
    on disk.
    """
    return sum(
        prod(stored.shape) * (stored.dtype or dtype).itemsize
        for stored in make_layout(config, not config.tied, quant).stored
    )


def token_bytes(config: ModelConfig) -> int:
    """The bytes of keys and values per token in bf16, over all ranks while each head is on one."""
    return CacheShape(
        config.num_layers, config.num_kv_heads, config.head_dim, 1, torch.bfloat16
    ).block_bytes


if __name__ == "__main__":
    main()
