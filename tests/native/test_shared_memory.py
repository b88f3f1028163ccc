"""Ranks of one machine that exchange tensors through memory get what sockets would give them, at any
pace, and notice when one of them is gone.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoints import make_checkpoint
from torch import Tensor
from worlds import on_engines, on_every_rank

from gyrfalcon import Engine
from gyrfalcon.errors import RankDied
from gyrfalcon.native.library import VARIABLE, RankGone, library, why_not_native
from gyrfalcon.parallel.group import Group, connect
from gyrfalcon.parallel.ranks import RankInfo, Ranks
from gyrfalcon.parallel.torchrun_ranks import HERE

if library() is None:
    pytest.skip(why_not_native(), allow_module_level=True)

WORLDS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Nothing, one number, less and more than a vector, what many ranks share out, more than a slot holds.
SHAPES = ((0, 5), (1, 1), (1, 7), (3, 1025), (1, 8192), (9, 71, 129), (1, 1_100_003))
UNNAMED_FILE = "memfd:gyrfalcon"


def parts(world_size: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """What each rank brings: numbers of very different sizes, so that another order shows."""
    generator = torch.Generator().manual_seed(world_size)
    drawn = torch.randn(world_size, *shape, generator=generator)
    return list((drawn * 100 * torch.rand(drawn.shape, generator=generator) ** 8).to(dtype))


def summed(own: list[Tensor]) -> Tensor:
    """In the order of the ranks, in float32, rounded once."""
    total = own[0].float()
    for part in own[1:]:
        total = total + part.float()
    return total.to(own[0].dtype)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("world_size", WORLDS)
def test_every_rank_gets_the_same_bits_of_the_sum_in_rank_order(
    world_size: int, dtype: torch.dtype
) -> None:
    def program(group: Group) -> list[Tensor]:
        assert (group.memory is not None) == (world_size > 1)
        return [group.all_reduce(own[group.rank].clone()) for own in given]

    given = [parts(world_size, shape, dtype) for shape in SHAPES]
    for sums in on_every_rank(world_size, program, one_machine=True):
        for own, total in zip(given, sums, strict=True):
            assert torch.equal(bits(total), bits(summed(own)))


@pytest.mark.parametrize("world_size", WORLDS)
def test_sums_and_concatenations_are_those_of_sockets(world_size: int) -> None:
    widths = [5 + 3 * (rank % 3) for rank in range(world_size)]
    given = parts(world_size, (33, max(widths)), torch.float32)

    def program(group: Group) -> tuple[Tensor, list[Tensor], int, bytes]:
        own = given[group.rank]
        side_by_side = [
            group.all_gather(own[:rows, : widths[group.rank]].to(dtype), widths)
            for rows in (0, 1, 33)
            for dtype in (*DTYPES, torch.float64, torch.int64)
        ]
        total = group.all_reduce(own.clone())
        return (
            total,
            side_by_side,
            group.all_reduce_min(7 - group.rank),
            group.broadcast(b"rank 0's"),
        )

    over_sockets = on_every_rank(world_size, program)[0]
    for through_memory in on_every_rank(world_size, program, one_machine=True):
        torch.testing.assert_close(through_memory[0], over_sockets[0], atol=1e-4, rtol=1e-5)
        assert all(map(torch.equal, through_memory[1], over_sockets[1]))
        assert through_memory[2:] == over_sockets[2:] == (8 - world_size, b"rank 0's")


def test_what_is_gathered_may_be_larger_than_a_slot() -> None:
    given = parts(2, (3, 500_001), torch.float32)

    def program(group: Group) -> Tensor:
        return group.all_gather(given[group.rank], [500_001, 500_001])

    for whole in on_every_rank(2, program, one_machine=True):
        assert torch.equal(whole, torch.cat(given, dim=1))


@pytest.mark.processes
def test_an_engine_s_logits_are_those_it_has_over_sockets(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "40b")
    prompts = torch.randint(0, 500, (2, 40), generator=torch.Generator().manual_seed(0))

    def program(engine: Engine) -> Tensor:
        return engine.logits(prompts, single_steps=3)

    through_memory = on_engines(3, folder, program, one_machine=True)
    torch.testing.assert_close(through_memory, on_engines(3, folder, program))


def forked(
    world_size: int,
    folder: Path,
    program: Callable[[Group], object],
    without_library: int | None = None,
) -> list[BaseProcess]:
    """Ranks as processes, one perhaps without the native library; each ends with 0 when its program
    did, with 1 when an error ended it.
    """

    def run(rank: int) -> None:
        if rank == without_library:
            os.environ[VARIABLE] = "0"
        store = dist.FileStore(str(folder / "store"), world_size)
        group = connect(store, rank, world_size, host=HERE, one_machine=True)
        with contextlib.closing(group):
            program(group)

    fork = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = [
        fork.Process(target=run, args=(rank,)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def exit_codes(processes: list[BaseProcess]) -> list[int | None]:
    """How they ended; none is left when the wait is broken off."""
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    return [process.exitcode for process in processes]


def sum_many_times(group: Group, times: int) -> None:
    """Small and large sums one after the other, now and then with a rest; raises when one is wrong."""
    paces = random.Random(group.rank)
    for turn in range(times):
        if paces.random() < 0.02:
            time.sleep(paces.random() * 0.003)
        x = torch.full((1 + turn % 2000,), float(turn % 61 + group.rank))
        expected = group.size * (turn % 61) + sum(range(group.size))
        assert torch.equal(group.all_reduce(x), torch.full_like(x, expected))


@pytest.mark.parametrize("world_size", [2, 5])
def test_thousands_of_sums_come_out_right_at_any_pace(world_size: int, tmp_path: Path) -> None:
    ranks = forked(world_size, tmp_path, lambda group: sum_many_times(group, 3000))
    assert exit_codes(ranks) == [0] * world_size


@pytest.mark.processes
def test_more_ranks_than_cores_get_on(tmp_path: Path) -> None:
    def program(group: Group) -> None:
        sum_many_times(group, 1000)

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        ranks = forked(4, tmp_path, program)
    finally:
        os.sched_setaffinity(0, cores)
    assert exit_codes(ranks) == [0] * 4


@pytest.mark.processes
def test_a_killed_rank_is_noticed_by_all_others(tmp_path: Path) -> None:
    def program(group: Group) -> None:
        sum_many_times(group, 100)
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(RankGone):
            sum_many_times(group, 100)

    assert exit_codes(forked(3, tmp_path, program)) == [0, -signal.SIGKILL, 0]


def watched(group: Group) -> contextlib.AbstractContextManager[None]:
    """As where every rank runs the same program."""
    return Ranks(RankInfo(group, group.rank, group.size)).watched()


@pytest.mark.parametrize("one_machine", [True, False], ids=["memory", "sockets"])
@pytest.mark.processes
def test_a_rank_that_closed_its_end_is_waited_for_no_longer(one_machine: bool) -> None:
    def program(group: Group) -> None:
        x = torch.ones(4)
        assert group.all_reduce(x).tolist() == [3.0] * 4
        if group.rank == 2:
            return  # which closes its end
        with pytest.raises(RankDied, match="a closed connection"), watched(group):
            group.all_reduce(x)

    on_every_rank(3, program, one_machine=one_machine)


@pytest.mark.processes
def test_memory_has_no_name_and_goes_with_its_ranks(tmp_path: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(UNNAMED_FILE)

    inherited = mapped()  # of groups that tests before this one left to be collected

    def program(group: Group) -> None:
        group.all_reduce(torch.ones(1))
        assert mapped() > inherited
        files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        assert not any(UNNAMED_FILE in file for file in files)
        group.close()
        assert mapped() <= inherited

    before = set(os.listdir("/dev/shm"))
    assert exit_codes(forked(2, tmp_path, program)) == [0, 0]
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "gyrfalcon" in name]


@pytest.mark.processes
def test_all_ranks_use_sockets_where_one_lacks_the_library(tmp_path: Path) -> None:
    def program(group: Group) -> None:
        assert group.memory is None
        sum_many_times(group, 3)

    assert exit_codes(forked(3, tmp_path, program, without_library=1)) == [0, 0, 0]
