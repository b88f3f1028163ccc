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
from gyrfalcon.ops.triton.early import early_launch, prefetch_and_wait, wait_for_kernels
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
Operand = tuple[Tensor, Tensor | Quantised]  # x and weight
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
    as_parts: bool = False,
) -> Tensor:
    """activation(x weightᵀ + bias): [tokens, in], [out, in], [out] → [tokens, out], in x's dtype or
    `out_dtype`.

    `reference.linear` with sums, bias and activation in float32 and one rounding at the end. Quantised
    weights are wanted `as_words`; rows of x may be strided. `num_sms` are the card's multiprocessors;
    `config` is a tile to take instead of the table's. With `as_parts`, and without bias and activation, the
    result may be summands: float32 [parts, tokens, out].
    """
    tokens = len(x)
    if not _has_kernel(tokens, weight):
        y = reference.linear(x, weight, bias, activation)
        return y if out_dtype is None else y.to(out_dtype)
    if isinstance(weight, Quantised) and tokens >= MANY_TOKENS and config is None:
        y = dequantised_linear(x, weight, bias, activation)
        return y if out_dtype is None else y.to(out_dtype)
    launch = _Launch.of([(x, weight)], num_sms, config)
    epilogue = {"bias": bias, "ACTIVATION": activation or "none"}
    return _launched([launch], out_dtype or x.dtype, epilogue, as_parts)


def sum_of_linears(*each: Operand, as_parts: bool = False, num_sms: int = NUM_SMS) -> Tensor:
    """`reference.sum_of_linears`, rounded once; two of one kind are one kernel."""
    x, _ = each[0]
    if len(x) >= MANY_TOKENS or not all(_has_kernel(len(x), weight) for _, weight in each):
        return reduce(torch.add, (linear(*one) for one in each))
    as_one = len(each) == 2 and len({_kind(weight) for _, weight in each}) == 1
    launches = [_Launch.of(one, num_sms) for one in ([each] if as_one else [[one] for one in each])]
    return _launched(launches, x.dtype, as_parts=as_parts)


def _kind(weight: Tensor | Quantised) -> str:
    return weight.kind if isinstance(weight, Quantised) else "none"


def _has_kernel(tokens: int, weight: Tensor | Quantised) -> bool:
    """Whether there is one, and no GEMM is faster."""
    return weight.kind in _FEW if isinstance(weight, Quantised) else tokens <= FEW_TOKENS


def _launched(
    launches: Sequence["_Launch"],
    dtype: torch.dtype,
    epilogue: Mapping[str, object] = NOTHING,
    as_parts: bool = False,
) -> Tensor:
    """The sum of what all of them compute, [tokens, outputs] in `dtype`. Where that is several parts, one
    more kernel adds them, or with `as_parts` whoever reads them: float32 [parts, tokens, outputs].
    """
    counts, (tokens, outputs) = [one.split.count for one in launches], launches[0].shape
    device = launches[0].device
    if counts == [1]:
        out = torch.empty(tokens, outputs, dtype=dtype, device=device)
        launches[0].run(out, epilogue)
        return out
    parts = torch.empty(sum(counts), tokens, outputs, dtype=torch.float32, device=device)
    for launch, own in zip(launches, parts.split(counts), strict=True):
        launch.run(own)
    if as_parts:
        return parts
    out = torch.empty(tokens, outputs, dtype=dtype, device=device)
    grid = (tokens, triton.cdiv(outputs, SUM_TILE))
    _sum_parts[grid](
        parts,
        out=out,
        outputs=outputs,
        PARTS=len(parts),
        TILE=SUM_TILE,
        num_warps=4,
        **epilogue,
        **early_launch(device),
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
    """Into how many parts rows of so many steps are cut, so that the `tiles` of the result are the work of
    so many programs, all of which run at once, or fewer: a few more would run alone, when most of the
    card is idle.
    """
    count = max(1, min(programs // tiles, steps // FEWEST_STEPS))
    each = triton.cdiv(steps, count)
    return Split(triton.cdiv(steps, each), each)


@dataclass(frozen=True, slots=True)
class _Launch:
    """How the kernel of a linear is launched, or of the sum of two with as many outputs."""

    operands: Sequence[Operand]
    config: LinearConfig
    split: Split
    tiles: tuple[int, int]  # of tokens, of outputs

    @classmethod
    def of(
        cls, operands: Sequence[Operand], num_sms: int, config: LinearConfig | None = None
    ) -> "_Launch":
        """With the table's tile for the last of them, unless one is given."""
        x, weight = operands[-1]
        tokens, outputs, device = len(x), weight.shape[0], device_of(x.device)
        config = config or config_for(
            tokens, _kind(weight), x.dtype, weight.shape, device.model, device.runs_ptx
        )
        tiles = (triton.cdiv(tokens, config.tokens), triton.cdiv(outputs, config.outputs))
        steps = sum(_steps(weight, config) for _, weight in operands)
        split = split_for(tiles[0] * tiles[1], steps, config.programs * num_sms)
        return cls(operands, config, split, tiles)

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens, outputs."""
        x, weight = self.operands[0]
        return len(x), weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.operands[0][0].device

    def run(self, out: Tensor, epilogue: Mapping[str, object] = NOTHING) -> None:
        """Into `out`, [tokens, outputs] or [parts, tokens, outputs]."""
        config, (tokens, outputs), (first, *others) = self.config, self.shape, self.operands
        kernel, constants = _kernel_for(first[1], device_of(self.device).runs_ptx)
        second = self._of("second_", *(others or [first])[0])
        kernel[*self.tiles, self.split.count](
            **self._of("", *first),
            **(second if others else dict.fromkeys(second)),
            out=out,
            tokens=tokens,
            outputs=outputs,
            steps=self.split.steps,
            TOKENS=config.tokens,
            OUTPUTS=config.outputs,
            INPUTS=config.inputs,
            num_warps=config.warps,
            num_stages=config.stages,
            **constants,
            **epilogue,
            **early_launch(self.device),
        )

    def _of(self, prefix: str, x: Tensor, weight: Tensor | Quantised) -> dict[str, object]:
        """What the kernel is given of an operand."""
        assert x.stride(1) == 1, "the kernels read rows of x as one run"
        if isinstance(weight, Quantised):
            assert weight.num_columns, "the kernels read a weight as Quantised.as_words has it"
            tensors, whole = {"weight": weight.data, "scales": weight.scales}, UNIT
        else:
            tensors, whole = {"weight": weight}, self.config.inputs
        assert all(one.is_contiguous() for one in tensors.values()), "rows lie without a stride"
        inputs = weight.shape[1]
        given = {"x": x, **tensors, "inputs": inputs, "x_stride": x.stride(0)}
        named = {prefix + name: value for name, value in given.items()}
        return {**named, f"{prefix.upper()}EVEN": inputs % whole == 0}


def _steps(weight: Tensor | Quantised, config: LinearConfig) -> int:
    """That a row takes, of the loop."""
    inputs = weight.shape[1]
    stored = triton.cdiv(inputs, UNIT) * UNIT if isinstance(weight, Quantised) else inputs
    return int(triton.cdiv(stored, config.inputs))


def _kernel_for(weight: Tensor | Quantised, ptx: bool) -> tuple[Any, dict[str, object]]:
    """The kernel that reads a weight, and the constants that its kind sets."""
    if isinstance(weight, Tensor):
        return linear_kernel, {}
    if weight.group is None:
        return int8_linear_kernel, {"KIND": weight.kind, "PTX": ptx}
    return int4_linear_kernel, {"GROUP": weight.group, "PTX": ptx}


@triton.jit(do_not_specialize=["tokens", "steps"])  # one program for every batch
def linear_kernel(
    x,
    weight,
    second_x,
    second_weight,
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
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One tile of the result, or one part of its sum: programs [token tiles, output tiles, parts].

    x [tokens, inputs], weight [outputs, inputs] of x's dtype; out [parts, tokens, outputs]. Rows of a
    second weight, where there is one, go on where those of the first end.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    # Rows past the end repeat the last: loads need no mask, results are not stored.
    known_row = tl.minimum(row, outputs - 1).to(tl.int64)
    first = tl.program_id(2) * steps
    last = first + steps
    before = tl.cdiv(inputs, INPUTS)
    prefetch_and_wait(
        weight, second_weight, known_row, inputs, second_inputs, first, before, INPUTS, EARLY
    )
    total = tl.zeros((OUTPUTS, TOKENS), dtype=tl.float32)
    total = _add_product(
        total, x, weight, token, known_row, tokens, inputs, x_stride, first, last, INPUTS, EVEN
    )
    if second_x is not None:
        total = _add_product(
            total,
            second_x,
            second_weight,
            token,
            known_row,
            tokens,
            second_inputs,
            second_x_stride,
            tl.maximum(first - before, 0),
            last - before,
            INPUTS,
            SECOND_EVEN,
        )
    epilogue(total, bias, out, token, row, tokens, outputs, ACTIVATION)


@triton.jit
def _add_product(
    total,
    x,
    weight,
    token,
    row,
    tokens,
    inputs,
    x_stride,
    first,
    last,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Adds the steps from `first` to `last`, or the end of the rows, to total [outputs, tokens]."""
    known_token = (
        token[None, :] < tokens
    )  # padding is not read: one token's x costs one row's bytes
    x_rows = x + token.to(tl.int64)[None, :] * x_stride
    weight_rows = weight + row[:, None] * inputs
    for step in range(first, tl.minimum(last, tl.cdiv(inputs, INPUTS))):
        column = step * INPUTS + tl.arange(0, INPUTS)
        if EVEN:
            w = tl.load(weight_rows + column[None, :])
            xs = tl.load(x_rows + column[:, None], mask=known_token, other=0.0)
        else:
            known = column < inputs
            w = tl.load(weight_rows + column[None, :], mask=known[None, :], other=0.0)
            xs = tl.load(x_rows + column[:, None], mask=known[:, None] & known_token, other=0.0)
        total = tl.dot(w, xs, total, input_precision="ieee")
    return total


@triton.jit
def _sum_parts(
    parts,
    bias,
    out,
    outputs,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """parts float32 [PARTS, tokens, outputs] → out [tokens, outputs], always in the same order."""
    wait_for_kernels(EARLY)
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
