"""Ranks as threads of one process, over real gloo connections or through shared memory: every world
size without starting processes.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.parallel.group import Group, connect
from gyrfalcon.parallel.ranks import RankInfo, Ranks
from gyrfalcon.parallel.torchrun_ranks import HERE

T = TypeVar("T")


def on_every_rank(
    world_size: int, program: Callable[[Group], T], *, one_machine: bool = False
) -> list[T]:
    """Runs `program` on each rank of a new group; returns what each rank returned, or raises what
    one raised. one_machine: the ranks share memory, if the native library is there.
    """
    store = dist.HashStore()

    def run(rank: int) -> T:
        group = connect(store, rank, world_size, host=HERE, one_machine=one_machine)
        with contextlib.closing(group):
            return program(group)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


def on_engines(
    world_size: int,
    folder: Path,
    program: Callable[[Engine], T],
    *,
    one_machine: bool = False,
    **settings: object,
) -> T:
    """Runs `program` with one engine on `world_size` ranks; all ranks must return equal results or
    tensors.
    """

    def with_engine(group: Group) -> T:
        config = EngineConfig(model=str(folder), seed=0, **settings)  # type: ignore[arg-type]
        with Engine(config, Ranks(RankInfo(group, 0, 1))) as engine:
            return program(engine)

    return on_every_rank(world_size, with_engine, one_machine=one_machine)[0]
