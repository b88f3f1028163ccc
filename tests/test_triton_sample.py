"""The likeliest token on GPUs equals its definition."""

import math

import pytest
import torch
from triton_interpreter import DEVICE

from gyrfalcon.ops import reference

pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")

from gyrfalcon.ops import triton_sample

VOCABULARIES = (1, 5, 2048, 2049, 8191, 65024)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_value_and_id_equal_their_definition(vocabulary: int, dtype: torch.dtype) -> None:
    logits = torch.randn(3, vocabulary, device=DEVICE).to(dtype)
    values, ids = triton_sample.greedy(logits)
    true_values, true_ids = reference.greedy(logits)
    assert values.dtype == torch.float32
    assert ids.dtype == torch.int64
    assert torch.equal(ids, true_ids)
    assert torch.equal(values, true_values)


@pytest.mark.parametrize("places", [(3, 4), (2047, 2048), (100, 4095), (4096, 4097), (0, 4999)])
def test_the_smallest_of_equal_ids_wins(places: tuple[int, int]) -> None:
    logits = torch.randn(1, 5000, device=DEVICE)
    logits[0, list(places)] = 100.0
    for ours in (triton_sample.greedy, reference.greedy):
        assert ours(logits)[1].tolist() == [min(places)]


def test_logits_below_zero_beat_the_padding() -> None:
    logits = -1 - torch.rand(2, 2050, device=DEVICE)
    values, ids = triton_sample.greedy(logits)
    assert torch.equal(ids, logits.argmax(dim=-1))
    assert (values < 0).all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2047, 4099])
def test_a_logit_that_is_not_finite_is_reported(wrong: float, place: int) -> None:
    logits = torch.randn(3, 4100, device=DEVICE)
    logits[1, place] = wrong
    for ours in (triton_sample.greedy, reference.greedy):
        values, ids = ours(logits)
        assert values.isnan().tolist() == [False, True, False]
        assert torch.equal(ids[::2], logits[::2].argmax(dim=-1))


def test_rows_may_lie_apart() -> None:
    logits = torch.randn(4, 3000, device=DEVICE)[:, 11:2900]
    values, ids = triton_sample.greedy(logits)
    assert torch.equal(ids, logits.argmax(dim=-1))
    assert torch.equal(values, logits.amax(dim=-1))


def test_no_rows_give_no_tokens() -> None:
    values, ids = triton_sample.greedy(torch.empty(0, 100, device=DEVICE))
    assert values.shape == ids.shape == (0,)
