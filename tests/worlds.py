"""Ranks as threads of one process, over real gloo connections: every world size without starting
processes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.engine.ranks import HERE, Place, Ranks
from gyrfalcon.parallel.group import Group, connect

T = TypeVar("T")


def on_every_rank(world_size: int, program: Callable[[Group], T]) -> list[T]:
    """Runs `program` on each rank of a new group; returns what each rank returned, or raises what
    one raised.
    """
    store = dist.HashStore()
    with ThreadPoolExecutor(world_size) as pool:
        runs = [
            pool.submit(lambda rank: program(connect(store, rank, world_size, host=HERE)), rank)
            for rank in range(world_size)
        ]
        return [run.result() for run in runs]


def on_engines(
    world_size: int, folder: Path, program: Callable[[Engine], T], **settings: object
) -> T:
    """Runs `program` with one engine on `world_size` ranks; all ranks must return equal results or
    tensors.
    """

    def with_engine(group: Group) -> T:
        config = EngineConfig(model=str(folder), seed=0, **settings)  # type: ignore[arg-type]
        with Engine(config, Ranks(Place(group, 0, 1))) as engine:
            return program(engine)

    return on_every_rank(world_size, with_engine)[0]
