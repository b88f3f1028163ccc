"""What ranks say to each other: sums, concatenations and messages over torch.distributed; one rank says nothing.

Groups are objects, never the process-wide default group, so that several engines can live in one process.
"""

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# A worker waits for its next message as long as the engine lives; a rank that dies closes its connections at once.
PATIENCE = timedelta(days=30)


class Group:
    """One rank's end of a group. `wires` carries tensors, `control` carries messages (always on the CPU)."""

    def __init__(
        self,
        rank: int,
        size: int,
        wires: dist.ProcessGroup | None,
        control: dist.ProcessGroup | None,
    ) -> None:
        self.rank = rank
        self.size = size
        self._wires = wires
        self._control = control

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in place."""
        if self._wires is not None:
            self._wires.allreduce([x]).wait()
        return x

    def concatenate(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Every rank's [rows, widths[rank]] side by side: [rows, sum(widths)], the same on every rank."""
        if self._wires is None:
            return x
        if not len(x):
            return x.new_empty(0, sum(widths))
        widest = max(widths)
        mine = torch.nn.functional.pad(x, (0, widest - x.shape[1])).contiguous()
        parts = [torch.empty_like(mine) for _ in widths]
        self._wires.allgather([parts], [mine]).wait()
        return torch.cat(
            [part[:, :width] for part, width in zip(parts, widths, strict=True)], dim=1
        )

    def smallest(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        if self._control is None:
            return number
        parts = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        self._control.allgather([parts], [torch.tensor([number])]).wait()
        return min(int(part) for part in parts)

    def broadcast(self, message: bytes = b"") -> bytes:
        """Rank 0's message, on every rank; the others' argument is ignored."""
        if self._control is None:
            return message
        length = torch.tensor([len(message)])
        self._control.broadcast([length]).wait()
        if not int(length):
            return b""
        body = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            body = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        self._control.broadcast([body]).wait()
        return body.numpy().tobytes()


def solo() -> Group:
    """The group of a single rank."""
    return Group(0, 1, None, None)


def connect(
    store: dist.Store, rank: int, size: int, *, device: str = "cpu", host: str | None = None
) -> Group:
    """Meets the other ranks at `store`. `host` is the address to listen on; None lets GLOO_SOCKET_IFNAME decide."""
    if size == 1:
        return solo()
    control = _gloo(dist.PrefixStore("control", store), rank, size, host)
    if device != "cuda":
        return Group(rank, size, control, control)
    wires = dist.ProcessGroupNCCL(dist.PrefixStore("wires", store), rank, size)
    return Group(rank, size, wires, control)


def _gloo(store: dist.Store, rank: int, size: int, host: str | None) -> dist.ProcessGroup:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = PATIENCE
    options._threads = 1
    if host is None:
        options._devices = [dist.ProcessGroupGloo.create_default_device()]
    else:
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    return dist.ProcessGroupGloo(store, rank, size, options)
