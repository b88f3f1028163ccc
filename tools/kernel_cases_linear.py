"""Linear layers as the six models launch them: the variants that compile differently."""

from collections.abc import Iterable
from typing import Any

import torch
from kernel_cases import AMD, NVIDIA, TARGETS, Case
from kernel_limits import Stream

from gyrfalcon.ops.triton import dequantised_linear, quantised_linear
from gyrfalcon.ops.triton import linear as triton_linear
from gyrfalcon.quant import GROUPS

WORDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUANTISED = ("int8", "fp8", *GROUPS)
KINDS = ("none", *QUANTISED)
PART, OF_TWO = "part", "of two part"
# TOKENS, OUTPUTS and INPUTS of 16-bit products whose tile for GPUs does not fit an Ascend 910B3.
ASCEND = {
    ("int4", 16): (16, 64, 128),
    ("int8", 64): (64, 64, 64),
    ("int4", 64): (32, 32, 128),
    ("int8", 512): (32, 32, 64),
    ("int4", 512): (32, 32, 128),
}


def _case(
    kind: str,
    dtype: str,
    tokens: int,
    *,
    even: bool = True,
    part: str = "",
    last: str = "none",
    bias: bool = False,
    ptx: bool = True,
) -> Case:
    """A linear layer on `tokens` tokens; a PART: of a split along the rows, summed later, or OF_TWO layers
    that are summed; rows of the second end with a tile. `ptx` lets a quantised weight be widened by
    NVIDIA's assembly.
    """
    config = triton_linear.config_for(tokens, kind, WORDS[dtype], ptx=ptx)
    pointers = {"x": f"*{dtype}", "weight": f"*{dtype}" if kind == "none" else "*i16"}
    if kind != "none":
        pointers["scales"] = {"int4-128": "*bf16"}.get(kind, "*i32") if kind in GROUPS else "*fp32"
    numbers = {"inputs": "i32", "x_stride": "i32"}
    second = {f"second_{name}": type_ for name, type_ in (pointers | numbers).items()}
    if bias:
        pointers["bias"] = f"*{dtype}"
    numbers |= dict.fromkeys(("tokens", "outputs", "steps"), "i32")
    constants: dict[str, Any] = ({} if bias else {"bias": None}) | {
        **({} if part == OF_TWO else dict.fromkeys(second)),
        "SECOND_EVEN": True if part == OF_TWO else None,
        "EARLY": False,
        "TOKENS": config.tokens,
        "OUTPUTS": config.outputs,
        "INPUTS": config.inputs,
        "EVEN": even,
        "ACTIVATION": last,
    }
    if kind != "none":
        constants |= {"GROUP": GROUPS[kind]} if kind in GROUPS else {"KIND": kind}
        constants["PTX"] = ptx
    words = [kind if kind != "none" else "whole", dtype, f"{tokens} tokens"]
    words += ["" if even else "rows end within a tile", part, _words(last, bias)]
    types = pointers | numbers | {"out": "*fp32" if part else f"*{dtype}"}
    types |= second if part == OF_TWO else {}
    kernel = _kernel(kind)
    return Case(
        name=" ".join(["product", *filter(None, words)]),
        kernel=kernel,
        signature={name: types[name] for name in kernel.arg_names if name in types},
        constants=constants,
        warps=config.warps,
        stages=config.stages,
        expects=frozenset() if dtype == "fp32" else frozenset({"mma"}),
        aligned=frozenset({"outputs", "inputs", "x_stride", "second_inputs", "second_x_stride"}),
        stream=None if dtype == "fp32" else _stream(kind, dtype, config),
        targets=TARGETS if kind == "none" else NVIDIA if ptx else AMD,
        ascend=None if part == OF_TWO else _ascend(kind, dtype, tokens),
    )


def _stream(kind: str, dtype: str, config: triton_linear.LinearConfig) -> Stream:
    return Stream(kind, dtype, config.tokens, config.outputs * config.inputs, config.programs)


def _kernel(kind: str) -> Any:
    if kind == "none":
        return triton_linear.linear_kernel
    by_group = kind in GROUPS
    return quantised_linear.int4_linear_kernel if by_group else quantised_linear.int8_linear_kernel


def _ascend(kind: str, dtype: str, tokens: int) -> dict[str, int]:
    key = ("int4" if kind in GROUPS else kind, tokens)
    if (dtype == "fp32" and kind not in GROUPS) or key not in ASCEND:
        return {}
    return dict(zip(("TOKENS", "OUTPUTS", "INPUTS"), ASCEND[key], strict=True))


def _sum(parts: int, last: str = "none", *, bias: bool = False, dtype: str = "bf16") -> Case:
    return Case(
        name=" ".join(
            filter(None, [f"sum of {parts} parts of a product {dtype}", _words(last, bias)])
        ),
        kernel=triton_linear._sum_parts,
        signature={"parts": "*fp32"}
        | ({"bias": "*bf16"} if bias else {})
        | {"out": f"*{dtype}", "outputs": "i32"},
        constants={
            "PARTS": parts,
            "TILE": triton_linear.SUM_TILE,
            "ACTIVATION": last,
            "EARLY": False,
        }
        | ({} if bias else {"bias": None}),
        warps=4,
        stages=3,
        expects=frozenset(),
        aligned=frozenset({"outputs"}),
    )


def _dequantise(kind: str, dtype: str, *, ptx: bool) -> Case:
    """Of a matrix whose rows end with a unit."""
    group = GROUPS.get(kind)
    scales = "*fp32" if group is None else "*bf16" if group == 128 else "*i32"
    pointers = {"words": "*i16", "scales": scales, "out": f"*{dtype}"}
    return Case(
        name=f"dequantise {kind} {dtype}",
        kernel=dequantised_linear.dequantise_kernel,
        signature=pointers | dict.fromkeys(("first", "rows", "outputs", "inputs"), "i32"),
        constants={
            "ROWS": dequantised_linear.ROWS,
            "KIND": "int4" if group else kind,
            "GROUP": group,
            "PTX": ptx,
        },
        warps=4,
        stages=3,
        expects=frozenset(),
        aligned=frozenset({"rows", "outputs", "inputs"}),
        targets=NVIDIA if ptx else AMD,
        ascend=None,
    )


def _words(last: str, bias: bool) -> str:
    return " ".join(["bias"] * bias + [last] * (last != "none"))


def _both(kind: str, dtype: str, tokens: int, **how: Any) -> list[Case]:
    """A linear layer as NVIDIA's cards run it, and as all others do."""
    kinds = (True,) if kind == "none" else (True, False)
    return [_case(kind, dtype, tokens, ptx=ptx, **how) for ptx in kinds]


def _all_kinds(kinds: Iterable[str], dtype: str, tokens: int, **how: Any) -> list[Case]:
    return [case for kind in kinds for case in _both(kind, dtype, tokens, **how)]


# Few tokens: 4544 inputs of 7b end within a step of 128, those of all others do not, nor do rows of
# groups of 128. rw has biases.
CASES = [
    *_all_kinds(KINDS, "bf16", 16, last="gelu"),
    *_all_kinds(KINDS[:-1], "bf16", 16, even=False, part=PART),
    *_all_kinds(KINDS[-1:], "bf16", 16, part=PART),
    _case("none", "bf16", 16, part=PART),
    *_all_kinds(KINDS, "bf16", 16, part=OF_TWO),
    *_all_kinds(KINDS[:-1], "bf16", 16, part=OF_TWO, even=False),
    _case("none", "bf16", 16, last="gelu", bias=True),
    *_all_kinds(KINDS, "fp16", 16),
    *_all_kinds(("none", "int8", *GROUPS), "fp32", 16),
    *_all_kinds(QUANTISED, "bf16", 64, part=PART),
    *_all_kinds(QUANTISED, "bf16", 64, part=OF_TWO),
    *_all_kinds(QUANTISED, "bf16", 512, last="gelu"),
    *_all_kinds(("int8", *GROUPS), "fp32", 512),
    *(_dequantise(kind, "bf16", ptx=ptx) for kind in QUANTISED for ptx in (True, False)),
    _sum(2),
    _sum(2, dtype="fp32"),
    _sum(4, "gelu", bias=True),
]
