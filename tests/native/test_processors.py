"""Each rank's threads keep to processors of its own, where all ranks' threads fill the cores."""

import os
from collections.abc import Iterator

import pytest
import torch

from gyrfalcon.device.threads import own_processors, use_threads

USABLE = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def processors() -> list[int]:
    """One of each core, as one rank gets them; skips where the system does not tell."""
    use_threads(None, 1)
    own = own_processors(0, 1)
    if not own:
        pytest.skip("the system does not tell its cores")
    return own


def test_one_rank_has_a_processor_of_every_core() -> None:
    own = processors()
    assert len(own) == torch.get_num_threads() == len(set(own))
    assert set(own) <= set(USABLE)


def test_ranks_share_the_processors() -> None:
    own = processors()
    ranks = len(own)
    use_threads(None, ranks)
    assert [own_processors(rank, ranks) for rank in range(ranks)] == [[each] for each in own]


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
