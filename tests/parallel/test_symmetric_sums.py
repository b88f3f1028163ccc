"""Sums over cards by symmetric memory, on a stand-in of torch's: what is summed so, when, and by whom. What a
card must confirm: that the kernel's sums are right and equal on all ranks in a captured graph, too.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from worlds import on_every_rank

from gyrfalcon.device import cuda_symmetric
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.cuda import Cuda
from gyrfalcon.device.cuda_symmetric import ALIGNMENT, MOST_BYTES, SymmetricSums, open_sums
from gyrfalcon.parallel.backend import Backend
from gyrfalcon.parallel.group import Group

CPU = torch.device("cpu", 0)


class Memory:
    """Symmetric memory of ranks that are threads: each reads the buffers of all."""

    def __init__(
        self,
        size: int,
        wrong: Callable[[Tensor], Tensor] = lambda total: total,
        refusing: Sequence[int] = (),
    ) -> None:
        """`refusing`: ranks that have no kernel for the sum."""
        self.size, self.wrong, self.refusing = size, wrong, refusing
        self.buffers: dict[int, Tensor] = {}
        self.ranks: dict[int, int] = {}  # by thread
        self.meet = threading.Barrier(size)
        self.num_sums = 0
        self._SymmetricMemory = SimpleNamespace(set_group_info=self.join)

    def join(self, name: str, rank: int, size: int, store: dist.Store) -> None:
        assert size == self.size
        self.ranks[threading.get_ident()] = rank

    def empty(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(length, dtype=dtype)

    def rendezvous(self, buffer: Tensor, name: str) -> None:
        self.buffers[self.ranks[threading.get_ident()]] = buffer
        self.meet.wait(10)

    def one_shot_all_reduce_out(self, own: Tensor, op: str, name: str, out: Tensor) -> Tensor:
        rank = self.ranks[threading.get_ident()]
        assert own.data_ptr() == self.buffers[rank].data_ptr()
        assert out.is_contiguous()
        assert out.data_ptr() % ALIGNMENT == out.nbytes % ALIGNMENT == 0
        if rank in self.refusing:
            self.meet.abort()
            raise RuntimeError("no kernel for so many ranks")
        self.meet.wait(10)
        each = [self.buffers[one][: own.nbytes].view(own.dtype) for one in range(self.size)]
        total = torch.stack(each).float().sum(dim=0).view_as(own).to(own.dtype)
        self.meet.wait(10)
        self.num_sums += rank == 0
        return out.copy_(self.wrong(total) if rank else total)


@contextlib.contextmanager
def installed(memory: Any) -> Iterator[None]:
    """A stand-in in the place of torch's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_symmetric, "import_module", lambda name: memory)
        patch.setattr(torch.ops, "symm_mem", memory)
        yield


def opened(group: Group, store: dist.Store, reached: bool = True) -> SymmetricSums | None:
    return open_sums(store, group.rank, group.size, CPU, reached, group.all_reduce_min)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_small_sums_go_through_symmetric_memory_and_all_others_through_the_group(size: int) -> None:
    memory, store = Memory(size), dist.HashStore()

    def program(group: Group) -> list[Tensor]:
        assert isinstance(group.backend, Backend)
        group.backend.small_sums = opened(group, store)
        assert group.backend.small_sums is not None
        found = []
        for x in (
            torch.full((4, 64), 1.0 + group.rank),
            torch.full((8192,), 1.0 + group.rank, dtype=torch.bfloat16),
            torch.full((9,), 1.0 + group.rank)[1:],  # begins between multiples of 16 bytes
            torch.full((4, 9), 1.0 + group.rank)[:, :8],  # no run
            torch.full((9,), 1.0 + group.rank)[group.rank > 0 :][:8],  # aligned on one rank alone
            torch.full((MOST_BYTES // 4,), 1.0 + group.rank),  # as long as can be
            torch.full((MOST_BYTES // 4 + 4,), 1.0 + group.rank),  # too long
            torch.full((3,), 1.0 + group.rank),  # ends between multiples of 16 bytes
            torch.full((8,), 1 + group.rank, dtype=torch.int64),
        ):
            before = memory.num_sums
            found.append(group.all_reduce(x))
            group.all_reduce_min(0)
            if not group.rank:
                assert memory.num_sums - before == (len(found) <= 6)
            group.all_reduce_min(0)
        return found

    with installed(memory):
        results = on_every_rank(size, program)
    for found in results:
        for x in found:
            assert (x == size * (size + 1) / 2).all()


def opened_on_two(memory: Any) -> list[bool]:
    """Which ranks have sums."""
    store = dist.HashStore()
    with installed(memory):
        return on_every_rank(2, lambda group: opened(group, store) is not None)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda total: total + 1.0,  # of one rank
        lambda total: (total.view(torch.int16) ^ 1).view(total.dtype),  # by a bit, which is near
    ],
    ids=["wrong", "other bits"],
)
def test_sums_that_are_wrong_or_differ_between_ranks_are_not_used(
    wrong: Callable[[Tensor], Tensor],
) -> None:
    assert opened_on_two(Memory(2)) == [True, True]
    assert opened_on_two(Memory(2, wrong)) == [False, False]


@pytest.mark.parametrize("refusing", [(0,), (1,), (0, 1)])
def test_a_card_without_such_a_kernel_has_all_ranks_sum_through_the_group(
    refusing: tuple[int, ...],
) -> None:
    assert opened_on_two(Memory(2, refusing=refusing)) == [False, False]


@pytest.mark.parametrize("lonely", [(0, 1), (1,)], ids=["all", "one"])
def test_cards_that_do_not_reach_each_other_have_none(lonely: tuple[int, ...]) -> None:
    """One that does not takes all others along, before any of them waits for it."""
    store = dist.HashStore()

    def program(group: Group) -> bool:
        return opened(group, store, reached=group.rank not in lonely) is not None

    with installed(Memory(2)):
        assert on_every_rank(2, program) == [False, False]


def test_a_card_asks_whether_it_reaches_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def note(*given: Any) -> None:
        asked.append(given[4])

    monkeypatch.setattr("gyrfalcon.device.cuda.open_sums", note)
    for missing in (None, 0, 2):
        monkeypatch.setattr(
            torch.cuda, "can_device_access_peer", lambda own, other, at=missing: other.index != at
        )
        Cuda.small_sums(dist.HashStore(), 2, 3, int)
    assert asked == [True, False, True]  # itself aside


def test_a_torch_with_another_interface_sums_through_the_group() -> None:
    memory = Memory(2)
    memory._SymmetricMemory = SimpleNamespace()
    assert opened_on_two(memory) == [False, False]
    assert opened_on_two(SimpleNamespace()) == [False, False]


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_symmetric.VARIABLE, "0")
    assert opened_on_two(Memory(2)) == [False, False]


def test_other_kinds_of_devices_have_none() -> None:
    assert Cpu.small_sums(dist.HashStore(), 0, 2, int) is None


def test_the_torch_that_is_here_has_what_is_asked_of_it() -> None:
    """Of 2.13, without a card; the interface is alpha."""
    library = import_module(cuda_symmetric.MODULE)
    assert hasattr(library._SymmetricMemory, "set_group_info")
    assert hasattr(library, "empty")
    assert hasattr(library, "rendezvous")
    said = str(torch.ops.symm_mem.one_shot_all_reduce_out.default._schema)
    assert "(Tensor input, str reduce_op, str group_name, Tensor(a!) out)" in said
