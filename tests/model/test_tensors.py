"""The guide's tensors: every usual form of a mask is understood, any other is refused."""

import math
from pathlib import Path

import pytest
import torch
from engines import make_engine, random_prompt, small
from tokenizers_ import make_tokenizer
from torch import Tensor

from gyrfalcon import SamplingParams
from gyrfalcon.errors import (
    RequestError,
)

GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


SEQ = 5


CAUSAL = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()


def four_d(allowed: Tensor, masked: float = -math.inf) -> Tensor:
    """[seq, seq] of bool → an additive mask [1, 1, seq, seq]."""
    return torch.zeros(1, 1, SEQ, SEQ).masked_fill(~allowed, masked)


def holes() -> Tensor:
    """Causal, but one row does not see a token that the others see."""
    allowed = CAUSAL.clone()
    allowed[3, 1] = False
    return allowed


def test_logits_are_0_at_padding(folder: Path) -> None:
    input_ids = torch.tensor([random_prompt(6), random_prompt(6)])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    with make_engine(folder) as engine:
        logits = engine.logits(input_ids, mask)
    assert logits.shape == (2, 6, 509)
    assert logits[mask == 0].eq(0).all()
    assert logits[mask == 1].ne(0).all()


@pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min, -1e4])
@pytest.mark.parametrize("num_padding", [0, 2])
def test_every_usual_form_of_a_4d_mask_means_the_same(
    folder: Path, masked: float, num_padding: int
) -> None:
    input_ids = torch.tensor([random_prompt(SEQ)])
    flags = (torch.arange(SEQ) >= num_padding).long()[None]
    allowed = CAUSAL & flags.bool()
    unmasked = allowed | ~flags.bool().T  # transformers lets padding attend to everything
    with make_engine(folder) as engine:
        expected = engine.logits(input_ids, flags)
        for pattern in (allowed, unmasked):
            assert engine.logits(input_ids, four_d(pattern, masked)).equal(expected)
            assert engine.logits(input_ids, four_d(pattern, masked).half()).equal(expected)
            assert engine.logits(input_ids, pattern[None, None]).equal(expected)
        assert engine.logits(input_ids, flags.bool()).equal(expected)
        assert engine.logits(input_ids, flags.float()).equal(expected)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (four_d(CAUSAL) - 0.5, "values between"),
        (four_d(CAUSAL) + 1.0, "values between"),
        (four_d(CAUSAL, -100.0), "values between"),
        (four_d(CAUSAL, math.nan), "values between"),
        (torch.zeros(1, 1, SEQ, SEQ), "causal"),
        (four_d(CAUSAL.flip(1)), "causal"),
        (four_d(CAUSAL & ~torch.eye(SEQ, dtype=torch.bool)), "causal"),
        (four_d(holes()), "causal"),
        (holes()[None, None], "causal"),
        (four_d(CAUSAL.triu(-2)), "causal"),  # a sliding window
        (four_d(torch.zeros(SEQ, SEQ, dtype=torch.bool)), "a real token in every row"),
        (torch.zeros(1, SEQ, dtype=torch.int64), "a real token in every row"),
        (torch.full((1, SEQ), 2), "0 and 1"),
        (torch.zeros(1, SEQ) - 1e4, "0 and 1"),
        (torch.ones(1, SEQ + 1), r"\[1, 5\] or \[1, 1, 5, 5\]"),
        (torch.ones(SEQ), "match it to input_ids"),
        (torch.ones(1, 2, SEQ, SEQ), "match it to input_ids"),
    ],
)
def test_other_masks_are_refused(folder: Path, mask: Tensor, words: str) -> None:
    with make_engine(folder) as engine, pytest.raises(RequestError, match=words) as caught:
        engine.logits(torch.tensor([random_prompt(SEQ)]), mask)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "input_ids",
    [torch.zeros(3), torch.ones(1, 3), torch.ones(0, 3).long(), torch.ones(1, 0).long()],
)
def test_other_input_ids_are_refused(folder: Path, input_ids: Tensor) -> None:
    with make_engine(folder) as engine, pytest.raises(RequestError, match="input_ids int64"):
        engine.generate_ids(input_ids)
