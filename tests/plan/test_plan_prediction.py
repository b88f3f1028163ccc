"""A step's predicted time: what it is made of, and that more work never takes less."""

from dataclasses import replace

import pytest

from gyrfalcon.plan.efficiencies import efficiency_for, fitted
from gyrfalcon.plan.hardware import Link, hardware_of, known_hardware
from gyrfalcon.plan.models import planned_model
from gyrfalcon.plan.prediction import (
    FEW_TOKENS,
    MANY_TOKENS,
    Efficiency,
    Predicted,
    collective_seconds,
)
from gyrfalcon.plan.step_load import StepLoad, decoding_load, load_of
from gyrfalcon.plan.work import OTHER_LAUNCHES, work_of

H200 = known_hardware()["h200"]
CPU = replace(H200, on_cards=False, flops_per_second={"bf16": 5e11}, bytes_per_second=5e10)
SHARES = Efficiency(0.7, 0.6, 0.3)
LOADS = [decoding_load(n, 700 * n) for n in (1, 2, 8, 9, 64, 127, 128, 129, 400)]
PROMPTS = [load_of([range(n)], [300] * 4) for n in (1, 5, 60, 500, 512, 2000)]


def predicted(ranks: int = 1, on_cards: bool = True, efficiency: Efficiency = SHARES) -> Predicted:
    config = planned_model("falcon-7b").config
    work = work_of(config, ranks, "bf16", "none", on_cards)
    return Predicted(work, H200 if on_cards else CPU, efficiency, "bf16")


@pytest.mark.parametrize("on_cards", [True, False])
@pytest.mark.parametrize("loads", [LOADS, PROMPTS], ids=["decoding", "prompts"])
def test_a_larger_step_takes_no_less(loads: list[StepLoad], on_cards: bool) -> None:
    times = [predicted(on_cards=on_cards).seconds(load) for load in loads]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_a_longer_context_takes_longer() -> None:
    short, long = (predicted().seconds(decoding_load(8, 8 * n)) for n in (10, 2000))
    assert short < long


def test_decoding_one_sequence_takes_the_weights_and_the_launches() -> None:
    step = predicted()
    parts = step.parts(decoding_load(1, 1))
    assert parts.limit == "bytes"
    assert parts.hides_host
    assert parts.bytes == pytest.approx(13.85e9 / (0.7 * 4.8e12), rel=1e-3)
    assert parts.launches == pytest.approx((7 * 32 + OTHER_LAUNCHES) * 4e-6)
    assert parts.seconds == pytest.approx(parts.bytes + parts.launches)


def test_a_host_that_takes_longer_than_the_device_is_what_limits() -> None:
    quick = replace(H200, bytes_per_second=1e18, launch_seconds=0.0)
    parts = replace(predicted(), hardware=quick).parts(decoding_load(8, 8))
    assert parts.limit == "host"
    assert parts.seconds == parts.host == pytest.approx(0.35e-3 + 7 * 16e-6)


def test_the_host_is_not_hidden_behind_prompts_nor_on_a_cpu() -> None:
    for step, load in (
        (predicted(), load_of([range(512)])),
        (predicted(on_cards=False), decoding_load(1, 1)),
    ):
        parts = step.parts(load)
        assert parts.seconds == pytest.approx(parts.device + parts.host)


def test_kernels_that_the_host_launches_are_waited_for_where_they_are_short() -> None:
    one, quick = load_of([range(1)]), replace(H200, bytes_per_second=48e12)
    step = replace(predicted(), hardware=quick)
    parts = step.parts(one)
    launches = 7 * 32 + OTHER_LAUNCHES
    assert parts.device == pytest.approx(launches * 10e-6)
    slow = replace(step, hardware=replace(H200, bytes_per_second=1e11))
    assert slow.parts(one).launches == pytest.approx(launches * 4e-6)


def test_without_graphs_the_host_launches_while_the_step_before_runs() -> None:
    load, launched = decoding_load(4, 4000), (7 * 32 + OTHER_LAUNCHES) * 10e-6
    graphs = predicted().parts(load)
    eager = replace(predicted(), hardware=replace(H200, graphs=False)).parts(load)
    assert eager.host == pytest.approx(graphs.host + launched)
    assert eager.seconds == max(eager.device, eager.host)
    many = predicted().parts(decoding_load(129, 129))
    assert many.host == pytest.approx(0.35e-3 + 128 * 16e-6 + launched)


def test_hardware_says_how_many_kernels_a_layer_takes() -> None:
    """Ascend's operators, launched one by one, are more than Triton's kernels (ops/npu)."""
    load, card = decoding_load(1, 1), known_hardware()["910b3"]
    ascend = replace(predicted(), hardware=card).parts(load)
    assert ascend.launches == pytest.approx((15 * 32 + OTHER_LAUNCHES) * 5e-6)
    assert ascend.host == pytest.approx(0.35e-3 + (15 * 32 + OTHER_LAUNCHES) * 10e-6)
    assert predicted().parts(load).launches == pytest.approx((7 * 32 + OTHER_LAUNCHES) * 4e-6)


def test_a_long_prompt_is_limited_by_operations() -> None:
    parts = predicted().parts(load_of([range(512)]))
    assert parts.limit == "flops"
    assert parts.flops == pytest.approx(
        predicted().work.flops(load_of([range(512)])) / (0.6 * 989e12)
    )


def test_few_tokens_reach_their_own_share_and_others_lie_between() -> None:
    assert SHARES.flops_at(1) == SHARES.flops_at(FEW_TOKENS) == pytest.approx(0.3)
    assert SHARES.flops_at(MANY_TOKENS) == SHARES.flops_at(10**6) == pytest.approx(0.6)
    assert 0.3 < SHARES.flops_at(32) < 0.6


def test_more_ranks_read_less_and_reduce_more() -> None:
    load = decoding_load(4, 4000)
    one, two, four = (predicted(ranks).parts(load) for ranks in (1, 2, 4))
    assert one.bytes > two.bytes > four.bytes
    assert one.collectives == 0 < two.collectives < four.collectives


def test_an_all_reduce_of_a_ring_moves_twice_all_but_a_part() -> None:
    work = work_of(planned_model("falcon-40b").config, 4, "bf16", "none", on_cards=True)
    hardware = replace(H200, link=Link(0.0, 1e9))
    seconds = collective_seconds(work, hardware, 10)
    assert work.all_reduces == 61
    assert seconds == pytest.approx(61 * 10 * 8192 * 2 * 2 * 3 / 4 / 1e9)


def test_ranks_in_a_mesh_use_the_links_between_them_alone() -> None:
    """Four cards of eight reach 3 / 7 of what a card sends to all others; through a switch all of it."""
    for name, rate in (("910b3", 196e9), ("mi300x", 448e9)):
        hardware = hardware_of(f"{name}x4")[0]
        assert hardware.link_of(4).rate(4) == pytest.approx(rate * 3 / 7)
        assert known_hardware()[name].link_of(8).rate(8) == pytest.approx(rate)
    assert H200.link.rate(2) == H200.link.bytes_per_second
    work = work_of(planned_model("falcon-40b").config, 2, "bf16", "none", on_cards=True)
    switched, mesh = (
        collective_seconds(work, replace(H200, link=Link(0.0, 1e9, peers)), 10)
        for peers in (None, 7)
    )
    assert mesh == pytest.approx(7 * switched)


def test_a_sequential_block_has_two_all_reduces() -> None:
    work = work_of(planned_model("falcon-rw-1b").config, 2, "bf16", "none", on_cards=True)
    assert work.all_reduces == 2 * 24 + 1


def test_ranks_on_two_machines_use_the_network() -> None:
    assert H200.link_of(8) == H200.link
    assert H200.link_of(9) == H200.network


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "int4", "fp8"])
@pytest.mark.parametrize(
    "platform",
    [
        "910b3",
        "a100",
        "mi300x",
        "cpu-avx2",
        "cpu-avx-vnni",
        "cpu-avx512-core",
        "cpu-avx512",
        "cpu-amx",
    ],
)
def test_every_platform_has_shares_and_says_where_from(platform: str, precision: str) -> None:
    found = efficiency_for(platform, precision)
    assert 0 < found.bytes <= 1
    assert found.flops > 0
    assert found.basis
    own = [row for row in fitted() if (row.platform, row.engine) == (platform, "gyrfalcon")]
    if platform in ("cpu-avx2", "cpu-amx") and precision in ("int8", "int4"):
        [row] = [row for row in own if row.precision == precision]
        assert (found.bytes, found.flops) == (row.bytes, row.flops)


def test_a_processor_without_native_kernels_is_as_fast_as_torch() -> None:
    plain, native = efficiency_for("cpu-torch", "bf16"), efficiency_for("cpu-avx2", "bf16")
    assert "transformers" in plain.basis
    assert plain.bytes < native.bytes / 2
