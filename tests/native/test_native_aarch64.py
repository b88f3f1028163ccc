"""The portable kernels on another kind of processor: built for aarch64, run by qemu, beside their
definitions.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gyrfalcon.native.library import SOURCES, VARIABLE
from gyrfalcon.ops import reference
from gyrfalcon.quant import GROUPS, dequantise, quantise

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of gf_kind
TOLERANCES = (2e-6, 8e-3, 1e-3)  # of the largest number
PRODUCTS, NORMS, ATTENTION = range(3)

Run = Callable[[list[int], list[Tensor | None]], Tensor]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(numbers, buffers) hands an operation to run_operation.cpp; the last buffer gets its result."""
    if os.environ.get(VARIABLE) == "0":
        pytest.skip(f"{VARIABLE} is 0: no native kernels are wanted")
    if shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None:
        pytest.skip(f"needs {COMPILER} and {EMULATOR} on the path")
    program = tmp_path_factory.mktemp("aarch64") / "check"
    parts = [*SOURCES.glob("*.cpp"), SOURCES / "isa" / "portable.cpp"]
    sources = [*parts, Path(__file__).parent / "run_operation.cpp"]
    flags = ["-std=c++17", "-O2", "-static", "-pthread", "-Wno-psabi", '-DGYRFALCON_SOURCES=""']
    compile_all = [COMPILER, *flags, f"-I{SOURCES}", *map(str, sources), "-o", str(program)]
    made = subprocess.run(compile_all, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-4000:]

    def run(numbers: list[int], buffers: list[Tensor | None]) -> Tensor:
        message = struct.pack(f"<2q{len(numbers)}q", len(numbers), len(buffers), *numbers)
        for one in buffers:
            body = b"" if one is None else one.contiguous().view(torch.uint8).numpy().tobytes()
            message += struct.pack("<q", len(body)) + body
        done = subprocess.run([EMULATOR, str(program)], input=message, capture_output=True)
        assert done.returncode == 0, done.stderr
        out = buffers[-1]
        assert out is not None
        return torch.frombuffer(bytearray(done.stdout), dtype=out.dtype).view(out.shape)

    return run


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_near(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    scale = float(exact.abs().max())
    torch.testing.assert_close(ours.float(), exact.float(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("weights", ["as x", "int8", "int4", "int4-32"])
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_products_equal_those_of_exact_arithmetic(
    run: Run, tokens: int, weights: str, kind: int
) -> None:
    rows, columns = (48 if weights in GROUPS else 37), 192
    x, weight = drawn(tokens, columns).to(DTYPES[kind]), drawn(rows, columns, seed=1) / 14
    if weights == "as x":
        data, scales, stored = weight.to(DTYPES[kind]), None, (kind, 0)
        exact = data.double()
    else:
        rounded = quantise(weight, weights)
        data, scales = rounded.data, rounded.scales
        stored = (3, 0) if rounded.group is None else (4, rounded.group)
        exact = dequantise(rounded, torch.float32).double()
    y = torch.empty(tokens, rows, dtype=DTYPES[kind])
    ours = run([PRODUCTS, tokens, rows, columns, *stored, kind], [x, data, scales, y])
    rounds = stored[0] == 4 and kind != 0
    assert_near(ours, functional.gelu(x.double() @ exact.T), 2e-2 if rounds else TOLERANCES[kind])


@pytest.mark.parametrize("kind", range(3))
def test_norms_equal_their_definition(run: Run, kind: int) -> None:
    x, part, weight, bias = (drawn(3, 71, seed=i).to(DTYPES[kind]) for i in range(4))
    buffers = [x, part, weight[0], bias[0], torch.empty_like(x), torch.empty_like(x)]
    _, [exact] = reference.add_layer_norms(x, part, [(weight[0], bias[0])], 1e-5)
    assert_near(run([NORMS, 3, 71, kind], [*buffers]), exact, TOLERANCES[kind])


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("alibi", [False, True])
def test_attention_equals_its_definition(run: Run, alibi: bool, kind: int) -> None:
    """One sequence of 40 tokens, of which 7 are new, in blocks out of order."""
    context, new, kv_heads, group, dim = 40, 7, 2, 3, 20
    order = torch.tensor([[2, 0, 1]])
    k, v = (drawn(3, 16, kv_heads, dim, seed=i).to(DTYPES[kind]) for i in (1, 2))
    q = drawn(new, kv_heads * group, dim).to(DTYPES[kind])
    slopes = drawn(kv_heads * group, seed=3).abs() / 8 if alibi else None
    lengths = torch.tensor([0, new]), torch.tensor([context])
    out = torch.empty(new, kv_heads * group * dim, dtype=DTYPES[kind])
    numbers = [ATTENTION, 16, kv_heads, dim, 1, kv_heads * group, 3, kind]
    ours = run(numbers, [q, k, v, order, *lengths, slopes, out])
    keys, values = (x[order[0]].flatten(0, 1)[:context].float() for x in (k, v))
    exact = reference._attend(q.float(), keys, values, slopes)
    assert_near(ours, exact, max(TOLERANCES[kind], 1e-5))
