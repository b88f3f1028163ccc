"""The operations on Ascend cards by torch_npu's operators: those that ops/reference.py defines. What this
torch_npu lacks falls back to the reference.
"""

import logging
import os
from collections.abc import Sequence
from functools import reduce
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.device.npu import Npu
from gyrfalcon.device.npu_graphs import lacking
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference
from gyrfalcon.ops.npu.attention import Kernel, Step
from gyrfalcon.ops.npu.choice import Choice
from gyrfalcon.ops.npu.features import Features
from gyrfalcon.ops.npu.linear import Linear
from gyrfalcon.ops.npu.rotary import RotaryAndCache
from gyrfalcon.ops.reference import Angles, Attend, LinearCall
from gyrfalcon.quant import Quantised, Weight

log = logging.getLogger(__name__)


class NpuOps:
    """The set for one device. It keeps what is the same for all layers of a step."""

    fuse_blocks = staticmethod(reference.fuse_blocks)

    def __init__(self, torch_npu: Any, device: Npu) -> None:
        features = Features.of(torch_npu)
        kernel = None
        if features.attention:
            kernel = Kernel(torch_npu, device.torch_device, device.graph_tasks)
        self.lacks_graphs = lacking(torch_npu.npu, os.environ)
        if self.lacks_graphs is None and not features.attention_in_graphs:
            self.lacks_graphs = (
                "this torch_npu has no attention whose lengths can be changed in one"
            )
        self.CAPTURABLE = self.lacks_graphs is None  # where the attention chosen can be, too
        self._torch_npu = torch_npu
        self._features = features
        self._choice = Choice(kernel)
        self._step: Step | None = None
        self._linear = Linear(torch_npu, features)
        self._rotary_and_cache = RotaryAndCache(torch_npu, features, device.torch_device)

    def own_threads(self, quant: str) -> bool:
        """The card computes."""
        return False

    def prepack(self, weight: Quantised) -> Quantised:
        """As npu_weight_quant_batchmatmul reads it."""
        return self._linear.prepack(weight)

    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """`reference.linear`."""
        return self._linear(x, weight, bias, activation)

    def logits(self, x: Tensor, weight: Weight) -> Tensor:
        """`reference.logits`."""
        return self._linear(x, weight).float()

    def branches(self, qkv: LinearCall, attend: Attend, up: LinearCall) -> tuple[Tensor, Tensor]:
        """One after the other."""
        return attend(self._linear(*qkv)), self._linear(*up)

    def sum_of_linears(self, *each: tuple[Tensor, Weight], as_parts: bool = False) -> Tensor:
        """One after the other, then added."""
        return reduce(torch.add, (self._linear(*one) for one in each))

    def add_layer_norms(
        self, x: Tensor, part: Tensor | None, norms: Sequence[tuple[Tensor, Tensor]], eps: float
    ) -> tuple[Tensor, list[Tensor]]:
        """`reference.add_layer_norms`; the sum and its first normalisation are one operator."""
        if part is None or not self._features.add_layer_norm:
            return reference.add_layer_norms(x, part, norms, eps)
        (weight, bias), *others = norms
        normed, _, _, total = self._torch_npu.npu_add_layer_norm(
            x, part, weight, bias, epsilon=eps, additional_output=True
        )
        size = (x.shape[-1],)
        return total, [normed, *(F.layer_norm(total, size, *each, eps) for each in others)]

    def rotary_and_cache(
        self, qkv: Tensor, angles: Angles | None, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        """`reference.rotary_and_cache`."""
        return self._rotary_and_cache(qkv, angles, cache, slots)

    def attention(
        self, q: Tensor, cache: LayerCache, batch: AttentionMetadata, slopes: Tensor | None
    ) -> Tensor:
        """`reference.attention`."""
        if self._step is None or self._step.batch is not batch:
            self._step = Step.of(batch)
        attend = self._choice.of(q, cache, slopes)
        return attend(q, cache, self._step, slopes).flatten(1)


def open_set(device: Npu) -> NpuOps:
    """The operators for `device`, which there is only where torch_npu imports."""
    operators = NpuOps(import_module("torch_npu"), device)
    if operators.lacks_graphs:
        log.info("decoding is launched operator by operator: %s", operators.lacks_graphs)
    return operators
