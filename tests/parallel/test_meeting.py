"""torchrun's ranks meet at a store that may be older than they are."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from gyrfalcon.errors import UsageError
from gyrfalcon.parallel import meeting
from gyrfalcon.parallel.meeting import START, meet
from gyrfalcon.parallel.torchrun import Torchrun

PATIENCE = 60.0


def process(rank: int, size: int = 3) -> Torchrun:
    return Torchrun(rank, size, rank, size, "127.0.0.1", 1, has_store=True)


def have_met(store: dist.Store) -> list[dist.Store]:
    """What each of three ranks gets, of which rank 0 comes last."""
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(meet, process(rank), store, PATIENCE) for rank in (1, 2)]
        threading.Event().wait(0.3)
        first = meet(process(0), store, PATIENCE)
        return [first, *(other.result() for other in others)]


def test_ranks_of_one_start_share_keys_and_those_of_the_next_find_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 0.2)
    store = dist.HashStore()
    for start in range(3):
        places = have_met(store)
        assert not any(place.check(["key"]) for place in places)
        places[start].set("key", str(start))
        assert [place.get("key") for place in places] == [str(start).encode()] * 3


def test_a_rank_does_not_take_the_answer_of_an_earlier_start_for_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rank 0 of that start has answered the rank 1 of that start, and is gone."""
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 0.1)
    store = dist.HashStore()
    store.set(START, "old")
    old = dist.PrefixStore("gyrfalcon/old", store)
    old.set("here/1", "a question")
    old.set("met/1", "a question")
    with pytest.raises(UsageError, match=r"all 3 ranks of torchrun, got no rank 0 for 0\.3 s"):
        meet(process(1), store, 0.3)


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(UsageError, match=r"got no rank 1 for 0\.1 s"):
        meet(process(0), dist.HashStore(), 0.1)
