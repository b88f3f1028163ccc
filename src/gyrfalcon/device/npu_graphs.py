"""Decoding steps as captured graphs on Ascend cards (torch_npu's NPUGraph).

A graph keeps the lists of numbers that its operators were called with, and the attention takes its lengths as
such. CANN can issue a group of a graph's tasks anew, on another stream, before the graph comes to them (graph
task update). So each attention is captured as a group that waits for an event of its own, and every replay
brings the lengths of its step. No card has run this yet.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from gyrfalcon.device.protocol import CannotCapture, Replay

VARIABLE = "GYRFALCON_NPU_GRAPHS"
# What torch_npu.npu has to have.
NEEDED = (
    "NPUGraph",
    "graph",
    "Stream",
    "Event",
    "ExternalEvent",
    "graph_task_group_begin",
    "graph_task_group_end",
    "graph_task_update_begin",
    "graph_task_update_end",
)
# Of a graph, replayed in turn: the next step's lengths are brought to one while the other still runs.
COPIES = 2

Issue = Callable[[Sequence[int]], None]  # issues an operator, with the tokens of each sequence


def lacking(npu: Any, environment: Mapping[str, str]) -> str | None:
    """Why nothing is captured here; None where it can be tried."""
    if environment.get(VARIABLE) == "0":
        return f"{VARIABLE} is 0"
    missing = [name for name in NEEDED if not hasattr(npu, name)]
    return f"this torch_npu has no {', '.join(missing)}" if missing else None


@dataclass(frozen=True, slots=True)
class _Task:
    """An operator in a graph: what issues it anew, CANN's handle of it, and what the graph waits for."""

    issue: Issue
    handle: Any
    ready: Any


class GraphTasks:
    """How operators that take lengths from the host get into the graph that is being captured, if one is."""

    def __init__(self) -> None:
        self.is_warming_up = False  # a first run, which allocates what a graph may not
        self._npu: Any = None
        self._tasks: list[_Task] | None = None

    @property
    def is_capturing(self) -> bool:
        """Whether such operators have to be added."""
        return self._tasks is not None

    def add(self, issue: Issue, contexts: Sequence[int]) -> None:
        """Captures what `issue` launches, so that each replay can bring other lengths than these."""
        assert self._tasks is not None
        stream, ready = self._npu.current_stream(), self._npu.ExternalEvent()
        ready.wait(stream)
        ready.reset(stream)
        self._npu.graph_task_group_begin(stream)
        issue(contexts)
        self._tasks.append(_Task(issue, self._npu.graph_task_group_end(stream), ready))

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """While a run prepares for a capture."""
        self.is_warming_up = True
        try:
            yield
        finally:
            self.is_warming_up = False

    @contextmanager
    def collected(self, npu: Any) -> Iterator[list[_Task]]:
        """The tasks that are added meanwhile."""
        self._npu, self._tasks = npu, []
        try:
            yield self._tasks
        finally:
            self._tasks = None


class _Copy:
    """A captured graph."""

    def __init__(self, npu: Any, graph: Any, tasks: Sequence[_Task], out: Tensor) -> None:
        self._npu, self._graph, self._tasks, self._out = npu, graph, tasks, out
        self._done: Any = None  # what ends its last replay

    def replay(self, contexts: Sequence[int], updates: Any) -> Tensor:
        """Launches it with these lengths; `updates` is the stream that brings them."""
        if self._done is not None:
            self._done.synchronize()  # it reads the lengths of that replay until then
        with self._npu.stream(updates):
            for task in self._tasks:
                self._npu.graph_task_update_begin(updates, task.handle)
                task.issue(contexts)
                self._npu.graph_task_update_end(updates)
                task.ready.record(updates)
        self._graph.replay()
        self._done = self._npu.Event()
        self._done.record()
        return self._out


def capture(
    npu: Any, tasks: GraphTasks, device: torch.device, work: Callable[[], Tensor]
) -> Replay:
    """`work` as graphs, captured after a first run; CannotCapture with what torch_npu or CANN said."""
    main, side = npu.current_stream(), npu.Stream(device)
    side.wait_stream(main)
    with npu.stream(side), tasks.warming_up():
        work()
    main.wait_stream(side)
    copies: list[_Copy] = []
    pool = None
    try:
        for _ in range(COPIES):
            graph = npu.NPUGraph()
            # A capture that fails leaves its stream as the current one.
            with npu.stream(main), tasks.collected(npu) as own, npu.graph(graph, pool=pool):
                out = work()
            copies.append(_Copy(npu, graph, own, out))
            pool = graph.pool()
        updates = npu.Stream(device)
    except (
        AttributeError,
        RuntimeError,
        TypeError,
    ) as error:  # one of CANN's, or another interface
        said = str(error.__cause__ or error)  # a collective's, where one ended it
        raise CannotCapture(" ".join(said.split())[:200]) from error
    turns = cycle(copies)

    def replay(contexts: Sequence[int] = ()) -> Tensor:
        return next(turns).replay(contexts, updates)

    return replay
