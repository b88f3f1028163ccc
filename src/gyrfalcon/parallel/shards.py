"""Which heads, columns and vocabulary rows each rank owns: pure functions from a config, uneven
shares allowed.

Cutting, loading, ALiBi, attention and the tests all ask here, so they cannot disagree.
"""

from dataclasses import dataclass

from gyrfalcon.config import ModelConfig
from gyrfalcon.errors import WorldSizeError

MLP_UNIT = 64  # MLP columns go to ranks in multiples of this, as long as every rank gets some


def owned(count: int, ranks: int, rank: int) -> range:
    """The items `rank` holds when `count` items are shared as evenly as can be."""
    return range(count * rank // ranks, count * (rank + 1) // ranks)


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank of `ranks` owns, in whole-model indices.

    Every query head belongs to one rank. A KV head belongs to all ranks that own queries of its
    group, and the queries of a rank are spread evenly over its KV heads: [len(kv_heads),
    queries_per_kv_head].
    """

    rank: int
    ranks: int
    query_heads: range
    kv_heads: range
    ffn: range
    vocab: range

    @property
    def queries_per_kv_head(self) -> int:
        return len(self.query_heads) // len(self.kv_heads)


def share_of(config: ModelConfig, ranks: int, rank: int) -> Share:
    """What `rank` owns when `ranks` ranks share the model; raises WorldSizeError when a rank would
    own nothing.
    """
    most = largest_world(config)
    if not 1 <= ranks <= most:
        raise WorldSizeError(
            f"a world size from 1 to {most}, with a query head and an MLP column for each rank",
            str(ranks),
            f"use `world_size={most}` or less" if ranks > most else "use `world_size=1` or more",
        )
    assert 0 <= rank < ranks
    query_heads, kv_heads = _heads(config, ranks, rank)
    return Share(
        rank=rank,
        ranks=ranks,
        query_heads=query_heads,
        kv_heads=kv_heads,
        ffn=_ffn(config.ffn_size, ranks, rank),
        vocab=owned(config.vocab_size, ranks, rank),
    )


def shares_of(config: ModelConfig, ranks: int) -> list[Share]:
    """What each rank owns, in order; raises WorldSizeError when one would own nothing."""
    return [share_of(config, ranks, 0)] + [
        share_of(config, ranks, rank) for rank in range(1, ranks)
    ]


def largest_matrix(config: ModelConfig, share: Share) -> int:
    """The most weights that a matrix of a rank may have."""
    heads = (len(share.query_heads) + 2 * len(share.kv_heads)) * config.head_dim
    return max(len(share.vocab), len(share.ffn), heads) * config.hidden_size


def largest_world(config: ModelConfig) -> int:
    """The most ranks that can share the model with a query head, an MLP column and a token for
    each.
    """
    return min(config.num_heads, config.ffn_size, config.vocab_size)


def _heads(config: ModelConfig, ranks: int, rank: int) -> tuple[range, range]:
    """Whole KV groups while there are enough of them; beyond that each rank gets a part of one
    group.
    """
    groups, size = config.num_kv_heads, config.queries_per_kv_head
    if ranks <= groups:
        kv_heads = owned(groups, ranks, rank)
        return range(kv_heads.start * size, kv_heads.stop * size), kv_heads
    group = next(g for g in range(groups) if rank in owned(ranks, groups, g))
    sharers = owned(ranks, groups, group)
    part = owned(size, len(sharers), rank - sharers.start)
    return range(group * size + part.start, group * size + part.stop), range(group, group + 1)


def _ffn(columns: int, ranks: int, rank: int) -> range:
    unit = MLP_UNIT if columns >= MLP_UNIT * ranks else 1
    units = owned(-(-columns // unit), ranks, rank)
    return range(units.start * unit, min(units.stop * unit, columns))
