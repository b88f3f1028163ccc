"""Linears of many tokens with quantised weights: a matrix is widened once, some rows at a time, for the
vendor's GEMM. The kernels for fewer tokens widen it anew for each tile of tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gyrfalcon.device.lookup import device_of
from gyrfalcon.ops.reference import activate
from gyrfalcon.ops.triton.scratch import SCRATCH_WEIGHTS
from gyrfalcon.ops.triton.words import INTEGER_UNIT, widen
from gyrfalcon.quant import Quantised
from gyrfalcon.quant_words import UNIT

ROWS = 32  # that a program widens, one unit of each


def dequantised_linear(
    x: Tensor, weight: Quantised, bias: Tensor | None, activation: str | None
) -> Tensor:
    """`reference.linear`, as with a full weight in x's dtype."""
    outputs, inputs = weight.shape
    size = max(1, SCRATCH_WEIGHTS // inputs)
    y = x.new_empty(len(x), outputs)
    for start in range(0, outputs, size):
        rows = range(start, min(start + size, outputs))
        torch.mm(x, dequantised(weight, rows, x.dtype).t(), out=y[:, rows.start : rows.stop])
    y = y if bias is None else y + bias
    return y if activation is None else activate(y, activation)


def dequantised(weight: Quantised, rows: range, dtype: torch.dtype) -> Tensor:
    """Some rows of a matrix in words, as `quant.dequantise` gives them: [rows, inputs]."""
    _, inputs = weight.shape
    out = torch.empty(len(rows), inputs, dtype=dtype, device=weight.data.device)
    grid = (triton.cdiv(len(rows), ROWS), triton.cdiv(inputs, UNIT))
    dequantise_kernel[grid](
        weight.data,
        weight.scales,
        out,
        rows.start,
        len(rows),
        weight.shape[0],
        inputs,
        ROWS=ROWS,
        KIND="int4" if weight.group else weight.kind,
        GROUP=weight.group,
        PTX=device_of(out.device).runs_ptx,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["first"])
def dequantise_kernel(
    words,
    scales,
    out,
    first,
    rows,
    outputs,
    inputs,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    PTX: tl.constexpr,
):
    """One unit of ROWS rows, from the matrix's row `first` on: out [rows, inputs]. Words and scales as the
    kernels of quantised_linear.py have them; GROUP is None for 8 bits.
    """
    PLACES: tl.constexpr = 2 if GROUP is None else 4
    WIDTH: tl.constexpr = 128 // PLACES
    row, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    place = tl.arange(0, WIDTH)
    source = first + tl.minimum(row, rows - 1)  # rows past the end repeat the last
    start_of_row = source.to(tl.int64) * (tl.cdiv(inputs, 128) * WIDTH)
    packed = tl.load(words + start_of_row[:, None] + unit * WIDTH + place[None, :])
    target = out + row.to(tl.int64)[:, None] * inputs
    for j in tl.static_range(PLACES):
        start = unit * 128 + WIDTH * j
        if GROUP is None:
            scale = tl.load(scales + source)
        elif GROUP == 128:
            scale = tl.load(scales + unit * outputs + source).to(tl.float32)
        else:
            pair = tl.load(scales + start // (2 * GROUP) * outputs + source)
            bits = pair << 16 if WIDTH * j % (2 * GROUP) < GROUP else pair & -65536
            scale = bits.to(tl.float32, bitcast=True)
        if KIND != "fp8":
            scale /= INTEGER_UNIT
        value = widen(packed, j, KIND, out.dtype.element_ty, PTX).to(tl.float32) * scale[:, None]
        column = start + place
        known = (row < rows)[:, None] & (column < inputs)[None, :]
        tl.store(target + column[None, :], value.to(out.dtype.element_ty), mask=known)
