"""The discrete-event clock: replicas behind a router, each on a clock of its own, which meet where a request
arrives.
"""

import heapq
from collections.abc import Callable, Sequence

from gyrfalcon.plan.router import Router
from gyrfalcon.plan.simulate import NEVER, SimulatedEngine
from gyrfalcon.plan.trace import Trace


class Clock:
    """Lets time pass for all replicas; one is looked at only when something of it ends or arrives."""

    def __init__(self, engines: Sequence[SimulatedEngine], router: Router) -> None:
        self._engines = engines
        self._router = router
        self._changes: list[tuple[float, int]] = []  # (when a replica changes next, which), a heap
        self._change_of = [NEVER] * len(engines)

    def run(
        self, trace: Trace, arrived: Callable[[], object] = lambda: None, warm_up: float = 0.0
    ) -> None:
        """Has all requests arrive and waits until all have ended; calls `arrived` after each. What engines
        use is counted from `warm_up` seconds on.
        """
        counts = False
        for number, request in enumerate(trace):
            now = request.arrival_s
            if not counts and now >= warm_up:
                self._count_from(warm_up)
                counts = True
            if self._router.needs_loads:
                self._advance(now)
            chosen = self._router.choose(request)
            engine = self._engines[chosen]
            engine.advance(now)
            engine.add(number, request, now)
            self._note(chosen)
            arrived()
        if not counts:
            self._count_from(warm_up)
        for engine in self._engines:
            engine.advance(NEVER)

    def _count_from(self, start: float) -> None:
        for engine in self._engines:
            engine.advance(start)
            engine.count_from(start)

    def _advance(self, now: float) -> None:
        """Lets all that ends before now happen."""
        while self._changes and self._changes[0][0] < now:
            change, index = heapq.heappop(self._changes)
            if change == self._change_of[index]:
                self._engines[index].advance(now)
                self._note(index)

    def _note(self, index: int) -> None:
        """A replica has gone on or was sent a request."""
        if not self._router.needs_loads:
            return
        engine = self._engines[index]
        self._router.note(index, engine.num_unfinished)
        self._change_of[index] = engine.next_change
        if engine.next_change < NEVER:
            heapq.heappush(self._changes, (engine.next_change, index))
