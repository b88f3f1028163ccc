"""The operations a model is made of, and the choice of their implementation: once per device, never
per call.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference
from gyrfalcon.ops.reference import Angles as Angles
from gyrfalcon.quant import Weight


class Ops(Protocol):
    """One implementation of every operation; `ops/reference.py` says what each means."""

    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor: ...
    def add_norms(
        self, x: Tensor, part: Tensor | None, norms: Sequence[tuple[Tensor, Tensor]], eps: float
    ) -> tuple[Tensor, list[Tensor]]: ...
    def place(
        self, qkv: Tensor, angles: Angles | None, cache: LayerCache, slots: Tensor
    ) -> Tensor: ...
    def attention(
        self, q: Tensor, cache: LayerCache, batch: Batch, slopes: Tensor | None
    ) -> Tensor: ...


def choose(device: torch.device) -> Ops:
    """The operations for `device`: plain torch everywhere until a faster twin exists."""
    return reference
