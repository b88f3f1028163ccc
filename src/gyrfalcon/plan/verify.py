"""Simulates the splits of which the formulas say that they meet a target, on the engine's own scheduler."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from gyrfalcon.plan.estimate import Setting
from gyrfalcon.plan.simulate_figures import SimulatedFigures
from gyrfalcon.plan.simulate_run import replica_settings
from gyrfalcon.plan.sizing import UTILISATION, Demand, Sized, serving
from gyrfalcon.plan.users import ClosedLoop, Observed, OpenLoop

MS = 1000
FEWEST_SPLITS = 2  # the answer and the runner-up
FEWEST_REQUESTS, REQUESTS_OF_A_STREAM = 1000, 20  # that a simulation counts
WARM_UP_STREAMS = 2.0  # of how long one user takes from request to request
# Of the longest inter-token time: a step target is passed at times.
STEP_TARGETS = (1.0, 0.95, 0.9, 0.85)
NEAR = 1.15  # of that: beyond, it is decoding that takes too long, not prompts


@dataclass(frozen=True, slots=True)
class Trial:
    """A replica with this many streams, simulated. Times in seconds; percentiles are those of the target."""

    num_streams: int
    step_target: float | None  # None: as many prompt tokens as fit into a step
    figures: SimulatedFigures
    first_token: float
    inter_token: float
    utilisation: float
    lacks: str | None  # inter-token, utilisation or first token; None: it meets the target


@dataclass(frozen=True, slots=True)
class Verified:
    """A split after its simulation."""

    # With the replicas that the simulation takes; those of the formulas where none hold.
    sized: Sized
    planned: Sized  # as the formulas have it
    first: Trial  # of the streams that the formulas give a replica
    trial: Trial  # of those that hold, or of a single one

    @property
    def holds(self) -> bool:
        return self.trial.lacks is None


def verify(
    setting: Setting,
    demand: Demand,
    found: Sequence[Sized],
    simulated: Callable[[], object] = lambda: None,
) -> list[Verified]:
    """The answer and the runner-up, simulated, and further splits as long as they may take fewer cards; the
    best first. `simulated` is called after each simulation.
    """
    checked = list[Verified]()
    for one in found:
        cards = [other.sized.split.cards for other in checked if other.holds]
        if len(checked) >= FEWEST_SPLITS and cards and min(cards) <= one.split.cards:
            break
        checked.append(_verified(setting, demand, one, simulated))
    return sorted(checked, key=_rank)


def _rank(one: Verified) -> tuple[bool, int, int, float]:
    sized = one.sized
    return not one.holds, sized.split.cards, sized.machines, sized.pace.mean_step


def _verified(
    setting: Setting, demand: Demand, planned: Sized, simulated: Callable[[], object]
) -> Verified:
    """With the most streams up to the planned ones for which the simulation meets the target."""
    ranks, most, trials = planned.split.ranks, planned.pace.num_streams, dict[int, Trial]()

    def holds(num_streams: int) -> bool:
        if num_streams not in trials:
            attempts = _trials(setting, demand, ranks, num_streams)
            trials[num_streams] = _best(attempts, simulated)
        return trials[num_streams].lacks is None

    if holds(most):
        return Verified(planned, planned, trials[most], trials[most])
    low, high = _bracket(most, holds)
    if not low:
        return Verified(planned, planned, trials[most], trials[1])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    sized = serving(setting, demand, ranks, low, "simulation")
    return Verified(sized, planned, trials[most], trials[low])


def _bracket(most: int, holds: Callable[[int], bool]) -> tuple[int, int]:
    """A number that holds, or 0, and a larger one that does not, close to each other where both are near to
    `most`, which does not.
    """
    less, high = 1, most
    while high > 1:
        low = max(most - less, 1)
        if holds(low):
            return low, high
        less, high = 2 * less, low
    return 0, 1


def _best(attempts: Iterator[Trial], simulated: Callable[[], object]) -> Trial:
    """The first that lacks nothing, or the last."""
    for trial in attempts:
        simulated()
        if trial.lacks is None:
            break
    return trial


def _trials(setting: Setting, demand: Demand, ranks: int, num_streams: int) -> Iterator[Trial]:
    """With whole steps; where inter-token times are too long, with step targets, shorter and shorter."""
    longest = 1 / demand.target.tokens_per_second
    trial = _simulated(setting, demand, ranks, num_streams, None)
    yield trial
    for share in STEP_TARGETS:
        is_near = trial.step_target is None or trial.inter_token <= NEAR * longest
        if trial.lacks != "inter-token" or not is_near:
            return
        trial = _simulated(setting, demand, ranks, num_streams, share * longest)
        yield trial


def _simulated(
    setting: Setting, demand: Demand, ranks: int, num_streams: int, step_target: float | None
) -> Trial:
    rate = demand.target.tokens_per_second
    cycle = demand.stream_seconds + demand.think_seconds
    observed = Observed(
        requests=max(FEWEST_REQUESTS, REQUESTS_OF_A_STREAM * num_streams),
        warm_up=WARM_UP_STREAMS * cycle,
        limits={"ttft": MS * demand.first_token, "tpot": MS / rate},
    )
    settings = replica_settings(setting, ranks, demand.streams.longest, step_target)
    figures = _load(demand, num_streams).run(settings, setting.predicted(ranks), observed)
    first, gaps = figures.first_token_ms, figures.inter_token_ms
    first_token = first.p90 / MS if first else 0.0
    inter_token, mean = (gaps.p90 / MS, gaps.mean / MS) if gaps else (0.0, 0.0)
    checks = {
        "inter-token": inter_token <= 1 / rate,
        "utilisation": mean * rate <= UTILISATION,
        "first token": first_token <= demand.first_token,
    }
    lacks = next((name for name, holds in checks.items() if not holds), None)
    return Trial(num_streams, step_target, figures, first_token, inter_token, mean * rate, lacks)


def _load(demand: Demand, num_streams: int) -> ClosedLoop | OpenLoop:
    """A replica's part of the users or requests, when it has this many of the streams."""
    share = num_streams / demand.num_streams
    if demand.requests_per_second is not None:
        return OpenLoop(demand.requests_per_second * share, demand.streams)
    assert demand.target.users is not None
    users = ceil(demand.target.users * share - 1e-9)
    return ClosedLoop(users, demand.think_seconds, demand.streams)
