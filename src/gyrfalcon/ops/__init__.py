"""The operations a model is made of, and the choice of their implementation: once per device, never
per call.
"""

from typing import Protocol

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference


class Ops(Protocol):
    """One implementation of every operation; `ops/reference.py` says what each means."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor: ...
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor: ...
    def activate(self, x: Tensor, name: str) -> Tensor: ...
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...
    def write_kv(self, k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None: ...
    def attention(
        self, q: Tensor, cache: LayerCache, batch: Batch, slopes: Tensor | None
    ) -> Tensor: ...


def choose(device: torch.device) -> Ops:
    """The operations for `device`: plain torch everywhere until a faster twin exists."""
    return reference
