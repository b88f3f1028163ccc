"""Traces and engines for the tests of the simulation."""

import random
from collections.abc import Iterator, Sequence

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.plan.simulate import Ended, SimulatedSettings
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.step_load import StepLoad
from gyrfalcon.plan.trace import TraceRequest

ROOMY = SimulatedSettings(StepLimits(64, 32, 8), num_blocks=200, block_size=4, page_tokens=4)


class ByLoad:
    """Step times that depend on all of a load, in part at random: another order of steps or sums shows."""

    def seconds(self, load: StepLoad) -> float:
        return (
            0.0101
            + 0.0000571 * (hash(load) % 101)
            + 0.00037 * load.prompt_tokens
            + 0.00113 * load.decoding
            + 0.0000171 * load.context_tokens
            + 0.0000013 * load.attended
        )


class Recorded:
    """Step times that were recorded, in the order of the steps; and the loads they were asked for."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds: Iterator[float] = iter(seconds)
        self.loads: list[StepLoad] = []

    def seconds(self, load: StepLoad) -> float:
        self.loads.append(load)
        return next(self._seconds)


def drawn_trace(seed: int, num_requests: int, rate: float, most: int = 40) -> list[TraceRequest]:
    """Requests of all kinds: shared beginnings, priorities, deadlines, single tokens, bursts, pauses."""
    draw, now, found = random.Random(seed), 0.0, []
    for _ in range(num_requests):
        now += draw.choice([0.0, draw.expovariate(rate), draw.expovariate(rate), 3 / rate])
        prompt_tokens = draw.randint(1, most)
        pages = draw.choice([(), (1, 2, 3), (1, 2, 4), (5, 6, 7, 8)])[: prompt_tokens // 4]
        found.append(
            TraceRequest(
                arrival_s=now,
                prompt_tokens=prompt_tokens,
                output_tokens=draw.choice([1, 2, 9, 24]),
                prefix_ids=pages,
                priority=draw.choice([0, 0, 0, 1, -1]),
                deadline=draw.choice([None, None, None, draw.uniform(0.05, 3.0)]),
            )
        )
    return found


def ended_requests(simulation: Simulation, trace: Sequence[TraceRequest]) -> list[Ended]:
    """What became of each request, in the order of the trace."""
    found: list[Ended] = []
    simulation.run(trace, ended=found.append)
    return sorted(found, key=lambda one: one.number)
