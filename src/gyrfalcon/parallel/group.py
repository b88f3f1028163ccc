"""Collectives between ranks: all-reduce, all-gather, the most likely tokens and messages, through shared
memory or a backend. A single rank needs neither.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.lookup import device_of
from gyrfalcon.device.protocol import Device
from gyrfalcon.errors import RankDied
from gyrfalcon.parallel.backend import TIMEOUT, Backend, open_backend
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.host_top_k import top_k_on_host
from gyrfalcon.parallel.shards import owned
from gyrfalcon.parallel.shared_memory import SharedMemory, share_memory

MOST_BYTES = 1 << 30  # of a message: that of the longest prompt has a tenth
SHORT_BYTES = 120  # of a message, or its beginning, that travels with its length
FRAME = struct.Struct(f"<q{SHORT_BYTES}s")


class Group:
    """One rank's end of a group. Tensors go through shared memory, if the ranks have it, and
    messages through the backend; a single rank has neither.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        backend: Backend | None,
        memory: SharedMemory | None = None,
        *,
        capturable: bool = True,
    ) -> None:
        self.rank = rank
        self.size = size
        self.capturable = capturable  # whether what it does can be part of a captured graph
        self._backend = backend
        self._memory = memory
        self._transport = memory or backend  # what tensors go through
        self.heartbeat = Heartbeat()
        self.before_close: list[Callable[[], object]] = []  # what close() calls first

    @property
    def memory(self) -> SharedMemory | None:
        """The memory that tensors go through, where the ranks share some, until the group is closed."""
        return self._memory

    @property
    def backend(self) -> Backend | None:
        """What messages go through, until the group is closed."""
        return self._backend

    def abort(self) -> bool:
        """Ends collectives that will never finish, with no result; whether that can be done. Any thread may
        call it while another waits for them.
        """
        return self._backend is not None and self._backend.abort()

    def close(self) -> None:
        """Ends the connections and their threads, which a process must not take along to its exit, after
        what has captured collectives: they keep the connections' end waiting.
        """
        for forget in self.before_close:
            forget()
        self.before_close.clear()
        if self._memory is not None:
            self._memory.close()
        if self._backend is not None:
            self._backend.abort()
        self._backend = self._memory = self._transport = None

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in place."""
        if self._transport is not None:
            self._transport.add(x)
        return x

    def all_gather(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Every rank's [rows, widths[rank]] side by side: [rows, sum(widths)], on every rank."""
        if self._transport is None:
            return x
        if not len(x):
            return x.new_empty(0, sum(widths))
        mine = torch.nn.functional.pad(x, (0, max(widths) - x.shape[1])).contiguous()
        parts = zip(self._transport.gather(mine), widths, strict=True)
        return torch.cat([part[:, :width] for part, width in parts], dim=1)

    def all_reduce_min(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        return number if self._backend is None else self._backend.all_reduce_min(number)

    def broadcast(self, message: bytes = b"") -> bytes:
        """Rank 0's message, on every rank; the others' argument is ignored. A short one, as that of
        most steps, takes a single broadcast.
        """
        if self._transport is None or self._backend is None:
            return message
        frame = _bytes_tensor(FRAME.pack(len(message), message[:SHORT_BYTES]))
        self._transport.broadcast(frame)
        length, beginning = FRAME.unpack(frame.numpy().tobytes())
        if length not in range(MOST_BYTES + 1):
            wanted = f"a message of at most {MOST_BYTES:,} bytes between ranks"
            raise RankDied(wanted, f"one of {length:,}", "start again")
        if length <= SHORT_BYTES:
            return bytes(beginning[:length])
        whole = torch.empty(length, dtype=torch.uint8) if self.rank else _bytes_tensor(message)
        self._backend.broadcast(whole)
        return whole.numpy().tobytes()


def _bytes_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Logits float32 [rows, tokens], of which every rank holds those of its own tokens."""

    group: Group
    widths: Sequence[int]  # tokens of every rank

    @classmethod
    def shared(cls, num_tokens: int, group: Group) -> "Vocabulary":
        """A vocabulary of this many tokens among the ranks of a group."""
        ranks = range(group.size)
        return cls(group, [len(owned(num_tokens, group.size, rank)) for rank in ranks])

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return sum(self.widths)

    def whole(self, own: Tensor) -> Tensor:
        """The logits of all tokens, on every rank: [rows, own tokens] → [rows, tokens]."""
        return self.group.all_gather(own, self.widths)

    def top_k(self, own: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """The `num` most likely tokens of each row, most likely first, of equals the lowest first:
        logits float32 and ids int64, both [rows, num], on every rank.

        Each rank finds those among its own tokens, and no more travels.
        """
        logits, places = stable_top_k(own, num)
        return (logits, places) if self.group.size == 1 else self._merged(logits, places, num)

    def _merged(self, logits: Tensor, places: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """top_k() of all ranks from what each found at which of its own tokens."""
        ids = places + sum(self.widths[: self.group.rank])
        pairs = torch.stack((logits.double(), ids.double()), dim=-1)  # float64 holds both exactly
        widths = [2 * min(num, width) for width in self.widths]
        everyones = self.group.all_gather(pairs.flatten(1), widths).unflatten(1, (-1, 2))
        # Of equals the first has the lowest id.
        logits, places = stable_top_k(everyones[:, :, 0], num)
        return logits.float(), everyones[:, :, 1].gather(1, places).long()


def stable_top_k(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` largest of each row, largest first, of equals the first first: values and places,
    both [rows, num]. NaN counts as larger than any number.
    """
    on_host = device_of(logits.device).on_host
    if num == 1 and on_host:  # numpy's is four times as fast
        places = torch.from_numpy(logits.numpy().argmax(axis=1, keepdims=True))
        return logits.gather(1, places), places
    if num == 1:
        return logits.max(dim=-1, keepdim=True)
    if on_host:
        return top_k_on_host(logits, num)
    values, places = logits.sort(dim=-1, descending=True, stable=True)
    return values[:, :num], places[:, :num]


def solo() -> Group:
    """The group of a single rank."""
    return Group(0, 1, None)


def connect(
    store: dist.Store,
    rank: int,
    size: int,
    *,
    kind: type[Device] = Cpu,
    one_device: bool = False,
    one_machine: bool = False,
    host: str | None = None,
    meeting: timedelta = TIMEOUT,
) -> Group:
    """Meets the other ranks at `store`. Tensors on the host travel over gloo, those on devices of
    `kind` over its collectives.

    one_device: the ranks share one, which its collectives may not allow; gloo then goes through the
    host. one_machine: the ranks are processes of one machine, and those on the CPU share memory
    where they can. `host` is the address to listen on; without one GLOO_SOCKET_IFNAME or the host's
    name decides. RuntimeError when a rank does not come within `meeting`.
    """
    if size == 1:
        return solo()
    backend = open_backend(
        store, rank, size, kind=kind, one_device=one_device, host=host, meeting=meeting
    )
    if one_machine and not (kind.on_host or one_device):
        sums = dist.PrefixStore("small sums", store)
        backend.small_sums = kind.small_sums(sums, rank, size, backend.all_reduce_min)
    memory = share_memory(backend, rank, size) if one_machine and kind.on_host else None
    backend.wait_for_ever()
    return Group(rank, size, backend, memory, capturable=not one_device)
