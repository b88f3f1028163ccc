"""Products of 16-bit numbers on processors without units for them: in float32, rounded once."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gyrfalcon.device.cpu import Cpu
from gyrfalcon.ops import reference


def operands(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, 96), (70, 96), (70,))
    x, weight, bias = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_many_tokens_get_the_float32_product_rounded_once(
    dtype: torch.dtype, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cpu, "lacks_matrix_units", lambda cpu, dtype: True)
    # Several parts, the last a short one.
    monkeypatch.setattr(reference, "WIDENED_WEIGHTS", 20 * 96)
    x, weight, bias = operands(40, dtype)
    exact = functional.linear(x.float(), weight.float(), bias.float())
    exact = exact if activation is None else functional.gelu(exact)
    ours = reference.linear(x, weight, bias, activation)
    assert ours.dtype == dtype
    last_place = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.float(), exact, rtol=0.51 * last_place, atol=1e-6)


def test_few_tokens_and_processors_with_units_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("widened")

    monkeypatch.setattr(reference, "_widened_linear", refuse)
    monkeypatch.setattr(Cpu, "lacks_matrix_units", lambda cpu, dtype: True)
    x, weight, bias = operands(reference.MANY_TOKENS - 1, torch.bfloat16)
    reference.linear(x, weight, bias)
    monkeypatch.setattr(Cpu, "lacks_matrix_units", lambda cpu, dtype: False)
    reference.linear(*operands(40, torch.bfloat16))


def test_float32_is_never_widened() -> None:
    cpu = Cpu.at(0)
    assert not cpu.lacks_matrix_units(torch.float32)
    bf16_units = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert cpu.lacks_matrix_units(torch.bfloat16) is not bf16_units
