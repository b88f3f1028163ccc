"""The tuner as a step of the gate: the fastest tile of each weight matrix for one token, and what a token of
the model gains by them. Nothing is written into the sources: `tools/tune_kernels.py` does that.
"""

import time
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import gpu_speed
import torch
import tune_kernels
from gpu_models import quant_word
from gpu_worker import Rows, Skipped

from gyrfalcon.device.lookup import device_of
from gyrfalcon.ops.triton import linear as triton_linear
from gyrfalcon.ops.triton.linear import LinearConfig

if TYPE_CHECKING:
    from gpu_plan import Plan

TOKENS = 1


def tuner(plan: "Plan") -> Rows:
    """(8) Tiles for each matrix of every shape and precision that is timed."""
    return {
        f"{shape} {precision}": partial(_tuned, plan, shape, precision)
        for shape in plan.shapes
        for precision in plan.precisions
    }


def _tuned(plan: "Plan", shape: str, precision: str) -> dict[str, Any]:
    if device_of(plan.device).on_host:
        raise Skipped("times of a card only")
    card, winners = device_of(plan.device).model, fastest_tiles(plan, shape, precision)
    before = _step_ms(plan, shape, precision)
    with mock.patch.object(triton_linear, "tuned", return_value={card: winners}):
        after = _step_ms(plan, shape, precision)
    return {
        "tiles": {name: asdict(config) for name, config in winners.items()},
        "before_ms": before,
        "after_ms": after,
    }


def fastest_tiles(plan: "Plan", shape: str, precision: str) -> dict[str, LinearConfig]:
    """Of the table's names, those whose tile is not the usual one."""
    kind, card = quant_word(precision), device_of(plan.device).model
    clock = tune_kernels.clock_on(plan.device, TOKENS)
    found = {}
    for matrix in tune_kernels.SHAPES[shape]:
        weight = tune_kernels.drawn(kind, matrix, plan.device)
        usual = triton_linear.config_for(TOKENS, kind, plan.dtype, matrix, card)
        until = time.monotonic() + plan.tune_seconds
        best = tune_kernels.fastest(weight, kind, usual, clock, until)
        if best != usual:
            found[triton_linear.key(kind, matrix)] = best
    return found


@torch.inference_mode()
def _step_ms(plan: "Plan", shape: str, precision: str) -> float:
    """A token of the whole model at batch 1 and the shortest context."""
    plan = replace(plan, batches=(1,), contexts=plan.contexts[:1])
    [row] = gpu_speed.decode_rows(gpu_speed.prepare(plan, shape, precision), 1, plan)
    return float(row["ms_per_token"])
