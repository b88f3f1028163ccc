"""A simulated engine that takes many steps at once gives every token at the time that it has step by step."""

from dataclasses import replace
from typing import Any

import pytest
from pairwise import pairwise
from simulations import ROOMY, ByLoad, drawn_trace, ended_requests

from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.errors import CacheTooSmall
from gyrfalcon.load.lengths import Uniform
from gyrfalcon.plan.router import ROUTERS
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.step_load import StepLoad
from gyrfalcon.plan.trace import PoissonTrace, TraceRequest

TIGHT = replace(ROOMY, num_blocks=20)  # 80 tokens: sequences are preempted
SERVED = replace(ROOMY, arrival_seconds=0.004)


class Always:
    """Steps of 0.1 s."""

    def seconds(self, load: StepLoad) -> float:
        return 0.1


class Counted(ByLoad):
    def __init__(self) -> None:
        self.num_asked = 0

    def seconds(self, load: StepLoad) -> float:
        self.num_asked += 1
        return super().seconds(load)


@pytest.mark.parametrize(
    ("overlap", "settings", "step_target", "rate", "router"),
    pairwise([False, True], [ROOMY, TIGHT, SERVED], [None, 0.03], [5.0, 40.0], ROUTERS),
)
def test_steps_taken_at_once_give_the_times_of_steps_one_by_one(
    overlap: bool, settings: SimulatedSettings, step_target: float | None, rate: float, router: str
) -> None:
    own = replace(settings, overlap=overlap, step_target=step_target)
    num_replicas = 1 if rate < 10 else 3
    jumping = Simulation(own, ByLoad(), num_replicas, router)
    trace = drawn_trace(3, 150, rate)
    assert ended_requests(jumping, trace) == ended_requests(
        replace(jumping, one_by_one=True), trace
    )


def test_a_request_that_arrives_delays_the_step_under_way_or_the_next() -> None:
    trace = [TraceRequest(0.0, 8, 3), TraceRequest(0.15, 8, 1)]
    settings = replace(ROOMY, arrival_seconds=0.02)
    first, second = ended_requests(Simulation(settings, Always()), trace)
    assert first.token_times == pytest.approx([0.12, 0.24, 0.34])
    assert second.token_times == pytest.approx([0.34])
    on_card = Simulation(replace(settings, overlap=True), Always())
    first, _ = ended_requests(on_card, trace)
    assert first.token_times[0] == pytest.approx(0.1)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_thousand_requests_have_equal_time_stamps_either_way(overlap: bool) -> None:
    settings = replace(ROOMY, limits=StepLimits(256, 64, 16), num_blocks=150, overlap=overlap)
    trace = list(PoissonTrace(6.0, Uniform(1, 100), Uniform(1, 100), 1000, seed=1))
    times = Counted()
    jumping = Simulation(settings, times)
    found = ended_requests(jumping, trace)
    assert found == ended_requests(replace(jumping, one_by_one=True), trace)
    assert sum(len(one.token_times) for one in found) == sum(one.output_tokens for one in trace)
    assert sum(one.num_preemptions for one in found) > 10
    assert len({one.end for one in found}) > 900


def test_a_step_target_looks_at_the_steps_taken_at_once_as_at_single_ones() -> None:
    limits = StepLimits(256, 64, 4)  # prompts wait while four sequences decode
    settings = replace(ROOMY, limits=limits, num_blocks=400, step_target=0.03)
    trace = list(PoissonTrace(2.0, Uniform(20, 120), Uniform(20, 100), 80, seed=0))
    jumping = Simulation(settings, ByLoad())
    assert ended_requests(jumping, trace) == ended_requests(
        replace(jumping, one_by_one=True), trace
    )


def test_figures_are_the_same_either_way() -> None:
    jumping = Simulation(TIGHT, ByLoad(), limits={"ttft": 300, "itl": 40}, warm_up=2.0)
    trace = drawn_trace(5, 200, 4.0)
    assert jumping.run(trace) == replace(jumping, one_by_one=True).run(trace)


def test_one_request_has_the_times_of_its_own_steps() -> None:
    [found] = ended_requests(Simulation(ROOMY, ByLoad()), [TraceRequest(2.5, 40, 3)])
    loads = [StepLoad(32, 0, 32, 528), StepLoad(8, 0, 40, 292)]
    loads += [StepLoad(0, 1, 41, 41), StepLoad(0, 1, 42, 42)]
    now, expected = 2.5, []
    for load in loads:
        now += ByLoad().seconds(load)
        expected.append(now)
    assert found.token_times == expected[1:]
    assert (found.admitted, found.end) == (2.5, expected[-1])


def test_who_arrives_during_a_step_is_heard_after_it() -> None:
    trace = [TraceRequest(0.0, 30, 3), TraceRequest(0.001, 30, 3)]
    first, second = ended_requests(Simulation(ROOMY, ByLoad()), trace)
    assert second.admitted == first.token_times[0]


def test_prompts_that_begin_alike_share_their_pages() -> None:
    trace = [
        TraceRequest(0.0, 20, 2, prefix_ids=(7, 8, 9)),
        TraceRequest(5.0, 20, 2, prefix_ids=(7, 8, 10)),
        TraceRequest(10.0, 20, 2, prefix_ids=(8, 7)),
    ]
    found = ended_requests(Simulation(ROOMY, ByLoad()), trace)
    assert [one.num_cached_tokens for one in found] == [0, 8, 0]


def test_what_is_not_done_by_its_deadline_is_given_up() -> None:
    trace = [TraceRequest(0.0, 30, 30), TraceRequest(0.0, 30, 30, deadline=0.1)]
    kept, expired = ended_requests(Simulation(ROOMY, ByLoad()), trace)
    assert (kept.expired, expired.expired) == (False, True)
    assert 0.1 <= expired.end < 0.2
    assert len(kept.token_times) == 30


def test_a_cache_that_cannot_hold_the_longest_sequence_is_refused() -> None:
    with pytest.raises(
        CacheTooSmall, match="wanted a KV cache for 64 tokens, the longest sequence, got"
    ):
        Simulation(replace(ROOMY, num_blocks=15), ByLoad()).run([])


@pytest.mark.parametrize("overlap", [False, True])
def test_a_sequence_alone_takes_few_calls_of_the_scheduler(
    overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = []
    commit = Scheduler.commit

    def counted(self: Scheduler, *args: Any) -> Any:
        commits.append(args)
        return commit(self, *args)

    monkeypatch.setattr(Scheduler, "commit", counted)
    settings = replace(ROOMY, limits=StepLimits(4096, 64, 4), num_blocks=1024, overlap=overlap)
    [found] = ended_requests(Simulation(settings, ByLoad()), [TraceRequest(0.0, 50, 4000)])
    assert len(found.token_times) == 4000
    assert len(commits) < 8
