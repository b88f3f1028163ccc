"""The emulation of AMX's tiles, by which the native kernels for them are tested, beside the definitions in
the instructions' manual.
"""

import ctypes
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

SHIM = Path(__file__).parent / "emulated_amx.cpp"
SMALLEST = np.float32(2.0**-126)  # below it a float32 is denormal


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulated instructions as a library; skips without a C++ compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler on the path")
    library = tmp_path_factory.mktemp("tiles") / "libtiles.so"
    options = [
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    subprocess.run([compiler, *options, str(SHIM), "-o", str(library)], check=True)
    return library


@pytest.fixture
def tiles(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def configuration(shapes: list[tuple[int, int]], palette: int = 1) -> bytes:
    """64 bytes as LDTILECFG reads them: (rows, bytes in a row) of each tile, from the first on."""
    missing = [(0, 0)] * (16 - len(shapes))
    rows, row_bytes = zip(*shapes, *missing, strict=True)
    return struct.pack("<BB14x16H16B", palette, 0, *row_bytes, *rows)


def drawn(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(shape[0] * 100 + shape[1])
    if dtype in (torch.int8, torch.uint8):
        least = torch.iinfo(dtype).min
        return torch.randint(least, least + 256, shape, generator=draw, dtype=dtype)
    return torch.randn(shape, generator=draw).to(dtype)


def pairs(b: Tensor, size: int) -> Tensor:
    """[k, n] as a tile holds it: `size` neighbouring rows of each column side by side."""
    k, n = b.shape
    return b.view(k // size, size, n).transpose(1, 2).reshape(k // size, n * size).contiguous()


def multiplied(tiles: ctypes.CDLL, a: Tensor, b: Tensor, onto: Tensor) -> Tensor:
    """What tile 0 holds after `onto` + a b, with a [m, k], b [k, n] and onto [m, n]."""
    size = 4 // a.element_size()
    b = pairs(b, size)
    out = torch.empty_like(onto)
    each = (onto, a.contiguous(), b)
    tiles.configure(configuration([(len(t), t.shape[1] * t.element_size()) for t in each]))
    for number, tensor in enumerate(each):
        stride = ctypes.c_int64(tensor.stride(0) * tensor.element_size())
        tiles.load(number, ctypes.c_void_p(tensor.data_ptr()), stride)
    if a.dtype == torch.bfloat16:
        tiles.multiply_bf16(0, 1, 2)
    else:
        by_signs = {
            (torch.int8, torch.int8): tiles.multiply_int8,
            (torch.int8, torch.uint8): tiles.multiply_int8_uint8,
            (torch.uint8, torch.int8): tiles.multiply_uint8_int8,
        }
        by_signs[a.dtype, b.dtype](0, 1, 2)
    tiles.store(0, ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(out.stride(0) * 4))
    tiles.release()
    return out


def flushed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.abs(x) < SMALLEST, np.float32(0), x)


def exact_bf16(a: Tensor, b: Tensor, onto: Tensor) -> Tensor:
    """TDPBF16PS: float32 sums of the even and of the odd products, each a fused multiply-add, then both
    together, then onto the destination; denormals are zeros. Two bfloat16 numbers' product is exact
    in float64, and so is its sum with a float32 number of about its size.
    """
    left, right = (flushed(each.float().numpy()) for each in (a, b))
    sums = np.zeros((2, len(left), right.shape[1]), dtype=np.float32)
    for k in range(left.shape[1]):
        product = left[:, k, None].astype(np.float64) * right[None, k].astype(np.float64)
        sums[k % 2] = flushed((sums[k % 2] + product).astype(np.float32))
    total = flushed(sums[0] + sums[1])
    return torch.from_numpy(flushed(flushed(onto.numpy()) + total))


SHAPES = [(16, 16, 16), (16, 8, 16), (1, 1, 1), (3, 5, 7)]  # m, k / elements of 4 bytes, n


@pytest.mark.parametrize(
    ("left", "right"),
    [(torch.int8, torch.int8), (torch.int8, torch.uint8), (torch.uint8, torch.int8)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_multiplied_as_integers(
    tiles: ctypes.CDLL, shape: tuple[int, int, int], left: torch.dtype, right: torch.dtype
) -> None:
    m, k, n = shape
    a, b = drawn((m, 4 * k), left), drawn((4 * k, n), right)
    onto = drawn((m, n), torch.int8).int() * 1000
    assert torch.equal(multiplied(tiles, a, b, onto), onto + a.int() @ b.int())


def test_sums_of_integers_wrap_around(tiles: ctypes.CDLL) -> None:
    a, b = torch.full((1, 4), 127, dtype=torch.int8), torch.full((4, 1), 127, dtype=torch.int8)
    largest = torch.tensor([[2**31 - 1]], dtype=torch.int32)
    assert int(multiplied(tiles, a, b, largest)) == 2**31 - 1 + 4 * 127 * 127 - 2**32


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_summed_in_the_order_of_the_manual(
    tiles: ctypes.CDLL, shape: tuple[int, int, int]
) -> None:
    m, k, n = shape
    a, b = drawn((m, 2 * k), torch.bfloat16), drawn((2 * k, n), torch.bfloat16)
    onto = drawn((m, n), torch.float32)
    assert torch.equal(multiplied(tiles, a, b, onto), exact_bf16(a, b, onto))


def test_denormals_are_zeros(tiles: ctypes.CDLL) -> None:
    """As factors, as results, and in what is added to."""
    a = torch.tensor([[2.0**-130, 1.0], [2.0**-70, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    b = torch.tensor([[2.0**100], [2.0**-60]], dtype=torch.bfloat16)
    b_small = torch.tensor([[2.0**-60], [0.0]], dtype=torch.bfloat16)
    onto = torch.tensor([[0.0], [0.0], [2.0**-130]])
    assert multiplied(tiles, a, b, onto).flatten().tolist() == [2.0**-60, 2.0**30, 0.0]
    assert multiplied(tiles, a, b_small, onto).flatten().tolist() == [0.0, 0.0, 0.0]


def test_a_tile_holds_its_shape_and_zeros_beyond(tiles: ctypes.CDLL) -> None:
    """A load clears what an earlier, larger one left."""
    source, wide = drawn((16, 64), torch.int8), drawn((16, 100), torch.int8)
    out = torch.full((16, 64), 77, dtype=torch.int8)
    tiles.configure(configuration([(16, 64)]))
    tiles.load(0, ctypes.c_void_p(source.data_ptr()), ctypes.c_int64(64))
    tiles.configure(configuration([(3, 20)]))
    tiles.store(0, ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(64))
    assert torch.equal(out[:3, :20], torch.zeros(3, 20, dtype=torch.int8))
    tiles.load(0, ctypes.c_void_p(wide.data_ptr()), ctypes.c_int64(100))
    tiles.store(0, ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(64))
    assert torch.equal(out[:3, :20], wide[:3, :20])
    assert out[3:].eq(77).all()
    assert out[:, 20:].eq(77).all()
    tiles.zero(0)
    tiles.store(0, ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(64))
    assert out[:3, :20].eq(0).all()


FAULTS = {
    "no configuration": "t.zero(0)",
    "released": "t.configure(good); t.release(); t.zero(0)",
    "a tile without a shape": "t.configure(good); t.zero(3)",
    "another palette": "t.configure(b'\\2' + good[1:])",
    "reserved bytes": "t.configure(good[:5] + b'\\1' + good[6:])",
    "a row too long": "t.configure(good[:16] + b'\\x41' + good[17:])",
    "too many rows": "t.configure(good[:48] + b'\\x11' + good[49:])",
    "shapes that do not fit": "t.configure(good); t.multiply_bf16(0, 1, 2)",
    "one tile twice": "t.configure(good); t.multiply_int8(0, 1, 1)",
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_would_be_a_fault_ends_the_process(path: Path, fault: str) -> None:
    good = configuration([(16, 64), (16, 64), (8, 64)])
    start = f"import ctypes; t = ctypes.CDLL({str(path)!r}); good = {good!r}; "
    allowed = "t.configure(good); t.zero(0); t.release(); print('allowed', flush=True); "
    command = [sys.executable, "-S", "-c", start + allowed + fault]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("allowed\n", -signal.SIGABRT)
