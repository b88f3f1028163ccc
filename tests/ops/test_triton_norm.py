"""The residual sum and its norms on GPUs equal their definition."""

import functools

import pytest
import torch
from torch import Tensor
from triton_interpreter import DEVICE

from gyrfalcon.ops import reference

pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")

from gyrfalcon.ops.triton import norm as triton_norm

LARGEST_ERROR = {
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}  # of the largest value
HIDDENS = (64, 257, 4544, 8192, 8193, 14848)
EPS = 1e-5

Parameters = list[tuple[Tensor, Tensor]]


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def parameters(count: int, hidden: int, dtype: torch.dtype) -> Parameters:
    return [(1 + numbers(hidden, dtype=dtype), numbers(hidden, dtype=dtype)) for _ in range(count)]


def in_double(total: Tensor, norms: Parameters) -> list[Tensor]:
    return reference.add_layer_norms(
        total.double(), None, [(weight.double(), bias.double()) for weight, bias in norms], EPS
    )[1]


def error(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth.double()).abs().max() / truth.double().abs().max())


@pytest.mark.parametrize("dtype", LARGEST_ERROR)
@pytest.mark.parametrize("hidden", HIDDENS)
@pytest.mark.parametrize("count", [1, 2])
def test_sum_and_norms_equal_their_definition(hidden: int, count: int, dtype: torch.dtype) -> None:
    x, part = (numbers(3, hidden, dtype=dtype) for _ in range(2))
    norms = parameters(count, hidden, dtype)
    total, normed = triton_norm.add_layer_norms(x, part, norms, EPS)
    assert torch.equal(total, reference.add_layer_norms(x, part, norms, EPS)[0])
    assert len(normed) == count
    for ours, truth in zip(normed, in_double(total, norms), strict=True):
        assert ours.dtype == dtype
        assert error(ours, truth) <= LARGEST_ERROR[dtype]


@pytest.mark.parametrize("dtype", LARGEST_ERROR)
@pytest.mark.parametrize(("hidden", "count"), [(257, 1), (8192, 3), (8200, 2)])
def test_a_part_in_summands_is_their_sum_rounded_once(
    hidden: int, count: int, dtype: torch.dtype
) -> None:
    """Bit for bit."""
    x, norms = numbers(3, hidden, dtype=dtype), parameters(2, hidden, dtype)
    parts = numbers(count, 3, hidden, dtype=torch.float32)
    whole = functools.reduce(torch.add, parts).to(dtype)
    ours, theirs = (triton_norm.add_layer_norms(x, one, norms, EPS) for one in (parts, whole))
    assert ours[0].equal(theirs[0])
    assert all(one.equal(other) for one, other in zip(ours[1], theirs[1], strict=True))


@pytest.mark.parametrize("hidden", [257, 14848])
def test_without_a_part_the_sum_is_x_itself(hidden: int) -> None:
    x = numbers(3, hidden, dtype=torch.bfloat16)
    norms = parameters(2, hidden, torch.bfloat16)
    total, normed = triton_norm.add_layer_norms(x, None, norms, EPS)
    assert total is x
    for ours, truth in zip(normed, in_double(x, norms), strict=True):
        assert error(ours, truth) <= LARGEST_ERROR[torch.bfloat16]


@pytest.mark.parametrize("hidden", [96, 8200])
def test_rows_may_lie_apart(hidden: int) -> None:
    x, part = (numbers(5, size, dtype=torch.float32)[:, 7:][:, :hidden] for size in (9000, 9001))
    norms = parameters(1, hidden, torch.float32)
    total, normed = triton_norm.add_layer_norms(x, part, norms, EPS)
    assert torch.equal(total, x + part)
    assert total.is_contiguous()
    assert error(normed[0], in_double(total, norms)[0]) <= LARGEST_ERROR[torch.float32]


@pytest.mark.parametrize("hidden", [4544, 14848])
def test_a_mean_far_from_zero_costs_no_digits(hidden: int) -> None:
    x = 1000 + numbers(2, hidden, dtype=torch.float32)  # its squares' sum would lose six of them
    norms = parameters(1, hidden, torch.float32)
    ours = triton_norm.add_layer_norms(x, None, norms, EPS)[1][0]
    truth = in_double(x, norms)[0]
    plain = reference.add_layer_norms(x, None, norms, EPS)[1][0]
    assert error(ours, truth) <= max(2 * error(plain, truth), 1e-4)  # the mean itself has 6e-5


def test_rounding_comes_before_the_statistics() -> None:
    """A part that vanishes in x's type must not move the norm."""
    x = torch.full((1, 64), 256.0, device=DEVICE, dtype=torch.bfloat16)
    x[:, ::2] = -256.0
    part = numbers(1, 64, dtype=torch.bfloat16).clamp(-0.4, 0.4)
    norms = parameters(1, 64, torch.bfloat16)
    total, normed = triton_norm.add_layer_norms(x, part, norms, EPS)
    assert torch.equal(total, x)
    assert torch.equal(normed[0], triton_norm.add_layer_norms(x, None, norms, EPS)[1][0])


def test_a_constant_row_gives_the_bias() -> None:
    x = torch.full((2, 14848), 3.0, device=DEVICE)
    ((weight, bias),) = parameters(1, 14848, torch.float32)
    normed = triton_norm.add_layer_norms(x, None, [(weight, bias)], EPS)[1][0]
    torch.testing.assert_close(normed, bias.expand(2, -1), rtol=0, atol=1e-5)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, part = (numbers(4, 300, dtype=torch.float16) for _ in range(2))
    norms = parameters(2, 300, torch.float16)
    _, together = triton_norm.add_layer_norms(x, part, norms, EPS)
    _, alone = triton_norm.add_layer_norms(x[2:3], part[2:3], norms, EPS)
    for all_rows, one in zip(together, alone, strict=True):
        assert torch.equal(all_rows[2:3], one)


def test_no_tokens_give_no_rows() -> None:
    x = numbers(0, 64, dtype=torch.float32)
    total, normed = triton_norm.add_layer_norms(x, x, parameters(1, 64, torch.float32), EPS)
    assert total.shape == normed[0].shape == (0, 64)


@pytest.mark.parametrize("hidden", [*HIDDENS, 2048, 4096])
def test_a_configuration_fits_its_row(hidden: int) -> None:
    config = triton_norm.config_for(hidden)
    assert config.tile <= 8192
    assert hidden <= config.tile or config.tile == 8192
    assert 1 <= config.warps <= 16
