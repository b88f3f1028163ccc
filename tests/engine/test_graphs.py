"""Decoding steps of fixed shapes: padded batches say what unpadded ones say and touch no other cache.
Captured graphs themselves need a GPU; on the CPU the same steps run as they are.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from engines import GREEDY, make_engine, random_prompt, small
from torch import Tensor

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.lookup import device_of
from gyrfalcon.engine import sampler
from gyrfalcon.engine.build import model_runner
from gyrfalcon.engine.decode_graphs import DecodeGraph, Following
from gyrfalcon.engine.graphs import Graphs
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.engine.prompt_graphs import PromptGraph
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.falcon import Falcon
from gyrfalcon.ops import reference
from gyrfalcon.parallel.group import Vocabulary
from gyrfalcon.request import Delta, FinishReason

triton_ops = pytest.importorskip("gyrfalcon.ops.triton.ops", reason="needs Triton")
pytestmark = pytest.mark.slow
CPU = Cpu.at(0)
BLOCK = 4  # tokens: sequences soon begin another


class Watched(Graphs):
    """Notes how many sequences each decoding step had."""

    def __init__(self, model: Falcon, vocabulary: Vocabulary, max_len: int) -> None:
        super().__init__(model, partial(sampler.greedy, vocabulary=vocabulary), max_len, CPU)
        self.counts: list[int] = []
        self.num_following = 0

    def _replayed(self, step: Batch | Following, pool: KVPool) -> DecodeGraph | PromptGraph | None:
        graph = super()._replayed(step, pool)
        if isinstance(graph, DecodeGraph):
            self.counts.append(graph.num_sequences)
        self.num_following += isinstance(step, Following)
        return graph


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine on Triton's kernels whose decoding steps are padded to fixed sizes."""
    folder = small(tmp_path / "model")
    monkeypatch.setenv("GYRFALCON_OPS", "triton")
    with make_engine(folder, block_size=BLOCK) as made:
        model = made._core.model_runner
        assert isinstance(model, Falcon)
        made._core.model_runner = Watched(model, made._core.vocabulary, made.max_len)
        yield made


class Capturing(Cpu):
    """A device that captures prompts."""

    prompt_sizes = (8, 16)


@pytest.fixture
def prompts_too(engine: Engine) -> Watched:
    """The engine's runner, which runs prompts of up to 16 tokens as graphs as well."""
    runner = engine._core.model_runner
    assert isinstance(runner, Watched)
    runner.device, runner.longest = Capturing.at(0), Capturing.prompt_sizes[-1]
    return runner


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


DRAWN = SamplingParams(temperature=1.0, top_k=4, seed=2, ignore_eos=True)


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("count", [1, 3])
def test_padded_steps_take_tokens_that_the_host_has_not_read(
    engine: Engine, count: int, params: SamplingParams
) -> None:
    """Blocks begin while numbers are counted up."""
    prompts = [random_prompt(length) for length in (15, 19, 11)[:count]]
    params = replace(params, max_new_tokens=7, ignore_eos=True)
    engine._take_step = Overlap(engine._core).step
    ours = [list(output.output_ids) for output in engine.generate(prompts, params)]
    assert ours == expected(engine, prompts, params)
    graphs = engine._core.model_runner
    assert isinstance(graphs, Watched)
    assert graphs.counts == [count] * 6
    assert graphs.num_following == 5  # all but the one after the prompts


def test_numbers_are_not_counted_up_where_a_sequence_has_left_or_come(engine: Engine) -> None:
    lengths, news = (5, 9, 3), (3, 9, 5)
    prompts = [random_prompt(length) for length in lengths]
    params = [replace(GREEDY, max_new_tokens=new, ignore_eos=True) for new in news]
    engine._take_step = Overlap(engine._core).step
    found: dict[int, list[int]] = {}
    deltas: list[Delta] = []
    for prompt, own in zip(prompts, params, strict=True):
        found[engine.add(prompt, own)] = []
        deltas += [*engine.step(), *engine.step()]
    while engine.has_work:
        deltas += engine.step()
    for delta in deltas:
        assert delta.token is not None
        found[delta.request_id].append(delta.token.id)
    alone = [
        expected(engine, [prompt], own)[0] for prompt, own in zip(prompts, params, strict=True)
    ]
    assert list(found.values()) == alone


def test_what_a_graph_finds_in_its_logits_shows_rows_that_are_not_finite(engine: Engine) -> None:
    runner = engine._core.model_runner
    assert isinstance(runner, Watched)
    model = runner.model
    runner.model = lambda batch, pool: model(batch, pool).masked_fill(
        (batch.contexts == 7)[:, None], math.nan
    )
    engine._take_step = Overlap(engine._core).step
    failing, sound = random_prompt(4), random_prompt(9)
    params = replace(GREEDY, max_new_tokens=6, ignore_eos=True)
    requests = [engine.add(prompt, params) for prompt in (failing, sound)]
    found: dict[int, list[Delta]] = {request: [] for request in requests}
    while engine.has_work:
        for delta in engine.step():
            found[delta.request_id].append(delta)
    ended = [found[request][-1].finish_reason for request in requests]
    assert ended == [FinishReason.ERROR, FinishReason.LENGTH]
    assert "position 6 of" in str(found[requests[0]][-1].error)


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


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize(("length", "size"), [(2, 8), (8, 8), (9, 16), (16, 16), (17, None)])
def test_padded_prompts_give_the_tokens_of_the_definition(
    engine: Engine, prompts_too: Watched, length: int, size: int | None, params: SamplingParams
) -> None:
    params = replace(params, max_new_tokens=3)
    engine._take_step = Overlap(engine._core).step
    [ours] = engine.generate([random_prompt(length)], params)
    assert [list(ours.output_ids)] == expected(engine, [random_prompt(length)], params)
    assert list(prompts_too._prompts) == ([] if size is None else [size])


def test_a_chunk_of_a_prompt_is_padded_behind_what_is_cached(tmp_path: Path) -> None:
    """The first 16 of 24 tokens kernel by kernel, beside another prompt's, the other 8 as a graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GYRFALCON_OPS", "triton")
        folder = small(tmp_path / "model", "rw-1b", num_attention_heads=4)
        with make_engine(folder, reuse_prefixes=True, block_size=4) as engine:
            model = engine._core.model_runner
            assert isinstance(model, Falcon)
            runner = Watched(model, engine._core.vocabulary, engine.max_len)
            runner.device, runner.longest = Capturing.at(0), 16
            engine._core.model_runner = runner
            params = replace(GREEDY, max_new_tokens=3)
            prompt = random_prompt(24)
            engine.generate([prompt[:17]], params)
            assert not runner._prompts
            [ours] = engine.generate([prompt], params)
            assert list(runner._prompts) == [8]
            assert [list(ours.output_ids)] == expected(engine, [prompt], params)


def test_tokens_that_only_pad_a_prompt_leave_the_cache_alone(
    engine: Engine, prompts_too: Watched
) -> None:
    for cache in engine._core.pool.layers:
        cache.k.fill_(7.0)
        cache.v.fill_(7.0)
    engine.generate([random_prompt(5)], replace(GREEDY, max_new_tokens=1))
    for cache in engine._core.pool.layers:
        written = (cache.k != 7.0).flatten(0, 1).flatten(1).any(dim=-1)
        assert int(written.sum()) == 5
    assert list(prompts_too._prompts) == [8]


@pytest.mark.parametrize("size", Capturing.prompt_sizes)
def test_what_kernels_read_of_a_captured_prompt_begins_at_multiples_of_16_bytes(
    size: int, engine: Engine
) -> None:
    pool, max_len = engine._core.pool, 3 * engine._core.pool.block_size
    graph = PromptGraph.of(
        lambda batch, pool: batch.slots, pool, size, max_len, CPU, lambda logits: logits[:1, None]
    )
    read = graph.numbers.batch()
    first = graph.numbers.flat.data_ptr()
    for name in ("token_ids", "positions", "slots", "starts", "contexts", "rows", "block_tables"):
        tensor = getattr(read, name)
        assert (tensor.data_ptr() - first) % 16 == 0
        assert tensor.is_contiguous()


def test_prompts_are_captured_before_the_first_request(
    engine: Engine, prompts_too: Watched
) -> None:
    with torch.inference_mode():
        prompts_too.warm(engine._core.pool, 1, shown=False)
    assert (list(prompts_too._graphs), list(prompts_too._prompts)) == ([1], [8, 16])


def test_the_watchdog_allows_for_compiling_where_kernels_of_a_new_size_are_launched(
    engine: Engine,
) -> None:
    runner = engine._core.model_runner
    assert isinstance(runner, Watched)
    model, heart, seen = runner.model, runner._heartbeat, list[bool]()

    def noting(batch: Batch, pool: KVPool) -> Tensor:
        seen.append(heart.exempt)
        return model(batch, pool)

    runner.model = noting
    for length in (9, 10, 40):
        engine.generate([random_prompt(length)], replace(GREEDY, max_new_tokens=1))
    assert seen == [True, False, True]
    assert not heart.exempt


def test_operations_that_read_lengths_on_the_host_are_not_captured(engine: Engine) -> None:
    """As on a card without Triton, or with GYRFALCON_OPS=reference."""
    graphs = engine._core.model_runner
    assert isinstance(graphs, Watched)
    card, vocabulary = device_of(torch.device("cuda")), engine._core.vocabulary
    for operations, largest in ((triton_ops, card.graph_sizes[-1]), (reference, 0)):
        run = model_runner(graphs.model, operations, vocabulary, 64, card)
        assert isinstance(run, Graphs)
        assert run.largest == largest
    assert model_runner(graphs.model, reference, vocabulary, 64, CPU) is graphs.model


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
    monkeypatch.setattr(DecodeGraph, "of", lambda model, pool, size, *rest: f"graph of {size}")
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
    graph = DecodeGraph.of(lambda batch, pool: batch.slots, engine._core.pool, size, 64, CPU)
    read = graph.numbers.batch()
    first = graph.numbers.flat.data_ptr()
    for tensor in (read.token_ids, read.positions, read.slots, read.contexts, read.block_tables):
        assert (tensor.data_ptr() - first) % 16 == 0
        assert tensor.is_contiguous()
