"""Huawei's Ascend cards, by torch_npu: imported when such a device is asked for, or looked for where it is
installed. docs/ascend.md has the versions and what was tried without a card.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gyrfalcon.device.host import Host
from gyrfalcon.device.npu_collectives import hccl_group
from gyrfalcon.device.npu_graphs import GraphTasks, capture
from gyrfalcon.device.npu_setup import pci_address
from gyrfalcon.device.protocol import Device, Replay
from gyrfalcon.device.rates import copy_rate, product_rate
from gyrfalcon.device.threads import torch_threads
from gyrfalcon.device.topology import node_of_pci
from gyrfalcon.device.waiting import wait_for
from gyrfalcon.errors import UsageError

PACKAGE = "torch_npu"
# Of a cache block: what npu_fused_infer_attention_score reads for prompts; its documents advise the first.
BLOCK_SIZES = (128, 256, 384, 512)


class Npu(Device):
    """A card of its own for each rank."""

    name = "npu"
    on_host = False
    operator_sets = ("npu", "reference")
    cache_share = 0.8  # the weights are loaded by then
    weights_at_once = 1 << 24
    collectives = "HCCL"
    graph_sizes = (1, 4, 16, 64)  # each is captured twice, and CANN has few streams and events
    spare_blocks = 1
    chooses_in_graphs = (
        False  # ranks merge in float64, which its AI processor computes: no graph holds that
    )

    @classmethod
    def count(cls) -> int:
        found, _ = find_torch_npu()
        return 0 if found is None or not found.npu.is_available() else found.npu.device_count()

    @classmethod
    def lacking(cls) -> tuple[str, str]:
        found, why_not = find_torch_npu()
        if found is None and find_spec(PACKAGE) is None:
            return (
                why_not,
                f"install the {PACKAGE} that fits torch {torch.__version__}, or use `device=cpu`",
            )
        if found is None:
            return why_not, "source the set_env.sh of CANN, or use `device=cpu`"
        return (
            f"{PACKAGE} {_version()} and no card",
            "see what npu-smi info says, or use `device=cpu`",
        )

    @classmethod
    def is_broken(cls) -> bool:
        found, _ = find_torch_npu()
        return found is None and find_spec(PACKAGE) is not None

    @classmethod
    def block_size(cls, least: int) -> int:
        for size in BLOCK_SIZES:
            if size >= least:
                return size
        raise UsageError(
            f"a `block_size` of at most {BLOCK_SIZES[-1]} on {cls.name}", str(least), "lower it"
        )

    @classmethod
    def at(cls, index: int) -> "Npu":
        return cls(torch.device(cls.name, index))

    @classmethod
    def of_rank(cls, local_rank: int) -> "Npu":
        if local_rank >= cls.count():
            raise UsageError(
                "an Ascend card for every rank on this machine",
                f"{cls.count()} of them",
                "use fewer ranks or `device=cpu`",
            )
        _torch_npu().npu.set_device(local_rank)
        return cls.at(local_rank)

    @classmethod
    def has_collectives(cls) -> bool:
        found, _ = find_torch_npu()
        return found is not None and hasattr(found._C, "_distributed_c10d")

    @classmethod
    def add_collectives(
        cls, group: dist.ProcessGroup, store: dist.Store, rank: int, size: int
    ) -> Callable[[], None] | None:
        c10d = _torch_npu()._C._distributed_c10d
        hccl = hccl_group(c10d, store, rank, size, os.environ)
        group._register_backend(torch.device(cls.name), dist.ProcessGroup.BackendType.CUSTOM, hccl)
        abort: Callable[[], None] = hccl.abort
        return abort

    @classmethod
    def toolkit(cls) -> str | None:
        return f"{PACKAGE} {_version()}" if find_spec(PACKAGE) else None

    @cached_property
    def model(self) -> str:
        return str(_torch_npu().npu.get_device_name(self.torch_device))

    def memory(self) -> tuple[int, int]:
        free, total = _torch_npu().npu.mem_get_info(self.torch_device)
        return int(free), int(total)

    def numa_node(self) -> int | None:
        address = pci_address(Host(), self.torch_device.index or 0)
        return None if address is None else node_of_pci(address)

    def reaches(self, other: Device) -> bool | None:
        ask = getattr(_torch_npu().npu, "can_device_access_peer", None)
        return None if ask is None else bool(ask(self.torch_device.index, other.torch_device.index))

    def forget_peak_memory(self, pids: Sequence[int]) -> None:
        _torch_npu().npu.reset_peak_memory_stats(self.torch_device)

    def peak_memory(self, pids: Sequence[int]) -> list[int]:
        """One figure: what torch allocated in this process."""
        return [int(_torch_npu().npu.max_memory_allocated(self.torch_device))]

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    def fetch(self, tensor: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
        on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        on_host.copy_(tensor, non_blocking=True)
        copied = _torch_npu().npu.Event()
        copied.record()

        def wait() -> Tensor:
            wait_for(copied.query, check)
            return on_host

        return wait

    @cached_property
    def graph_tasks(self) -> GraphTasks:
        """Through which operators that take lengths from the host get into a graph."""
        return GraphTasks()

    def capture(self, work: Callable[[], Tensor]) -> Replay:
        return capture(_torch_npu().npu, self.graph_tasks, self.torch_device, work)

    def synchronise(self) -> None:
        _torch_npu().npu.synchronize(self.torch_device)

    def measure_bandwidth(self) -> float:
        return copy_rate(self)

    def measure_matrix_peak(self, dtype: torch.dtype) -> float:
        with torch_threads(len(os.sched_getaffinity(0))):
            return product_rate(self, dtype)

    def require_fp8(self) -> None:
        do = "choose int8, which takes as much memory and is closer"
        raise UsageError("a card with 8-bit floating point for fp8", "an Ascend card", do)

    def lacks_matrix_units(self, dtype: torch.dtype) -> bool:
        return False


@cache
def find_torch_npu() -> tuple[Any, str]:
    """The module torch_npu, imported now; or None, and why it is not there."""
    if find_spec(PACKAGE) is None:
        return None, f"no {PACKAGE}"
    try:
        return import_module(PACKAGE), ""
    except Exception as error:  # whatever a library that lacks its own may raise
        return None, f"a {PACKAGE} that does not import: {' '.join(str(error).split())}"


def _torch_npu() -> Any:
    found, _ = find_torch_npu()
    assert found is not None, "only counted devices are used"
    return found


def _version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:  # a folder on the path
        return "of no version"


KIND = Npu
