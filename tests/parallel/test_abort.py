"""What waits for a collective of accelerators that will never finish is let go, and what it then has is not
delivered. A fake stands for the card.
"""

import threading
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gyrfalcon.errors import RankDied
from gyrfalcon.parallel import ending
from gyrfalcon.parallel.backend import Backend
from gyrfalcon.parallel.ending import end_spawned, end_torchrun
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.heartbeats import HeartbeatServer
from gyrfalcon.parallel.progress_monitor import ProgressMonitor
from gyrfalcon.parallel.ranks import RankInfo, Ranks
from gyrfalcon.parallel.watchdog import Watchdog

PATIENCE = 60.0
ERROR = RankDied("every rank to move", "rank 1, which went silent", "start again")


class Work:
    """A collective under way, whose other ranks are gone."""

    def __init__(self, aborted: threading.Event) -> None:
        self.aborted = aborted

    def wait(self) -> None:
        assert self.aborted.wait(PATIENCE)


class Collectives:
    """torch's process group, as far as it is asked."""

    def __init__(self) -> None:
        self.aborted = threading.Event()

    def allreduce(self, tensors: list[Tensor]) -> Work:
        return Work(self.aborted)


class Children:
    """Processes that have ended."""

    processes: tuple[()] = ()


def group_of_two() -> Group:
    card = Collectives()
    collectives = cast("Any", card)
    return Group(0, 2, Backend(collectives, collectives, card.aborted.set))


def watched_ranks(group: Group) -> tuple[Ranks, HeartbeatServer]:
    monitor = ProgressMonitor()
    heartbeats = HeartbeatServer(Watchdog(monitor, 2, PATIENCE), monitor, 2)
    heartbeats.add(group.heartbeat, PATIENCE)
    return Ranks(RankInfo(group, 0, 2), heartbeats=heartbeats, shares_heartbeats=True), heartbeats


@pytest.mark.parametrize("under_torchrun", [False, True])
def test_a_wait_for_a_lost_rank_ends_with_the_error_and_no_result(under_torchrun: bool) -> None:
    group = group_of_two()
    ranks, heartbeats = watched_ranks(group)
    told: list[RankDied] = []

    def compute() -> None:
        try:
            with ranks.watched():
                group.all_reduce(torch.ones(3))
        except RankDied as error:
            told.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    while not heartbeats.num_working:
        threading.Event().wait(0.01)
    heartbeats.error = ERROR
    if under_torchrun:
        end_torchrun(heartbeats, group.abort)
    else:
        end_spawned(cast("Any", Children()), [group], heartbeats)
    thread.join(PATIENCE)
    assert told == [ERROR]


def test_a_thread_that_waits_on_regardless_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ended(Exception):
        pass

    def end(error: RankDied) -> None:
        assert error is ERROR
        raise Ended

    monkeypatch.setattr(ending, "end_this_process", end)
    monkeypatch.setattr(ending, "DEATH_SECONDS", 0.1)
    monkeypatch.setattr(ending, "GRACE_SECONDS", 0.1)
    for under_torchrun in (False, True):
        group = group_of_two()
        _, heartbeats = watched_ranks(group)
        heartbeats.error = ERROR
        group.heartbeat.num_working = 1
        ending_all = partial(end_torchrun, heartbeats, group.abort)
        if not under_torchrun:
            ending_all = partial(end_spawned, cast("Any", Children()), [group], heartbeats)
        with pytest.raises(Ended):
            ending_all()


def test_gloo_alone_has_nothing_to_abort_and_a_card_is_asked_once() -> None:
    collectives = cast("Any", Collectives())
    assert not Group(0, 2, Backend(collectives, collectives)).abort()
    group = group_of_two()
    assert group.abort()
    assert not group.abort()
    group.close()
    assert not group.abort()
