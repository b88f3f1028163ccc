"""Faults that a card would refuse, or worse, would not: each planted in the operators for Ascend cards turns
the test beside it red.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import test_npu_collectives as collectives
import test_npu_device as device_tests
import test_npu_graphs as graphs
import test_npu_laws as laws
import test_npu_operators as operators
import torch
from sabotages import Patch, edited

from gyrfalcon.device import npu_collectives
from gyrfalcon.device.npu import Npu
from gyrfalcon.device.npu_graphs import GraphTasks, _Copy
from gyrfalcon.engine.decode_graphs import DecodeGraph
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.ops.npu import attention
from gyrfalcon.ops.npu.attention import Kernel, Step
from gyrfalcon.ops.npu.linear import Linear
from gyrfalcon.ops.npu.ops import NpuOps
from gyrfalcon.ops.npu.rotary import RotaryAndCache

DECODE = ((1, 1), (5, 300))
MIXED = ((9, 1, 140, 1), (9, 129, 200, 256))
pytest_plugins = ["npu_fixtures"]
layout, small_model = graphs.layout, graphs.small_model

HEADS_40B, HEADS_7B = (16, 1, 64), (71, 1, 64)


def attention_in(layout: str, heads: tuple[int, int, int] = HEADS_40B) -> Callable[[], None]:
    """The test that compares attention with its definition, in one of its cases."""
    return lambda: operators.test_attention_equals_its_definition(heads, layout, *MIXED)


def take_every_head_in_one_call(patch: Patch) -> None:
    patch.setattr(attention, "MOST_HEADS", 71)


SABOTAGES: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "a wrong keyword": (
        edited(Kernel, "_call", '"block_table":', '"block_tables":'),
        attention_in("packed"),
    ),
    "a wrong layout": (
        edited(Kernel, "_prefill", '"BNSD"', '"BSND"'),
        attention_in("by_sequence"),
    ),
    "a wrong dtype": (
        edited(Step, "of", "batch.block_tables.int()", "batch.block_tables"),
        attention_in("packed"),
    ),
    "the scale left out": (
        edited(Kernel, "_call", '"scale": dim**-0.5,', ""),
        attention_in("packed"),
    ),
    "the mask left out": (
        edited(Kernel, "_prefill", "sparse_mode=CAUSAL,\n        atten_mask=self._mask,", ""),
        attention_in("by_sequence"),
    ),
    "lengths that add up, as without pages": (
        edited(
            Kernel,
            "packed",
            "step.contexts,",
            "list(accumulate(step.contexts)),",
        ),
        attention_in("packed"),
    ),
    "71 heads in one call": (take_every_head_in_one_call, attention_in("packed", HEADS_7B)),
    "tanh GELU": (
        edited(Linear, "activate", "approximate=APPROXIMATE[name]", 'approximate="tanh"'),
        lambda: operators.test_activations_equal_their_definition("gelu", ()),
    ),
    "torch's GELU": (
        edited(Linear, "activate", "name not in APPROXIMATE", "True"),
        lambda: operators.test_activations_equal_their_definition("gelu", ()),
    ),
    "an unscaled pse": (
        edited(attention, "_bias", " / math.sqrt(q.shape[-1])", ""),
        lambda: operators.test_alibi_as_a_bias_equals_its_definition(
            torch.float16, (8, 8, 64), (9, 1), (200, 131)
        ),
    ),
    "pages of 16": (
        edited(Npu, "block_size", "for size in BLOCK_SIZES:", "return 16\n    for size in ():"),
        device_tests.test_cache_blocks_are_as_large_as_the_operators_read_them,
    ),
    "the cache's layout left out": (
        edited(RotaryAndCache, "_write", ', cache_mode="Norm"', ""),
        lambda: operators.test_rotating_and_caching_equal_their_definition((), 64),
    ),
    "cos and sin in float32": (
        edited(RotaryAndCache, "_cos_and_sin", ".to(dtype)", ""),
        lambda: operators.test_rotating_and_caching_equal_their_definition((), 64),
    ),
    "a graph's lengths not brought": (
        edited(_Copy, "replay", "task.issue(contexts)", "pass"),
        graphs.a_task_of_a_graph_gets_its_lengths,
    ),
    "the lengths of the capture brought": (
        edited(_Copy, "replay", "task.issue(contexts)", "task.issue([0] * len(contexts))"),
        graphs.a_task_of_a_graph_gets_its_lengths,
    ),
    "lengths brought without telling the graph": (
        edited(_Copy, "replay", "task.ready.record(updates)", "pass"),
        graphs.a_task_of_a_graph_gets_its_lengths,
    ),
    "a graph that may still run given lengths": (
        edited(_Copy, "replay", "self._done.synchronize()", "pass"),
        graphs.a_task_of_a_graph_gets_its_lengths,
    ),
    "a graph replayed before its lengths are brought": (
        edited(
            _Copy,
            "replay",
            "with self._npu.stream(updates):",
            "self._graph.replay()\n    with self._npu.stream(updates):",
        ),
        graphs.a_task_of_a_graph_gets_its_lengths,
    ),
    "a graph that does not wait for its lengths": (
        edited(GraphTasks, "add", "ready.wait(stream)", "pass"),
        graphs.a_graph_waits_for_its_lengths,
    ),
    "a graph that waits only once": (
        edited(GraphTasks, "add", "ready.reset(stream)", "pass"),
        graphs.a_graph_waits_for_its_lengths,
    ),
    "HCCL without its buffers": (
        edited(npu_collectives, "hccl_group", '"hccl_buffer_size": megabytes', ""),
        collectives.test_the_group_has_the_buffers_and_the_patience_of_the_ranks_environment,
    ),
    "a step's numbers kept": (
        edited(NpuOps, "attention", " or self._step.batch is not batch", ""),
        operators.test_a_step_s_numbers_are_not_kept_for_the_next,
    ),
    "scales in float32": (
        edited(Linear, "_scales_in", "weight.scales.to(dtype)", "weight.scales.float()"),
        lambda: operators.test_quantised_linears_equal_their_definition("int8", torch.bfloat16),
    ),
    "no group size": (
        edited(Linear, "_quantised", "(weight.group or 0) if packed else 0", "0"),
        lambda: operators.test_quantised_linears_equal_their_definition("int4", torch.bfloat16),
    ),
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_every_sabotage_of_the_operators_turns_its_test_red(
    sabotage: str, emulated: pytest.MonkeyPatch
) -> None:
    plant, test = SABOTAGES[sabotage]
    test()
    plant(emulated)
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        test()


GRAPHS = {
    "padding cached where a sequence is": edited(
        KVPool, "padding_slots", "self.num_blocks * self.block_size", "0"
    ),
    "what operators made of another run's batch": edited(
        DecodeGraph, "of", "model(replace(batch), pool)", "model(batch, pool)"
    ),
    "lengths of the step before": edited(
        DecodeGraph, "_launch", "*contexts", "*(n - 1 for n in contexts)"
    ),
}


@pytest.mark.parametrize("sabotage", GRAPHS)
@pytest.mark.parametrize("layout", ["tnd"], indirect=True)
def test_every_sabotage_of_graphs_turns_their_tokens_red(
    sabotage: str, layout: str, small_model: Path, emulated: pytest.MonkeyPatch
) -> None:
    GRAPHS[sabotage](emulated)
    with pytest.raises((AssertionError, RuntimeError)):
        graphs.graphs_give_the_tokens_of_single_launches(small_model, emulated, 3)


@pytest.mark.parametrize("variant", ["40b"])
def test_pages_of_16_planted_turn_the_laws_red(
    folder: object, emulated: pytest.MonkeyPatch
) -> None:
    edited(Npu, "block_size", "for size in BLOCK_SIZES:", "return 16\n    for size in ():")(
        emulated
    )
    with pytest.raises(RuntimeError, match="block_size 128, 256, 384 or 512, got 16"):
        laws.test_logits_and_tokens_equal_those_of_transformers(folder, 1, "bsh", emulated)  # type: ignore[arg-type]
