"""Attention over the paged cache, in Triton: decoding steps, split over the context, and chunks of
prompts. `reference.attention` defines both. Lengths are read on the device, so that the launches of
a captured graph stay valid while contexts grow; numbers that change from step to step are left out
of Triton's specialisation, so that nothing is compiled in the middle of a run.

Rows of a tile are (query, head) pairs of one KV head's group, so keys and values are read once for
all its heads and nothing is lost to padding when a group has 29 or 71. A row's result does not
depend on the rows beside it.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops.triton.early import early_launch, wait_for_kernels

SEQUENCE_TILE = 128  # sequences among which a program of `prefill` looks for its own at a time
SHORTEST_SPLIT = 128  # keys; shorter ones write as many partial results as they read keys
MOST_SPLITS = 64


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """A program's tile of scores and how it is computed."""

    rows: int
    keys: int
    warps: int
    stages: int  # tiles of keys and values under way


def config_for(rows: int, head_dim: int, dtype: torch.dtype) -> AttentionConfig:
    """The tile for up to `rows` (query, head) pairs that share keys.

    More than 64 rows of a decoding step become several programs, of which the second finds its keys
    in the L2 cache: 128 rows at once would save no memory traffic and halve the programs. Up to 64
    rows wait for memory: of 5 stages Triton gives two tiles to the block table, which has to be
    read first, and two to keys and values. Wide heads get smaller or fewer tiles, so that registers
    suffice on the A100 and 64 KiB of shared memory on CDNA 3.
    """
    tile = max(16, min(128, triton.next_power_of_2(rows)))
    if dtype == torch.float32:  # the products are not of matrix units and need more registers
        return AttentionConfig(min(tile, 32), 32, 4, 2)
    if head_dim > 64:
        return AttentionConfig(tile, 64 if tile <= 32 else 32, 8 if tile == 128 else 4, 3)
    return AttentionConfig(tile, 64, 8, 3) if tile == 128 else AttentionConfig(tile, 64, 4, 5)


def splits_for(sequences: int, kv_heads: int, group: int, longest: int, num_sms: int = 132) -> int:
    """Into how many parts `decode` should cut each context: enough for two programs a
    multiprocessor, none shorter than SHORTEST_SPLIT at the longest context that can occur.
    """
    programs = sequences * kv_heads * -(-group // 64)
    return max(1, min(2 * num_sms // programs, longest // SHORTEST_SPLIT, MOST_SPLITS))


def decode(
    q: Tensor,
    cache: LayerCache,
    block_tables: Tensor,
    contexts: Tensor,
    slopes: Tensor | None,
    splits: int,
) -> Tensor:
    """Attention of one new token a sequence to its `contexts` cached ones, itself included.

    q [sequences, heads, head_dim], any stride but the last; block_tables int64 [sequences, most
    blocks]; contexts int64 [sequences], 0 gives zeros; slopes float32 [heads]. Returns [sequences,
    heads × head_dim]. Parts of a context are merged in their order: equal calls give equal bits.
    """
    sequences, heads, dim = q.shape
    kv_heads = cache.k.shape[2]
    group = heads // kv_heads
    config = config_for(min(group, 64), dim, q.dtype)
    row_tiles = triton.cdiv(group, config.rows)
    shape = (sequences, heads, splits)
    parts = q.new_empty(*shape, dim, dtype=q.dtype if splits == 1 else torch.float32)
    logs = None if splits == 1 else q.new_empty(shape, dtype=torch.float32)
    decode_kernel[(row_tiles * kv_heads, splits, sequences)](
        contexts=contexts,
        slopes=slopes,
        parts=parts,
        logs=logs,
        splits=splits,
        **_shared(q, cache, block_tables, config),
        **early_launch(q.device),
    )
    if logs is None:
        return parts.view(sequences, heads * dim)
    return _merged(parts, logs, q.dtype)


def _merged(parts: Tensor, logs: Tensor, dtype: torch.dtype) -> Tensor:
    sequences, heads, splits, dim = parts.shape
    out = parts.new_empty(sequences, heads * dim, dtype=dtype)
    merge_kernel[(sequences * heads,)](
        parts,
        logs,
        out,
        splits,
        HEAD_DIM=dim,
        DIM_TILE=_tile_of(dim),
        SPLIT_TILE=triton.next_power_of_2(splits),
        num_warps=1 if splits <= 16 else 4,
        **early_launch(parts.device),
    )
    return out


def prefill(
    q: Tensor,
    cache: LayerCache,
    block_tables: Tensor,
    starts: Tensor,
    contexts: Tensor,
    slopes: Tensor | None,
) -> Tensor:
    """Causal attention of each sequence's queries, the last of its context, to its cached keys.

    q [tokens, heads, head_dim], any stride but the last; sequence i has the tokens from starts[i]
    to starts[i + 1] (int64 [sequences + 1], from 0 to tokens); the rest as for `decode`. A sequence
    may bring one token or none; tokens that only pad belong to a sequence of context 0 and get
    zeros. Returns [tokens, heads × head_dim].
    """
    tokens, heads, dim = q.shape
    kv_heads = cache.k.shape[2]
    group, sequences = heads // kv_heads, len(contexts)
    config = config_for(max(64, tokens * group // sequences), dim, q.dtype)
    out = q.new_empty(tokens, heads * dim)
    prefill_kernel[(tokens * group // config.rows + sequences, kv_heads)](
        starts=starts,
        contexts=contexts,
        slopes=slopes,
        out=out,
        sequences=sequences,
        SEQUENCES=SEQUENCE_TILE,
        **_shared(q, cache, block_tables, config),
    )
    return out


def _shared(
    q: Tensor, cache: LayerCache, tables: Tensor, config: AttentionConfig
) -> dict[str, object]:
    """What both kernels are given of queries, cache and tile."""
    _, block_size, kv_heads, dim = cache.k.shape
    return {
        "q": q,
        "keys": cache.k,
        "values": cache.v,
        "tables": tables,
        "q_token_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "block_stride": cache.k.stride(0),
        "token_stride": cache.k.stride(1),
        "table_stride": tables.stride(0),
        "kv_heads": kv_heads,
        "scale": _scale(dim),
        "GROUP": q.shape[1] // kv_heads,
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": dim,
        "DIM_TILE": _tile_of(dim),
        "ROWS": config.rows,
        "KEYS": config.keys,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def _scale(head_dim: int) -> float:
    """1 / √d, and the exponential becomes one of base 2."""
    return math.log2(math.e) / math.sqrt(head_dim)


def _tile_of(head_dim: int) -> int:
    return max(16, int(triton.next_power_of_2(head_dim)))


@triton.jit(do_not_specialize=["table_stride", "splits"])
def decode_kernel(
    q,
    keys,
    values,
    tables,
    contexts,
    slopes,
    parts,
    logs,
    q_token_stride,
    q_head_stride,
    block_stride,
    token_stride,
    table_stride,
    kv_heads,
    splits,
    scale,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One sequence, one part of its context, up to ROWS heads of one KV head.

    Writes the part's result, and, where there are several, the binary logarithm of its sum of
    exponentials: -inf for a part without keys.
    """
    wait_for_kernels(EARLY)
    row_tiles: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    kv_head = tl.program_id(0) // row_tiles
    split = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    members = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    inside = members < GROUP
    heads = kv_head * GROUP + members

    context = tl.load(contexts + sequence).to(tl.int32)
    part_len = tl.cdiv(tl.cdiv(context, KEYS), splits) * KEYS
    first = split * part_len
    last = tl.minimum(first + part_len, context)

    slope = None
    if slopes is not None:
        slope = _bfloat16(tl.load(slopes + heads, mask=inside, other=0.0))
    query = _vectors(
        q + sequence * q_token_stride, heads * q_head_stride, inside, True, HEAD_DIM, DIM_TILE
    )
    result, largest, total = _attend(
        query,
        tl.zeros([ROWS, DIM_TILE], tl.float32),
        tl.full([ROWS], float("-inf"), tl.float32),
        tl.zeros([ROWS], tl.float32),
        keys + kv_head * HEAD_DIM,
        values + kv_head * HEAD_DIM,
        tables + sequence * table_stride,
        slope,
        tl.full([ROWS], 0, tl.int32) + context - 1,
        first,
        last,
        block_stride,
        token_stride,
        scale,
        BLOCK_SIZE,
        HEAD_DIM,
        DIM_TILE,
        KEYS,
        True,
    )
    total = tl.where(total > 0, total, 1.0)
    places = (sequence * kv_heads * GROUP + heads) * splits + split
    _store(parts, places * HEAD_DIM, result / total[:, None], inside, HEAD_DIM, DIM_TILE)
    if logs is not None:
        tl.store(logs + places, largest + tl.log2(total), mask=inside)


@triton.jit(do_not_specialize=["splits"])
def merge_kernel(
    parts,
    logs,
    out,
    splits,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    SPLIT_TILE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One head of one sequence: the mean of its parts, weighted by their sums of exponentials."""
    wait_for_kernels(EARLY)
    row = tl.program_id(0).to(tl.int64)
    places = row * splits + tl.arange(0, SPLIT_TILE)
    present = tl.arange(0, SPLIT_TILE) < splits
    log = tl.load(logs + places, mask=present, other=float("-inf"))
    largest = tl.max(log, axis=0)
    weights = tl.exp2(log - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(weights, axis=0)
    vectors = _vectors(parts, places * HEAD_DIM, present, True, HEAD_DIM, DIM_TILE)
    result = tl.sum(vectors * weights[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    dims = tl.arange(0, DIM_TILE)
    tl.store(out + row * HEAD_DIM + dims, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=["table_stride", "sequences"])
def prefill_kernel(
    q,
    keys,
    values,
    tables,
    starts,
    contexts,
    slopes,
    out,
    q_token_stride,
    q_head_stride,
    block_stride,
    token_stride,
    table_stride,
    kv_heads,
    sequences,
    scale,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """ROWS (query, head) pairs of one KV head and one sequence, heads side by side.

    Sequence i owns the tiles from starts[i] × GROUP // ROWS + i, of which its last may be empty:
    the grid needs only the number of tokens. Tiles with the most keys are computed first.
    """
    kv_head = tl.program_id(1)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    sequence = _owner(tile, starts, sequences, GROUP, ROWS, SEQUENCES)
    start = tl.load(starts + sequence)
    length = (tl.load(starts + sequence + 1) - start).to(tl.int32)
    tile -= (start * GROUP // ROWS).to(tl.int32) + sequence
    if tile * ROWS < length * GROUP:
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = rows < length * GROUP
        heads = kv_head * GROUP + rows % GROUP
        tokens = start + rows // GROUP

        cached = tl.load(contexts + sequence).to(tl.int32) - length
        newest = tl.minimum((tile * ROWS + ROWS - 1) // GROUP, length - 1)
        last = cached + newest + 1
        seen_by_all = tl.maximum(cached + tile * ROWS // GROUP + 1, 0) // KEYS * KEYS

        query_offsets = tokens * q_token_stride + heads * q_head_stride
        query = _vectors(q, query_offsets, inside, True, HEAD_DIM, DIM_TILE)
        slope = None
        if slopes is not None:
            slope = _bfloat16(tl.load(slopes + heads, mask=inside, other=0.0))
        positions = cached + rows // GROUP
        result = tl.zeros([ROWS, DIM_TILE], tl.float32)
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        for masked in tl.static_range(2):
            result, largest, total = _attend(
                query,
                result,
                largest,
                total,
                keys + kv_head * HEAD_DIM,
                values + kv_head * HEAD_DIM,
                tables + sequence.to(tl.int64) * table_stride,
                slope,
                positions,
                seen_by_all * masked,
                last if masked else seen_by_all,
                block_stride,
                token_stride,
                scale,
                BLOCK_SIZE,
                HEAD_DIM,
                DIM_TILE,
                KEYS,
                masked,
            )
        result /= tl.where(total > 0, total, 1.0)[:, None]
        places = (tokens * kv_heads * GROUP + heads) * HEAD_DIM
        _store(out, places, result, inside, HEAD_DIM, DIM_TILE)


@triton.jit
def _owner(
    tile,
    starts,
    sequences,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """The last sequence whose tiles begin at or before `tile`."""
    begun = 0
    for first in range(0, sequences, SEQUENCES):
        candidates = first + tl.arange(0, SEQUENCES)
        there = candidates < sequences
        tiles = tl.load(starts + candidates, mask=there, other=0) * GROUP // ROWS + candidates
        begun += tl.sum((there & (tiles <= tile)).to(tl.int32), axis=0)
    return begun - 1


@triton.jit
def _attend(
    query,
    result,
    largest,
    total,
    keys,
    values,
    table,
    slope,
    positions,
    first,
    last,
    block_stride,
    token_stride,
    scale,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds the keys from `first`, a multiple of KEYS, up to `last` to a running softmax (Milakov &
    Gimelshein 2018; Dao et al. 2022).

    query [ROWS, DIM_TILE]; result float32, not yet divided by total; largest and total float32
    [ROWS]; positions [ROWS]: a row sees the keys up to its own. Without MASKED it sees all and
    `last` is a multiple of KEYS. No row is ever without a key it sees in its first tile.
    """
    for start in range(first, last, KEYS):
        places = start + tl.arange(0, KEYS)
        if BLOCK_SIZE % KEYS == 0:
            block = tl.load(table + start // BLOCK_SIZE)
        else:
            block = tl.load(table + places // BLOCK_SIZE, mask=places < last, other=0)
        offsets = block * block_stride + places % BLOCK_SIZE * token_stride
        k = _vectors(keys, offsets, places < last, MASKED, HEAD_DIM, DIM_TILE)
        v = _vectors(values, offsets, places < last, MASKED, HEAD_DIM, DIM_TILE)

        scores = tl.dot(query, tl.trans(k), input_precision="ieee")
        if slope is not None:
            scores += _bfloat16(slope[:, None] * _bfloat16(places.to(tl.float32))[None, :])
        scores *= scale
        if MASKED:
            scores = tl.where(places[None, :] <= positions[:, None], scores, float("-inf"))

        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        result = tl.dot(
            weights.to(v.dtype), v, acc=result * shrink[:, None], input_precision="ieee"
        )
        largest = larger
    return result, largest, total


@triton.jit
def _vectors(
    pointer,
    offsets,
    inside,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
):
    """The vectors that begin at `offsets`, [offsets, DIM_TILE]; zeros past HEAD_DIM and, with
    MASKED, where not inside.
    """
    dims = tl.arange(0, DIM_TILE)
    pointers = pointer + offsets[:, None] + dims[None, :]
    if DIM_TILE != HEAD_DIM:
        mask = inside[:, None] & (dims < HEAD_DIM)[None, :]
        return tl.load(pointers, mask=mask, other=0.0)
    elif MASKED:
        return tl.load(pointers, mask=inside[:, None], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _store(
    pointer,
    offsets,
    vectors,
    inside,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
):
    dims = tl.arange(0, DIM_TILE)
    tl.store(
        pointer + offsets[:, None] + dims[None, :],
        vectors.to(pointer.dtype.element_ty),
        mask=inside[:, None] & (dims < HEAD_DIM)[None, :],
    )


@triton.jit
def _bfloat16(x):
    """float32 rounded as Falcon's ALiBi was trained (reference.alibi_bias)."""
    return x.to(tl.bfloat16).to(tl.float32)
