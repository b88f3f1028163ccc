"""A torch_npu for machines without cards: its operators are the kernels of kernels.py, and its cards are
the host, whose results say so.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import npu_kernels as kernels
import psutil
import pytest
import torch
import torch.distributed as dist
from npu_graph_emulation import emulated_cards
from torch import Tensor

from gyrfalcon.device import lookup, npu
from gyrfalcon.ops import reference

CARDS = 8
HOST_LISTS = ("actual_seq_lengths", "actual_seq_lengths_kv")


def fake_torch_npu(version: str = kernels.NEWEST, without: Sequence[str] = ()) -> ModuleType:
    """A module with the operators of one version, but for those named in `without`."""
    kernels.install()
    module = ModuleType("torch_npu")
    module.__spec__ = ModuleSpec("torch_npu", None)
    for full_name, schema in kernels.schemas(version).items():
        name, _, overload = full_name.partition(".")
        if full_name not in without and name not in without:
            operator = _operator(name, overload or "default", schema)
            setattr(getattr(module, name) if overload else module, overload or name, operator)
    setattr(module, "npu", emulated_cards(CARDS, without))  # noqa: B010  # mypy knows no such attribute
    return module


def _operator(name: str, overload: str, schema: str) -> Callable[..., object]:
    """An operator that takes the arguments of its version alone, and lengths as lists on the host."""
    known = {argument.name for argument in torch._C.parse_schema(schema).arguments}
    operator = getattr(getattr(getattr(torch.ops, schema.partition("::")[0]), name), overload)

    def call(*arguments: object, **named: object) -> object:
        if unknown := named.keys() - known:
            raise TypeError(f"{name}() got unexpected arguments {sorted(unknown)}")
        for each in HOST_LISTS:
            lengths = named.get(each)
            whole = isinstance(lengths, list) and all(type(one) is int for one in lengths)
            kernels.require(lengths is None or whole, f"{each} as a list on the host", lengths)
        return operator(*arguments, **named)

    return call


class EmulatedNpu(npu.Npu):
    """A card that is the host: tensors are the CPU's."""

    emulated = True
    cache_share = 0.1

    def __str__(self) -> str:
        return self.label

    @classmethod
    def count(cls) -> int:
        return CARDS

    @classmethod
    def at(cls, index: int) -> "npu.Npu":
        return cls(torch.device("cpu"))

    @classmethod
    def of_rank(cls, local_rank: int) -> "npu.Npu":
        return cls.at(local_rank)

    @classmethod
    def has_collectives(cls) -> bool:
        return False

    @classmethod
    def add_collectives(
        cls, group: dist.ProcessGroup, store: dist.Store, rank: int, size: int
    ) -> None:
        pass  # the group has gloo for tensors on the host

    @property
    def model(self) -> str:
        return "CPU kernels, no Ascend card"

    def memory(self) -> tuple[int, int]:
        found = psutil.virtual_memory()
        return int(found.available), int(found.total)

    def forget_peak_memory(self, pids: Sequence[int]) -> None:
        pass

    def peak_memory(self, pids: Sequence[int]) -> list[int]:
        return []

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor

    def fetch(self, tensor: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
        return lambda: tensor

    def synchronise(self) -> None:
        pass

    def measure_bandwidth(self) -> float:
        raise AssertionError("an emulated device has no speed")

    def measure_matrix_peak(self, dtype: torch.dtype) -> float:
        raise AssertionError("an emulated device has no speed")


def emulate(patch: pytest.MonkeyPatch, module: ModuleType | None = None) -> None:
    """Until `patch` is undone, `device=npu` is the emulated device. Torch's own GELU is another function
    on a card, and so it is here, for our operators.
    """
    patch.setitem(sys.modules, "torch_npu", module or fake_torch_npu())
    for name, member in vars(EmulatedNpu).items():
        if not name.startswith("__") or name == "__str__":
            patch.setattr(npu.Npu, name, member, raising=False)
    gelu_of_cards = reference.ACTIVATIONS["gelu_tanh"]
    patch.setitem(reference.ACTIVATIONS, "gelu", gelu_of_cards)
    patch.setattr(kernels, "MACHINE", kernels.Machine())
    lookup.device_of.cache_clear()
    npu.find_torch_npu.cache_clear()


def emulate_for_good() -> None:
    """What site/ does in the processes that a test starts with it in PYTHONPATH. They compute in float32 as
    well where GYRFALCON_EMULATED_FLOAT32 is set.
    """
    emulate(pytest.MonkeyPatch())
    if os.environ.get("GYRFALCON_EMULATED_FLOAT32"):
        admit_float32()


def admit_float32() -> None:
    """Lets the emulated operators take float32, which no card does: for exact comparisons."""
    kernels.MACHINE.dtypes = (*kernels.HALVES, torch.float32)
