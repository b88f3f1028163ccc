"""Placing queries, keys and values in Triton equals its definition in plain torch."""

import functools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from triton_interpreter import DEVICE

pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")

from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference
from gyrfalcon.ops.reference import AngleRows
from gyrfalcon.ops.triton import rotary as triton_rotary

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of the largest
ROWS = 9  # of the table of angles
HEADS = [(1, 16, 64), (2, 29, 64), (1, 71, 64), (2, 4, 128), (3, 1, 64), (2, 3, 24)]


@dataclass(frozen=True, slots=True)
class Case:
    """A fused product for heads = (KV heads, queries of each, head_dim), and where it goes."""

    qkv: Tensor
    angles: AngleRows
    slots: Tensor
    kv_heads: int
    head_dim: int

    def cache(self) -> LayerCache:
        """Memory whose every number shows whether it was written."""
        shape = (5, 4, self.kv_heads, self.head_dim)
        numbers = torch.arange(5 * 4 * self.kv_heads * self.head_dim, device=DEVICE) % 100 + 1000
        k, v = (numbers.view(shape).to(self.qkv.dtype) for _ in range(2))
        return LayerCache(k, v.clone())


def make_case(heads: tuple[int, int, int], dtype: torch.dtype, tokens: int = 5) -> Case:
    kv_heads, group, dim = heads
    draw = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(tokens, kv_heads * (group + 2) * dim, generator=draw)
    turns = 100 * torch.rand(ROWS, dim // 2, generator=draw)
    rows = torch.randint(ROWS, (tokens,), generator=draw)
    return Case(
        qkv=qkv.to(DEVICE, dtype),
        angles=AngleRows(turns.cos().to(DEVICE), turns.sin().to(DEVICE), rows.to(DEVICE)),
        slots=torch.randperm(20, generator=draw)[:tokens].to(DEVICE),
        kv_heads=kv_heads,
        head_dim=dim,
    )


def defined(case: Case, angles: AngleRows | None, cache: LayerCache, slots: Tensor) -> Tensor:
    """The reference result; it knows no padding tokens, so those are left out of the cache."""
    kept, qkv = slots >= 0, case.qkv.contiguous()
    turned = None if angles is None else replace(angles, rows=angles.rows[kept])
    reference.rotary_and_cache(qkv[kept], turned, cache, slots[kept])
    return reference.rotary_and_cache(qkv, angles, case.cache(), slots.clamp(min=0))


def assert_same(
    case: Case,
    angles: AngleRows | None,
    slots: Tensor,
    tolerance: float,
) -> LayerCache:
    """Both implementations give one result and leave one cache, ours, which is returned."""
    ours, theirs = case.cache(), case.cache()
    q = triton_rotary.rotary_and_cache(case.qkv, angles, ours, slots)
    expected = defined(case, angles, theirs, slots)
    limit = tolerance * case.qkv.abs().max().item()
    for one, other in ((q, expected), (ours.k, theirs.k), (ours.v, theirs.v)):
        torch.testing.assert_close(one, other, atol=limit, rtol=0)
    return ours


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_placing_equals_its_definition(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make_case(heads, dtype)
    assert_same(case, case.angles, case.slots, TOLERANCES[dtype])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_without_angles_nothing_turns(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make_case(heads, dtype)
    assert_same(case, None, case.slots, 0.0)


@pytest.mark.parametrize("angles", [True, False])
def test_tokens_that_only_pad_are_not_cached(angles: bool) -> None:
    case = make_case((2, 4, 64), torch.bfloat16)
    slots = case.slots.clone()
    slots[[1, 4]] = -1
    turned = case.angles if angles else None
    cache, before = assert_same(case, turned, slots, TOLERANCES[torch.bfloat16]), case.cache()
    for tensor, old in ((cache.k, before.k), (cache.v, before.v)):
        changed = tensor.flatten(0, 1).ne(old.flatten(0, 1)).any(-1).any(-1)
        assert changed.nonzero().flatten().tolist() == sorted(slots[slots >= 0].tolist())


def test_tokens_may_lie_apart() -> None:
    case = make_case((2, 3, 64), torch.float32)
    wide = torch.full((5, 2, case.qkv.shape[1]), torch.nan, device=DEVICE)
    wide[:, 1] = case.qkv
    apart = Case(wide[:, 1], case.angles, case.slots, case.kv_heads, case.head_dim)
    assert not apart.qkv.is_contiguous()
    assert_same(apart, case.angles, case.slots, TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("count", [1, 3])
def test_summands_of_a_product_are_summed_and_rounded_once(count: int, dtype: torch.dtype) -> None:
    """Bit for bit."""
    case = make_case((2, 29, 64), dtype)
    parts = torch.randn(count, *case.qkv.shape, generator=torch.Generator().manual_seed(1))
    parts = parts.to(DEVICE)
    whole = functools.reduce(torch.add, parts).to(dtype)
    found = []
    for qkv in (parts, whole):
        cache = case.cache()
        q = triton_rotary.rotary_and_cache(qkv, case.angles, cache, case.slots)
        found.append((q, cache.k, cache.v))
    assert all(one.equal(other) for one, other in zip(*found, strict=True))


def test_a_rotation_by_wrong_angles_would_be_noticed() -> None:
    case = make_case((1, 4, 64), torch.bfloat16)
    wrong = replace(case.angles, sin=-case.angles.sin)
    q = triton_rotary.rotary_and_cache(case.qkv, wrong, case.cache(), case.slots)
    expected = reference.rotary_and_cache(case.qkv, case.angles, case.cache(), case.slots)
    assert (q.float() - expected.float()).abs().max() > 1.0
