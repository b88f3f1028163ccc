"""Captured graphs, streams and events of torch_npu.npu on the CPU: a capture notes every operator that torch
dispatches, a replay runs them again on the same tensors. What a graph was not given is wrong, as on a card.

Streams run at once, one after the other. What a card would do wrong, or wait for without end, is Refused;
collectives in a graph are, too, as nothing here runs them again. Each thread is a machine of its own.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from npu_kernels import require
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOG: list[str] = []  # updates and replays in order, for tests
READS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal")


@dataclass
class Launch:
    """An operator in a graph, and what it gave when it was captured."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def run(self) -> None:
        """Again, into the same tensors."""
        found = self.func(*self.args, **self.kwargs)
        for old, new in zip(tensors_in(self.result), tensors_in(found), strict=True):
            if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                old.copy_(new)


def tensors_in(*found: Any) -> list[Tensor]:
    return [one for one in tree_leaves(found) if isinstance(one, Tensor)]


@dataclass
class Wait:
    """A graph waits for an event, then resets it or not."""

    event: "ExternalEvent"
    resets: bool

    def run(self) -> None:
        if self.resets:
            self.event.is_recorded = False
        else:
            require(self.event.is_recorded, "a graph that waits for an event that nobody records")


class Capture(TorchDispatchMode):
    """Notes what is dispatched."""

    def __init__(self, graph: "NPUGraph") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        require(func._schema.name not in READS, "no value read on the host in a capture", func)
        require(func.namespace != "c10d", "no collective in a capture: none is emulated", func)
        result = func(*args, **(kwargs or {}))
        self.graph.launches.append(Launch(func, args, kwargs or {}, result))
        return result


class Update(TorchDispatchMode):
    """Gives a task of a graph what is dispatched, which does not run now."""

    def __init__(self, handle: "Handle") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = handle

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        task = self.handle.task
        require(func is task.func, "the operator that was captured", func)
        old, new = tensors_in(task.args, task.kwargs), tensors_in(args, kwargs)
        require([*map(id, old)] == [*map(id, new)], "the tensors that were captured")
        task.args, task.kwargs = args, kwargs or {}
        return task.result


class NPUGraph:
    """What was launched while it was captured."""

    def __init__(self) -> None:
        self.launches: list[Launch | Wait] = []
        self.is_captured = False

    def pool(self) -> tuple[int, int]:
        return (0, id(self))

    def replay(self) -> None:
        require(self.is_captured, "a captured graph")
        LOG.append("replay")
        STATE.running.append(self)
        for launch in self.launches:
            launch.run()


@dataclass
class Handle:
    """A group of tasks: of one operator here."""

    graph: NPUGraph
    task: Launch


class State(threading.local):
    """What streams are about at the moment."""

    def __init__(self) -> None:
        self.streams = [Stream()]
        self.running: list[NPUGraph] = []  # replayed, and nobody has waited for it since
        self.capture: Capture | None = None
        self.group_begin: int | None = None
        self.update: Update | None = None


class Stream:
    def __init__(self, device: object = None) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None:
        pass


class Event:
    """Notes which graphs had been replayed; who waits for it waits for these."""

    def record(self, stream: Stream | None = None) -> None:
        self._before = list(STATE.running)

    def synchronize(self) -> None:
        for graph in self._before:
            while graph in STATE.running:
                STATE.running.remove(graph)


class ExternalEvent:
    def __init__(self) -> None:
        self.is_recorded = False

    def wait(self, stream: Stream) -> None:
        _captured_on(stream).launches.append(Wait(self, resets=False))

    def reset(self, stream: Stream) -> None:
        _captured_on(stream).launches.append(Wait(self, resets=True))

    def record(self, stream: Stream) -> None:
        require(stream is STATE.streams[-1], "a record on the stream of the updates")
        self.is_recorded = True


STATE = State()


def _captured_on(stream: Stream) -> NPUGraph:
    require(STATE.capture is not None and stream is STATE.streams[-1], "the stream of a capture")
    assert STATE.capture is not None
    return STATE.capture.graph


@contextmanager
def stream(one: Stream) -> Iterator[None]:
    STATE.streams.append(one)
    try:
        yield
    finally:
        STATE.streams.pop()


@contextmanager
def graph(one: NPUGraph, pool: object = None) -> Iterator[None]:
    require(STATE.capture is None, "one capture at a time")
    STATE.capture = Capture(one)
    try:
        with stream(Stream()), STATE.capture:
            yield
        one.is_captured = True
    finally:
        STATE.capture = None


def graph_task_group_begin(one: Stream) -> None:
    STATE.group_begin = len(_captured_on(one).launches)


def graph_task_group_end(one: Stream) -> Handle:
    captured = _captured_on(one)
    [task] = captured.launches[STATE.group_begin :]
    assert isinstance(task, Launch)
    return Handle(captured, task)


def graph_task_update_begin(one: Stream, handle: Handle) -> None:
    require(one is STATE.streams[-1], "an update on its own stream")
    require(handle.graph not in STATE.running, "an update of a graph that does not run any more")
    STATE.update = Update(handle)
    STATE.update.__enter__()  # type: ignore[no-untyped-call]  # torch's


def graph_task_update_end(one: Stream) -> None:
    assert STATE.update is not None
    LOG.append("update")
    STATE.update.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch's
    STATE.update = None


def emulated_cards(count: int, without: Sequence[str] = ()) -> SimpleNamespace:
    """torch_npu.npu, but for what is named in `without`."""
    names: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_stream": lambda device=None: STATE.streams[-1],
    }
    shown: list[Any] = [NPUGraph, Stream, Event, ExternalEvent, stream, graph]
    shown += [graph_task_group_begin, graph_task_group_end]
    shown += [graph_task_update_begin, graph_task_update_end]
    names |= {one.__name__: one for one in shown}
    return SimpleNamespace(**{name: one for name, one in names.items() if name not in without})
