"""Linears with quantised weights in words: as `linear.linear_kernel`, which says what they share. Each
load of words is widened place by place, and meets the columns of x that lie there.
"""

import triton
import triton.language as tl

from gyrfalcon.ops.triton.early import prefetch_and_wait
from gyrfalcon.ops.triton.epilogue import epilogue
from gyrfalcon.ops.triton.words import INTEGER_UNIT, widen


@triton.jit(do_not_specialize=["tokens", "steps"])  # one program for every batch
def int8_linear_kernel(
    x,
    weight,
    scales,
    second_x,
    second_weight,
    second_scales,
    bias,
    out,
    tokens,
    outputs,
    inputs,
    x_stride,
    second_inputs,
    second_x_stride,
    steps,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    SECOND_EVEN: tl.constexpr,
    KIND: tl.constexpr,
    PTX: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """weight int16 [outputs, units × 64], two columns in each, KIND int8 or fp8; scales float32 [outputs].

    INPUTS is 32, 64 or 128: the words of a step lie in one unit. EVEN: no row ends within a unit.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    known_row = tl.minimum(row, outputs - 1)  # rows past the end repeat the last
    first = tl.program_id(2) * steps
    last = first + steps
    before = tl.cdiv(inputs, 128) * (128 // INPUTS)
    width, second_width = tl.cdiv(inputs, 128) * 64, None
    if second_x is not None:
        second_width = tl.cdiv(second_inputs, 128) * 64
    prefetch_and_wait(
        weight,
        second_weight,
        known_row.to(tl.int64),
        width,
        second_width,
        first,
        before,
        INPUTS // 2,
        EARLY,
    )
    total = _int8_product(
        x,
        weight,
        scales,
        token,
        known_row,
        tokens,
        inputs,
        x_stride,
        first,
        last,
        INPUTS,
        EVEN,
        KIND,
        PTX,
    )
    if second_x is not None:
        total += _int8_product(
            second_x,
            second_weight,
            second_scales,
            token,
            known_row,
            tokens,
            second_inputs,
            second_x_stride,
            tl.maximum(first - before, 0),
            last - before,
            INPUTS,
            SECOND_EVEN,
            KIND,
            PTX,
        )
    epilogue(total, bias, out, token, row, tokens, outputs, ACTIVATION)


@triton.jit
def _int8_product(
    x,
    weight,
    scales,
    token,
    row,
    tokens,
    inputs,
    x_stride,
    first,
    last,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    KIND: tl.constexpr,
    PTX: tl.constexpr,
):
    """The sum over the steps from `first` to `last`, or the end of the rows, [outputs, tokens]."""
    known = token[None, :] < tokens
    WIDTH: tl.constexpr = INPUTS // 2
    place = tl.arange(0, WIDTH)
    x_rows = x + token.to(tl.int64)[None, :] * x_stride
    num_units = tl.cdiv(inputs, 128)
    weight_rows = weight + row.to(tl.int64)[:, None] * (num_units * 64) + place[None, :]
    total = tl.zeros((row.shape[0], token.shape[0]), dtype=tl.float32)
    for step in range(first, tl.minimum(last, num_units * (128 // INPUTS))):
        words = tl.load(weight_rows + step * WIDTH)
        start = step * 128 if WIDTH == 64 else step * WIDTH // 64 * 128 + step * WIDTH % 64
        start = tl.multiple_of(start, WIDTH)
        for j in tl.static_range(2):
            column = start + 64 * j + place
            wanted = known if EVEN else known & (column < inputs)[:, None]
            xs = tl.load(x_rows + column[:, None], mask=wanted, other=0.0)
            w = widen(words, j, KIND, x.dtype.element_ty, PTX)
            total = tl.dot(w, xs, total, input_precision="ieee")
    scale = tl.load(scales + row)
    return total * (scale if KIND == "fp8" else scale / INTEGER_UNIT)[:, None]


@triton.jit(do_not_specialize=["tokens", "steps"])  # one program for every batch
def int4_linear_kernel(
    x,
    weight,
    scales,
    second_x,
    second_weight,
    second_scales,
    bias,
    out,
    tokens,
    outputs,
    inputs,
    x_stride,
    second_inputs,
    second_x_stride,
    steps,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    SECOND_EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    PTX: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """weight int16 [outputs, units × 32], four columns in each, scales bfloat16 [units, outputs] for groups
    of 128, else int32 [units × 64 / GROUP, outputs]: what a unit has of a group is summed by itself and
    scaled in float32.

    INPUTS is a number of whole units. EVEN: no row ends within a unit, else after half of it.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    first = tl.program_id(2) * steps * (INPUTS // 128)
    last = first + steps * (INPUTS // 128)
    before = tl.cdiv(tl.cdiv(inputs, 128), INPUTS // 128) * (INPUTS // 128)
    width, second_width = tl.cdiv(inputs, 128) * 32, None
    if second_x is not None:
        second_width = tl.cdiv(second_inputs, 128) * 32
    prefetch_and_wait(
        weight,
        second_weight,
        tl.minimum(row, outputs - 1).to(tl.int64),
        width,
        second_width,
        first,
        before,
        32,
        EARLY,
    )
    total = tl.zeros((OUTPUTS, TOKENS), dtype=tl.float32)
    total = _add_int4_product(
        total,
        x,
        weight,
        scales,
        token,
        row,
        tokens,
        outputs,
        inputs,
        x_stride,
        first,
        last,
        EVEN,
        GROUP,
        PTX,
    )
    if second_x is not None:
        total = _add_int4_product(
            total,
            second_x,
            second_weight,
            second_scales,
            token,
            row,
            tokens,
            outputs,
            second_inputs,
            second_x_stride,
            tl.maximum(first - before, 0),
            last - before,
            SECOND_EVEN,
            GROUP,
            PTX,
        )
    epilogue(total / INTEGER_UNIT, bias, out, token, row, tokens, outputs, ACTIVATION)


@triton.jit
def _add_int4_product(
    total,
    x,
    weight,
    scales,
    token,
    row,
    tokens,
    outputs,
    inputs,
    x_stride,
    first,
    last,
    EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    PTX: tl.constexpr,
):
    """Adds the units from `first` to `last`, or the end of the rows, to total [outputs, tokens], times
    INTEGER_UNIT.
    """
    place = tl.arange(0, 32)
    x_rows = x + token.to(tl.int64)[None, :] * x_stride
    known_row = tl.minimum(row, outputs - 1)  # rows past the end repeat the last
    num_units = tl.cdiv(inputs, 128)
    weight_rows = weight + known_row.to(tl.int64)[:, None] * (num_units * 32) + place[None, :]
    for unit in range(first, tl.minimum(last, num_units)):
        words = tl.load(weight_rows + unit * 32)
        part = tl.zeros(total.shape, dtype=tl.float32)
        for j in tl.static_range(4):
            start = unit * 128 + 32 * j
            known_tokens = tokens
            if not EVEN:
                known_tokens = tl.where(start < inputs, tokens, 0)
            known = token[None, :] < known_tokens
            xs = tl.load(x_rows + (start + place)[:, None], mask=known, other=0.0)
            w = widen(words, j, "int4", x.dtype.element_ty, PTX)
            part = tl.dot(w, xs, part, input_precision="ieee")
            if 32 * (j + 1) % GROUP == 0:
                if GROUP == 128:
                    scale = tl.load(scales + unit * outputs + known_row).to(tl.float32)
                elif 32 * j % (2 * GROUP) < GROUP:  # the first of two
                    pair = tl.load(scales + start // (2 * GROUP) * outputs + known_row)
                    scale = (pair << 16).to(tl.float32, bitcast=True)
                else:
                    scale = (pair & -65536).to(tl.float32, bitcast=True)
                total += part * scale[:, None]
                part = tl.zeros(total.shape, dtype=tl.float32)
    return total
