"""Linears on GPUs, with full or quantised (8- or 4-bit) weights, bias and activation fused.

Up to 16 tokens are memory-bound: weights are read once, tile after tile in long runs of a row, with
several tiles in flight. The weights are the left operand of the tensor cores, the tokens, padded to
16, the right one: full weights then go from memory to the tensor cores without passing through
registers, and quantised ones are dequantised in the registers they are multiplied from. One token
takes the same path: a dot product without tensor cores would have to hold every weight in registers
and, at 4 bits, to compute more than a card can while it reads. So a token's result is the same, bit
for bit, whatever else is in a batch of up to 16.

With more tokens, full weights go to the vendor's GEMM, and quantised ones take the same kernels with
larger tiles, or from MANY_TOKENS on are widened for the GEMM (`dequantised_linear`). Tokens are independent
there, too, but the split of a row's sum depends on their number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gyrfalcon.device.lookup import device_of
from gyrfalcon.ops import reference
from gyrfalcon.ops.triton.dequantised_linear import dequantised_linear
from gyrfalcon.ops.triton.epilogue import activate, epilogue
from gyrfalcon.ops.triton.quantised_linear import int4_linear_kernel, int8_linear_kernel
from gyrfalcon.quant import GROUPS, Quantised
from gyrfalcon.quant_words import UNIT

TABLE = Path(__file__).with_name("table.json")
FEW_TOKENS = 16  # the smallest tile of the matrix units
SOME_TOKENS = 64  # so many still are memory-bound
MANY_TOKENS = (
    256  # from here on a GEMM saves more than writing and reading the widened matrix costs
)
NUM_SMS = 132  # multiprocessors of an H100 or H200
FEWEST_STEPS = 4  # of a program, where rows are split: enough to fill its pipeline
SUM_TILE = 1024  # that a program of the sum over splits takes
NOTHING: Mapping[str, object] = {"bias": None, "ACTIVATION": "none"}


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
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """activation(x weightᵀ + bias): [tokens, in], [out, in], [out] → [tokens, out], in x's dtype or
    `out_dtype`.

    `reference.linear` with sums, bias and activation in float32 and one rounding at the end. Quantised
    weights are wanted `as_words`; rows of x may be strided. `num_sms` are the card's multiprocessors;
    `config` is a tile to take instead of the table's.
    """
    tokens, outputs = len(x), weight.shape[0]
    if not _has_kernel(tokens, weight):
        y = reference.linear(x, weight, bias, activation)
        return y if out_dtype is None else y.to(out_dtype)
    if isinstance(weight, Quantised) and tokens >= MANY_TOKENS and config is None:
        y = dequantised_linear(x, weight, bias, activation)
        return y if out_dtype is None else y.to(out_dtype)
    launch = _Launch.of(x, weight, num_sms, config)
    epilogue = {"bias": bias, "ACTIVATION": activation or "none"}
    out = torch.empty(tokens, outputs, dtype=out_dtype or x.dtype, device=x.device)
    if launch.split.count == 1:
        launch.run(out, epilogue)
        return out
    parts = torch.empty(launch.split.count, tokens, outputs, dtype=torch.float32, device=x.device)
    launch.run(parts)
    return _summed(parts, out, epilogue)


def sum_of_linears(*each: tuple[Tensor, Tensor | Quantised], num_sms: int = NUM_SMS) -> Tensor:
    """`reference.sum_of_linears`; where kernels compute it, one more adds the parts of all, rounded once."""
    x, weight = each[0]
    tokens, outputs = len(x), weight.shape[0]
    if tokens >= MANY_TOKENS or not all(_has_kernel(tokens, weight) for _, weight in each):
        return reduce(torch.add, (linear(*one) for one in each))
    launches = [_Launch.of(*one, num_sms) for one in each]
    counts = [launch.split.count for launch in launches]
    parts = torch.empty(sum(counts), tokens, outputs, dtype=torch.float32, device=x.device)
    for launch, own in zip(launches, parts.split(counts), strict=True):
        launch.run(own)
    return _summed(parts, torch.empty(tokens, outputs, dtype=x.dtype, device=x.device))


def _has_kernel(tokens: int, weight: Tensor | Quantised) -> bool:
    """Whether there is one, and no GEMM is faster."""
    return weight.kind in _FEW if isinstance(weight, Quantised) else tokens <= FEW_TOKENS


def _summed(parts: Tensor, out: Tensor, epilogue: Mapping[str, object] = NOTHING) -> Tensor:
    """The sum over parts, float32 [parts, tokens, outputs], in `out`."""
    count, tokens, outputs = parts.shape
    grid = (tokens, triton.cdiv(outputs, SUM_TILE))
    _sum_parts[grid](
        parts, out=out, outputs=outputs, PARTS=count, TILE=SUM_TILE, num_warps=4, **epilogue
    )
    return out


def config_for(
    tokens: int,
    kind: str,
    dtype: torch.dtype,
    shape: Sequence[int] = (0, 0),
    card: str = "",
    ptx: bool = True,
) -> LinearConfig:
    """The tile for so many tokens and a weight of `shape` on a card: what was measured there
    (tools/tune_kernels.py), else weights of 16 KiB or less a step for few, square tiles for many.
    Without `ptx` the card is none of NVIDIA's, and a program has 64 KiB of shared memory.
    """
    if dtype == torch.float32:  # no matrix units: small tiles
        return _FLOAT32[kind in GROUPS, tokens <= FEW_TOKENS]
    if tokens <= FEW_TOKENS:
        return tuned().get(card, {}).get(key(kind, shape), _FEW[kind])
    if kind in GROUPS:
        return _INT4_MANY if ptx else replace(_INT4_MANY, stages=3)
    return _SOME if tokens <= SOME_TOKENS else _MANY


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


_INT4 = LinearConfig(16, 128, 128, warps=4, stages=4, programs=4)
_FEW = {
    "none": LinearConfig(16, 64, 128, warps=4, stages=4, programs=2),
    "int8": LinearConfig(16, 64, 128, warps=4, stages=5, programs=3),
    "fp8": LinearConfig(16, 128, 128, warps=4, stages=4, programs=3),
    **dict.fromkeys(GROUPS, _INT4),
}
_SOME = LinearConfig(64, 128, 64, warps=8, stages=4, programs=2)  # of 8 bits
_MANY = LinearConfig(128, 128, 64, warps=8, stages=3, programs=1)
_INT4_MANY = LinearConfig(64, 128, UNIT, warps=8, stages=6, programs=1)
_FLOAT32 = {  # by whether the weights have 4 bits, and whether tokens are few
    (False, True): LinearConfig(16, 32, 64, warps=4, stages=2, programs=2),
    (False, False): LinearConfig(32, 64, 64, warps=8, stages=2, programs=1),
    (True, True): LinearConfig(16, 32, UNIT, warps=8, stages=2, programs=2),
    (True, False): LinearConfig(32, 64, UNIT, warps=4, stages=2, programs=1),
}


def split_for(tiles: int, steps: int, programs: int) -> Split:
    """Into how many parts rows of so many steps are cut, so that the `tiles` of the result are the
    work of about so many programs.
    """
    count = max(1, min(triton.cdiv(programs, tiles), steps // FEWEST_STEPS))
    each = triton.cdiv(steps, count)
    return Split(triton.cdiv(steps, each), each)


@dataclass(frozen=True, slots=True)
class _Launch:
    """How the kernel of a linear is launched."""

    x: Tensor
    weight: Tensor | Quantised
    config: LinearConfig
    split: Split
    tiles: tuple[int, int]  # of tokens, of outputs

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight: Tensor | Quantised,
        num_sms: int,
        config: LinearConfig | None = None,
    ) -> "_Launch":
        """With the table's tile, unless one is given."""
        assert x.stride(1) == 1, "the kernels read rows of x as one run"
        (outputs, inputs), tokens, device = weight.shape, len(x), device_of(x.device)
        kind = weight.kind if isinstance(weight, Quantised) else "none"
        config = config or config_for(
            tokens, kind, x.dtype, weight.shape, device.model, device.runs_ptx
        )
        tiles = (triton.cdiv(tokens, config.tokens), triton.cdiv(outputs, config.outputs))
        stored = inputs if kind == "none" else triton.cdiv(inputs, UNIT) * UNIT
        steps = triton.cdiv(stored, config.inputs)
        split = split_for(tiles[0] * tiles[1], steps, config.programs * num_sms)
        return cls(x, weight, config, split, tiles)

    def run(self, out: Tensor, epilogue: Mapping[str, object] = NOTHING) -> None:
        """Into `out`, [tokens, outputs] or [parts, tokens, outputs]."""
        x, weight, config = self.x, self.weight, self.config
        outputs, inputs = weight.shape
        kernel, pointers, constants = _kernel_for(weight)
        if isinstance(weight, Quantised):
            constants |= {"PTX": device_of(x.device).runs_ptx}
        assert all(one.is_contiguous() for one in pointers), (
            "the kernels read rows without a stride"
        )
        kernel[*self.tiles, self.split.count](
            x,
            *pointers,
            out=out,
            tokens=len(x),
            outputs=outputs,
            inputs=inputs,
            x_stride=x.stride(0),
            steps=self.split.steps,
            TOKENS=config.tokens,
            OUTPUTS=config.outputs,
            INPUTS=config.inputs,
            EVEN=inputs % (UNIT if isinstance(weight, Quantised) else config.inputs) == 0,
            num_warps=config.warps,
            num_stages=config.stages,
            **constants,
            **epilogue,
        )


def _kernel_for(
    weight: Tensor | Quantised,
) -> tuple[Any, tuple[Tensor, ...], dict[str, object]]:
    """The kernel that reads a weight, its tensors, and the constants that its kind sets."""
    if isinstance(weight, Tensor):
        return linear_kernel, (weight,), {}
    assert weight.num_columns, "the kernels read a quantised weight as Quantised.as_words has it"
    pointers = (weight.data, weight.scales)
    if weight.group is None:
        return int8_linear_kernel, pointers, {"KIND": weight.kind}
    return int4_linear_kernel, pointers, {"GROUP": weight.group}


@triton.jit(do_not_specialize=["tokens", "steps"])  # one program for every batch
def linear_kernel(
    x,
    weight,
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

    x [tokens, inputs], weight [outputs, inputs] of x's dtype; out [parts, tokens, outputs].
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
        total = tl.dot(w, xs, total, input_precision="ieee")
    epilogue(total, bias, out, token, row, tokens, outputs, ACTIVATION)


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
    total = activate(total, ACTIVATION)
    tl.store(out + row * outputs + column, total.to(out.dtype.element_ty), mask=known)
