"""The operations of a model, and which implementation of them to use: chosen once per device, not per
call.
"""

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.device import KINDS
from gyrfalcon.device.protocol import Device
from gyrfalcon.errors import UsageError
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.native.library import library
from gyrfalcon.ops import reference
from gyrfalcon.ops.reference import AngleRows as AngleRows
from gyrfalcon.ops.reference import Angles as Angles
from gyrfalcon.ops.reference import Attend as Attend
from gyrfalcon.ops.reference import BlockWeights as BlockWeights
from gyrfalcon.ops.reference import LinearCall as LinearCall
from gyrfalcon.ops.reference import RunBlocks as RunBlocks
from gyrfalcon.ops.triton import scratch
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.shared_memory import SharedMemory
from gyrfalcon.quant import Quantised, Weight

VARIABLE = "GYRFALCON_OPS"
OF_ANY_KIND = ("triton", "native", "reference")
# A kind of device may have a set of its own, in a folder here of the same name.
OWN = tuple(kind for kind in KINDS if find_spec(f"{__name__}.{kind}"))
NAMES = (*OF_ANY_KIND, *OWN)


class Ops(Protocol):
    """One implementation of every operation; `ops/reference.py` says what each means."""

    CAPTURABLE: bool  # whether a captured graph can hold them: they take lengths from the device

    def own_threads(self, quant: str) -> bool:
        """Whether products with weights in `quant` are computed on threads other than torch's."""

    def fuse_blocks(
        self,
        loop: RunBlocks,
        weights: Sequence[BlockWeights],
        memory: SharedMemory | None,
        heartbeat: Heartbeat,
    ) -> RunBlocks: ...
    def prepack(self, weight: Quantised) -> Quantised: ...
    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None
    ) -> Tensor: ...
    def logits(self, x: Tensor, weight: Weight) -> Tensor: ...
    def branches(
        self, qkv: LinearCall, attend: Attend, up: LinearCall
    ) -> tuple[Tensor, Tensor]: ...
    def sum_of_linears(self, *each: tuple[Tensor, Weight], as_parts: bool = False) -> Tensor: ...
    def add_layer_norms(
        self, x: Tensor, part: Tensor | None, norms: Sequence[tuple[Tensor, Tensor]], eps: float
    ) -> tuple[Tensor, list[Tensor]]: ...
    def rotary_and_cache(
        self, qkv: Tensor, angles: Angles | None, cache: LayerCache, slots: Tensor
    ) -> Tensor: ...
    def attention(
        self, q: Tensor, cache: LayerCache, batch: AttentionMetadata, slopes: Tensor | None
    ) -> Tensor: ...


def choose(device: Device, quant: str = "none", processors: Sequence[int] = ()) -> Ops:
    """The operations for `device`: the first of its operator sets that is installed here, or what
    the environment variable GYRFALCON_OPS says (one of NAMES). UsageError where the device does not
    support weights quantised to `quant`. Native kernels pin their threads to
    `processors`.
    """
    if quant == "fp8":
        device.require_fp8()
    name = chosen_name(device)
    if name in OWN:
        own: Ops = import_module(f"{__name__}.{name}.ops").open_set(device)
        return own
    return _IMPLEMENTATIONS[name](processors)


def scratch_bytes(device: Device, largest: int, dtype: torch.dtype) -> int:
    """What linears with quantised matrices of at most `largest` weights take of a card's memory beside
    results, which the KV cache has to leave.
    """
    if chosen_name(device) != "triton":
        return 0
    return scratch.scratch_bytes(largest, dtype)


def chosen_name(device: Device) -> str:
    """One of NAMES; UsageError for a name that is none of them, or one that cannot run here."""
    name = os.environ.get(VARIABLE) or _default(device)
    if name not in NAMES:
        raise UsageError(f"{VARIABLE} {' or '.join(NAMES)}", repr(name), "correct or unset it")
    if name == "triton" and not find_spec("triton"):
        raise UsageError(f"Triton for {VARIABLE}=triton", "none installed", "pip install triton")
    if name == "triton" and device.on_host and os.environ.get("TRITON_INTERPRET") != "1":
        do = "unset it, or set TRITON_INTERPRET=1 to have its kernels interpreted"
        raise UsageError(f"a GPU for {VARIABLE}=triton", "the CPU", do)
    if name in OWN and name not in device.operator_sets:
        raise UsageError(f"the device for {VARIABLE}={name}", str(device), "unset it")
    if name == "native" and not device.on_host:
        raise UsageError(f"the CPU for {VARIABLE}=native", str(device), "unset it")
    if name == "native" and library() is None:
        do = "install the package again with a C++ compiler at hand, without GYRFALCON_NATIVE=0"
        raise UsageError(f"native kernels for {VARIABLE}=native", "none built", do)
    return name


def _default(device: Device) -> str:
    return next(name for name in device.operator_sets if _installed(name))


def _installed(name: str) -> bool:
    if name == "triton":
        return find_spec("triton") is not None
    return name != "native" or library() is not None


def _triton(_: Sequence[int]) -> Ops:
    from gyrfalcon.ops.triton import ops as triton_ops

    return triton_ops


def _native(processors: Sequence[int]) -> Ops:
    from gyrfalcon.ops import native

    native.use_threads(torch.get_num_threads(), processors)
    native.use_activations(os.environ.get(native.ACTIVATIONS_VARIABLE) or "auto")
    return native


_IMPLEMENTATIONS: dict[str, Callable[[Sequence[int]], Ops]] = {
    "triton": _triton,
    "native": _native,
    "reference": lambda _: reference,
}
