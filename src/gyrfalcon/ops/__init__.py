"""The operations a model is made of, and the choice of their implementation: once per device, never
per call.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.device import capability
from gyrfalcon.errors import UsageError
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference
from gyrfalcon.ops.reference import Angles as Angles
from gyrfalcon.quant import Weight

VARIABLE = "GYRFALCON_OPS"
NAMES = ("triton", "reference")
FP8_CAPABILITY = (8, 9)  # of cards with 8-bit floating point


class Ops(Protocol):
    """One implementation of every operation; `ops/reference.py` says what each means."""

    CAPTURABLE: bool  # whether a CUDA graph can hold them: they take lengths from the device

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


def choose(device: torch.device, quant: str = "none") -> Ops:
    """The operations for `device`: Triton's kernels on CUDA, plain torch elsewhere, or what the
    environment variable GYRFALCON_OPS says (`triton` or `reference`). UsageError where the device
    cannot multiply with weights rounded to `quant`.
    """
    if quant == "fp8" and (card := capability(device)) is not None and card < FP8_CAPABILITY:
        wanted = f"a card of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} for fp8"
        got = f"one of {card[0]}.{card[1]}"
        raise UsageError(wanted, got, "choose int8, which takes as much memory and is closer")
    return _triton() if chosen_name(device) == "triton" else reference


def chosen_name(device: torch.device) -> str:
    """triton or reference; UsageError for a name that is neither, or Triton where it is missing."""
    default = "triton" if device.type == "cuda" and find_spec("triton") else "reference"
    name = os.environ.get(VARIABLE) or default
    if name not in NAMES:
        raise UsageError(f"{VARIABLE} {' or '.join(NAMES)}", repr(name), "mend or unset it")
    if name == "triton" and not find_spec("triton"):
        raise UsageError(f"Triton for {VARIABLE}=triton", "none installed", "pip install triton")
    if name == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        do = "unset it, or set TRITON_INTERPRET=1 to have its kernels interpreted"
        raise UsageError(f"a GPU for {VARIABLE}=triton", "the CPU", do)
    return name


def _triton() -> Ops:
    from gyrfalcon.ops import triton_ops

    return triton_ops
