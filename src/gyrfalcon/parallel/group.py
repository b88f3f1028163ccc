"""What ranks say to each other: sums, concatenations, likeliest tokens and messages over
torch.distributed; one rank says nothing.

Groups are objects, never the process-wide default group, so that several engines can live in one
process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from gyrfalcon.parallel.shards import owned

# A worker waits for its next message as long as the engine lives. A rank that dies closes its
# connections at once, which ends the waiting of all others.
PATIENCE = timedelta(days=30)


class Group:
    """One rank's end of a group. Tensors travel by their device: gloo on the CPU, NCCL on CUDA."""

    def __init__(
        self, rank: int, size: int, wires: dist.ProcessGroup | None, *, capturable: bool = True
    ) -> None:
        self.rank = rank
        self.size = size
        self.capturable = capturable  # whether what it does can be part of a CUDA graph
        self._wires = wires

    def close(self) -> None:
        """Ends the connections and their threads, which a process must not take along to its exit."""
        self._wires = None

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks, in place."""
        if self._wires is not None:
            self._wires.allreduce([x]).wait()
        return x

    def concatenate(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Every rank's [rows, widths[rank]] side by side: [rows, sum(widths)], on every rank."""
        if self._wires is None:
            return x
        if not len(x):
            return x.new_empty(0, sum(widths))
        mine = torch.nn.functional.pad(x, (0, max(widths) - x.shape[1])).contiguous()
        parts = [torch.empty_like(mine) for _ in widths]
        self._wires.allgather([parts], [mine]).wait()
        return torch.cat(
            [part[:, :width] for part, width in zip(parts, widths, strict=True)], dim=1
        )

    def smallest(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        smallest = torch.tensor([number])
        if self._wires is not None:
            self._wires.allreduce([smallest], dist.ReduceOp.MIN).wait()
        return int(smallest)

    def broadcast(self, message: bytes = b"") -> bytes:
        """Rank 0's message, on every rank; the others' argument is ignored."""
        if self._wires is None:
            return message
        length = torch.tensor([len(message)])
        self._wires.broadcast([length]).wait()
        body = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0 and message:
            body = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        if int(length):
            self._wires.broadcast([body]).wait()
        return body.numpy().tobytes()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Logits float32 [rows, tokens], of which every rank holds those of its own tokens."""

    group: Group
    widths: Sequence[int]  # tokens of every rank

    @classmethod
    def shared(cls, num_tokens: int, group: Group) -> "Vocabulary":
        """A vocabulary of so many tokens among the ranks of a group."""
        ranks = range(group.size)
        return cls(group, [len(owned(num_tokens, group.size, rank)) for rank in ranks])

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return sum(self.widths)

    def whole(self, own: Tensor) -> Tensor:
        """The logits of all tokens, on every rank: [rows, own tokens] → [rows, tokens]."""
        return self.group.concatenate(own, self.widths)

    def likeliest(self, own: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """The `num` likeliest tokens of each row, likeliest first, of equals the lowest first:
        logits float32 and ids int64, both [rows, num], on every rank.

        Each rank finds those among its own tokens, and no more travels.
        """
        logits, places = ranked(own, num)
        return (logits, places) if self.group.size == 1 else self._merged(logits, places, num)

    def _merged(self, logits: Tensor, places: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """likeliest() of all ranks from what each found at which of its own tokens."""
        ids = places + sum(self.widths[: self.group.rank])
        pairs = torch.stack((logits.double(), ids.double()), dim=-1)  # float64 holds both exactly
        widths = [2 * min(num, width) for width in self.widths]
        everyones = self.group.concatenate(pairs.flatten(1), widths).unflatten(1, (-1, 2))
        logits, places = ranked(everyones[:, :, 0], num)  # of equals the first has the lowest id
        return logits.float(), everyones[:, :, 1].gather(1, places).long()


def ranked(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` largest of each row, largest first, of equals the first first: values and places,
    both [rows, num]. NaN counts as larger than any number.
    """
    if num == 1:
        return logits.max(dim=-1, keepdim=True)
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
    cuda: bool = False,
    one_card: bool = False,
    host: str | None = None,
) -> Group:
    """Meets the other ranks at `store`.

    one_card: the ranks share a CUDA device, which NCCL does not allow; gloo then goes through the
    host. `host` is the address to listen on; without one GLOO_SOCKET_IFNAME or the host's name
    decides.
    """
    if size == 1:
        return solo()
    kinds = dist.ProcessGroup.BackendType
    wires = dist.ProcessGroup(store, rank, size)
    gloo = _gloo(dist.PrefixStore("gloo", store), rank, size, host)
    wires._register_backend(torch.device("cpu"), kinds.GLOO, gloo)
    if one_card:
        wires._register_backend(torch.device("cuda"), kinds.GLOO, gloo)
    elif cuda:
        options = dist.ProcessGroupNCCL.Options()
        nccl = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)
        wires._register_backend(torch.device("cuda"), kinds.NCCL, nccl)
    return Group(rank, size, wires, capturable=not one_card)


def _gloo(store: dist.Store, rank: int, size: int, host: str | None) -> dist.ProcessGroupGloo:
    make_device = dist.ProcessGroupGloo.create_device
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # torch's stubs lack it
    options._timeout = PATIENCE
    options._threads = 1
    options._devices = [
        dist.ProcessGroupGloo.create_default_device()
        if host is None
        else make_device(hostname=host)
    ]
    return dist.ProcessGroupGloo(store, rank, size, options)
