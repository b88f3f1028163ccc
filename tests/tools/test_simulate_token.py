"""tools/simulate_token.py: a token's time from bytes, instructions and launches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import simulate_token
import torch
from simulate_token import DESIGNS, TODAY, US, Card, Step, main, simulated, steps_of

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.plan.hardware import TRITON_LAUNCHES
from gyrfalcon.plan.models import planned_model
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_measured import read_measured
from gyrfalcon.plan.step_load import decoding_load

# Milliseconds that a reading of the kernels' assembly by hand gave: fused, prefetched.
BY_HAND = {
    ("falcon-40b", "none"): (20.3, 19.7),
    ("falcon-40b", "int8"): (10.6, 10.0),
    ("falcon-40b", "int4"): (6.1, 5.5),
    ("falcon-7b", "none"): (3.7, 3.4),
    ("falcon-7b", "int8"): (2.1, 1.8),
    ("falcon-7b", "int4"): (1.4, 1.1),
}


@pytest.mark.parametrize(("model", "quant"), BY_HAND)
def test_it_is_near_what_was_worked_out_by_hand(model: str, quant: str) -> None:
    step = Step(planned_model(model).config, quant)
    found = [1000 * simulated(step, DESIGNS[name]).seconds for name in ("fused", "prefetched")]
    assert found == pytest.approx(BY_HAND[model, quant], rel=0.11)


def test_launches_are_those_of_plan() -> None:
    step = Step(planned_model("falcon-40b").config, "none")
    assert simulated(step, DESIGNS[TODAY]).launches == TRITON_LAUNCHES
    assert simulated(step, DESIGNS["separate"]).launches == 10
    in_four_bits = Step(planned_model("falcon-40b").config, "int4")
    assert (
        simulated(in_four_bits, DESIGNS[TODAY]).launches == TRITON_LAUNCHES + 1
    )  # a sum behind up


def test_a_token_takes_its_bytes_at_least() -> None:
    for model in ("falcon-7b", "falcon-40b", "falcon-180b"):
        for quant, design in ((q, d) for q in ("none", "int8", "int4") for d in DESIGNS.values()):
            found = simulated(Step(planned_model(model).config, quant), design)
            assert 0 < found.floor < found.seconds


def test_attention_beside_up_costs_nothing_until_it_is_the_longer() -> None:
    config = planned_model("falcon-40b").config
    fused = DESIGNS["fused"]
    slow = {**simulate_token.SMALL, "attention": 50 * US}
    plain = simulated(Step(config, "none"), fused).seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate_token, "SMALL", slow)
        assert simulated(Step(config, "none"), fused).seconds == pytest.approx(plain)
        assert simulated(Step(config, "int4"), fused).seconds > plain / 4
        separate = simulated(Step(config, "none"), DESIGNS["separate"]).seconds
    more = separate - simulated(Step(config, "none"), DESIGNS["separate"]).seconds
    assert more == pytest.approx(config.num_layers * 44 * US)


def test_a_fork_hides_the_shorter_chain_and_costs_its_join() -> None:
    config = planned_model("falcon-40b").config
    separate, forked = (
        simulated(Step(config, "none"), DESIGNS[name]) for name in ("separate", "forked")
    )
    attention = sum(simulate_token.SMALL[name] for name in ("rotation", "attention", "merge"))
    gaps = 3 - 1  # before each of them; the join is one more
    hidden = attention + gaps * DESIGNS["forked"].gap
    assert separate.seconds - forked.seconds == pytest.approx(config.num_layers * hidden)
    assert separate.launches == forked.launches


def test_a_fork_and_a_join_are_waited_for_whole_however_early_kernels_are_launched() -> None:
    config = planned_model("falcon-40b").config
    early, whole = DESIGNS["early"], DESIGNS["joint"]
    more = simulated(Step(config, "none"), early).seconds
    more -= simulated(Step(config, "none"), replace(early, crossing=None)).seconds
    join = whole.gap - early.gap
    edge = whole.ramp - early.ramp + join
    assert more == pytest.approx(
        config.num_layers * (2 * edge + join)
    )  # of up, and of dense and down


def test_norms_take_longer_for_the_parts_that_they_sum() -> None:
    config = planned_model("falcon-40b").config
    slow = Card(unit_rate=Card().unit_rate / 2)
    for quant, parts in (("none", 2), ("int8", 3), ("int4", 8)):
        step, joint = Step(config, quant), DESIGNS["joint"]
        more = simulated(step, joint, slow).seconds - simulated(step, joint).seconds
        each = 4 * config.hidden_size / Card().unit_rate
        assert more == pytest.approx(config.num_layers * parts * each)


def test_products_have_the_tiles_of_the_kernels() -> None:
    linear = pytest.importorskip("gyrfalcon.ops.triton.linear", reason="needs Triton")
    for quant, (rows, programs) in simulate_token.TILES.items():
        tile = linear.config_for(1, quant, torch.bfloat16)
        assert (tile.outputs, tile.programs) == (rows, programs)


def test_instructions_bind_quantised_weights_where_they_are_slower_than_the_memory() -> None:
    config = planned_model("falcon-40b").config
    packed = DESIGNS["separate"]
    loose = replace(packed, weights_per_clock={"int8": 16.0, "int4": 24.0})  # weights one by one
    faster = Card(rate=1.1 * Card().rate)
    for quant, gain in (("none", 0.08), ("int8", 0.01), ("int4", 0.01)):
        step = Step(config, quant)
        saved = 1 - simulated(step, loose, faster).seconds / simulated(step, loose).seconds
        assert saved == pytest.approx(gain, abs=0.01)
    step = Step(config, "int4")
    assert simulated(step, packed).seconds < 0.7 * simulated(step, loose).seconds


def test_plan_reads_the_steps_that_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, table = tmp_path / "steps.json", tmp_path / "table.json"
    words = ["falcon-7b", "--steps", str(file), "--design", "fused", "--quant", "int8"]
    assert main([*words, "--json", str(table)]) == 0
    assert "To confirm there:" in capsys.readouterr().out
    assert len(json.loads(table.read_text())["rows"]) == 3 * len(DESIGNS)
    settings = SimulatedSettings(StepLimits(2048, 512, 16), num_blocks=2048)
    times = read_measured(str(file), settings)
    model = planned_model("falcon-7b")
    errors = [
        abs(times.seconds(load) / seconds - 1)
        for load, seconds, _ in steps_of(model, "int8", DESIGNS["fused"])
    ]
    assert max(errors) < 0.1
    one = simulated(Step(model.config, "int8"), DESIGNS["fused"]).seconds
    assert times.seconds(decoding_load(1, 128)) == pytest.approx(one, rel=0.03)


def test_more_sequences_than_a_tile_are_refused() -> None:
    with pytest.raises(SystemExit):
        main(["--batch", "17"])
