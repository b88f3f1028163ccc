"""Linears and activations on Ascend cards. Quantised weights by npu_weight_quant_batchmatmul, which
dequantises them in x's dtype: int8 as stored, int4 repacked at load.

Matrices stay in rows and columns (ND): its documents allow FRACTAL_NZ in compiled graphs alone.
"""

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gyrfalcon.ops import reference
from gyrfalcon.ops.npu.features import Features
from gyrfalcon.quant import TILE_COLUMNS, Quantised, Weight

log = logging.getLogger(__name__)

LARGEST_SIDE = 65535  # of a quantised matrix
APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}  # of npu_gelu; "none" is by erf


class Linear:
    """The linear operators, by what this torch_npu has."""

    def __init__(self, torch_npu: Any, features: Features) -> None:
        self._torch_npu = torch_npu
        self._features = features
        self._scales: dict[int, tuple[Tensor, Tensor]] = {}  # by id: as stored, and as multiplied

    def prepack(self, weight: Quantised) -> Quantised:
        """int4 in the order of npu_convert_weight_to_int4pack, eight weights of a column in a word:
        data int32 [in, out / 8], scales bfloat16 [in / group, out]. Others as stored.
        """
        group, (outputs, inputs) = weight.group, weight.shape
        if group is None:
            return weight
        if not (self._takes(weight) and self._features.pack_int4 and group < inputs):
            log.info("%d × %d in %s is dequantised at each use", outputs, inputs, weight.kind)
            return weight
        rows = weight.by_rows()
        halves = rows.data.view(outputs, -1, 1, TILE_COLUMNS // 2)
        values = torch.cat((halves & 15, halves >> 4), dim=2).view(outputs, inputs)
        columns = (values.t().int() - 8).contiguous()  # [in, out]
        data = self._torch_npu.npu_convert_weight_to_int4pack(columns)
        return Quantised(weight.kind, data, rows.scales.contiguous())

    def __call__(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """`reference.linear`."""
        y = self._product(x, weight, bias)
        return y if activation is None else self.activate(y, activation)

    def activate(self, x: Tensor, name: str) -> Tensor:
        """`reference.activate`. torch's own GELU is another function on these cards."""
        if name not in APPROXIMATE:
            return reference.activate(x, name)
        if self._features.gelu:
            y: Tensor = self._torch_npu.npu_gelu(x, approximate=APPROXIMATE[name])
            return y
        wide = x.float()
        inner = wide / math.sqrt(2)
        if name == "gelu":
            return (wide * 0.5 * (1 + torch.erf(inner))).to(x.dtype)
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        return (wide * 0.5 * (1 + torch.tanh(inner))).to(x.dtype)

    def _product(self, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        if isinstance(weight, Quantised):
            return self._quantised(x, weight, bias)
        return F.linear(x, weight, bias)

    def _quantised(self, x: Tensor, weight: Quantised, bias: Tensor | None) -> Tensor:
        packed = weight.data.dtype == torch.int32
        if not packed and not (weight.kind == "int8" and self._takes(weight)):
            return reference.linear(x, weight, bias)
        if bias is not None and x.dtype == torch.bfloat16:
            bias = bias.float()  # as the operator wants it
        y: Tensor = self._torch_npu.npu_weight_quant_batchmatmul(
            x,
            weight.data if packed else weight.data.t(),
            self._scales_in(weight, x.dtype),
            bias=bias,
            antiquant_group_size=(weight.group or 0) if packed else 0,
        )
        return y

    def _takes(self, weight: Quantised) -> bool:
        return self._features.quantised_linear and max(weight.shape) <= LARGEST_SIDE

    def _scales_in(self, weight: Quantised, dtype: torch.dtype) -> Tensor:
        """A matrix' scales in the dtype of what it is multiplied with, made once."""
        kept = self._scales.get(id(weight.scales))
        if kept is None or kept[0] is not weight.scales or kept[1].dtype != dtype:
            kept = weight.scales, weight.scales.to(dtype)
            self._scales[id(weight.scales)] = kept
        return kept[1]
