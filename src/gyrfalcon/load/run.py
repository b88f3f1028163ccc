"""Sends a planned load. Open loop: each request goes out at its time, whatever has become of those before
it; its times count from when it was due. Closed loop: the next one when one has ended.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gyrfalcon.load.answer import Answer
from gyrfalcon.load.api import Api
from gyrfalcon.load.failures import Failure
from gyrfalcon.load.plan import Load, Planned


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in seconds after the start of the run."""

    input_len: int | None  # asked for, in tokens; None: the prompt came from a file
    output_len: int
    due: float  # when it should have been sent; in a closed loop when it was
    sent: float
    answer: Answer = field(default_factory=Answer)
    end: float | None = None  # None: the run was interrupted before
    failure: Failure | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the whole answer came."""
        return self.end is not None and self.failure is None


@dataclass(frozen=True, slots=True)
class Run:
    """A load that was sent, interrupted or to its end."""

    outcomes: tuple[Outcome, ...]  # in the order in which they were sent
    start: float  # of the event loop's clock, which the answers' token times have
    seconds: float  # from the start to the last answer
    cpu_seconds: float  # of this process meanwhile
    interrupted: bool


class Runner:
    """Runs one load; `ended` is called after each request."""

    def __init__(self, api: Api, model: str, load: Load, ended: Callable[[], object]) -> None:
        self._api, self._model, self._load, self._ended = api, model, load, ended
        self._clock = asyncio.get_running_loop().time
        self._outcomes = list[Outcome]()
        self._start = 0.0

    async def run(self, requests: Iterator[Planned]) -> Run:
        """Sends the requests and waits for all answers. Cancelled, it returns what there is."""
        cpu, self._start = time.process_time(), self._clock()
        interrupted = False
        try:
            if self._load.concurrency is None:
                await self._open_loop(requests)
            else:
                await self._closed_loop(requests, self._load.concurrency)
        except asyncio.CancelledError:
            interrupted = True
        ends = [outcome.end for outcome in self._outcomes if outcome.end is not None]
        seconds = self._now() if interrupted else max(ends, default=0.0)
        cpu_seconds = time.process_time() - cpu
        return Run(tuple(self._outcomes), self._start, seconds, cpu_seconds, interrupted)

    async def _open_loop(self, requests: Iterator[Planned]) -> None:
        async with asyncio.TaskGroup() as group:
            for planned in requests:
                assert planned.arrival is not None
                body = self._body(planned)
                await asyncio.sleep(max(0.0, planned.arrival - self._now()))
                group.create_task(self._ask(planned, body, planned.arrival))

    async def _closed_loop(self, requests: Iterator[Planned], concurrency: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._ask_one_by_one(requests))

    async def _ask_one_by_one(self, requests: Iterator[Planned]) -> None:
        for planned in requests:
            if self._load.duration is not None and self._now() >= self._load.duration:
                return
            await self._ask(planned, self._body(planned), None)

    async def _ask(self, planned: Planned, body: bytes, due: float | None) -> None:
        sent = self._now()
        outcome = Outcome(planned.input_len, planned.output_len, sent if due is None else due, sent)
        self._outcomes.append(outcome)
        try:
            await self._api.stream(body, outcome.answer)
        except Failure as failure:
            outcome.failure = failure
        outcome.end = self._now()
        self._ended()

    def _body(self, planned: Planned) -> bytes:
        return self._api.body(self._model, planned.prompt, planned.output_len)

    def _now(self) -> float:
        return self._clock() - self._start
