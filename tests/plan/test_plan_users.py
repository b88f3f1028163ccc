"""Users of a simulated replica: what queueing theory says of any of them."""

import pytest
from simulations import ByLoad

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.plan.lengths import Streams
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_figures import SimulatedFigures
from gyrfalcon.plan.users import ClosedLoop, Observed, OpenLoop

STREAMS = Streams(prompts=(5, 20, 40), outputs=(4, 12, 20), longest=60)
OBSERVED = Observed(requests=600, warm_up=20.0, limits={"ttft": 1e9})


def settings(overlap: bool = False) -> SimulatedSettings:
    return SimulatedSettings(StepLimits(64, 32, 16), num_blocks=80, overlap=overlap)


def mean_seconds(found: SimulatedFigures) -> float:
    assert found.end_to_end_ms is not None
    return found.end_to_end_ms.mean / 1000


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("users", "think"), [(1, 0.0), (12, 0.0), (12, 0.4), (30, 0.5)])
def test_users_are_the_rate_times_the_time_between_their_requests(
    users: int, think: float, overlap: bool
) -> None:
    """Little's law of a closed loop; of 30 users some wait, as 16 run at once."""
    found = ClosedLoop(users, think, STREAMS).run(settings(overlap), ByLoad(), OBSERVED)
    assert 0 <= found.finished - OBSERVED.requests < users  # that ended together
    counted = found.finished_per_second * (mean_seconds(found) + think)
    assert counted == pytest.approx(users, rel=0.08)


def test_users_who_think_ask_less() -> None:
    busy, thinking = (
        ClosedLoop(8, think, STREAMS).run(settings(), ByLoad(), OBSERVED) for think in (0.0, 2.0)
    )
    assert thinking.finished_per_second < busy.finished_per_second
    assert mean_seconds(thinking) < mean_seconds(busy)


def test_requests_at_a_rate_come_whatever_becomes_of_those_before() -> None:
    found = OpenLoop(2.0, STREAMS).run(settings(), ByLoad(), OBSERVED)
    assert found.finished == OBSERVED.requests
    assert found.finished_per_second == pytest.approx(2.0, rel=0.1)


def test_the_same_seed_gives_the_same_figures() -> None:
    for loop in (ClosedLoop(8, 0.5, STREAMS), OpenLoop(3.0, STREAMS)):
        first, again = (loop.run(settings(), ByLoad(), OBSERVED) for _ in range(2))
        assert first == again
