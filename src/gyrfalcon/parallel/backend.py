"""Connections between ranks on any machines, by torch.distributed: gloo for tensors on the host,
and for those of a device what it has for them.

Connections are objects, never the process-wide default group, so that several engines can live in
one process.
"""

import os
import threading
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from gyrfalcon.device.protocol import Device, SmallSums
from gyrfalcon.native.library import RankGone

# A worker waits for its next message as long as the engine lives. A rank that dies closes its
# connections at once, which ends the waiting of all others.
TIMEOUT = timedelta(days=30)
ABORT_SECONDS = 5.0
INTERFACES = "GLOO_SOCKET_IFNAME"  # as torch calls it, which reads it for its own groups alone

# The gloo of torch 2.7.1 keeps the timeout that it was opened with; that of 2.13 takes another.
TIMEOUT_CAN_CHANGE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)


class Backend:
    """One rank's end of the connections. What waits raises RankGone when another rank's are closed,
    as they are when it dies.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        gloo: dist.ProcessGroupGloo,
        abort: Callable[[], None] | None = None,
    ) -> None:
        """`abort` ends the collectives of a device, whatever they wait for."""
        self._group, self._gloo, self._abort = group, gloo, abort
        self.small_sums: SmallSums | None = None

    def abort(self) -> bool:
        """Ends what the device has under way, with no result; whether there is such a thing. Gloo's waits end
        when the process at their other end does. The call may itself wait for ever, for a kernel of a rank
        that is gone or a graph that somebody still has: then a thread waits in our place.
        """
        abort, self._abort = self._abort, None
        if abort is None:
            return False
        ending = threading.Thread(target=abort, name="abort collectives", daemon=True)
        ending.start()
        ending.join(ABORT_SECONDS)
        return True

    def wait_for_ever(self) -> None:
        """The ranks have met: from here on it waits as long as they live."""
        self._gloo._set_default_timeout(TIMEOUT)

    def add(self, x: Tensor) -> None:
        """`x` becomes the sum of all ranks' `x`."""
        if self.small_sums is not None and self.small_sums.takes(x):
            self.small_sums.add(x)
        else:
            self._complete(self._group.allreduce, [x])

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's `x`, which have one shape."""
        parts = [torch.empty_like(x) for _ in range(self._group.size())]
        self._complete(self._group.allgather, [parts], [x])
        return parts

    def all_reduce_min(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        smallest = torch.tensor([number])
        self._complete(self._group.allreduce, [smallest], dist.ReduceOp.MIN)
        return int(smallest)

    def broadcast(self, x: Tensor) -> None:
        """`x` becomes rank 0's."""
        self._complete(self._group.broadcast, [x])

    def _complete(self, collective: Callable[..., dist.Work], *arguments: object) -> None:
        """Starts a collective and waits for its end."""
        try:
            collective(*arguments).wait()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch has no class of its own for a closed connection
            raise RankGone from error


def open_backend(
    store: dist.Store,
    rank: int,
    size: int,
    *,
    kind: type[Device],
    one_device: bool,
    host: str | None,
    meeting: timedelta,
) -> Backend:
    """Meets the other ranks at `store` and waits for them no longer than `meeting`, until it is told
    otherwise; see group.connect().
    """
    kinds = dist.ProcessGroup.BackendType
    group = dist.ProcessGroup(store, rank, size)
    limit = meeting if TIMEOUT_CAN_CHANGE else TIMEOUT
    gloo = _gloo(dist.PrefixStore("gloo", store), rank, size, host, limit)
    group._register_backend(torch.device("cpu"), kinds.GLOO, gloo)
    abort = None
    if one_device:
        group._register_backend(torch.device(kind.name), kinds.GLOO, gloo)
    else:
        abort = kind.add_collectives(group, store, rank, size)
    return Backend(group, gloo, abort)


def _gloo(
    store: dist.Store, rank: int, size: int, host: str | None, timeout: timedelta
) -> dist.ProcessGroupGloo:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # torch's stubs lack it
    options._timeout = timeout
    options._threads = 1
    options._devices = [_device(host)]
    return dist.ProcessGroupGloo(store, rank, size, options)


def _device(host: str | None) -> dist.ProcessGroupGloo.Device:
    """Where gloo listens: the default device knows the host's name alone."""
    make = dist.ProcessGroupGloo.create_device
    if host is not None:
        return make(hostname=host)
    if interfaces := os.environ.get(INTERFACES):
        return make(interface=interfaces.split(",")[0])
    return dist.ProcessGroupGloo.create_default_device()
