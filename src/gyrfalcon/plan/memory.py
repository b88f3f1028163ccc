"""The memory of one rank: its weights as they are loaded, its KV cache as the engine sizes it, and what a
step needs beside them.
"""

from dataclasses import dataclass
from math import prod

from gyrfalcon.config import ModelConfig
from gyrfalcon.device.dtypes import DTYPE_OF_WORD
from gyrfalcon.kv.pool import CacheShape
from gyrfalcon.model.architectures import make_layout
from gyrfalcon.ops.triton.scratch import scratch_bytes
from gyrfalcon.parallel.shards import Share, largest_matrix, share_of, shares_of
from gyrfalcon.plan.hardware import Hardware

BLOCK_SIZE = 16  # EngineConfig.block_size
CARD_SHARE, CPU_SHARE = 0.8, 0.25  # of the free memory for the cache: device/cuda.py, device/cpu.py
LOGIT_COPIES = 2  # float32 logits: of a rank's own tokens, and sorted or masked ones


def weight_bytes(config: ModelConfig, ranks: int, dtype: str, quant: str) -> list[int]:
    """Bytes of weights on each rank, as checkpoint/load.py loads them: a tied head once, matrices in `quant`,
    all else in `dtype`. WorldSizeError or UsageError where the model cannot be shared so.
    """
    layout = make_layout(config, has_head=not config.tied, quant=quant)
    size = DTYPE_OF_WORD[dtype].itemsize
    sizes = [size if spec.dtype is None else spec.dtype.itemsize for spec in layout.stored]
    return [
        sum(
            prod(layout.local_shape(spec, share)) * size
            for spec, size in zip(layout.stored, sizes, strict=True)
        )
        for share in shares_of(config, ranks)
    ]


def block_bytes(config: ModelConfig, share: Share, dtype: str, block_size: int = BLOCK_SIZE) -> int:
    """Bytes of a cache block on one rank."""
    heads, torch_dtype = len(share.kv_heads), DTYPE_OF_WORD[dtype]
    shape = CacheShape(config.num_layers, heads, config.head_dim, block_size, torch_dtype)
    return shape.block_bytes


def num_cache_blocks(
    config: ModelConfig,
    ranks: int,
    dtype: str,
    cache_bytes: int,
    max_len: int,
    max_sequences: int,
    block_size: int = BLOCK_SIZE,
) -> int:
    """Cache blocks of a replica whose ranks have `cache_bytes` each: those that `max_sequences` sequences of
    `max_len` tokens can use, if they fit, on the rank that holds the fewest; as engine/build.py counts.
    """
    useful = max_sequences * -(-max_len // block_size)
    largest = max(
        block_bytes(config, share, dtype, block_size) for share in shares_of(config, ranks)
    )
    return min(useful, cache_bytes // largest)


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of the rank with the most weights, and what it has."""

    total: int  # of its card; its part of the machine's memory on a CPU
    reserved: int  # by the runtime
    weights: int
    workspace: int  # activations and logits of the largest step, an estimate, and widened matrices
    cache: int  # that the engine takes unless told otherwise; 0 where the weights leave none
    block: int  # of a cache block
    block_size: int  # tokens of it

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache holds."""
        return self.cache // self.block * self.block_size

    def sequences(self, context: int) -> int:
        """How many of this many tokens the cache holds."""
        return self.cache // self.block // -(-context // self.block_size)


def rank_memory(
    config: ModelConfig,
    ranks: int,
    dtype: str,
    quant: str,
    hardware: Hardware,
    max_batch_tokens: int,
    max_sequences: int,
) -> RankMemory:
    """The memory of a rank on this hardware. Errors as weight_bytes()."""
    sharing = 1 if hardware.on_cards else ranks
    total, reserved = hardware.memory_bytes // sharing, hardware.reserved_bytes // sharing
    weights = max(weight_bytes(config, ranks, dtype, quant))
    activations = _activations(
        config, share_of(config, ranks, 0), dtype, max_batch_tokens, max_sequences
    )
    scratch = _scratch(config, ranks, dtype, quant, hardware)
    free = total - reserved - weights - scratch
    cache = int(max(free, 0) * (CARD_SHARE if hardware.on_cards else CPU_SHARE))
    cache = max(min(cache, free - activations), 0)
    size = hardware.block_size
    largest = max(block_bytes(config, share, dtype, size) for share in shares_of(config, ranks))
    workspace = activations + scratch
    return RankMemory(total, reserved, weights, workspace, cache, largest, size)


def _scratch(config: ModelConfig, ranks: int, dtype: str, quant: str, hardware: Hardware) -> int:
    """What dequantising prompts' matrices takes, which engine/build.py leaves as well."""
    if quant == "none" or not (hardware.on_cards and hardware.triton):
        return 0
    largest = max(largest_matrix(config, share) for share in shares_of(config, ranks))
    return scratch_bytes(largest, DTYPE_OF_WORD[dtype])


def _activations(
    config: ModelConfig, share: Share, dtype: str, max_batch_tokens: int, max_sequences: int
) -> int:
    """Of each token the residual stream, its norms and sums, and a rank's queries, keys, values, heads and
    MLP columns; of each sequence its float32 logits.
    """
    heads = len(share.query_heads) + 2 * len(share.kv_heads)
    wide = heads * config.head_dim + len(share.query_heads) * config.head_dim + len(share.ffn)
    token = (wide + (3 + config.num_norms) * config.hidden_size) * DTYPE_OF_WORD[dtype].itemsize
    return max_batch_tokens * token + LOGIT_COPIES * 4 * max_sequences * len(share.vocab)
