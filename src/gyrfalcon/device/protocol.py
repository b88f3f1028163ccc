"""What parallel/, engine/, ops/ and measure/ ask of a device; each kind answers in a file of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from time import perf_counter
from typing import ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class CannotCapture(Exception):
    """Work cannot become a graph here, and is launched operator by operator; str() says why."""


class Replay(Protocol):
    """Launches a captured graph; `contexts` are the tokens that each sequence attends to, for operators that
    take them from the host.
    """

    def __call__(self, contexts: Sequence[int] = ()) -> Tensor: ...


class SmallSums(Protocol):
    """Sums of few bytes over ranks."""

    def takes(self, x: Tensor) -> bool:
        """Whether x can be summed so, the same on all ranks."""

    def add(self, x: Tensor) -> None:
        """`x` becomes the sum of all ranks' `x`."""


class Device(ABC):
    """One device as a rank uses it: `torch_device` is where its tensors are."""

    # Of the kind.
    name: ClassVar[str]  # as --device takes it, and torch.device.type
    # The host computes: results are there when a call returns, and the ranks of a machine share its cores
    # and memory. Else work is queued, and each rank has a device of its own.
    on_host: ClassVar[bool]
    operator_sets: ClassVar[Sequence[str]]  # that can run on it, the default ones first (ops/)
    cache_share: ClassVar[float]  # of the free memory for the KV cache, unless the user says
    # To quantise: what a core's cache holds, or enough to fill a card.
    weights_at_once: ClassVar[int]
    collectives: ClassVar[str]  # the library that sums over ranks
    # Batches that are captured, in sequences.
    graph_sizes: ClassVar[Sequence[int]] = (1, 2, 4, 8, 16, 32, 64, 128)
    prompt_sizes: ClassVar[Sequence[int]] = ()  # tokens of a prompt alone that are captured
    # Of the KV cache, for the padding of captured batches: where operators have no slot that says nowhere.
    spare_blocks: ClassVar[int] = 0
    chooses_in_graphs: ClassVar[bool] = True  # the choice of a token is captured with the model
    runs_ptx: ClassVar[bool] = False  # whether kernels for it may have NVIDIA's assembly in them
    # Other hardware computes in its place, in tests: results are its own, times are not, and none are told.
    emulated: ClassVar[bool] = False

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device

    def __str__(self) -> str:
        return str(self.torch_device)

    @property
    def label(self) -> str:
        """What results call its kind."""
        return f"{self.name} (emulated)" if self.emulated else self.name

    @classmethod
    @abstractmethod
    def count(cls) -> int:
        """How many this machine has; 0 where torch cannot use one."""

    @classmethod
    def lacking(cls) -> tuple[str, str]:
        """Where there are none: what there is instead, and what to do."""
        return "none", "use `device=cpu`, or install a torch built for your card"

    @classmethod
    def is_broken(cls) -> bool:
        """Whether there are none because what is installed for them does not load."""
        return False

    @classmethod
    def block_size(cls, least: int) -> int:
        """The tokens of a cache block that its operators read, at least this many; UsageError where they
        read none as large.
        """
        return least

    @classmethod
    @abstractmethod
    def at(cls, index: int) -> "Device":
        """One of them."""

    @classmethod
    @abstractmethod
    def of_rank(cls, local_rank: int) -> "Device":
        """What this rank of the machine's ranks computes on from now on; UsageError where there are too
        few.
        """

    @classmethod
    @abstractmethod
    def has_collectives(cls) -> bool:
        """Whether torch was built with them."""

    @classmethod
    @abstractmethod
    def add_collectives(
        cls, group: dist.ProcessGroup, store: dist.Store, rank: int, size: int
    ) -> Callable[[], None] | None:
        """Gives the group what sums tensors on such devices; it has gloo for those on the host. Returns
        what ends that whatever it waits for, where there is such a thing.
        """

    @classmethod
    def small_sums(
        cls, store: dist.Store, rank: int, size: int, agree: Callable[[int], int]
    ) -> SmallSums | None:
        """What sums few bytes over ranks that are all on this machine, each on its device, faster than the
        group, if all of them have that; `agree` is the smallest of the ranks' numbers.
        """
        return None

    @classmethod
    @abstractmethod
    def toolkit(cls) -> str | None:
        """What torch was built with to use such devices, and its version."""

    @property
    @abstractmethod
    def model(self) -> str:
        """What the maker calls it, as `NVIDIA H200`; nothing for the host's processor."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Bytes that could still be allocated, and all there are."""

    @cached_property
    def launches_early(self) -> bool:
        """Whether a kernel may begin while the one before it ends, and waits for it where it has to."""
        return False

    def numa_node(self) -> int | None:
        """The node of the host's memory that it is attached to; None where that is not known."""
        return None

    def reaches(self, other: "Device") -> bool | None:
        """Whether it reads the memory of another one directly; None where that is not known."""
        return None

    @abstractmethod
    def forget_peak_memory(self, pids: Sequence[int]) -> None:
        """Lets peak_memory() start from now. `pids` are the processes of all ranks."""

    @abstractmethod
    def peak_memory(self, pids: Sequence[int]) -> list[int]:
        """The most bytes held since, a figure for each process that can be seen from here."""

    @abstractmethod
    def pinned(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory that the device can copy from while the host goes on."""

    @abstractmethod
    def fetch(self, tensor: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
        """Queues a copy to the host behind what computes the tensor; the call that is returned waits for
        it, and raises what `check` does, which it calls meanwhile: a rank may be gone.
        """

    @abstractmethod
    def capture(self, work: Callable[[], Tensor]) -> Replay:
        """What launches all of `work` at once, again and again on the same tensors; CannotCapture where
        that cannot be had.
        """

    def side_by_side(
        self, first: Callable[[], Tensor], second: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What both give, neither of which needs the other. Where they are captured, a device may run them
        at the same time, the first before the second where it has to choose; what is queued next waits for
        both.
        """
        return first(), second()

    @abstractmethod
    def synchronise(self) -> None:
        """Waits until the device has done its work."""

    def seconds_of(self, work: Callable[[], object]) -> float:
        """How long the device is busy with what `work` queues; by the host's clock where it has no own."""
        start = perf_counter()
        work()
        self.synchronise()
        return perf_counter() - start

    @abstractmethod
    def measure_bandwidth(self) -> float:
        """Bytes a second between the device and its memory: the best of several passes."""

    @abstractmethod
    def measure_matrix_peak(self, dtype: torch.dtype) -> float:
        """Floating-point operations a second of large square matrix products in torch, 2n³ for n × n
        (a multiplication and an addition each): the best of several sizes and rounds.
        """

    @abstractmethod
    def require_fp8(self) -> None:
        """UsageError where it lacks 8-bit floating point."""

    @abstractmethod
    def lacks_matrix_units(self, dtype: torch.dtype) -> bool:
        """Whether matrix products in float32 are several times as fast as in this dtype."""
