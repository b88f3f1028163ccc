"""Figures of a simulation, against numpy's on all values."""

import random
from dataclasses import replace

import numpy as np
import pytest
from simulations import ROOMY, ByLoad, drawn_trace, ended_requests

from gyrfalcon.load.figures import Spread
from gyrfalcon.plan.simulate import Ended, SimulatedEngine
from gyrfalcon.plan.simulate_figures import Collector, Distribution, latencies
from gyrfalcon.plan.simulate_run import Simulation, describe
from gyrfalcon.plan.step_load import StepLoad
from gyrfalcon.plan.trace import TraceRequest


def ended(arrival: float, *times: float) -> Ended:
    request = TraceRequest(arrival, 8, len(times))
    return Ended(0, request, arrival, times, times[-1], 0, 0, expired=False)


def test_percentiles_are_numpy_s_within_a_tenth_of_a_percent() -> None:
    draw = random.Random(1)
    values = [draw.lognormvariate(3, 1.5) for _ in range(100_000)]
    found = Distribution()
    for start in range(0, len(values), 100):
        found.add(values[start : start + 100])
    spread = found.spread()
    assert spread is not None
    expected = np.percentile(values, [50, 90, 99])
    assert [spread.p50, spread.p90, spread.p99] == pytest.approx(expected, rel=1.1e-3)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.max == max(values)


def test_a_single_value_and_zeros_are_exact() -> None:
    found = Distribution()
    assert found.spread() is None
    found.add([12.34567])
    assert found.spread() == Spread(12.34567, 12.34567, 12.34567, 12.34567, 12.34567)
    zeros = Distribution()
    zeros.add([0.0] * 5)
    assert zeros.spread() == Spread(0.0, 0.0, 0.0, 0.0, 0.0)


def test_latencies_are_those_of_load() -> None:
    draw = random.Random(2)
    times = sorted(draw.uniform(1, 3) for _ in range(60))
    found = latencies(ended(0.5, *times))
    gaps = 1000 * np.diff(times)
    assert found.ttft == pytest.approx(1000 * (times[0] - 0.5))
    assert found.itl == pytest.approx(np.percentile(gaps, 99))
    assert found.tpot == pytest.approx(gaps.mean())
    assert found.e2e == pytest.approx(1000 * (times[-1] - 0.5))
    assert latencies(ended(0.5, 1.0)).itl is None


def test_goodput_counts_what_keeps_all_limits_after_the_warm_up() -> None:
    collector = Collector({"ttft": 200, "itl": 100}, warm_up=1.0)
    for request in (
        ended(0.9, 1.0, 1.01),  # before
        ended(1.0, 1.1, 1.15),
        ended(1.0, 1.3, 1.35),  # its first token is late
        ended(1.0, 1.1, 3.0),  # its second is
        Ended(0, TraceRequest(2.0, 8, 5), None, (), 5.0, 0, 0, expired=True),
    ):
        collector.ended(request)
    found = collector.figures([SimulatedEngine(ROOMY, ByLoad(), collector.ended)])
    assert found.goodput is not None
    assert (found.requests, found.finished, found.expired) == (4, 3, 1)
    assert (found.goodput.count, found.goodput.share) == (1, 0.25)
    assert found.goodput.per_second == 1 / 4
    assert found.output_tokens_per_second == 6 / 4


def test_figures_follow_from_what_became_of_each_request() -> None:
    trace = drawn_trace(4, 200, 10.0)
    simulation = Simulation(ROOMY, ByLoad(), limits={"ttft": 400})
    requests = ended_requests(simulation, trace)
    found = simulation.run(trace)
    finished = [one for one in requests if not one.expired]
    first = [1000 * (one.token_times[0] - one.request.arrival_s) for one in finished]
    assert found.first_token_ms is not None
    assert found.first_token_ms.p90 == pytest.approx(np.percentile(first, 90), rel=0.02)
    assert found.goodput is not None
    assert found.goodput.count == sum(value <= 400 for value in first)
    assert found.seconds == max(one.end for one in requests)
    assert 0 < found.replicas.cache_share < found.replicas.most_cache_share <= 1
    assert 0 < found.replicas.busy_share <= 1
    text = describe("a trace", found)
    assert text.splitlines()[0] == "a trace"
    assert f"{found.finished} finished, {found.expired} after their deadline given up" in text


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_what_replicas_use_is_counted_from_the_warm_up_on(num_replicas: int) -> None:
    """Two bursts with a pause: after it the second one counts as if it were alone."""
    first, drawn = drawn_trace(4, 60, 20.0), drawn_trace(5, 80, 20.0)
    second = [
        replace(
            one, arrival_s=100 + one.arrival_s, prefix_ids=tuple(n + 50 for n in one.prefix_ids)
        )
        for one in drawn
    ]
    simulation = Simulation(ROOMY, ByLoad(), num_replicas, warm_up=90.0)
    found = simulation.run([*first, *second]).replicas
    alone = simulation.run(second).replicas
    assert (found.steps, found.prompt_tokens) == (alone.steps, alone.prompt_tokens)
    assert found.cached_tokens == alone.cached_tokens > 0
    for name in ("busy_share", "busiest_share", "cache_share", "most_cache_share"):
        assert getattr(found, name) == pytest.approx(getattr(alone, name))


def test_of_a_step_at_the_end_of_the_warm_up_the_rest_counts() -> None:
    """Steps of a second without a pause: the replica is busy all the time, and never more than that."""

    class Second:
        def seconds(self, _: StepLoad) -> float:
            return 1.0

    trace = [TraceRequest(0.0, 8, 20), TraceRequest(9.5, 8, 4)]
    simulation = Simulation(ROOMY, Second(), warm_up=9.25)
    found = simulation.run(trace)
    assert found.seconds == 20
    assert found.replicas.busy_share == pytest.approx(1)
    assert found.replicas.steps == 11
    assert found.replicas.prompt_tokens == 8
    assert ended_requests(simulation, trace) == ended_requests(
        replace(simulation, warm_up=0), trace
    )


def test_a_warm_up_that_outlasts_all_requests_leaves_nothing() -> None:
    found = Simulation(ROOMY, ByLoad(), warm_up=1e6).run(drawn_trace(4, 20, 10.0))
    assert found.requests == found.replicas.steps == found.replicas.prompt_tokens == 0
    assert found.replicas.busy_share == found.replicas.cache_share == 0
