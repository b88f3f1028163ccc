"""The card's own plan, walked without a card: `gpu_speed` as it is, on a device whose tensors have shapes and
no numbers, where Triton's launches are noted instead of run. What would crash on a card before anything is
computed crashes here. Two layers of each model: all are alike.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import gpu_speed
import torch
from gpu_counts import META, model_of, noted_launches
from gpu_models import SHAPES
from gpu_table import speed_lines
from gpu_worker import Rows
from torch import Tensor

from gyrfalcon.config import ModelConfig
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.lookup import device_of, kind_of
from gyrfalcon.device.protocol import Replay
from gyrfalcon.model.falcon import Falcon

if TYPE_CHECKING:
    from gpu_plan import Plan

NUM_LAYERS = 2


class StubCard(Cpu):
    """Says what an H200 would, and computes nothing."""

    on_host = False
    operator_sets = ("triton", "reference")
    prompt_sizes = kind_of("cuda").prompt_sizes
    weights_at_once = kind_of("cuda").weights_at_once
    runs_ptx = True

    def memory(self) -> tuple[int, int]:
        return 140 << 30, 141 << 30

    def capture(self, work: Callable[[], Tensor]) -> Replay:
        work()  # the run that compiles
        out = work()

        def replay(contexts: Sequence[int] = ()) -> Tensor:
            return out

        return replay

    def fetch(self, tensor: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
        on_host = torch.zeros(tensor.shape, dtype=tensor.dtype)
        return lambda: on_host

    def measure_bandwidth(self) -> float:
        return 4.8e12

    def measure_matrix_peak(self, dtype: torch.dtype) -> float:
        return 9.89e14

    def lacks_matrix_units(self, dtype: torch.dtype) -> bool:
        return False


def walk(plan: "Plan", rows_of: Callable[["Plan"], Rows]) -> dict[str, Any]:
    """A step of the card's plan, each row once instead of many times: its lines, and its launches noted."""
    with noted_launches() as noted:
        found, limits = walked(plan, rows_of)
    lines = list(speed_lines("", found, limits))  # whose times say nothing here
    return {
        "passed": True,
        "summary": f"{len(lines)} lines, {noted.total()} launches of two layers",
    }


def walked(
    plan: "Plan", rows_of: Callable[["Plan"], Rows], model: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of a step of the card's plan and the card's limits, on a stand-in called `model`."""
    plan = replace(plan, device=META, rounds=1, steps=1)
    with stubs(model):
        found = {name: row() for name, row in rows_of(plan).items()}
        return found, gpu_speed.limits(plan)["card"]()


@contextmanager
def stubs(model: str) -> Iterator[None]:
    """Torch's meta device is a card of that name; models for it have NUM_LAYERS layers."""
    device = device_of(META)
    before = device.__class__
    shapes = {name: {**shape, "num_hidden_layers": NUM_LAYERS} for name, shape in SHAPES.items()}
    device.__class__ = StubCard
    try:
        with (
            mock.patch.dict(SHAPES, shapes),
            mock.patch.object(gpu_speed, "random_model", _model),
            mock.patch.object(StubCard, "model", model),
        ):
            yield
    finally:
        device.__class__ = before


def _model(config: ModelConfig, ops: object, device: torch.device, **settings: Any) -> Falcon:
    return model_of(config, settings["dtype"], settings["quant"], settings["ranks"])
