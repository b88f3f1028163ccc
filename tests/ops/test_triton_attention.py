"""Attention in Triton equals its definition in plain torch, for every grouping of heads and way to cut."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from triton_interpreter import DEVICE

pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference
from gyrfalcon.ops.triton import attention as triton_attention

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of the largest
HALVES = (torch.float16, torch.bfloat16)
GROUPS = [(16, 1, 64), (58, 2, 64), (71, 1, 64), (36, 2, 64), (8, 2, 128), (3, 3, 64)]


@dataclass(frozen=True, slots=True)
class Step:
    """What an attention is given: queries of sequences one after the other, and their cache."""

    q: Tensor
    cache: LayerCache
    block_tables: Tensor
    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    slopes: Tensor | None = None

    def decoded(self, splits: int = 1) -> Tensor:
        contexts = torch.tensor(self.contexts, device=DEVICE)
        return triton_attention.decode(
            self.q, self.cache, self.block_tables, contexts, self.slopes, splits
        )

    def prefilled(self) -> Tensor:
        starts = torch.tensor([0, *accumulate(self.lengths)], device=DEVICE)
        contexts = torch.tensor(self.contexts, device=DEVICE)
        return triton_attention.prefill(
            self.q, self.cache, self.block_tables, starts, contexts, self.slopes
        )

    def defined(self) -> Tensor:
        """The result of the plain twin, from the same inputs in float32."""
        batch = AttentionMetadata(
            query_lens=tuple(self.lengths),
            context_lens=tuple(self.contexts),
            block_tables=self.block_tables,
            starts=torch.tensor([0, *accumulate(self.lengths)], device=DEVICE),
            contexts=torch.tensor(self.contexts, device=DEVICE),
        )
        cache = LayerCache(self.cache.k.float(), self.cache.v.float())
        return reference.attention(self.q.float(), cache, batch, self.slopes)


def make_step(
    heads: tuple[int, int, int],
    contexts: Sequence[int],
    lengths: Sequence[int] | None = None,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    alibi: bool = False,
) -> Step:
    """A step with random queries, keys and values for heads = (heads, KV heads, head_dim).

    Blocks lie in any order; memory that belongs to no token is NaN.
    """
    num_heads, kv_heads, dim = heads
    lengths = tuple(lengths or [1] * len(contexts))
    draw = torch.Generator().manual_seed(sum(contexts) + num_heads)
    needed = [-(-context // block_size) for context in contexts]
    order = torch.randperm(sum(needed) + 2, generator=draw)
    tables = torch.zeros(len(contexts), max(needed), dtype=torch.int64)
    k, v = torch.full((2, len(order), block_size, kv_heads, dim), torch.nan)
    for row, (context, first) in enumerate(zip(contexts, [0, *accumulate(needed)], strict=False)):
        tables[row, : needed[row]] = order[first : first + needed[row]]
        places = torch.arange(context)
        slots = tables[row][places // block_size] * block_size + places % block_size
        for tensor in (k, v):
            fresh = torch.randn(context, kv_heads, dim, generator=draw)
            tensor.view(-1, kv_heads, dim)[slots] = fresh
    return Step(
        q=torch.randn(sum(lengths), num_heads, dim, generator=draw).to(DEVICE, dtype),
        cache=LayerCache(k.to(DEVICE, dtype), v.to(DEVICE, dtype)),
        block_tables=tables.to(DEVICE),
        lengths=lengths,
        contexts=tuple(contexts),
        slopes=torch.rand(num_heads, generator=draw).to(DEVICE) if alibi else None,
    )


def assert_near(ours: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert ours.dtype == dtype
    limit = TOLERANCES[dtype] * expected.abs().max().item()
    torch.testing.assert_close(ours.float(), expected, atol=limit, rtol=0)


@pytest.mark.parametrize("heads", GROUPS)
def test_a_decoding_step_equals_its_definition(heads: tuple[int, int, int]) -> None:
    step = make_step(heads, [1, 37, 130])
    assert_near(step.decoded(), step.defined())
    assert_near(step.decoded(splits=3), step.defined())


@pytest.mark.parametrize("splits", range(1, 9))
def test_the_number_of_splits_never_shows(splits: int) -> None:
    step = make_step((4, 1, 64), [3, 64, 65, 200])
    assert_near(step.decoded(splits), step.defined())


@pytest.mark.parametrize("block_size", [1, 3, 16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_cache_blocks_never_shows(dtype: torch.dtype, block_size: int) -> None:
    step = make_step((6, 2, 64), [130, 20], None, block_size, dtype)
    assert_near(step.decoded(splits=2), step.defined(), dtype)
    step = make_step((6, 2, 64), [130, 20], [5, 20], block_size, dtype)
    assert_near(step.prefilled(), step.defined(), dtype)


@pytest.mark.parametrize("heads", [(71, 1, 64), (8, 2, 128), (16, 1, 64)])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_equals_its_definition(
    heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    step = make_step(heads, [77, 130], dtype=dtype)
    assert_near(step.decoded(splits=2), step.defined(), dtype)
    step = make_step(heads, [40, 30], [17, 3], dtype=dtype)
    assert_near(step.prefilled(), step.defined(), dtype)


@pytest.mark.parametrize("dim", [8, 24, 96])
def test_heads_of_any_width_are_padded(dim: int) -> None:
    step = make_step((4, 2, dim), [35, 7], [9, 1])
    assert_near(step.prefilled(), step.defined())
    step = make_step((4, 2, dim), [35, 70])
    assert_near(step.decoded(splits=2), step.defined())


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_alibi_is_rounded_as_in_training(dtype: torch.dtype) -> None:
    step = make_step((3, 3, 64), [300, 31], dtype=dtype, alibi=True)
    assert_near(step.decoded(splits=2), step.defined(), dtype)
    step = make_step((3, 3, 64), [300, 31], [20, 31], dtype=dtype, alibi=True)
    assert_near(step.prefilled(), step.defined(), dtype)


def test_alibi_without_rounding_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(slopes: Tensor, positions: Tensor) -> Tensor:
        return slopes[:, None] * positions

    step = make_step((3, 3, 64), [300, 31], dtype=torch.bfloat16, alibi=True)
    monkeypatch.setattr(reference, "alibi_bias", exact)
    with pytest.raises(AssertionError):
        assert_near(step.decoded(), step.defined(), torch.bfloat16)


def test_a_row_that_only_pads_a_decoding_step_gets_zeros() -> None:
    step = make_step((16, 1, 64), [50, 70])
    padded = replace(step, contexts=(0, 70))
    for splits in (1, 4):
        rows = padded.decoded(splits)
        assert rows[0].eq(0).all()
        assert rows[1].equal(step.decoded(splits)[1])


def test_queries_may_lie_in_the_fused_product() -> None:
    step = make_step((6, 2, 64), [40, 9])
    fused = torch.full((2, 2, 5, 64), torch.nan, device=DEVICE)
    fused[:, 1, :3] = step.q[:, 3:]
    strided = replace(
        step,
        q=fused[:, 1, :3],
        cache=LayerCache(*(x[:, :, 1:] for x in (step.cache.k, step.cache.v))),
    )
    expected = step.defined()[:, 3 * 64 :]
    assert_near(strided.decoded(splits=2), expected)
    assert_near(strided.prefilled(), expected)


@pytest.mark.parametrize("heads", GROUPS)
def test_chunks_of_prompts_equal_their_definition(heads: tuple[int, int, int]) -> None:
    step = make_step(heads, [34, 21, 1, 70], [17, 1, 1, 3])
    assert_near(step.prefilled(), step.defined())


def test_a_prompt_in_one_go_equals_its_definition() -> None:
    step = make_step((2, 1, 64), [150, 64], [150, 64])
    assert_near(step.prefilled(), step.defined())


def test_a_prompts_tokens_do_not_depend_on_how_it_is_cut() -> None:
    whole = make_step((4, 1, 64), [100], [100])
    parts = [replace(whole, q=whole.q[:33], lengths=(33,), contexts=(33,))]
    parts.append(replace(whole, q=whole.q[33:], lengths=(67,)))
    assert_near(torch.cat([part.prefilled() for part in parts]), whole.prefilled())


def test_sequences_without_queries_and_tokens_that_pad_are_allowed() -> None:
    step = make_step((4, 2, 64), [20, 40], [20, 7])
    expected = step.defined()
    padding = torch.full((5, 4, 64), torch.nan, device=DEVICE)
    padded = replace(
        step,
        q=torch.cat((step.q, padding)),
        block_tables=torch.cat((step.block_tables, step.block_tables))[[0, 2, 1, 0, 0]],
        lengths=(20, 0, 7, 0, 5),
        contexts=(20, 20, 40, 0, 0),
    )
    result = padded.prefilled()
    assert_near(result[:27], expected)
    assert result[27:].eq(0).all()


def test_more_sequences_than_are_searched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "SEQUENCE_TILE", 4)
    step = make_step((1, 1, 16), [1 + row % 5 for row in range(11)])
    assert_near(step.prefilled(), step.defined())


def test_a_key_that_is_not_a_number_reaches_the_result() -> None:
    step = make_step((4, 2, 64), [80])
    step.cache.k[step.block_tables[0, 1], 3, 0] = torch.nan
    for result in (step.decoded(), step.decoded(splits=2), step.prefilled()):
        assert result[0, : 2 * 64].isnan().all()
        assert result[0, 2 * 64 :].isfinite().all()


@pytest.mark.parametrize("longest", [1, 100, 2048, 131072])
def test_splits_fill_a_gpu_but_are_never_short(longest: int) -> None:
    for sequences in (1, 3, 64, 1000):
        for kv_heads, group in ((1, 71), (8, 16), (2, 4), (64, 1)):
            splits = triton_attention.splits_for(sequences, kv_heads, group, longest)
            programs = sequences * kv_heads * -(-group // 64)
            assert splits == 1 or longest / splits >= triton_attention.SHORTEST_SPLIT
            assert splits == 1 or programs * splits <= 2 * 132
