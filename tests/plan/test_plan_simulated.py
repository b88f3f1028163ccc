"""What the formulas of a sizing say of a replica, beside the engine's own scheduler under that load."""

import pytest

from gyrfalcon.engine.scheduler import StepLimits
from gyrfalcon.plan.estimate import Setting
from gyrfalcon.plan.hardware import hardware_of
from gyrfalcon.plan.lengths import Streams, default_lengths
from gyrfalcon.plan.memory import num_cache_blocks
from gyrfalcon.plan.models import planned_model
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.sizing import Demand, size
from gyrfalcon.plan.target import target_of
from gyrfalcon.plan.trace import PoissonTrace

CONTEXT, REQUESTS, WARM_UP = 2048, 700, 40.0


@pytest.mark.parametrize(
    ("hardware", "ranks", "text"),
    [
        ("h200", 2, "40 tok/s, 2k context, 500 users"),
        ("910b3", 4, "20 tok/s, 2k context, 500 users"),
    ],
)
def test_a_replica_s_percentiles_are_those_of_the_simulated_scheduler(
    hardware: str, ranks: int, text: str
) -> None:
    """Requests arrive at random, as many as its streams end at the predicted pace."""
    card = hardware_of(hardware)[0]
    setting = Setting(planned_model("falcon-40b"), card, "bf16", "none", 512, 64)
    prompts, outputs = default_lengths(CONTEXT)
    demand = Demand(target_of(text), 2.0, Streams.of(prompts, outputs, CONTEXT))
    pace = next(one.pace for one in size(setting, demand) if one.split.ranks == ranks)
    config, memory = setting.model.config, setting.memory(ranks)
    blocks = num_cache_blocks(config, ranks, "bf16", memory.cache, CONTEXT, 64, card.block_size)
    settings = SimulatedSettings(
        StepLimits(CONTEXT, 512, 64),
        num_blocks=blocks,
        block_size=card.block_size,
        step_target=1 / demand.target.tokens_per_second,
        overlap=True,
    )
    rate = pace.num_streams / (demand.streams.output_mean * pace.mean_step)
    trace = PoissonTrace(rate, prompts, outputs, REQUESTS, 1, CONTEXT)
    seen = Simulation(settings, setting.predicted(ranks), warm_up=WARM_UP).run(trace)
    assert seen.inter_token_ms is not None
    assert seen.first_token_ms is not None
    assert 1000 * pace.inter_token == pytest.approx(seen.inter_token_ms.p90, rel=0.15)
    assert 1000 * pace.first_token == pytest.approx(seen.first_token_ms.p90, rel=0.5)
    assert pace.num_streams / pace.mean_step == pytest.approx(
        seen.output_tokens_per_second, rel=0.1
    )
