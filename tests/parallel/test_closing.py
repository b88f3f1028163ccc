"""How ranks on accelerators begin and end: in an order in which nothing waits for what is gone."""

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext

from gyrfalcon.device import waiting
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.cuda import Cuda
from gyrfalcon.device.waiting import wait_for
from gyrfalcon.engine import worker
from gyrfalcon.engine.build import model_runner
from gyrfalcon.engine.core import EngineCore
from gyrfalcon.engine.graphs import Graphs
from gyrfalcon.engine.rank_messages import Stop, encode
from gyrfalcon.engine.turns import Turns
from gyrfalcon.errors import EngineClosed, RankDied
from gyrfalcon.ops import reference
from gyrfalcon.parallel import backend, launch, torchrun_ranks
from gyrfalcon.parallel.backend import Backend
from gyrfalcon.parallel.group import Group, Vocabulary
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.heartbeats import HeartbeatServer
from gyrfalcon.parallel.progress_monitor import ProgressMonitor
from gyrfalcon.parallel.ranks import RankInfo, Ranks
from gyrfalcon.parallel.torchrun import Torchrun
from gyrfalcon.parallel.torchrun_ranks import Meeting
from gyrfalcon.parallel.watchdog import Watchdog


class Worker:
    """A started rank that ends by itself, unless it is killed first."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.exitcode = None

    def kill(self) -> None:
        self.events.append("kill")

    def join(self, timeout: float | None = None) -> None:
        self.events.append("join")


class Workers:
    def __init__(self, events: list[str]) -> None:
        self.processes = [Worker(events)]


def backend_with(abort: Callable[[], None]) -> Backend:
    """A backend of which closing uses the end of its collectives alone."""
    nothing = cast("Any", None)
    return Backend(nothing, nothing, abort)


def note_messages(group: Group, events: list[str]) -> None:
    """Has a group without others note what it would tell them."""

    def broadcast(message: bytes = b"") -> bytes:
        events.append(message.decode())
        return message

    group.broadcast = broadcast  # type: ignore[method-assign]


def test_graphs_go_before_the_collectives_that_they_hold() -> None:
    events: list[str] = []
    group = Group(0, 2, backend_with(lambda: events.append("abort")))
    graphs = Graphs(cast("Any", None), cast("Any", None), 64, Cpu.at(0))
    graphs._graphs[1] = cast("Any", "captured")
    group.before_close += [graphs.drop, lambda: events.append(f"{len(graphs._graphs)} graphs")]
    group.close()
    group.close()
    assert events == ["0 graphs", "abort"]


def test_a_runner_on_an_accelerator_drops_its_graphs_when_the_group_closes() -> None:
    class Card(Cpu):
        on_host = False

    group = Group(0, 1, None)
    vocabulary = Vocabulary.shared(8, group)
    runner = model_runner(cast("Any", None), reference, vocabulary, 64, Card.at(0))
    assert isinstance(runner, Graphs)
    runner._graphs[1] = cast("Any", "captured")
    group.close()
    assert not runner._graphs


def test_collectives_that_never_end_do_not_keep_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ABORT_SECONDS", 0.05)
    gone = threading.Event()
    begin = time.monotonic()
    Group(0, 2, backend_with(lambda: assert_true(gone.wait()))).close()
    assert time.monotonic() - begin < 5
    gone.set()


def assert_true(value: bool) -> None:
    assert value


def test_a_wait_for_a_device_ends_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SPIN_SECONDS", 0.0)
    asked = iter([False, False, True])
    wait_for(lambda: next(asked), lambda: None)
    assert list(asked) == []


def test_a_wait_for_a_device_ends_when_a_rank_is_found_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A captured collective waits for it for ever, and its event never comes."""
    monkeypatch.setattr(waiting, "CHECK_SECONDS", 0.0)
    looks = iter([None, None, RankDied("every rank to live", "a dead one", "start again")])

    def check() -> None:
        if (error := next(looks)) is not None:
            raise error

    with pytest.raises(RankDied, match="a dead one"):
        wait_for(lambda: False, check)


def test_a_card_is_asked_for_a_copy_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([False, True])

    class Event:
        def record(self) -> None: ...

        def query(self) -> bool:
            return next(asked)

    def on_host(*shape: object, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        return torch.zeros(3, dtype=dtype)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    card, tensor = Cuda.at(0), torch.arange(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", on_host)
        result = card.fetch(tensor, lambda: None)
    assert result().tolist() == [0, 1, 2]
    assert list(asked) == []


def test_ranks_on_accelerators_finish_a_step_under_way_before_they_are_ended() -> None:
    events: list[str] = []
    group = Group(0, 2, None)
    group.heartbeat.on_host = False
    note_messages(group, events)
    workers = cast("ProcessContext", Workers(events))
    turns = Turns(Ranks(RankInfo(group, 0, 2), workers))
    turns.close()
    assert events == [encode(Stop()).decode(), "join", "kill", "join"]
    with pytest.raises(EngineClosed):
        turns.refuse_if_gone()


@pytest.mark.parametrize("on_host", [True, False])
def test_ranks_that_are_out_of_step_or_on_the_host_are_ended_at_once(on_host: bool) -> None:
    events: list[str] = []
    group = Group(0, 2, None)
    group.heartbeat.on_host = on_host
    note_messages(group, events)
    turns = Turns(Ranks(RankInfo(group, 0, 2), cast("ProcessContext", Workers(events))))
    if not on_host:
        turns._end(RankDied, "one that failed")
        events.clear()
    turns.close()
    assert events == ["kill", "join"]


def test_a_rank_that_is_told_to_stop_waits_for_its_device() -> None:
    events: list[str] = []

    class Card(Cpu):
        on_host = False

        def synchronise(self) -> None:
            events.append("synchronise")

    nothing = cast("Any", None)
    core = EngineCore(nothing, nothing, nothing, nothing, Card.at(0), None)
    group = Group(1, 2, None)
    group.broadcast = lambda message=b"": encode(Stop())  # type: ignore[method-assign]
    worker._follow_messages(core, group)
    assert events == ["synchronise"]


def test_a_rank_takes_its_device_before_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each library opens a context on the first device."""
    events: list[str] = []

    class Card(Cpu):
        @classmethod
        def of_rank(cls, local_rank: int) -> Cpu:
            events.append(f"device {local_rank}")
            return cls.at(0)

    def connect(*arguments: object, **named: object) -> Group:
        events.append("connect")
        return Group(0, 1, None)

    monkeypatch.setattr(launch, "connect", connect)
    monkeypatch.setattr(torchrun_ranks, "connect_group", connect)
    store = dist.HashStore()
    launch._connect_here(store, 1, 2, Card, Heartbeat())
    torchrun, monitor = Torchrun(5, 6, 2, 6, "host", 1, False), ProgressMonitor()
    heartbeats = HeartbeatServer(Watchdog(monitor, 6, 10.0), monitor, 6)
    torchrun_ranks.connect(Meeting(torchrun, store, heartbeats, led=False), store, Card, 10.0)
    assert events == ["device 1", "connect", "device 2", "connect"]


def test_a_card_sums_split_rows_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    settings = torch.backends.cuda.matmul
    settings.allow_bf16_reduced_precision_reduction = True
    settings.allow_fp16_reduced_precision_reduction = True
    Cuda.of_rank(0)
    assert not settings.allow_bf16_reduced_precision_reduction
    assert not settings.allow_fp16_reduced_precision_reduction
