"""NVIDIA's cards, and AMD's in a torch built for ROCm, which has the same names for them."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gyrfalcon.device import KINDS
from gyrfalcon.device.cuda_symmetric import open_sums
from gyrfalcon.device.protocol import Device, Replay, SmallSums
from gyrfalcon.device.rates import copy_rate, product_rate, read_rate
from gyrfalcon.device.threads import torch_threads
from gyrfalcon.device.topology import node_of_pci
from gyrfalcon.device.waiting import wait_for
from gyrfalcon.errors import UsageError

EARLY_VARIABLE = "GYRFALCON_GPU_PDL"  # programmatic dependent launch


class Cuda(Device):
    """A card of its own for each rank."""

    name = "cuda"
    on_host = False
    operator_sets = ("triton", "reference")
    cache_share = 0.8  # the weights are loaded by then
    weights_at_once = 1 << 24
    prompt_sizes = (32, 64, 128, 256, 512)
    runs_ptx = torch.version.hip is None
    collectives = "RCCL" if torch.version.hip else "NCCL"  # torch calls both NCCL

    @classmethod
    def count(cls) -> int:
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    @classmethod
    def at(cls, index: int) -> "Cuda":
        return cls(torch.device(cls.name, index))

    @classmethod
    def of_rank(cls, local_rank: int) -> "Cuda":
        if local_rank >= cls.count():
            raise UsageError(
                f"a {KINDS[cls.name]} device for every rank on this machine",
                f"{cls.count()} of them",
                "use fewer ranks or `device=cpu`",
            )
        torch.cuda.set_device(local_rank)
        # cuBLAS may otherwise add the parts of a sum over a split row in the inputs' 16 bits.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        return cls.at(local_rank)

    @classmethod
    def has_collectives(cls) -> bool:
        return dist.is_nccl_available()

    @classmethod
    def add_collectives(
        cls, group: dist.ProcessGroup, store: dist.Store, rank: int, size: int
    ) -> Callable[[], None]:
        kinds = dist.ProcessGroup.BackendType
        options = dist.ProcessGroupNCCL.Options()
        nccl = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)
        group._register_backend(torch.device(cls.name), kinds.NCCL, nccl)
        return nccl.abort

    @classmethod
    def small_sums(
        cls, store: dist.Store, rank: int, size: int, agree: Callable[[int], int]
    ) -> SmallSums | None:
        own, others = cls.at(rank), (cls.at(other) for other in range(size) if other != rank)
        all_reached = all(own.reaches(other) for other in others)
        return open_sums(store, rank, size, own.torch_device, all_reached, agree)

    @classmethod
    def toolkit(cls) -> str | None:
        if torch.version.cuda:
            return f"CUDA {torch.version.cuda}"
        return f"ROCm {torch.version.hip}" if torch.version.hip else None

    @cached_property
    def model(self) -> str:
        return torch.cuda.get_device_name(self.torch_device)

    @cached_property
    def launches_early(self) -> bool:
        """From sm_90 on, if the environment says so: no card has confirmed it."""
        if not self.runs_ptx or os.environ.get(EARLY_VARIABLE) != "1":
            return False
        return torch.cuda.get_device_capability(self.torch_device) >= (9, 0)

    def memory(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return int(free), int(total)

    def numa_node(self) -> int | None:
        found = torch.cuda.get_device_properties(self.torch_device)
        place = [getattr(found, f"pci_{part}_id", -1) for part in ("domain", "bus", "device")]
        if -1 in place:  # a torch that does not tell
            return None
        return node_of_pci("{:04x}:{:02x}:{:02x}.0".format(*place))

    def reaches(self, other: Device) -> bool:
        return torch.cuda.can_device_access_peer(self.torch_device, other.torch_device)

    def forget_peak_memory(self, pids: Sequence[int]) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_memory(self, pids: Sequence[int]) -> list[int]:
        """One figure: what torch allocated in this process."""
        return [int(torch.cuda.max_memory_allocated(self.torch_device))]

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    def fetch(self, tensor: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
        on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        on_host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> Tensor:
            wait_for(copied.query, check)
            return on_host

        return wait

    def capture(self, work: Callable[[], Tensor]) -> Replay:
        """A graph, captured after a first run that compiles and allocates (torch.cuda.graphs). All have their
        memory of one pool: none replays while another does.
        """
        side, main = self._urgent, torch.cuda.current_stream(self.torch_device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            work()
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_memory):
            out = work()

        def replay(contexts: Sequence[int] = ()) -> Tensor:
            graph.replay()
            return out

        return replay

    def side_by_side(
        self, first: Callable[[], Tensor], second: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """In a graph, `first` on a stream of its own, of high priority.

        Memory that one stream gave back is taken by the same stream only, behind what used it. So it is
        never taken too early: what `first` reads of the main stream's is kept by its closure until the
        streams are joined, and what it takes itself is taken again in the next fork at the earliest, which
        waits for all that read it.
        """
        if not torch.cuda.is_current_stream_capturing():
            return first(), second()
        main, side = torch.cuda.current_stream(self.torch_device), self._urgent
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                one = first()
            return one, second()
        finally:
            main.wait_stream(side)  # after an error, too: a capture ends with all streams joined

    @cached_property
    def _urgent(self) -> Any:
        return torch.cuda.Stream(self.torch_device, priority=-1)

    @cached_property
    def _graph_memory(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def seconds_of(self, work: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def measure_bandwidth(self) -> float:
        return max(copy_rate(self), read_rate(self))

    def measure_matrix_peak(self, dtype: torch.dtype) -> float:
        with torch_threads(len(os.sched_getaffinity(0))):
            return product_rate(self, dtype)

    def require_fp8(self) -> None:
        pass  # kernels widen weights by their bits: no card has to multiply 8-bit floating point

    def lacks_matrix_units(self, dtype: torch.dtype) -> bool:
        return False


KIND = Cuda
