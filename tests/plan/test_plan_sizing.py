"""How many cards a target needs: what is chosen holds, one replica fewer does not."""

import time
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from gyrfalcon.errors import UsageError
from gyrfalcon.load.lengths import LogNormal, Uniform
from gyrfalcon.plan.estimate import Setting, Split, estimate
from gyrfalcon.plan.hardware import hardware_of
from gyrfalcon.plan.lengths import Streams, default_lengths, values_of
from gyrfalcon.plan.models import planned_model
from gyrfalcon.plan.sizing import Demand, Sized, size
from gyrfalcon.plan.target import target_of

STREAMS = Streams.of(*default_lengths(2048), 2048)


def setting(model: str = "falcon-40b", hardware: str = "h200", quant: str = "none") -> Setting:
    return Setting(planned_model(model), hardware_of(hardware)[0], "bf16", quant, 512, 64)


def demand(text: str = "30 tok/s, 2k context, 500 users", **changed: object) -> Demand:
    return replace(Demand(target_of(text), 2.0, STREAMS), **changed)  # type: ignore[arg-type]


def best(wanted: Demand, **changed: str) -> Sized:
    return size(setting(**changed), wanted)[0]


def test_what_is_chosen_meets_the_target_and_one_stream_more_does_not() -> None:
    wanted = demand()
    found = size(setting(), wanted)
    for one in found:
        assert one.pace.lacks is None
        assert one.pace.inter_token <= 1 / 30
        assert one.pace.first_token <= 2
        assert one.pace.utilisation <= 0.8
        assert one.split.replicas * one.most >= 500 > (one.split.replicas - 1) * one.most
    cards = [one.split.cards for one in found]
    assert cards == sorted(cards)
    assert found[0].bound in ("utilisation", "inter-token", "sequences", "cache", "first token")


def test_more_users_never_take_fewer_cards() -> None:
    cards = [
        best(demand(f"30 tok/s, 2k context, {n} users")).split.cards for n in (1, 50, 500, 5000)
    ]
    assert cards == sorted(cards)
    assert cards[0] < cards[-1]


def test_a_faster_target_never_takes_fewer_cards() -> None:
    cards = [best(demand(f"{n} tok/s, 2k context, 500 users")).split.cards for n in (5, 20, 40, 60)]
    assert cards == sorted(cards)
    assert cards[0] < cards[-1]


def test_spare_replicas_come_on_top() -> None:
    plain, spare = best(demand()).split, best(demand(spare=1)).split
    assert spare == replace(plain, replicas=plain.replicas + 1)


def test_users_who_think_keep_fewer_streams_open() -> None:
    busy, thinking = demand(), demand(think_seconds=60.0)
    assert thinking.num_streams < busy.num_streams == 500
    assert best(thinking).split.cards < best(busy).split.cards


def test_requests_at_a_rate_keep_as_many_streams_as_little_s_law_says() -> None:
    wanted = demand("30 tok/s, 2k context", requests_per_second=20.0)
    mean = 20 * (2 + STREAMS.output_mean / 30)
    assert mean < wanted.num_streams < mean + 3 * mean**0.5


def test_a_hundred_and_eighty_thousand_million_weights_run_on_eight_cards() -> None:
    start = time.process_time()
    found = estimate(setting("falcon-180b", "h100x8"), Split(8), 2048, 8)
    assert found.fits
    assert found.memory.weights == pytest.approx(357.1e9 / 8, rel=0.01)
    sized = best(demand("20 tok/s, 2k context, 100 users"), model="falcon-180b", hardware="h100x8")
    assert sized.split.ranks == 8
    assert time.process_time() - start < 10


@pytest.mark.parametrize("hardware", ["h200", "910b3", "a100"])
def test_ten_thousand_users_of_40b_are_sized_in_seconds(hardware: str) -> None:
    start = time.process_time()
    found = size(setting(hardware=hardware), demand("20 tok/s, 2k context, 10,000 users"))
    assert found[0].split.replicas * found[0].most >= 10_000
    assert len(found) > 1
    assert time.process_time() - start < 10


def test_a_model_larger_than_a_machine_takes_several() -> None:
    found = best(demand("2 tok/s, 2k context, 4 users"), model="falcon-180b", hardware="a10g")
    assert found.split.ranks > 4
    assert found.machines == found.split.cards // 4


def test_a_target_that_nothing_meets_says_what_is_lacking() -> None:
    with pytest.raises(UsageError, match="a single stream lacks inter-token"):
        size(setting(), demand("5000 tok/s, 2k context, 5 users"))
    with pytest.raises(UsageError, match="a single stream lacks first token"):
        size(setting(), demand(first_token=1e-4))


def test_an_estimate_that_does_not_fit_says_what_would() -> None:
    found = estimate(setting(hardware="a100x1"), Split(1), 2048, 1)
    assert not found.fits
    assert "2 ranks" in found.remedies
    assert "--quant int8" in found.remedies
    assert estimate(setting(hardware="a100x2"), Split(2), 2048, 1).fits
    assert estimate(setting(hardware="a100x1", quant="int8"), Split(1), 2048, 1).fits
    crowded = estimate(setting(hardware="a100x2"), Split(2), 2048, 10**4)
    assert f"{crowded.concurrent} sequences at a time" in crowded.remedies


def test_replicas_and_a_price_scale_an_estimate() -> None:
    one = estimate(setting(), Split(1), 1024, 4, price=3.6)
    three = estimate(setting(), Split(1, 3), 1024, 4, price=3.6)
    assert three.tokens_per_second == pytest.approx(3 * one.tokens_per_second)
    assert one.cost_per_million == pytest.approx(3.6 / 3600 / one.tokens_per_second * 1e6)
    assert three.cost_per_million == pytest.approx(one.cost_per_million)


# ---- lengths ----


@pytest.mark.parametrize("lengths", [Uniform(10, 500), LogNormal(200, 150), Uniform(7, 7)])
def test_equally_likely_values_have_the_mean_and_percentiles_of_the_draws(
    lengths: Uniform | LogNormal,
) -> None:
    random = Random(3)
    drawn = [lengths.draw(random) for _ in range(20_000)]
    values = values_of(lengths, 10**6)
    assert np.mean(values) == pytest.approx(np.mean(drawn), rel=0.03)
    assert np.quantile(values, 0.9) == pytest.approx(np.quantile(drawn, 0.9), rel=0.04)


def test_a_stream_s_context_is_that_of_streams_followed_token_by_token() -> None:
    streams = Streams.of(Uniform(100, 900), Uniform(50, 400), 1100)
    random = Random(1)
    seen = list[int]()
    for _ in range(4000):
        prompt, output = random.randint(100, 900), random.randint(50, 400)
        seen += range(prompt, min(prompt + output, 1100))
    mean, deviation = streams.context
    assert mean == pytest.approx(np.mean(seen), rel=0.02)
    assert deviation == pytest.approx(np.std(seen), rel=0.03)


def test_a_cache_never_has_to_hold_more_than_the_longest_streams() -> None:
    assert STREAMS.held(1, 16, 2.33) <= 2048
    assert STREAMS.held(100, 16, 2.33) < 100 * 2048
    assert STREAMS.held(100, 16, 2.33) > 100 * STREAMS.context[0]
