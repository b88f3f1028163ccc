"""Kernels that begin while the one before them ends (programmatic dependent launch) beside the same ones that
begin after it: of captured steps, bit for bit, many times over.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from gpu_models import config_of, decode_batch, make_pool, quant_word, random_model
from gpu_worker import Rows, Skipped
from torch import Tensor

from gyrfalcon import ops
from gyrfalcon.device.cuda import EARLY_VARIABLE
from gyrfalcon.device.lookup import device_of
from gyrfalcon.device.protocol import Device, Replay

if TYPE_CHECKING:
    from gpu_plan import Plan

REPLAYS = 200
LAYERS, CONTEXT = 4, 1024


def early_launches(plan: "Plan") -> Rows:
    """A row of each precision: a token through a few layers of the largest shape."""
    return {precision: partial(_of_a_model, plan, precision) for precision in plan.precisions}


@torch.inference_mode()
def _of_a_model(plan: "Plan", precision: str) -> dict[str, Any]:
    device = device_of(plan.device)
    if not can_launch_early(device):
        raise Skipped("wants one of NVIDIA's cards from sm_90 on, and a Triton that has it")
    config = config_of(plan.shapes[0], num_hidden_layers=LAYERS)
    settings = {"dtype": plan.dtype, "quant": quant_word(precision)}
    model = random_model(config, ops.choose(device), plan.device, **settings)
    pool = make_pool(config, CONTEXT, plan.device, plan.dtype)
    batch = decode_batch(config, 1, CONTEXT).on(plan.device)
    return beside_usual(
        device,
        lambda: model(replace(batch), pool),
        batch.token_ids,
        [torch.full_like(batch.token_ids, i) for i in (17, 4711)],
    )


def can_launch_early(device: Device) -> bool:
    """Whether it would, if asked to."""
    from gyrfalcon.ops.triton import early

    with mock.patch.dict(os.environ, {EARLY_VARIABLE: "1"}):
        return early.CAN_COMPILE and type(device)(device.torch_device).launches_early


def beside_usual(
    device: Device, step: Callable[[], Tensor], read: Tensor, inputs: Sequence[Tensor]
) -> dict[str, Any]:
    """Replays of a step that reads `read`, of all inputs in turn: what is left of the replay before is
    another's.
    """
    usual, begun_early = (_captured(device, step, early) for early in (False, True))
    wanted = [found for found, _ in zip(_results(usual, read, inputs), inputs, strict=False)]
    different = sum(
        not found.equal(wanted[i % len(inputs)])
        for i, found in enumerate(list(_results(begun_early, read, inputs)))
    )
    return {
        "passed": different == 0,
        "summary": f"{different} of {REPLAYS} replays differ",
        "different": different,
        "usual_ms": 1000 * device.seconds_of(usual),
        "early_ms": 1000 * device.seconds_of(begun_early),
    }


def _results(replay: Replay, read: Tensor, inputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """Nothing waits for the card in between."""
    for i in range(REPLAYS):
        read.copy_(inputs[i % len(inputs)])
        yield replay().clone()


def _captured(device: Device, step: Callable[[], Tensor], early: bool) -> Replay:
    with _launching(device, early):
        return device.capture(step)


@contextmanager
def _launching(device: Device, early: bool) -> Iterator[None]:
    before = vars(device).get("launches_early", device.launches_early)
    vars(device)["launches_early"] = early
    try:
        yield
    finally:
        vars(device)["launches_early"] = before
