"""Sized splits beside their simulation: what stands, and what is overturned."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gyrfalcon.plan import verify as verifying
from gyrfalcon.plan.estimate import Setting
from gyrfalcon.plan.hardware import hardware_of
from gyrfalcon.plan.lengths import Streams
from gyrfalcon.plan.models import planned_model
from gyrfalcon.plan.sizing import Demand, Sized, serving, size
from gyrfalcon.plan.table import describe_verified
from gyrfalcon.plan.target import target_of
from gyrfalcon.plan.verify import Verified, verify

SETTING = Setting(planned_model("falcon-7b"), hardware_of("a100x2")[0], "bf16", "none", 512, 64)
STREAMS = Streams(prompts=(100, 300, 500), outputs=(40, 80), longest=1024)
DEMAND = Demand(target_of("30 tok/s, 1k context, 60 users"), 1.0, STREAMS)


def sized(ranks: int, demand: Demand = DEMAND) -> Sized:
    return next(one for one in size(SETTING, demand) if one.split.ranks == ranks)


def too_many(ranks: int, streams: int, demand: Demand = DEMAND) -> Sized:
    """A split of formulas that promise more than the scheduler keeps."""
    return serving(SETTING, demand, ranks, streams, "users")


@pytest.fixture(autouse=True, scope="module")
def few_requests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying, "FEWEST_REQUESTS", 300)
        patch.setattr(verifying, "REQUESTS_OF_A_STREAM", 5)
        yield


@pytest.fixture(scope="module")
def overturned() -> list[Verified]:
    """Of 60 streams on a card; two ranks do serve 30."""
    return verify(SETTING, DEMAND, [too_many(1, 60), too_many(2, 30)])


def test_what_holds_stays_as_it_is() -> None:
    found = size(SETTING, DEMAND)
    for one in verify(SETTING, DEMAND, found):
        assert one.sized is one.planned
        assert one.holds
        assert one.trial.inter_token <= 1 / 30
        assert one.trial.first_token <= 1.0
        assert one.trial.utilisation <= 0.8


def test_too_many_streams_are_made_the_most_that_hold(overturned: list[Verified]) -> None:
    one = next(one for one in overturned if one.planned.split.ranks == 1)
    assert one.first.lacks is not None
    assert one.first.num_streams == 60
    assert one.holds
    assert 1 < one.trial.num_streams < 60
    assert one.sized.most == one.trial.num_streams
    assert one.sized.split.replicas == -(-60 // one.trial.num_streams) > 1
    again = verify(SETTING, DEMAND, [too_many(1, one.trial.num_streams + 1)])[0]
    assert again.first.num_streams > one.trial.num_streams or again.holds


def test_the_answer_is_the_one_that_takes_the_fewest_cards_when_simulated(
    overturned: list[Verified],
) -> None:
    cards = [one.sized.split.cards for one in overturned]
    assert cards == sorted(cards)
    assert cards[0] > 1  # what the formulas promised
    *_, verdict = describe_verified(overturned)
    assert "overturned" in verdict
    assert "1 card: 1 rank" in verdict


def test_a_further_split_is_simulated_where_it_may_take_fewer_cards() -> None:
    third = sized(1)
    found = verify(SETTING, DEMAND, [too_many(2, 10), too_many(2, 8), third])
    assert found[0].sized is third
    assert len(found) == 3
    assert len(verify(SETTING, DEMAND, [third, too_many(2, 10), too_many(2, 8)])) == 2


def test_where_nothing_holds_the_formulas_answer_is_said_not_to() -> None:
    """No card gives a first token in 5 ms."""
    demand = replace(DEMAND, first_token=0.005)
    found = verify(SETTING, demand, [too_many(1, 2, demand), too_many(2, 2, demand)])
    assert not any(one.holds for one in found)
    assert all(one.sized is one.planned for one in found)
    assert {one.trial.lacks for one in found} == {"first token"}
    assert {one.trial.num_streams for one in found} == {1}
    *_, verdict = describe_verified(found)
    assert "no simulated split holds" in verdict


def test_spare_replicas_come_on_top_of_what_holds(overturned: list[Verified]) -> None:
    plain = next(one for one in overturned if one.planned.split.ranks == 1).sized
    demand = replace(DEMAND, spare=1)
    first = too_many(1, plain.most, demand)
    spare = verify(SETTING, demand, [first])[0].sized.split
    assert spare == replace(plain.split, replicas=plain.split.replicas + 1)


@pytest.mark.parametrize("changed", [{"think_seconds": 5.0}, {"requests_per_second": 6.0}])
def test_users_who_think_and_requests_at_a_rate_are_simulated(changed: dict[str, float]) -> None:
    demand = replace(DEMAND, **changed)  # type: ignore[arg-type]
    one = verify(SETTING, demand, size(SETTING, demand))[0]
    assert one.holds
    share = one.trial.num_streams / demand.num_streams
    asked = 6.0 if "requests_per_second" in changed else 60 / (5 + demand.stream_seconds)
    assert one.trial.figures.finished_per_second == pytest.approx(asked * share, rel=0.4)
