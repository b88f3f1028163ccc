"""Linear layers as the six models launch them: the variants that compile differently."""

from typing import Any

import torch
from kernel_cases import TARGETS, Case

from gyrfalcon.ops.triton import linear as triton_linear
from gyrfalcon.quant import GROUPS

WORDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DATA = {"int8": "*i8", "fp8": "*fp8e4nv", **dict.fromkeys(GROUPS, "*u8")}
KINDS = ("none", *DATA)
HAS_FP8 = TARGETS - {"sm_80"}
# TOKENS, OUTPUTS and INPUTS of 16-bit products whose tile for GPUs does not fit an Ascend 910B3.
ASCEND = {
    ("int4", 16): (16, 64, 128),
    ("int8", 64): (64, 64, 64),
    ("int4", 64): (32, 32, 64),
    ("int8", 512): (32, 32, 64),
    ("int4", 512): (32, 32, 64),
}


def _case(
    kind: str,
    dtype: str,
    tokens: int,
    *,
    even: bool = True,
    parts: bool = False,
    last: str = "none",
    bias: bool = False,
) -> Case:
    """A linear layer on `tokens` tokens; `parts`: a split along the rows, summed later."""
    config = triton_linear.config_for(tokens, kind, WORDS[dtype])
    pointers = {"x": f"*{dtype}", "weight": DATA.get(kind, f"*{dtype}")}
    if kind != "none":
        pointers["scales"] = "*bf16" if kind in GROUPS else "*fp32"
    if bias:
        pointers["bias"] = f"*{dtype}"
    numbers = dict.fromkeys(("tokens", "outputs", "inputs", "x_stride", "steps"), "i32")
    absent = {name: None for name in ("scales", "bias") if name not in pointers}
    constants: dict[str, Any] = absent | {
        "TOKENS": config.tokens,
        "OUTPUTS": config.outputs,
        "INPUTS": config.inputs,
        "EVEN": even,
        "ACTIVATION": last,
    }
    if kind in GROUPS:
        constants["GROUP"] = GROUPS[kind]
    words = [kind if kind != "none" else "whole", dtype, f"{tokens} tokens"]
    words += ["" if even else "rows end within a tile", "part" if parts else "", _words(last, bias)]
    return Case(
        name=" ".join(["product", *filter(None, words)]),
        kernel=triton_linear.int4_linear_kernel if kind in GROUPS else triton_linear.linear_kernel,
        signature=pointers | {"out": "*fp32" if parts else f"*{dtype}"} | numbers,
        constants=constants,
        warps=config.warps,
        stages=config.stages,
        expects=frozenset() if dtype == "fp32" else frozenset({"mma"}),
        targets=HAS_FP8 if kind == "fp8" else TARGETS,
        aligned=frozenset({"outputs", "inputs", "x_stride"}),
        ascend=_ascend(kind, dtype, tokens),
    )


def _ascend(kind: str, dtype: str, tokens: int) -> dict[str, int]:
    key = ("int4" if kind in GROUPS else kind, tokens)
    if (dtype == "fp32" and kind not in GROUPS) or key not in ASCEND:
        return {}
    return dict(zip(("TOKENS", "OUTPUTS", "INPUTS"), ASCEND[key], strict=True))


def _sum(parts: int, last: str = "none", *, bias: bool = False) -> Case:
    return Case(
        name=" ".join(
            filter(None, [f"sum of {parts} parts of a product bf16", _words(last, bias)])
        ),
        kernel=triton_linear._sum_parts,
        signature={"parts": "*fp32"}
        | ({"bias": "*bf16"} if bias else {})
        | {"out": "*bf16", "outputs": "i32"},
        constants={"PARTS": parts, "TILE": triton_linear.SUM_TILE, "ACTIVATION": last}
        | ({} if bias else {"bias": None}),
        warps=4,
        stages=3,
        expects=frozenset(),
        aligned=frozenset({"outputs"}),
    )


def _words(last: str, bias: bool) -> str:
    return " ".join(["bias"] * bias + [last] * (last != "none"))


# Few tokens: 4544 inputs of 7b end within a step of 128, those of all others do not, nor do rows of
# groups of 128. rw has biases.
CASES = [
    *(_case(kind, "bf16", 16, last="gelu") for kind in KINDS),
    *(_case(kind, "bf16", 16, even=kind == "int4-128", parts=True) for kind in KINDS),
    _case("none", "bf16", 16, parts=True),
    _case("none", "bf16", 16, last="gelu", bias=True),
    *(_case(kind, "fp16", 16) for kind in KINDS),
    *(_case(kind, "fp32", 16) for kind in ("none", "int8", *GROUPS)),
    *(_case(kind, "bf16", 64, parts=True) for kind in DATA),
    *(_case(kind, "bf16", 512, last="gelu") for kind in DATA),
    _case("int8", "fp32", 512),
    *(_case(kind, "fp32", 512) for kind in GROUPS),
    _sum(2),
    _sum(4, "gelu", bias=True),
]
