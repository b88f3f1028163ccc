"""`reference.rotary_and_cache` in Triton, in one launch: rotates queries and keys, and writes keys and
values to their cache slots.
"""

import triton
import triton.language as tl
from torch import Tensor

from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops.reference import AngleRows, Angles
from gyrfalcon.ops.triton.early import early_launch, wait_for_kernels
from gyrfalcon.ops.triton.parts import load_sum, parts_of

VECTORS = 16  # of one token that a program places: 2 KiB of 64 bfloat16 each


def rotary_and_cache(
    qkv: Tensor, angles: Angles | None, cache: LayerCache, slots: Tensor
) -> Tensor:
    """Rotates queries and keys, writes keys and values to the cache, returns the queries.

    qkv [tokens, (heads + 2 kv_heads) × head_dim], any stride between tokens, or summands of it, float32
    [parts, tokens, …]: for each KV head its queries, then its key, then its value. angles: None for ALiBi;
    each token's row of their table is read in place. slots int64 [tokens]; a token whose slot is negative
    only pads and is not cached. Returns [tokens, heads, head_dim]. Computed in float32.
    """
    (tokens, width), (kv_heads, dim) = qkv.shape[-2:], cache.k.shape[2:]
    vectors = width // dim
    q = cache.k.new_empty(tokens, vectors - 2 * kv_heads, dim)
    parts, *strides = parts_of(qkv)
    assert angles is None or isinstance(angles, AngleRows), "the kernel reads their table"
    cos, sin, rows = (None, None, None) if angles is None else (angles.cos, angles.sin, angles.rows)
    rotary_and_cache_kernel[(tokens, triton.cdiv(vectors, VECTORS))](
        qkv,
        cos,
        sin,
        rows,
        cache.k,
        cache.v,
        slots,
        q,
        *strides,
        cache.k.stride(1),
        kv_heads,
        GROUP=vectors // kv_heads - 2,
        HALF=dim // 2,
        HALF_TILE=triton.next_power_of_2(dim // 2),
        VECTORS=VECTORS,
        PARTS=parts,
        num_warps=2,
        **early_launch(qkv.device),
    )
    return q


@triton.jit
def rotary_and_cache_kernel(
    qkv,
    cos,
    sin,
    rows,
    keys,
    values,
    slots,
    q,
    row_stride,
    part_stride,
    slot_stride,
    kv_heads,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    HALF_TILE: tl.constexpr,
    VECTORS: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """VECTORS queries, keys and values of one token, each as two halves [VECTORS, HALF_TILE]."""
    wait_for_kernels(EARLY)
    token = tl.program_id(0).to(tl.int64)
    vectors = tl.program_id(1) * VECTORS + tl.arange(0, VECTORS)
    members = vectors % (GROUP + 2)  # queries of a KV head, then its key, then its value
    heads = vectors // (GROUP + 2)
    dims = tl.arange(0, HALF_TILE)
    inside = (heads < kv_heads)[:, None] & (dims < HALF)[None, :]

    source = qkv + token * row_stride + vectors[:, None] * (2 * HALF) + dims[None, :]
    first = load_sum(source, inside, part_stride, PARTS, q.dtype.element_ty)
    second = load_sum(source + HALF, inside, part_stride, PARTS, q.dtype.element_ty)
    if cos is not None:
        rotated = (members <= GROUP)[:, None]
        turn = tl.load(rows + token) * HALF + dims
        c = tl.load(cos + turn, mask=dims < HALF, other=0.0)[None, :]
        s = tl.load(sin + turn, mask=dims < HALF, other=0.0)[None, :]
        first, second = (
            tl.where(rotated, first * c - second * s, first),
            tl.where(rotated, second * c + first * s, second),
        )

    query = (token * kv_heads + heads) * GROUP + members
    _store(q, query * (2 * HALF), first, second, inside & (members < GROUP)[:, None], HALF)
    slot = tl.load(slots + token)
    if slot >= 0:
        cached = slot * slot_stride + heads * (2 * HALF)
        _store(keys, cached, first, second, inside & (members == GROUP)[:, None], HALF)
        _store(values, cached, first, second, inside & (members > GROUP)[:, None], HALF)


@triton.jit
def _store(pointer, offsets, first, second, mask, HALF: tl.constexpr):
    dims = tl.arange(0, first.shape[1])
    target = pointer + offsets[:, None] + dims[None, :]
    tl.store(target, first.to(pointer.dtype.element_ty), mask=mask)
    tl.store(target + HALF, second.to(pointer.dtype.element_ty), mask=mask)
