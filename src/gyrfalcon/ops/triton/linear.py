"""Linears on GPUs, with full or quantised (8- or 4-bit) weights, bias and activation fused.

Up to 16 tokens are memory-bound: weights are read once, tile after tile in long runs of a row, with
several tiles in flight. The weights are the left operand of the tensor cores, the tokens, padded to
16, the right one: full weights then go from memory to the tensor cores without passing through
registers, and quantised ones are dequantised in the registers they are multiplied from. One token
takes the same path: a dot product without tensor cores would have to hold every weight in registers
and, at 4 bits, to compute more than a card can while it reads. So a token's result is the same, bit
for bit, whatever else is in a batch of up to 16.

With more tokens, full weights go to the vendor's GEMM, and quantised ones take the same kernels with
larger tiles. Tokens are independent there, too, but the split of a row's sum depends on their number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

from gyrfalcon.device.lookup import device_of
from gyrfalcon.ops import reference
from gyrfalcon.quant import Quantised

TABLE = Path(__file__).with_name("table.json")
FEW_TOKENS = 16  # the smallest tile of the matrix units
NUM_SMS = 132  # multiprocessors of an H100 or H200
FEWEST_STEPS = 4  # of a program, where rows are split: enough to fill its pipeline
SUM_TILE = 1024  # that a program of the sum over splits takes


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """The tile of a program and how it is run."""

    tokens: int
    outputs: int
    inputs: int  # that a step of the loop takes
    warps: int
    stages: int  # steps under way
    programs: (
        int  # wanted on each multiprocessor: fewer leave a part of its memory's bandwidth unused
    )


@dataclass(frozen=True, slots=True)
class Split:
    """How rows are shared over programs: each of `count` takes `steps` of the loop or fewer."""

    count: int
    steps: int


def linear(
    x: Tensor,
    weight: Tensor | Quantised,
    bias: Tensor | None = None,
    activation: str | None = None,
    num_sms: int = NUM_SMS,
    config: LinearConfig | None = None,
) -> Tensor:
    """activation(x weightᵀ + bias): [tokens, in], [out, in], [out] → [tokens, out], in x's dtype.

    `reference.linear` with sums, bias and activation in float32 and one rounding at the end. int4 is
    wanted `by_rows`; rows of x may be strided. `num_sms` are the card's multiprocessors; `config` is a
    tile to take instead of the table's.
    """
    tokens = len(x)
    assert x.stride(1) == 1, "the kernels read rows of x as one run"
    kind = weight.kind if isinstance(weight, Quantised) else "none"
    if kind not in _FEW or (kind == "none" and tokens > FEW_TOKENS):  # no kernel, or GEMM is faster
        return reference.linear(x, weight, bias, activation)
    outputs, inputs = weight.shape
    config = config or config_for(tokens, kind, x.dtype, weight.shape, device_of(x.device).model)
    tiles = (triton.cdiv(tokens, config.tokens), triton.cdiv(outputs, config.outputs))
    steps = triton.cdiv(inputs, config.inputs)
    split = split_for(tiles[0] * tiles[1], steps, config.programs * num_sms)
    epilogue = {"bias": bias, "ACTIVATION": activation or "none"}
    out = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    if split.count == 1:
        _launch(x, weight, out, (*tiles, 1), split, config, epilogue)
        return out
    parts = torch.empty(split.count, tokens, outputs, dtype=torch.float32, device=x.device)
    nothing = {"bias": None, "ACTIVATION": "none"}
    _launch(x, weight, parts, (*tiles, split.count), split, config, nothing)
    grid = (tokens, triton.cdiv(outputs, SUM_TILE))
    _sum_parts[grid](
        parts,
        out=out,
        outputs=outputs,
        PARTS=split.count,
        TILE=SUM_TILE,
        num_warps=4,
        **epilogue,
    )
    return out


def config_for(
    tokens: int, kind: str, dtype: torch.dtype, shape: Sequence[int] = (0, 0), card: str = ""
) -> LinearConfig:
    """The tile for so many tokens and a weight of `shape` on a card: what was measured there
    (tools/tune_kernels.py), else weights of 16 KiB or less a step for few, square tiles for many.
    """
    if dtype == torch.float32:  # no matrix units: small tiles
        return _FLOAT32[tokens <= FEW_TOKENS]
    if tokens > FEW_TOKENS:
        return LinearConfig(64 if tokens <= 64 else 128, 128, 64, warps=8, stages=3, programs=1)
    return tuned().get(card, {}).get(key(kind, shape), _FEW[kind])


@cache
def tuned() -> Mapping[str, Mapping[str, LinearConfig]]:
    """What was measured: card → key() → the fastest tile for up to FEW_TOKENS."""
    table = json.loads(TABLE.read_text("utf-8"))
    return {
        card: {name: LinearConfig(**config) for name, config in of_card.items()}
        for card, of_card in table.items()
    }


def key(kind: str, shape: Sequence[int]) -> str:
    """A weight's name in the table: `int8 8192 x 32768`."""
    return f"{kind} {shape[0]} x {shape[1]}"


_FEW = {
    "none": LinearConfig(16, 64, 128, warps=4, stages=4, programs=2),
    "int8": LinearConfig(16, 64, 128, warps=4, stages=5, programs=3),
    "fp8": LinearConfig(16, 64, 128, warps=4, stages=5, programs=3),
    "int4": LinearConfig(16, 128, 128, warps=4, stages=4, programs=4),
    "int4-32": LinearConfig(
        16, 64, 128, warps=4, stages=5, programs=4
    ),  # 128 outputs spill on an A100
    "int4-128": LinearConfig(16, 128, 128, warps=4, stages=4, programs=4),
}
_FLOAT32 = {
    True: LinearConfig(16, 32, 64, warps=4, stages=2, programs=2),
    False: LinearConfig(32, 64, 64, warps=4, stages=2, programs=1),
}


def split_for(tiles: int, steps: int, programs: int) -> Split:
    """Into how many parts rows of so many steps are cut, so that the `tiles` of the result are the
    work of about so many programs.
    """
    count = max(1, min(triton.cdiv(programs, tiles), steps // FEWEST_STEPS))
    each = triton.cdiv(steps, count)
    return Split(triton.cdiv(steps, each), each)


def _launch(
    x: Tensor,
    weight: Tensor | Quantised,
    out: Tensor,
    grid: tuple[int, int, int],
    split: Split,
    config: LinearConfig,
    epilogue: Mapping[str, object],
) -> None:
    outputs, inputs = weight.shape
    data, scales = (weight.data, weight.scales) if isinstance(weight, Quantised) else (weight, None)
    assert data.ndim == 2, "the kernels read int4 as Quantised.by_rows has it"
    assert data.is_contiguous(), "the kernels read a weight row by row without a stride"
    group = weight.group if isinstance(weight, Quantised) else None
    kernel = linear_kernel if group is None else int4_linear_kernel
    grouped = {} if group is None else {"GROUP": group}
    kernel[grid](
        x,
        data,
        scales,
        out=out,
        tokens=len(x),
        outputs=outputs,
        inputs=inputs,
        x_stride=x.stride(0),
        steps=split.steps,
        TOKENS=config.tokens,
        OUTPUTS=config.outputs,
        INPUTS=config.inputs,
        EVEN=inputs % config.inputs == 0,
        num_warps=config.warps,
        num_stages=config.stages,
        **grouped,
        **epilogue,
    )


@triton.jit(do_not_specialize=["tokens", "steps"])  # one program for every batch
def linear_kernel(
    x,
    weight,
    scales,
    bias,
    out,
    tokens,
    outputs,
    inputs,
    x_stride,
    steps,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """One tile of the result, or one part of its sum: programs [token tiles, output tiles, parts].

    x [tokens, inputs], weight [outputs, inputs] of x's dtype, int8 or fp8, scales [outputs] or None;
    out [parts, tokens, outputs].
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    known_token = (
        token[None, :] < tokens
    )  # padding is not read: one token's x costs one row's bytes
    x_rows = x + token.to(tl.int64)[None, :] * x_stride
    # Rows past the end repeat the last: loads need no mask, results are not stored.
    weight_rows = weight + tl.minimum(row, outputs - 1).to(tl.int64)[:, None] * inputs
    first = tl.program_id(2) * steps
    total = tl.zeros((OUTPUTS, TOKENS), dtype=tl.float32)
    for step in range(first, tl.minimum(first + steps, tl.cdiv(inputs, INPUTS))):
        column = step * INPUTS + tl.arange(0, INPUTS)
        if EVEN:
            w = tl.load(weight_rows + column[None, :])
            xs = tl.load(x_rows + column[:, None], mask=known_token, other=0.0)
        else:
            known = column < inputs
            w = tl.load(weight_rows + column[None, :], mask=known[None, :], other=0.0)
            xs = tl.load(x_rows + column[:, None], mask=known[:, None] & known_token, other=0.0)
        if scales is not None:
            w = _narrow(w.to(tl.float32), x.dtype.element_ty)
        total = tl.dot(w, xs, total, input_precision="ieee")
    if scales is not None:
        total *= tl.load(scales + row, mask=row < outputs, other=0.0)[:, None]
    _epilogue(total, bias, out, token, row, tokens, outputs, ACTIVATION)


@triton.jit(do_not_specialize=["tokens", "steps"])  # one program for every batch
def int4_linear_kernel(
    x,
    weight,
    scales,
    bias,
    out,
    tokens,
    outputs,
    inputs,
    x_stride,
    steps,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """As `linear_kernel` for packed weights uint8 [outputs, inputs / 2], scales bfloat16 [inputs / GROUP,
    outputs]: what a step has of a group is summed by itself, in integers times x, and scaled in float32.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    known_row = tl.minimum(row, outputs - 1)
    half = tl.arange(0, 32)  # columns of half a block: the same as its bytes
    x_rows = x + token.to(tl.int64)[None, :] * x_stride + half[:, None]
    weight_rows = weight + known_row.to(tl.int64)[:, None] * (inputs // 2) + half[None, :]
    first = tl.program_id(2) * steps
    total = tl.zeros((OUTPUTS, TOKENS), dtype=tl.float32)
    for step in range(first, tl.minimum(first + steps, tl.cdiv(inputs, INPUTS))):
        for each in tl.static_range(INPUTS // 64):
            block = step * (INPUTS // 64) + each
            known_tokens = tokens
            if not EVEN:  # a block past the end has no tokens, whichever weights stand for it
                known_tokens = tl.where(block < inputs // 64, tokens, 0)
                block = tl.minimum(block, inputs // 64 - 1)
            known = token[None, :] < known_tokens
            group = block * (64 // GROUP) if GROUP <= 64 else block // (GROUP // 64)
            packed = tl.load(weight_rows + block * 32)
            scale = tl.load(scales + group * outputs + known_row).to(tl.float32)
            xs = tl.load(x_rows + block * 64, mask=known, other=0.0)
            part = tl.dot(_low_half(packed, x.dtype.element_ty), xs, input_precision="ieee")
            if GROUP == 32:  # the halves are groups of their own
                total += part * scale[:, None]
                scale = tl.load(scales + (group + 1) * outputs + known_row).to(tl.float32)
                part = tl.zeros((OUTPUTS, TOKENS), dtype=tl.float32)
            xs = tl.load(x_rows + block * 64 + 32, mask=known, other=0.0)
            part = tl.dot(_high_half(packed, x.dtype.element_ty), xs, part, input_precision="ieee")
            total += part * scale[:, None]
    _epilogue(total, bias, out, token, row, tokens, outputs, ACTIVATION)


@triton.jit
def _low_half(packed, dtype: tl.constexpr):
    """Bits 0…3 of bytes, 0…15 → −8…7. Bits put into the last of 2²³ are a float32 at once, which is
    cheaper than converting an integer; both halves share that step.
    """
    shifted = ((packed.to(tl.int32) | 0x4B000000) & -241).to(tl.float32, bitcast=True)
    return _narrow(shifted - 8388616.0, dtype)  # 2²³ + 8


@triton.jit
def _high_half(packed, dtype: tl.constexpr):
    """Bits 4…7, likewise: 16 times too large, which the product undoes without an error."""
    shifted = ((packed.to(tl.int32) | 0x4B000000) & -16).to(tl.float32, bitcast=True)
    return _narrow(shifted * 0.0625 - 524296.0, dtype)  # 2¹⁹ + 8


@triton.jit
def _narrow(values, dtype: tl.constexpr):
    """float32 of at most 8 significant bits → dtype: exact, so that bfloat16 is the upper half."""
    if dtype == tl.bfloat16:
        upper = (values.to(tl.int32, bitcast=True) >> 16).to(tl.int16)
        return upper.to(tl.bfloat16, bitcast=True)
    return values.to(dtype)


@triton.jit
def _epilogue(total, bias, out, token, row, tokens, outputs, ACTIVATION: tl.constexpr):
    """Adds the bias, applies the activation and stores [outputs, tokens] as out [tokens, outputs]."""
    if bias is not None:
        total += tl.load(bias + row, mask=row < outputs, other=0.0).to(tl.float32)[:, None]
    total = _activate(total, ACTIVATION)
    place = (tl.program_id(2) * tokens + token).to(tl.int64) * outputs
    known = (token < tokens)[None, :] & (row < outputs)[:, None]
    tl.store(out + place[None, :] + row[:, None], total.to(out.dtype.element_ty), mask=known)


@triton.jit
def _sum_parts(
    parts, bias, out, outputs, PARTS: tl.constexpr, TILE: tl.constexpr, ACTIVATION: tl.constexpr
):
    """parts float32 [PARTS, tokens, outputs] → out [tokens, outputs], always in the same order."""
    row, tokens = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    known = column < outputs
    total = tl.zeros((TILE,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        place = (part * tokens + row) * outputs + column
        total += tl.load(parts + place, mask=known, other=0.0)
    if bias is not None:
        total += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    total = _activate(total, ACTIVATION)
    tl.store(out + row * outputs + column, total.to(out.dtype.element_ty), mask=known)


@triton.jit
def _activate(x, NAME: tl.constexpr):
    """The activations of `reference.ACTIVATIONS`, in float32."""
    if NAME == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        # 0.5 x (1 + tanh(u)) = x σ(2u), with u = √(2/π) (x + 0.044715 x³)
        return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif NAME == "silu":
        return x / (1.0 + tl.exp(-x))
    elif NAME == "relu":
        return tl.maximum(x, 0.0)
    else:
        return x
