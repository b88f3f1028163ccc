"""Each rank's threads keep to processors of its own, where they are the only ones there."""

import os
from collections.abc import Iterator

import pytest
import torch

from gyrfalcon.device import own_processors, use_threads

USABLE = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_one_rank_has_a_processor_of_every_core() -> None:
    use_threads(None, 1)
    own = own_processors(0, 1)
    assert len(own) == torch.get_num_threads() == len(set(own))
    assert set(own) <= set(USABLE)


def test_ranks_share_the_processors() -> None:
    use_threads(None, 1)
    cores = own_processors(0, 1)
    if len(cores) < 2:
        pytest.skip("needs two cores")
    torch.set_num_threads(len(cores) // 2)
    first, second = (set(own_processors(rank, 2)) for rank in (0, 1))
    assert len(first) == len(cores) // 2
    assert not first & second


def test_fewer_threads_than_cores_run_where_the_system_puts_them() -> None:
    use_threads(None, 1)
    if torch.get_num_threads() < 2:
        pytest.skip("needs two cores")
    use_threads(1, 1)
    assert own_processors(0, 1) == []


def test_ranks_that_are_more_than_the_cores_run_where_the_system_puts_them() -> None:
    ranks = 2 * len(USABLE) + 1
    use_threads(None, ranks)
    assert all(own_processors(rank, ranks) == [] for rank in range(ranks))
