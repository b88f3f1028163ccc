"""How the native kernels quantise activations: by the matrix and a setting, never by a step's size or the
instruction set.
"""

import pytest
import torch
from kernel_sets import SETS, drawn, int8_sets, use
from torch import Tensor

from gyrfalcon.device.lookup import kind_for
from gyrfalcon.errors import UsageError
from gyrfalcon.native.library import library, why_not_native
from gyrfalcon.quant import Quantised, dequantise, quantise

if library() is None:
    pytest.skip(why_not_native(), allow_module_level=True)

from gyrfalcon import ops
from gyrfalcon.ops import native

COUNTS = (1, 12, 13, 16, 17, 24, 25, 33, 300, 512)
STEP = 2.0**-5  # what activations are quantised to multiples of
COLUMNS = 256


def picking(kind: str) -> Quantised:
    """A matrix that picks one column after the other."""
    weight = quantise(torch.eye(COLUMNS), kind)
    if kind == "int8":  # else 127 times 1 / 127
        weight = Quantised(kind, torch.eye(COLUMNS, dtype=torch.int8), torch.ones(COLUMNS))
    assert torch.equal(dequantise(weight, torch.float32), torch.eye(COLUMNS))
    return weight


def activations() -> Tensor:
    """The largest of each 64 is 127 steps, and many lie in the middle between two steps."""
    x = (drawn(max(COUNTS), COLUMNS) * 30).clamp(-126, 126) * STEP
    x[:, ::64] = 127 * STEP
    return x.bfloat16()


@pytest.mark.parametrize("kind", ["int8", "int4", "int4-32", "int4-128"])
@pytest.mark.parametrize("name", SETS)
def test_int8_activations_are_the_same_bits_in_a_step_of_any_size_on_any_set(
    name: str, kind: str
) -> None:
    if kind == "int8" and name not in int8_sets():
        pytest.skip("multiplies int8 weights with int16 activations")
    x = activations()
    expected = ((x.float() / STEP).round() * STEP).bfloat16()
    assert not torch.equal(x, expected)
    with use(name, "int8" if int8_sets() else "auto"):
        weight = picking(kind)
        for count in COUNTS:
            assert torch.equal(native.linear(x[:count], weight), expected[:count])


def test_int16_activations_are_the_same_bits_in_a_step_of_any_size_on_any_set() -> None:
    x, weight = drawn(max(COUNTS), COLUMNS).bfloat16(), picking("int8")
    x[:, 5] = 3e4
    expected = None
    for name in SETS[:-1]:  # the last, portable, has no fused multiply-add to round with
        with use(name, "int16"):
            expected = native.linear(x, weight) if expected is None else expected
            assert not torch.equal(x, expected)
            for count in COUNTS:
                assert torch.equal(native.linear(x[:count], weight), expected[:count])


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", SETS)
def test_blocks_too_small_for_a_scale_are_zeros(name: str, kind: str, tokens: int) -> None:
    """Below 127 × 2⁻¹²⁶ the inverse of a scale may be infinite."""
    x = torch.full((tokens, 640), 1e-39).bfloat16()
    x[:, 512:] = drawn(tokens, 128).bfloat16()
    with use(name):
        ours = native.linear(x, quantise(drawn(32, 640, seed=1), kind))
        x[:, :512] = 0
        assert torch.equal(ours, native.linear(x, quantise(drawn(32, 640, seed=1), kind)))


def test_int8_activations_cost_less_than_a_hundredth() -> None:
    x, weight = drawn(64, 4096).bfloat16(), quantise(drawn(64, 4096, seed=1), "int8")
    exact = x.double() @ dequantise(weight, torch.float64).T
    for name in int8_sets():
        with use(name, "int8"):
            error = native.linear(x.float().half(), weight).double() - exact
            assert 0.003 < float(error.norm() / exact.norm()) < 0.01


def test_a_variable_says_what_activations_are_quantised_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYRFALCON_OPS", "native")
    device = kind_for("cpu").of_rank(0)
    with use(SETS[0]):
        by_itself = native.activations()
        for kind in ["int16", *(["int8"] if SETS[0] in int8_sets() else [])]:
            monkeypatch.setenv(native.ACTIVATIONS_VARIABLE, kind)
            ops.choose(device)
            assert native.activations() == kind
        monkeypatch.delenv(native.ACTIVATIONS_VARIABLE)
        ops.choose(device)
        assert native.activations() == by_itself
        monkeypatch.setenv(native.ACTIVATIONS_VARIABLE, "int9")
        with pytest.raises(UsageError, match="wanted GYRFALCON_ACTIVATIONS auto, int8, int16, got"):
            ops.choose(device)
        if not int8_sets():
            with pytest.raises(UsageError, match="without VNNI"):
                native.use_activations("int8")
