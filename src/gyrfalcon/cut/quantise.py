"""Quantises tensors on their way into a cut and dequantises them on their way out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gyrfalcon.checkpoint.tensors import TensorSource, take
from gyrfalcon.cut.calibrate import Calibration
from gyrfalcon.model.layout import DATA, Layout, TensorSpec
from gyrfalcon.quant import GROUPS, Quantised, dequantise, quantise, sizes

# What reads the ranges of a tensor along a dimension, as TensorSource.read does.
Read = Callable[[str, int | None, Sequence[range]], Tensor]


class QuantisedSource:
    """A checkpoint's tensors as a cut of this layout stores them; matrices that `calibration` has
    inputs of are quantised with GPTQ.

    The last matrix is cached: reading it part by part quantises it once.
    """

    def __init__(
        self,
        source: TensorSource,
        layout: Layout,
        calibration: Calibration | None = None,
    ) -> None:
        self._source = source
        self._calibration = calibration
        self._matrices = {
            part.name: (spec.name, part.kind)
            for spec in layout.tensors
            for part in layout.stored_as(spec)
            if part.kind != "none"
        }
        self._kept: tuple[str, Quantised] | None = None

    def read(self, name: str, dim: int | None = None, ranges: Sequence[range] = ()) -> Tensor:
        """As TensorSource.read."""
        if name not in self._matrices:
            return self._source.read(name, dim, ranges)
        matrix = self._matrix(*self._matrices[name])
        return take(matrix.data if name.endswith(DATA) else matrix.scales, dim, ranges)

    def _matrix(self, name: str, kind: str) -> Quantised:
        if self._kept is None or self._kept[0] != name:
            self._kept = None  # two at once would take twice the memory
            self._kept = name, self._quantised(name, kind)
        return self._kept[1]

    def _quantised(self, name: str, kind: str) -> Quantised:
        weight = self._source.read(name)
        if self._calibration is None or kind not in GROUPS:
            return quantise(weight, kind)
        return self._calibration.quantised(name, weight, kind)


def dequantising_reader(source: TensorSource, layout: Layout) -> Read:
    """Reads rows of the model's own tensors from a cut of that layout, quantised matrices in float32."""
    stored = {spec.name: layout.stored_as(spec) for spec in layout.tensors}
    matrices = {name: parts for name, parts in stored.items() if len(parts) == 2}

    def read(name: str, dim: int | None, rows: Sequence[range]) -> Tensor:
        if name not in matrices:
            return source.read(name, dim, rows)
        data, scales = matrices[name]
        return torch.cat([part(data, scales, each) for each in rows])

    def part(data: TensorSpec, scales: TensorSpec, rows: range) -> Tensor:
        size, _ = sizes(data.kind, 0)  # rows that lie together
        stored = (range(rows.start // size, -(-rows.stop // size)),)
        whole = Quantised(
            data.kind, source.read(data.name, 0, stored), source.read(scales.name, 0, stored)
        )
        return dequantise(whole, torch.float32)[rows.start % size :][: len(rows)]

    return read
