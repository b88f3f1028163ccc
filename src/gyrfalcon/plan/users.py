"""Users of one simulated replica. Each asks again when answered, so that a slow replica is asked less; or
requests come at a rate.
"""

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from gyrfalcon.plan.lengths import Streams
from gyrfalcon.plan.simulate import NEVER, Ended, SimulatedEngine, SimulatedSettings
from gyrfalcon.plan.simulate_figures import Collector, SimulatedFigures
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.step_load import StepTimes
from gyrfalcon.plan.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class Observed:
    """What is counted: the first `requests` that end of those that arrive after `warm_up` seconds.

    limits: of goodput, in milliseconds, by name as in load/goodput.py.
    """

    requests: int
    warm_up: float
    limits: Mapping[str, float]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many users of a replica, who pause after each answer: exponentially, `think_seconds` on average."""

    users: int
    think_seconds: float
    streams: Streams

    def run(
        self, settings: SimulatedSettings, times: StepTimes, observed: Observed
    ) -> SimulatedFigures:
        """The figures of the replica. The first requests arrive evenly over half the warm-up. One that
        follows on an answer is heard after the step that has begun by then.
        """
        draw, collector = (
            Random(f"{observed.seed} users"),
            Collector(observed.limits, observed.warm_up),
        )
        arrivals = [draw.uniform(0, observed.warm_up / 2) for _ in range(self.users)]
        heapq.heapify(arrivals)
        num_counted = num_sent = 0

        def take(request: Ended) -> None:
            nonlocal num_counted
            collector.ended(request)
            num_counted += request.request.arrival_s >= observed.warm_up
            heapq.heappush(arrivals, request.end + self._pause(draw))

        engine = SimulatedEngine(settings, times, take)
        counts = False
        while num_counted < observed.requests:
            now = min(arrivals[0] if arrivals else NEVER, engine.next_change)
            if not counts and now >= observed.warm_up:
                engine.count_from(observed.warm_up)
                counts = True
            engine.advance(math.nextafter(now, NEVER))
            while arrivals and arrivals[0] <= now:
                arrival = heapq.heappop(arrivals)
                engine.add(num_sent, self.streams.request(arrival, draw), arrival)
                num_sent += 1
        return collector.figures([engine])

    def _pause(self, draw: Random) -> float:
        return draw.expovariate(1 / self.think_seconds) if self.think_seconds else 0.0


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """So many requests a second at random, whatever becomes of those before."""

    requests_per_second: float
    streams: Streams

    def run(
        self, settings: SimulatedSettings, times: StepTimes, observed: Observed
    ) -> SimulatedFigures:
        """The figures of the replica."""
        simulation = Simulation(settings, times, limits=observed.limits, warm_up=observed.warm_up)
        return simulation.run(list(self._requests(observed)))

    def _requests(self, observed: Observed) -> Iterator[TraceRequest]:
        draw = Random(f"{observed.seed} users")
        now, num_counted = 0.0, 0
        while num_counted < observed.requests:
            now += draw.expovariate(self.requests_per_second)
            num_counted += now >= observed.warm_up
            yield self.streams.request(now, draw)
