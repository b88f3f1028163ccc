"""Layer normalisation with the residual sum before it, for GPUs: one pass over the row, one statistic
for all norms of it.

Bound by memory: x and part are read once, the sum and each normed row written once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gyrfalcon.ops.triton.early import early_launch, wait_for_kernels
from gyrfalcon.ops.triton.parts import load_sum, parts_of

Parameters = tuple[Tensor, Tensor]  # weight and bias of a norm, each [hidden]
MOST_NORMS = 2  # that a block of the family applies to one row


@dataclass(frozen=True, slots=True)
class NormConfig:
    """How a row is taken: a wider row than `tile` is read tile by tile, twice."""

    tile: int  # columns, a power of two
    warps: int


def config_for(hidden: int) -> NormConfig:
    """Up to 8192 columns stay in registers, 16 in each thread where a warp has 32."""
    tile = min(triton.next_power_of_2(hidden), 8192)
    return NormConfig(tile, warps=max(1, tile // 512))


def add_layer_norms(
    x: Tensor, part: Tensor | None, norms: Sequence[Parameters], eps: float
) -> tuple[Tensor, list[Tensor]]:
    """x + part, and that sum normed by each of one or two (weight, bias); `reference.add_layer_norms`.

    x, part [tokens, hidden], rows may be strided; without a part, x itself is the sum. A part may be
    summands of a linear, float32 [parts, tokens, hidden], whose sum is rounded to x's type.
    """
    tokens, hidden = x.shape
    assert 1 <= len(norms) <= MOST_NORMS
    count, *strides = (0, 0, 0) if part is None else parts_of(part)
    assert all(one.stride(-1) == 1 for one in (x, part) if one is not None)
    total = x if part is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    normed = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in norms]
    if not tokens:
        return total, normed
    (weight, bias), (second_weight, second_bias) = (*norms, (None, None))[:MOST_NORMS]
    config = config_for(hidden)
    _add_layer_norms[(tokens,)](
        x,
        part,
        None if part is None else total,
        weight,
        bias,
        normed[0],
        second_weight,
        second_bias,
        normed[1] if len(normed) > 1 else None,
        x.stride(0),
        *strides,
        eps,
        PARTS=count,
        HIDDEN=hidden,
        TILE=config.tile,
        num_warps=config.warps,
        **early_launch(x.device),
    )
    return total, normed


@triton.jit
def _add_layer_norms(
    x,  # [tokens, hidden], rows x_stride apart
    part,  # [PARTS, tokens, hidden], rows part_stride apart, summands parts_stride; or None
    total,  # [tokens, hidden], contiguous; None without a part
    weight,  # [hidden]
    bias,
    normed,  # [tokens, hidden], contiguous
    second_weight,  # a second norm of the same rows, or None thrice
    second_bias,
    second_normed,
    x_stride,
    part_stride,
    parts_stride,
    eps,
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One row for each program."""
    wait_for_kernels(EARLY)
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    normed += row * HIDDEN
    if part is not None:
        part += row * part_stride
        total += row * HIDDEN
    if second_normed is not None:
        second_normed += row * HIDDEN
    columns = tl.arange(0, TILE)
    if HIDDEN <= TILE:
        value = _sum(x, part, columns, parts_stride, PARTS, HIDDEN)
        mean = tl.sum(value, axis=0) / HIDDEN
        centred = tl.where(columns < HIDDEN, value - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / HIDDEN + eps)
        if part is not None:
            _store(total, value, columns, HIDDEN)
        _write(normed, centred * scale, weight, bias, columns, HIDDEN)
        if second_normed is not None:
            _write(second_normed, centred * scale, second_weight, second_bias, columns, HIDDEN)
    else:
        mean, scale = _statistics(x, part, columns, parts_stride, eps, PARTS, HIDDEN, TILE)
        for start in tl.static_range(0, HIDDEN, TILE):
            here = start + columns
            value = _sum(x, part, here, parts_stride, PARTS, HIDDEN)
            if part is not None:
                _store(total, value, here, HIDDEN)
            value = (value - mean) * scale
            _write(normed, value, weight, bias, here, HIDDEN)
            if second_normed is not None:
                _write(second_normed, value, second_weight, second_bias, here, HIDDEN)


@triton.jit
def _statistics(
    x,
    part,
    columns,
    parts_stride,
    eps,
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Mean and 1 / deviation of a row in tiles, whose squares are summed around their own means (Chan,
    Golub & LeVeque 1979).
    """
    mean = 0.0
    squares = 0.0  # summed distances from the mean of the columns so far
    for start in tl.static_range(0, HIDDEN, TILE):
        here = start + columns
        count = tl.minimum(HIDDEN - start, TILE).to(tl.float32)
        value = _sum(x, part, here, parts_stride, PARTS, HIDDEN)
        tile_mean = tl.sum(value, axis=0) / count
        centred = tl.where(here < HIDDEN, value - tile_mean, 0.0)
        step = tile_mean - mean
        mean += step * count / (start + count)
        squares += tl.sum(centred * centred, axis=0) + step * step * start * count / (start + count)
    return mean, 1.0 / tl.sqrt(squares / HIDDEN + eps)


@triton.jit
def _sum(x, part, columns, parts_stride, PARTS: tl.constexpr, HIDDEN: tl.constexpr):
    """x + part as the residual stream keeps it: both rounded to its type, here widened again."""
    value = tl.load(x + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    if part is not None:
        value += load_sum(part + columns, columns < HIDDEN, parts_stride, PARTS, x.dtype.element_ty)
        value = value.to(x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def _write(out, standard, weight, bias, columns, HIDDEN: tl.constexpr):
    weights = tl.load(weight + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    biases = tl.load(bias + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    _store(out, standard * weights + biases, columns, HIDDEN)


@triton.jit
def _store(out, value, columns, HIDDEN: tl.constexpr):
    tl.store(out + columns, value.to(out.dtype.element_ty), mask=columns < HIDDEN)
