"""Decoding in captured graphs on Ascend cards: each replay is given the lengths of its step first, and what
cannot be captured is launched operator by operator. On emulated graphs, which no card's are.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import npu_graph_emulation as graphs
import npu_kernels as kernels
import pytest
import torch
from checkpoints import make_checkpoint
from engines import make_engine, random_prompt
from npu_emulation import emulate, fake_torch_npu
from npu_kernels import Refused
from torch import Tensor

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.device.npu import Npu
from gyrfalcon.device.npu_graphs import COPIES, NEEDED, VARIABLE, GraphTasks, capture
from gyrfalcon.engine.graphs import Graphs
from gyrfalcon.ops.npu.choice import VARIABLE as ATTENTION

pytest_plugins = ["npu_fixtures"]

CPU = torch.device("cpu")
OPTIONS = {"device": "npu", "dtype": "bf16", "max_len": 160}
NEW_TOKENS = 6
PROMPTS = tuple(random_prompt(length) for length in (5, 130, 11))
MAX_SPACE = "_npu_fused_infer_attention_score_get_max_workspace"


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "40b")


@pytest.fixture(params=["bsh", "tnd"])
def layout(request: pytest.FixtureRequest, emulated: pytest.MonkeyPatch) -> str:
    """A layout of the attention, which takes the small model's heads."""
    kernels.MACHINE.packed_dims = (8, 16, *kernels.MACHINE.packed_dims)
    emulated.setenv(ATTENTION, request.param)
    graphs.LOG.clear()
    return str(request.param)


def decoded(engine: Engine, count: int) -> list[list[int]]:
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    return [list(output.output_ids) for output in engine.generate(list(PROMPTS[:count]), params)]


def without_graphs(small_model: Path, patch: pytest.MonkeyPatch, count: int) -> list[list[int]]:
    with patch.context() as changed:
        changed.setenv(VARIABLE, "0")
        with make_engine(small_model, **OPTIONS) as engine:
            return decoded(engine, count)


def runner_of(engine: Engine) -> Graphs:
    runner = engine._core.model_runner
    assert isinstance(runner, Graphs)
    return runner


def graphs_give_the_tokens_of_single_launches(
    small_model: Path, patch: pytest.MonkeyPatch, count: int
) -> None:
    """Raises where they do not, or where a replay was not preceded by the updates of its attentions."""
    wanted = without_graphs(small_model, patch, count)
    assert graphs.LOG == []
    with make_engine(small_model, **OPTIONS) as engine:
        assert decoded(engine, count) == wanted
        assert list(runner_of(engine)._graphs) == [1 if count == 1 else 4]
        layers = len(engine._core.pool.layers)
    one_step = ["update"] * layers + ["replay"]
    assert one_step * (len(graphs.LOG) // len(one_step)) == graphs.LOG
    assert graphs.LOG.count("replay") >= NEW_TOKENS - 1


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("count", [1, 3])
def test_graphs_give_the_tokens_of_single_launches(
    small_model: Path, emulated: pytest.MonkeyPatch, count: int
) -> None:
    graphs_give_the_tokens_of_single_launches(small_model, emulated, count)


@pytest.mark.usefixtures("layout")
def test_sequences_that_only_pad_are_cached_in_a_block_that_none_gets(small_model: Path) -> None:
    with make_engine(small_model, **OPTIONS) as engine:
        pool, block_size = engine._core.pool, engine._core.pool.block_size
        assert engine.cache_len == pool.num_blocks * block_size
        for cache in pool.layers:
            assert len(cache.k) == pool.num_blocks + 1
            cache.k.fill_(7.0)
        decoded(engine, 3)  # padded to four
        [*_, last] = [cache.k for cache in pool.layers]
        written = (last != 7.0).flatten(0, 1).flatten(1).any(dim=-1)
        own = written[: pool.num_blocks * block_size]
        assert int(own.sum()) == sum(map(len, PROMPTS)) + 3 * (NEW_TOKENS - 1)
        assert written[len(own) :].any()


def tokens_and_warnings(
    small_model: Path, caplog: pytest.LogCaptureFixture
) -> tuple[list[list[int]], list[str]]:
    caplog.set_level(logging.INFO)
    with make_engine(small_model, **OPTIONS) as engine:
        tokens = decoded(engine, 3)
        assert not runner_of(engine)._graphs
    return tokens, [line for line in caplog.messages if "decode" in line or "decoding" in line]


@pytest.mark.parametrize("missing", [*NEEDED, MAX_SPACE, "npu_fused_infer_attention_score.out"])
def test_a_torch_npu_without_a_part_of_graphs_is_launched_operator_by_operator(
    missing: str, small_model: Path, emulated: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = without_graphs(small_model, emulated, 3)
    caplog.clear()
    emulate(emulated, fake_torch_npu(without=(missing,)))
    found, said = tokens_and_warnings(small_model, caplog)
    assert found == wanted
    assert graphs.LOG == []
    [line] = said
    assert line.startswith("decoding is launched operator by operator: this torch_npu has no ")
    assert missing in line or missing not in NEEDED


def no_streams_left(module: ModuleType) -> None:
    def begin(stream: object) -> None:
        raise RuntimeError("error code is 207008:\n no stream resources")

    module.npu.graph_task_group_begin = begin


def another_interface(module: ModuleType) -> None:
    def graph(one: object) -> None:
        raise AssertionError

    module.npu.graph = graph


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (no_streams_left, "error code is 207008: no stream resources"),
        (another_interface, "unexpected keyword argument 'pool'"),
    ],
)
def test_a_capture_that_raises_is_told_and_given_up(
    fault: object,
    why: str,
    small_model: Path,
    emulated: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = without_graphs(small_model, emulated, 3)
    caplog.clear()
    module = fake_torch_npu()
    fault(module)  # type: ignore[operator]
    emulate(emulated, module)
    found, said = tokens_and_warnings(small_model, caplog)
    assert found == wanted
    [line] = said
    assert line.startswith("4 sequences or more are decoded without a graph: ")
    assert why in line
    assert len(graphs.STATE.streams) == 1


def test_attention_by_its_definition_is_not_captured(
    small_model: Path, emulated: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    emulated.setenv(ATTENTION, "plain")
    found, [line] = tokens_and_warnings(small_model, caplog)
    assert all(len(tokens) == NEW_TOKENS for tokens in found)
    assert "attention by its definition reads the lengths on the host" in line


def test_larger_batches_alone_are_given_up_where_theirs_cannot_be_captured(
    small_model: Path, emulated: pytest.MonkeyPatch
) -> None:
    with make_engine(small_model, **OPTIONS) as engine:
        decoded(engine, 1)
        module = fake_torch_npu()
        no_streams_left(module)
        emulate(emulated, module)
        decoded(engine, 3)
        runner = runner_of(engine)
        assert (list(runner._graphs), runner.largest) == ([1], 1)


def test_ranks_replay_graphs_all_or_none(small_model: Path, emulated: pytest.MonkeyPatch) -> None:
    """As another rank's answer makes of ours."""
    with make_engine(small_model, **OPTIONS) as engine:
        runner = runner_of(engine)
        runner._smallest = lambda ours: 0
        decoded(engine, 3)
        assert (runner._graphs, runner.largest) == ({}, 0)


def counting(tasks: GraphTasks, numbers: Tensor) -> Callable[[], Tensor]:
    """Work with a task that takes lengths from the host: their sum, added to the numbers."""

    def work() -> Tensor:
        out = torch.empty(1)

        def fill(contexts: Sequence[int]) -> None:
            out.fill_(sum(contexts))

        if tasks.is_capturing:
            tasks.add(fill, [0])
        return out + numbers

    return work


def a_task_of_a_graph_gets_its_lengths() -> None:
    """Raises where a replay has others, or a graph is updated that nobody has waited for."""
    tasks, numbers = GraphTasks(), torch.zeros(1)
    replay = capture(fake_torch_npu().npu, tasks, CPU, counting(tasks, numbers))
    try:
        for step in range(2 * COPIES + 1):
            numbers.fill_(step)
            assert float(replay([10, step])) == 10 + 2 * step
    finally:
        graphs.STATE.running.clear()


def a_graph_waits_for_its_lengths() -> None:
    """Raises where a graph runs that nobody has given any, or none since its last replay."""
    tasks = GraphTasks()
    replayed: list[graphs.NPUGraph] = []
    npu = fake_torch_npu().npu
    npu.NPUGraph = type("Noted", (npu.NPUGraph,), {"__init__": noting(replayed)})
    replay = capture(npu, tasks, CPU, counting(tasks, torch.zeros(1)))
    try:
        for time in ("before", "after"):
            assert all(map(waits_without_end, replayed)), time
            graphs.STATE.running.clear()
            for _ in range(COPIES):
                replay([1])
            assert len(replayed) == COPIES, time
    finally:
        graphs.STATE.running.clear()


def waits_without_end(graph: graphs.NPUGraph) -> bool:
    try:
        graph.replay()
    except Refused as error:
        return "an event that nobody records" in str(error)
    return False


def noting(made: list[graphs.NPUGraph]) -> Callable[[graphs.NPUGraph], None]:
    def init(self: graphs.NPUGraph) -> None:
        graphs.NPUGraph.__init__(self)
        made.append(self)

    return init


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    "holds", [a_task_of_a_graph_gets_its_lengths, a_graph_waits_for_its_lengths]
)
def test_each_replay_waits_for_the_lengths_that_are_brought(holds: Callable[[], None]) -> None:
    holds()


@pytest.mark.usefixtures("emulated")
def test_the_emulation_refuses_what_a_card_would_do_wrong() -> None:
    npu = fake_torch_npu().npu
    one, event, task = npu.NPUGraph(), npu.ExternalEvent(), torch.zeros(1)
    with npu.graph(one):
        event.wait(npu.current_stream())
        event.reset(npu.current_stream())
        npu.graph_task_group_begin(npu.current_stream())
        task.fill_(1)
        handle = npu.graph_task_group_end(npu.current_stream())
    with pytest.raises(Refused, match="an event that nobody records"):
        one.replay()
    with pytest.raises(Refused, match="does not run any more"):
        npu.graph_task_update_begin(npu.current_stream(), handle)
    graphs.STATE.running.clear()
    with pytest.raises(Refused, match="no value read on the host"), npu.graph(npu.NPUGraph()):
        task.item()


def test_a_device_without_graphs_of_its_own_keeps_them_of_all_sizes() -> None:
    assert Npu.graph_sizes[0] == 1
    assert Npu.graph_sizes[-1] <= Npu.spare_blocks * Npu.block_size(1)
