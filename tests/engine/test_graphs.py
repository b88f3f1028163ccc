"""Decoding steps of fixed shapes: padded batches say what unpadded ones say and touch no other cache.
Captured graphs themselves need a GPU; on the CPU the same steps run as they are.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engines import make_engine, random_prompt, small
from torch import Tensor

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.lookup import device_of
from gyrfalcon.engine.build import model_runner
from gyrfalcon.engine.graphs import Graphs, _Graph
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.falcon import Falcon
from gyrfalcon.ops import reference
from gyrfalcon.parallel.group import solo

triton_ops = pytest.importorskip("gyrfalcon.ops.triton.ops", reason="needs Triton")
pytestmark = pytest.mark.slow
CPU = Cpu.at(0)


class Watched(Graphs):
    """Notes how many sequences each decoding step had."""

    def __init__(self, model: Falcon, max_len: int) -> None:
        super().__init__(model, max_len, CPU)
        self.counts: list[int] = []

    def __call__(self, batch: Batch, pool: KVPool) -> Tensor:
        if set(batch.query_lens) == {1}:
            self.counts.append(len(batch.query_lens))
        return super().__call__(batch, pool)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine on Triton's kernels whose decoding steps are padded to fixed sizes."""
    folder = small(tmp_path / "model")
    monkeypatch.setenv("GYRFALCON_OPS", "triton")
    with make_engine(folder) as made:
        model = made._core.model_runner
        assert isinstance(model, Falcon)
        made._core.model_runner = Watched(model, made.max_len)
        yield made


def expected(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """What the definitions say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GYRFALCON_OPS", "reference")
        with make_engine(Path(engine.config.model)) as plain:
            return [list(output.output_ids) for output in plain.generate(prompts, params)]


@pytest.mark.parametrize("count", [1, 3])
def test_padded_steps_give_the_tokens_of_the_definition(engine: Engine, count: int) -> None:
    prompts = [random_prompt(length) for length in (5, 19, 11)[:count]]
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    ours = [list(output.output_ids) for output in engine.generate(prompts, params)]
    assert ours == expected(engine, prompts, params)
    graphs = engine._core.model_runner
    assert isinstance(graphs, Watched)
    assert graphs.counts == [count] * 3
    assert list(graphs._graphs) == [1 if count == 1 else 4]


@pytest.mark.parametrize("count", [1, 3])
def test_padded_steps_take_tokens_that_the_host_has_not_read(engine: Engine, count: int) -> None:
    prompts = [random_prompt(length) for length in (5, 19, 11)[:count]]
    params = SamplingParams(max_new_tokens=5, temperature=1.0, top_k=4, seed=2, ignore_eos=True)
    engine._take_step = Overlap(engine._core).step
    ours = [list(output.output_ids) for output in engine.generate(prompts, params)]
    assert ours == expected(engine, prompts, params)
    graphs = engine._core.model_runner
    assert isinstance(graphs, Watched)
    assert graphs.counts == [count] * 4


def test_sequences_that_only_pad_leave_the_cache_alone(engine: Engine) -> None:
    for cache in engine._core.pool.layers:
        cache.k.fill_(7.0)
        cache.v.fill_(7.0)
    prompts = [random_prompt(length) for length in (5, 3, 4)]  # padded to four
    engine.generate(prompts, SamplingParams(max_new_tokens=3, ignore_eos=True))
    for cache in engine._core.pool.layers:
        written = (cache.k != 7.0).flatten(0, 1).flatten(1).any(dim=-1)
        assert int(written.sum()) == sum(len(prompt) + 2 for prompt in prompts)


def test_what_cannot_be_captured_runs_kernel_by_kernel(engine: Engine) -> None:
    graphs = engine._core.model_runner
    assert isinstance(graphs, Watched)
    graphs.largest = 0
    engine.generate(random_prompt(4), SamplingParams(max_new_tokens=2, ignore_eos=True))
    assert not graphs._graphs


def test_operations_that_read_lengths_on_the_host_are_not_captured(engine: Engine) -> None:
    """As on a card without Triton, or with GYRFALCON_OPS=reference."""
    graphs = engine._core.model_runner
    assert isinstance(graphs, Watched)
    card = device_of(torch.device("cuda"))
    for operations, largest in ((triton_ops, card.graph_sizes[-1]), (reference, 0)):
        run = model_runner(graphs.model, operations, solo(), 64, card)
        assert isinstance(run, Graphs)
        assert run.largest == largest
    assert model_runner(graphs.model, reference, solo(), 64, CPU) is graphs.model


def test_graphs_of_few_sequences_are_captured_before_the_first_request(engine: Engine) -> None:
    runner = engine._core.model_runner
    assert isinstance(runner, Watched)
    with torch.inference_mode():
        runner.warm(engine._core.pool, 2, shown=False)
    captured = dict(runner._graphs)
    prompts = [random_prompt(length) for length in (5, 3)]
    params = SamplingParams(max_new_tokens=3, ignore_eos=True)
    ours = [list(output.output_ids) for output in engine.generate(prompts, params)]
    assert ours == expected(engine, prompts, params)
    assert runner._graphs == captured


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (3, [1, 2, 4]), (500, [1, 2, 4, 8, 16])])
def test_no_graphs_are_captured_of_more_sequences_than_may_run(
    most: int, sizes: list[int], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Graph, "of", lambda model, pool, size, *rest: f"graph of {size}")
    runner = engine._core.model_runner
    assert isinstance(runner, Watched)
    runner.warm(engine._core.pool, most, shown=False)
    assert list(runner._graphs) == sizes


def test_without_captured_graphs_nothing_is_warmed(engine: Engine) -> None:
    runner = engine._core.model_runner
    assert isinstance(runner, Watched)
    runner.largest = 0
    runner.warm(engine._core.pool, 16, shown=False)
    assert not runner._graphs


@pytest.mark.parametrize("size", CPU.graph_sizes)
def test_what_kernels_read_of_a_captured_batch_begins_at_multiples_of_16_bytes(
    size: int, engine: Engine
) -> None:
    """Else each kernel would be compiled once more."""
    graph = _Graph.of(lambda batch, pool: batch.slots, engine._core.pool, size, 64, CPU)
    read = graph.numbers.batch()
    first = graph.numbers.flat.data_ptr()
    for tensor in (read.token_ids, read.positions, read.slots, read.contexts, read.block_tables):
        assert (tensor.data_ptr() - first) % 16 == 0
        assert tensor.is_contiguous()
