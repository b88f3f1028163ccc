"""The linears of gemlite, Triton kernels by others, against ours: the same quantised weights and
tokens, timed in the same run. Only where gemlite is installed; its kernels tune themselves on first
use.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from gpu_models import config_of, random_model
from gpu_speed import seconds_of
from gpu_worker import Rows, Skipped
from torch import Tensor

from gyrfalcon import ops
from gyrfalcon.device.lookup import device_of
from gyrfalcon.quant import Quantised, dequantise

if TYPE_CHECKING:
    from gpu_plan import Plan

KINDS = ("int8", "int4")  # at which gemlite, too, does not quantise the tokens
TOKENS = (1, 16)
LARGEST_DIFFERENCE = 0.02  # relative L2: both multiply the same numbers, in bfloat16

LinearCall = Callable[[Tensor], Tensor]


def beside_gemlite(plan: "Plan") -> Rows:
    """One block's products of every shape and kind."""
    return {
        f"{shape} {kind}": partial(_tried, plan, shape, kind)
        for shape in plan.shapes
        for kind in KINDS
    }


def _tried(plan: "Plan", shape: str, kind: str) -> dict[str, Any]:
    """What is found, or why it is not: theirs is no fault of what the gate checks."""
    try:
        import gemlite

        rows = _rows(plan, shape, kind, gemlite.helper)
    except ModuleNotFoundError as error:
        if error.name == "gemlite":
            raise Skipped("not installed") from error
        return {"error": _words(error)}
    except Exception as error:  # whatever a package does when it is imported, too
        return {"error": _words(error)}
    return {"version": gemlite.__version__, "rows": rows}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@torch.inference_mode()
def _rows(plan: "Plan", shape: str, kind: str, helper: Any) -> list[dict[str, Any]]:
    """The four products of a block, for this many tokens, in ms."""
    ours = ops.choose(device_of(plan.device))
    config = config_of(shape, num_hidden_layers=1)
    block = random_model(config, ours, plan.device, dtype=plan.dtype, quant=kind).blocks[0]
    layers = (block.attention.qkv, block.attention.dense, block.mlp.up, block.mlp.down)
    weights = [layer.weight for layer in layers if isinstance(layer.weight, Quantised)]
    assert len(weights) == len(layers)
    theirs = [gemlite_product(helper, weight, plan.dtype) for weight in weights]
    rows = []
    for tokens in TOKENS:
        drawn = [_tokens(tokens, weight, plan) for weight in weights]
        mine = [lambda x, weight=weight: ours.linear(x, weight) for weight in weights]
        rows.append(
            {
                "tokens": tokens,
                "relative_l2": _difference(mine, theirs, drawn),
                "ours_ms": _ms(mine, drawn, plan),
                "gemlite_ms": _ms(theirs, drawn, plan),
            }
        )
    return rows


def gemlite_product(helper: Any, weight: Quantised, dtype: torch.dtype) -> LinearCall:
    """gemlite's layer with the weights as we quantised them. It takes int8 as it is, and int4 as
    one byte per weight, value + 8, with scales and zero points [out, in / 64].
    """
    settings = {"device": weight.data.device, "dtype": dtype}
    if weight.kind == "int8":
        layer: LinearCall = helper.A16W8_INT8(**settings).from_weights(
            weight.data, scales=weight.scales[:, None]
        )
        return layer
    unscaled = replace(weight, scales=torch.ones_like(weight.scales))
    values = (dequantise(unscaled, dtype) + 8).to(torch.uint8)
    scales = weight.by_rows().scales.t().to(dtype).contiguous()
    layer = helper.A16W4_HQQ_INT(**settings).from_weights(
        values, scales, torch.full_like(scales, 8)
    )
    return layer


def _tokens(tokens: int, weight: Tensor | Quantised, plan: "Plan") -> Tensor:
    generator = torch.Generator(plan.device).manual_seed(tokens)
    shape = (tokens, weight.shape[1])
    return torch.randn(shape, generator=generator, device=plan.device, dtype=plan.dtype)


def _difference(
    ours: Sequence[LinearCall], theirs: Sequence[LinearCall], drawn: Sequence[Tensor]
) -> float:
    """The largest relative L2 between their results and ours; ValueError where it is more than
    rounding.
    """
    largest = 0.0
    for mine, other, x in zip(ours, theirs, drawn, strict=True):
        wanted, got = mine(x).float(), other(x).float()
        largest = max(largest, float((got - wanted).norm() / wanted.norm()))
        if not largest <= LARGEST_DIFFERENCE:
            raise ValueError(
                f"wanted our products to {LARGEST_DIFFERENCE} of relative L2, got {largest:.3g}"
            )
    return largest


def _ms(products: Sequence[LinearCall], drawn: Sequence[Tensor], plan: "Plan") -> float:
    def all_of_them() -> Tensor:
        for product, x in zip(products, drawn, strict=True):
            out = product(x)
        return out

    return 1000 * seconds_of(device_of(plan.device).capture(all_of_them), plan, plan.steps)
