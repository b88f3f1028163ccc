"""What a plan says to people: why a runner-up lost, and what a machine without cards needs."""

from dataclasses import replace

import pytest

from gyrfalcon.plan.estimate import Setting
from gyrfalcon.plan.hardware import hardware_of
from gyrfalcon.plan.lengths import Streams, default_lengths
from gyrfalcon.plan.models import planned_model
from gyrfalcon.plan.sizing import Demand, Sized, size
from gyrfalcon.plan.table import describe_sizing
from gyrfalcon.plan.target import target_of

SETTING = Setting(planned_model("falcon-7b"), hardware_of("a100")[0], "bf16", "none", 512, 64)
DEMAND = Demand(
    target_of("20 tok/s, 2k context, 300 users"), 2.0, Streams.of(*default_lengths(2048), 2048)
)


@pytest.fixture(scope="module")
def best() -> Sized:
    return size(SETTING, DEMAND)[0]


def runner_up(best: Sized, other: Sized) -> str:
    lines = describe_sizing(SETTING, DEMAND, [best, other])
    return next(line for line in lines if line.startswith("runner-up"))


def test_a_runner_up_with_fewer_streams_a_card_lost_by_them(best: Sized) -> None:
    other = replace(best, split=replace(best.split, ranks=2), bound="inter-token")
    said = runner_up(best, other)
    assert f"{best.split.cards} cards more: {best.most / 2:.3g} streams a card" in said
    assert said.endswith("as inter-token times reach the target")


def test_one_with_as_many_streams_a_card_fills_up_worse(best: Sized) -> None:
    other = replace(best, split=replace(best.split, ranks=2), most=2 * best.most)
    assert runner_up(best, other).endswith("replicas of 2 fill up worse")


def test_one_with_as_many_cards_lost_by_machines_or_speed(best: Sized) -> None:
    assert runner_up(best, replace(best, machines=best.machines + 2)).endswith("2 machines more")
    host = best.pace.decoding.host + 3 * best.pace.mean_step
    parts = best.pace.decoding._replace(host=host)
    slower = replace(best, pace=replace(best.pace, decoding=parts, mixed=parts))
    assert "as many cards, but steps take 2" in runner_up(best, slower)


def test_a_target_on_processors_is_answered_in_machines() -> None:
    cpu = replace(SETTING.hardware, name="cpu-avx2", cards_per_machine=1, on_cards=False)
    setting = replace(SETTING, hardware=cpu)
    found = size(setting, DEMAND)
    [needs] = [line for line in describe_sizing(setting, DEMAND, found) if line[:5] == "needs"]
    assert "card" not in needs
    assert "machines: 1 rank × " in needs
