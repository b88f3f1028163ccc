"""The interpreter computes as the hardware does, or raises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_interpreter import DEVICE

pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")

import triton
import triton.language as tl

interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="kernels run on the GPU itself")
TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)

# Triton 3.6 and 3.7 compile no conversion from one kind of float8 to the other.
CONVERSIONS = [
    (source, target)
    for source in TYPES
    for target in TYPES
    if DEVICE == "cpu" or source == target or {source, target} != set(TYPES[3:])
]


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _convert(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # as above
    places = tl.arange(0, SIZE)
    tl.store(y + places, tl.load(x + places).to(y.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _multiply(a, b, c, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # as above
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    places = rows * SIZE + columns
    tl.store(c + places, tl.dot(tl.load(a + places), tl.load(b + places), input_precision="ieee"))


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _double(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # as above
    places = tl.arange(0, SIZE)
    value = tl.load(x + places)
    tl.store(y + places, value + value)


@pytest.mark.parametrize(("source", "target"), CONVERSIONS)
def test_conversions_round_as_torch(source: torch.dtype, target: torch.dtype) -> None:
    x = torch.randn(1024, device=DEVICE).clamp(-400, 400).to(source)
    y = torch.empty(1024, device=DEVICE, dtype=target)
    _convert[(1,)](x, y, SIZE=1024)
    assert torch.equal(y.float(), x.to(target).float())


@pytest.mark.parametrize("dtype", TYPES[:3])
def test_products_are_summed_in_float32(dtype: torch.dtype) -> None:
    a, b = (torch.randn(32, 32, device=DEVICE).to(dtype) for _ in range(2))
    c = torch.empty(32, 32, device=DEVICE)
    _multiply[(1,)](a, b, c, SIZE=32)
    torch.testing.assert_close(c, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-4)


@interpreted
def test_arithmetic_on_bfloat16_is_refused() -> None:
    x, y = torch.ones(16, dtype=torch.bfloat16), torch.empty(16, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="widen it first"):
        _double[(1,)](x, y, SIZE=16)


@interpreted
@pytest.mark.parametrize(("loaded", "stored"), [(15, 16), (16, 15)])
def test_memory_outside_the_tensors_is_refused(loaded: int, stored: int) -> None:
    whole = torch.ones(2, 64)
    _double[(1,)](whole[0, :16], whole[1, :16], SIZE=16)
    assert (whole[1, :16] == 2).all()
    with pytest.raises(Exception, match="inside the launch's tensors"):
        _double[(1,)](whole[0, :loaded], whole[1, :stored], SIZE=16)


@interpreted
def test_kernels_run_in_a_process_that_nobody_prepared() -> None:
    """As with -n 0: workers of pytest-xdist find TRITON_INTERPRET set by the process that starts them."""
    test = Path(__file__).with_name("test_triton_norm.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"{test}::test_sum_and_norms_equal_their_definition[1-64-dtype0]"],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
