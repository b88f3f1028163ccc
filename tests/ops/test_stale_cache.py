"""Whatever lies in cache slots that no token of a sequence owns, NaN of a failed one above all, changes
no bit of a result: in each implementation of attention, with contexts that end inside a block.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from types import ModuleType

import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.native.library import library
from gyrfalcon.ops import reference

HEADS = ((2, 1, 64), (2, 3, 64), (1, 9, 20))  # KV heads, heads of a group, head_dim
STEPS = (  # new tokens and whole lengths of each sequence
    ([1, 1, 1], [1, 18, 149]),
    ([1], [269]),
    ([5, 1, 20], [21, 34, 20]),
)
STALE = (torch.nan, torch.inf)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=["reference", "native", "triton"])
def operators(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "reference":
        return reference
    if request.param == "native":
        if library() is None:
            pytest.skip("the native kernels are not built")
        from gyrfalcon.ops import native

        return native
    pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")
    from gyrfalcon.ops.triton import ops

    return ops


def attending(
    lengths: Sequence[int],
    contexts: Sequence[int],
    heads: tuple[int, int, int],
    block_size: int,
    dtype: torch.dtype,
    stale: float,
) -> tuple[Tensor, LayerCache, AttentionMetadata]:
    """Queries, cache and batch, the same for each `stale`, which fills the slots of no token."""
    draw = torch.Generator().manual_seed(1)
    kv_heads, group, dim = heads
    sizes = [-(-context // block_size) for context in contexts]
    order = torch.randperm(sum(sizes) + 3, generator=draw)
    tables = torch.zeros(len(contexts), max(sizes), dtype=torch.int64)
    cache = LayerCache(
        *(torch.full((len(order), block_size, kv_heads, dim), stale, dtype=dtype) for _ in "kv")
    )
    starts = accumulate([0, *sizes])
    for row, (size, start, context) in enumerate(zip(sizes, starts, contexts, strict=False)):
        tables[row, :size] = order[start : start + size]
        places = torch.arange(context)
        slots = tables[row][places // block_size] * block_size + places % block_size
        k, v = torch.randn(2, context, kv_heads, dim, generator=draw).to(dtype)
        reference.write_kv(k, v, cache, slots)
    q = torch.randn(sum(lengths), kv_heads * group, dim, generator=draw).to(dtype)
    return q, cache, _batch(lengths, contexts, tables)


def _batch(lengths: Sequence[int], contexts: Sequence[int], tables: Tensor) -> AttentionMetadata:
    return AttentionMetadata(
        query_lens=tuple(lengths),
        context_lens=tuple(contexts),
        block_tables=tables,
        starts=torch.tensor([0, *accumulate(lengths)]),
        contexts=torch.tensor(contexts),
    )


@pytest.mark.parametrize(
    ("step", "heads", "dtype", "block_size", "stale"),
    pairwise(STEPS, HEADS, DTYPES, (3, 16), STALE),
)
def test_slots_of_no_token_may_hold_anything(
    step: tuple[list[int], list[int]],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    block_size: int,
    stale: float,
    operators: ModuleType,
) -> None:
    """Every two values together, each step in each implementation."""
    attention: Callable[..., Tensor] = operators.attention
    expected = attention(*attending(*step, heads, block_size, dtype, stale=0.0), None)
    assert expected.isfinite().all()
    found = attention(*attending(*step, heads, block_size, dtype, stale), None)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", STEPS[::2], ids=str)
def test_a_sequence_of_nan_changes_no_bit_of_those_beside_it(
    step: tuple[list[int], list[int]], dtype: torch.dtype, operators: ModuleType
) -> None:
    """Nor of those after it, for which the same buffers are used again."""
    q, cache, batch = attending(*step, (2, 3, 64), 16, dtype, stale=torch.nan)
    expected = operators.attention(q, cache, batch, None)
    poisoned = LayerCache(cache.k.clone(), cache.v.clone())
    for tensor in (poisoned.k, poisoned.v):
        tensor[batch.block_tables[1, : -(-step[1][1] // 16)]] = torch.nan
    first, last = batch.starts[1:3].tolist()
    found = operators.attention(q, poisoned, batch, None)
    assert found[first:last].isnan().all()
    assert torch.equal(found[:first], expected[:first])
    assert torch.equal(found[last:], expected[last:])
    assert torch.equal(operators.attention(q, cache, batch, None), expected)
