"""The engine as its callers see it: caches too small, streams, giving up, interruptions, several engines."""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engines import cache_of, make_engine, random_prompt, small
from tokenizers_ import make_tokenizer
from torch import Tensor
from transformers import FalconForCausalLM

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.kv.pool import CacheShape, KVPool
from gyrfalcon.ops import chosen_name
from gyrfalcon.parallel.interrupts import held_interrupts
from gyrfalcon.request import FinishReason
from gyrfalcon.text.detokenizer import StopStrings
from gyrfalcon.text.tokenizer import Tokenizer

GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


def test_a_step_without_work_does_nothing_and_harms_nothing(folder: Path) -> None:
    with make_engine(folder) as engine:
        assert engine.step() == []
        assert len(engine.generate([30], SamplingParams(max_new_tokens=2))[0].output_ids) == 2


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_torch_keeps_to_one_thread_where_other_kernels_compute(folder: Path, quant: str) -> None:
    """Native ones have threads of their own, but know no fp8."""
    seen = []
    with make_engine(folder, quant=quant) as engine:
        run = engine._core.model_runner

        def watched(batch: Batch, pool: KVPool) -> Tensor:
            seen.append(torch.get_num_threads())
            return run(batch, pool)

        engine._core.model_runner = watched
        engine.generate([30], SamplingParams(max_new_tokens=2))
    own = chosen_name(Cpu.at(0)) == "native" and quant != "fp8"
    assert seen == [1 if own else 2] * 2
    assert torch.get_num_threads() == 2


def test_prompt_logprobs_survive_preemption(folder: Path) -> None:
    prompts = [random_prompt(length) for length in (20, 17, 40, 33, 26)]
    params = SamplingParams(max_new_tokens=20, prompt_logprobs=1, ignore_eos=True)

    def scores(engine: Engine) -> tuple[list[int], list[float | None]]:
        outputs = engine.generate(prompts, params)
        told = [token for output in outputs for token in output.prompt_logprobs or () if token]
        return [token.id for token in told], [token.logprob for token in told]

    with make_engine(folder) as roomy:
        (ids, logprobs), memory = scores(roomy), cache_of(roomy, 5)
    assert ids == [token for prompt in prompts for token in prompt[1:]]
    with make_engine(folder, max_batch_tokens=13, cache_memory=memory) as tiny:
        found_ids, found_logprobs = scores(tiny)
    assert found_ids == ids
    assert found_logprobs == pytest.approx(logprobs, abs=1e-4)


def test_the_first_delta_of_a_scored_prompt_has_its_log_probabilities(folder: Path) -> None:
    prompts = [random_prompt(length) for length in (20, 17, 40)]
    params = SamplingParams(max_new_tokens=6, prompt_logprobs=1, n=2, seed=1, ignore_eos=True)
    with make_engine(folder) as roomy:
        wanted = [output.prompt_logprobs for output in roomy.generate(prompts, params)]
        memory = cache_of(roomy, 5)
    with make_engine(folder, max_batch_tokens=13, cache_memory=memory) as tiny:
        numbers = [tiny.add(prompt, params) for prompt in prompts]
        found = {}
        while tiny.has_work:
            for delta in tiny.step():
                if delta.prompt_logprobs is not None:
                    assert (delta.index, delta.request_id in found) == (0, False)
                    found[delta.request_id] = delta.prompt_logprobs
        assert tiny._core.pop_prompt_logits(numbers[0]) == []
    for number, tokens in zip(numbers, wanted, strict=True):
        assert tokens is not None
        ours = [token and token.id for token in found[number]]
        assert ours == [token and token.id for token in tokens]


def test_two_streams_side_by_side_both_get_all_their_pieces(folder: Path) -> None:
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    with make_engine(folder) as engine:
        expected = [engine.generate(prompt, params)[0].output_ids for prompt in ([30, 31], [40])]
        streams = [engine.stream([30, 31], params), engine.stream([40], params)]
        pairs = list(zip(*streams, strict=True))
    for number, ids in enumerate(expected):
        assert tuple(pair[number].token.id for pair in pairs if pair[number].token) == ids


def test_generating_inside_of_a_stream_leaves_the_stream_whole(folder: Path) -> None:
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    with make_engine(folder) as engine:
        expected = engine.generate([30, 31], params)[0]
        pieces = []
        for piece in engine.stream([30, 31], params):
            pieces.append(piece)
            engine.generate([40], params)
    assert "".join(piece.text for piece in pieces) == expected.text
    assert pieces[-1].finish_reason is FinishReason.LENGTH


def test_a_stream_that_is_aborted_ends(folder: Path) -> None:
    with make_engine(folder) as engine:
        pieces = []
        for piece in engine.stream([30, 31], SamplingParams(max_new_tokens=9, ignore_eos=True)):
            pieces.append(piece)
            if len(pieces) == 2:
                engine.abort(piece.request_id)
        assert [piece.finish_reason for piece in pieces] == [None, None, FinishReason.ABORTED]
        assert not engine.has_work


def test_ctrl_c_waits_for_the_end_of_a_step_and_a_second_one_does_not() -> None:
    done = []

    def step(num_ctrl_c: int) -> None:
        with held_interrupts():
            for _ in range(num_ctrl_c):
                signal.raise_signal(signal.SIGINT)
            done.append(num_ctrl_c)

    for num_ctrl_c in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            step(num_ctrl_c)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_after_ctrl_c_the_engine_goes_on_as_new(folder: Path) -> None:
    with make_engine(folder, max_len=2000) as engine:
        allocator = engine._core.scheduler.allocator
        expected = engine.generate([30, 31], SamplingParams(max_new_tokens=4))[0].output_ids

        def interrupt() -> None:
            """Once blocks are in use: the sequences run."""
            while allocator.num_free == allocator.num_blocks:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            engine.generate([[40], [41]], SamplingParams(max_new_tokens=1900, ignore_eos=True))
        assert not engine.has_work
        assert allocator.num_free == allocator.num_blocks
        again = engine.generate([30, 31], SamplingParams(max_new_tokens=4))[0].output_ids
        assert again == expected


def test_prompts_that_do_not_fit_together_wait_and_end_as_in_a_roomy_cache(folder: Path) -> None:
    prompts = [random_prompt(length) for length in (5, 30, 17, 3, 40, 8, 22, 11)]
    params = [
        SamplingParams(max_new_tokens=20, ignore_eos=True),
        SamplingParams(max_new_tokens=9, temperature=1.0, seed=3, n=3, ignore_eos=True),
    ] * 4
    with make_engine(folder) as roomy:
        expected, memory = roomy.generate(prompts, params), cache_of(roomy, 5)
    with make_engine(folder, cache_memory=memory, max_batch_tokens=24) as tiny:
        scheduler, preempted = tiny._core.scheduler, []
        for prompt, own in zip(prompts, params, strict=True):
            tiny.add(prompt, own)
        while tiny.has_work:
            tiny.step()
            preempted += [one for one in scheduler.waiting if one.output_ids]
        assert preempted
        assert tiny.generate(prompts, params) == expected
        assert scheduler.allocator.num_free == 5


@pytest.mark.parametrize("reuse", [True, False])
def test_cached_tokens_are_told_of_each_request_and_of_all(folder: Path, reuse: bool) -> None:
    prompt, two = random_prompt(22), SamplingParams(max_new_tokens=2, ignore_eos=True)
    with make_engine(folder, block_size=4, reuse_prefixes=reuse) as engine:
        [first] = engine.generate([prompt], two)
        [again, other] = engine.generate([[*prompt[:17], 30], random_prompt(9)], two)
        [scored] = engine.generate([prompt], SamplingParams(max_new_tokens=2, prompt_logprobs=0))
        outputs = (first, again, other, scored)
        assert [one.num_cached_tokens for one in outputs] == [0, 16 if reuse else 0, 0, 0]
        stats = engine.stats()
        assert (stats.num_prompt_tokens, stats.num_cached_tokens) == (71, 16 if reuse else 0)


def test_outputs_are_equal_whether_their_prompt_was_cached_or_not(folder: Path) -> None:
    with make_engine(folder, block_size=4) as engine:
        first, again = (engine.generate([random_prompt(22)])[0] for _ in range(2))
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 20)
    assert first == again


def test_stats_tell_what_waits_runs_and_is_used(folder: Path) -> None:
    with make_engine(folder, block_size=4, max_sequences=2) as engine:
        idle = engine.stats()
        assert (idle.num_waiting, idle.num_running, idle.num_used_blocks) == (0, 0, 0)
        assert idle.num_blocks * 4 == engine.cache_len
        request = engine.add(random_prompt(9), SamplingParams(n=3, ignore_eos=True))
        assert engine.stats().num_waiting == 3
        engine.step()  # the others wait for the prompt's blocks
        busy = engine.stats()
        assert (busy.num_waiting, busy.num_running, busy.num_used_blocks) == (2, 1, 3)
        engine.step()
        busy = engine.stats()
        assert (busy.num_waiting, busy.num_running, busy.num_used_blocks) == (1, 2, 4)
        engine.abort(request)
        assert replace(engine.stats(), num_prompt_tokens=0, num_cached_tokens=0) == idle


def test_progress_of_a_prompt_grows_by_what_each_step_takes(folder: Path) -> None:
    with make_engine(folder, block_size=4, max_batch_tokens=4) as engine:
        number = engine.add(random_prompt(9), SamplingParams(max_new_tokens=2))
        seen = []
        while engine.has_work:
            engine.step()
            seen.append(engine.prompt_progress())
    assert seen == [[(number, 4, 9)], [(number, 8, 9)], [], []]


def test_a_hundred_requests_on_one_token_a_step_all_end(folder: Path) -> None:
    prompts = [random_prompt(1 + number % 4) for number in range(100)]
    params = SamplingParams(max_new_tokens=2)
    with make_engine(folder) as usual, make_engine(folder, max_batch_tokens=1) as slow:
        outputs = [engine.generate(prompts, params) for engine in (usual, slow)]
    assert outputs[0] == outputs[1]


def test_a_stream_left_early_frees_its_blocks(folder: Path) -> None:
    with make_engine(folder) as engine:
        for piece in engine.stream("The falcon", SamplingParams(ignore_eos=True)):
            if piece.text:
                break
        del piece
        gc.collect()
        allocator = engine._core.scheduler.allocator
        assert allocator.num_free == allocator.num_blocks
        assert not engine.has_work


def test_aborting_ends_one_request_and_no_other(folder: Path) -> None:
    params = SamplingParams(max_new_tokens=8, ignore_eos=True, n=2)
    with make_engine(folder) as engine:
        first, second = (engine.add(prompt, params) for prompt in ([30], [40, 41]))
        engine.step()
        engine.abort(first)
        engine.abort(first)
        engine.abort(12345)
        pieces = []
        while engine.has_work:
            pieces += engine.step()
        assert {piece.request_id for piece in pieces} == {second}
        assert sum(piece.finish_reason is FinishReason.LENGTH for piece in pieces) == 2
        allocator = engine._core.scheduler.allocator
        assert allocator.num_free == allocator.num_blocks


def test_a_prompt_of_the_longest_length_is_scored_and_one_token_less_gets_one(folder: Path) -> None:
    with make_engine(folder) as engine:
        [scored] = engine.generate([5] * 64, SamplingParams(max_new_tokens=0))
        [one] = engine.generate([5] * 63, SamplingParams(max_new_tokens=9, ignore_eos=True))
    assert (scored.output_ids, len(one.output_ids)) == ((), 1)
    assert scored.finish_reason is one.finish_reason is FinishReason.LENGTH


def test_alibi_goes_beyond_the_models_positions_as_in_transformers(tmp_path: Path) -> None:
    folder = small(tmp_path, "rw-1b", max_position_embeddings=32)
    input_ids = torch.tensor([random_prompt(100)])
    model = FalconForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    with make_engine(folder, max_len=128) as engine, torch.no_grad():
        torch.testing.assert_close(
            engine.logits(input_ids, single_steps=3), model(input_ids).logits, atol=1e-4, rtol=0
        )


def test_a_block_may_be_larger_than_the_longest_sequence(folder: Path) -> None:
    with make_engine(folder, max_len=10, block_size=64) as engine:
        [output] = engine.generate([30] * 5, SamplingParams(ignore_eos=True))
    with make_engine(folder) as usual:
        [expected] = usual.generate([30] * 5, SamplingParams(max_new_tokens=5, ignore_eos=True))
    assert output == expected


def test_engines_in_one_process_do_not_disturb_each_other(folder: Path, tmp_path: Path) -> None:
    other_folder = make_tokenizer(small(tmp_path, "rw-1b"))
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    with make_engine(folder) as alone:
        expected = alone.generate("The falcon", params)
    with make_engine(folder) as one, make_engine(other_folder) as other:
        streams = [engine.stream("The falcon", params) for engine in (one, other)]
        texts = ["".join(piece.text for piece in pieces) for pieces in zip(*streams, strict=True)]
        assert len(texts) == 6
        assert one.generate("The falcon", params) == expected
        assert other.generate("The falcon", params) != expected


def test_with_dynamic_scaling_a_prompt_takes_no_keys_over_from_a_shorter_one(
    tmp_path: Path,
) -> None:
    """Keys depend on the length that their sequence had: those of an earlier prompt are others."""
    rope = {"rope_type": "dynamic", "factor": 4.0}
    model = small(tmp_path, max_position_embeddings=32, rope_scaling=rope)
    prompt = random_prompt(60)
    params = SamplingParams(max_new_tokens=4, logprobs=0, ignore_eos=True)
    with make_engine(model, max_batch_tokens=16) as fresh:
        expected = fresh.generate([prompt], params)[0].completions[0].logprobs
    with make_engine(model, max_batch_tokens=16) as used:
        used.generate([prompt[:40]], params)
        assert used.generate([prompt], params)[0].completions[0].logprobs == expected


def test_a_block_of_the_cache_costs_what_its_tensors_take() -> None:
    """Memory that is given as a size is divided by it."""
    shape = CacheShape(num_layers=3, kv_heads=2, head_dim=5, block_size=7, dtype=torch.bfloat16)
    pool = KVPool(shape, 1, torch.device("cpu"))
    tensors = [tensor for layer in pool.layers for tensor in (layer.k, layer.v)]
    assert shape.block_bytes == sum(tensor.nbytes for tensor in tensors)


def test_prompts_with_the_same_stop_strings_share_their_tables(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counted(StopStrings):
        def __init__(self, stops: tuple[str, ...], tokenizer: Tokenizer | None = None) -> None:
            made.append(stops)
            super().__init__(stops, tokenizer)

    monkeypatch.setattr("gyrfalcon.engine.engine.StopStrings", Counted)
    make_tokenizer(folder)
    params = SamplingParams(max_new_tokens=2, stop=["qu" * 100, "é"])
    with make_engine(folder) as engine:
        engine.generate([random_prompt(9)] * 3, params)
        engine.generate(random_prompt(5), params)
    assert made == [("qu" * 100, "é")]
