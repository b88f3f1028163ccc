"""Finds devices: by the name that was asked for, by a rank, by a tensor."""

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from gyrfalcon.device import HOST, KINDS
from gyrfalcon.device.protocol import Device
from gyrfalcon.errors import UsageError

log = logging.getLogger(__name__)


@cache
def kind_of(name: str) -> type[Device]:
    """The class of one of KINDS."""
    kind: type[Device] = import_module(f"gyrfalcon.device.{name}").KIND
    return kind


def kind_for(word: str) -> type[Device]:
    """What `auto` or one of KINDS means here; UsageError where this machine has none of them."""
    if word == "auto":
        return _best()
    kind = kind_of(word)
    if not kind.count():
        raise UsageError(f"a {KINDS[word]} device", *kind.lacking())
    return kind


def _best() -> type[Device]:
    """Of the kinds that are here the last in KINDS; warns of those passed over that do not load."""
    for name in reversed(KINDS):
        kind = kind_of(name)
        if kind.count():
            return kind
        if kind.is_broken():
            warn_once(name)
    raise AssertionError("a machine has a processor")


@cache
def warn_once(name: str) -> None:
    """Says what is broken of one of KINDS; an engine looks for its device several times."""
    got, do = kind_of(name).lacking()
    log.warning("no %s device: %s; %s", KINDS[name], got, do.replace("`", ""))


@cache
def device_of(torch_device: torch.device) -> Device:
    """The device of tensors that are there; those of kinds that are not ours count as the host's."""
    name = torch_device.type if torch_device.type in KINDS else HOST
    return kind_of(name)(torch_device)


def all_devices() -> list[Device]:
    """Every device of this machine, the host first."""
    return [kind.at(index) for kind in map(kind_of, KINDS) for index in range(kind.count())]


def send(tensor: Tensor, torch_device: torch.device) -> Tensor:
    """The tensor on the device, if it is not there already; the host does not wait for the copy."""
    if tensor.device == torch_device:
        return tensor
    return device_of(torch_device).pinned(tensor).to(torch_device, non_blocking=True)


def fetch(tensor: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
    """Queues a copy of the tensor to the host; the call that is returned waits for it, and raises what
    `check` does meanwhile.
    """
    return device_of(tensor.device).fetch(tensor, check)


def lacks_matrix_units(x: Tensor) -> bool:
    """Whether the device of x multiplies matrices of x's dtype several times as slowly as in float32."""
    return device_of(x.device).lacks_matrix_units(x.dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of this process or told by another rank, says that memory ran out."""
    told = ("out of memory", "can't allocate memory", "MemoryError")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in told
    )
