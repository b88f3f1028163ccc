"""The engine as its callers see it: caches too small, streams, stops, ends, bad input, interruptions."""

import gc
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from scripted import make_scripted
from tokenizers_ import make_tokenizer
from torch import Tensor
from transformers import FalconForCausalLM

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.engine.interrupts import held_interrupts
from gyrfalcon.errors import (
    CacheTooSmall,
    CheckpointError,
    PromptTooLong,
    RankDied,
    RequestError,
    UsageError,
    WorldSizeError,
)
from gyrfalcon.request import FinishReason
from gyrfalcon.text import Detokenizer
from gyrfalcon.tokenizer import Tokenizer

GREEDY = SamplingParams()
BAD_PARAMS: list[dict[str, object]] = [
    dict(max_new_tokens=-1),
    dict(max_new_tokens=2.5),
    dict(temperature=-0.1),
    dict(temperature=math.nan),
    dict(temperature=math.inf),
    dict(temperature="1"),
    dict(top_k=-1),
    dict(top_k=2.5),
    dict(top_p=0.0),
    dict(top_p=1.1),
    dict(top_p=None),
    dict(min_p=-0.1),
    dict(min_p=1.1),
    dict(repetition_penalty=0.0),
    dict(repetition_penalty=1e-40),
    dict(repetition_penalty=math.inf),
    dict(presence_penalty=2.1),
    dict(frequency_penalty=math.nan),
    dict(logit_bias={3: math.inf}),
    dict(logit_bias={3: -1e39}),
    dict(logit_bias={3: math.nan}),
    dict(logit_bias={3: "a"}),
    dict(logit_bias={"a": 3}),
    dict(logit_bias=[3]),
    dict(logit_bias=None),
    dict(seed="a"),
    dict(n=0),
    dict(n=1.5),
    dict(logprobs=-1),
    dict(logprobs=1.5),
    dict(prompt_logprobs=-1),
    dict(logprob_ids=5),
    dict(stop=""),
    dict(stop=["a", ""]),
    dict(stop=[5]),
    dict(stop=None),
    dict(stop_ids=7),
    dict(stop_ids=None),
    dict(stop_ids="ab"),
]


def small(folder: Path, variant: str = "40b", **settings: object) -> Path:
    shape: dict[str, object] = dict(hidden_size=64, num_attention_heads=8)
    if variant == "40b":
        shape["num_kv_heads"] = 2
    make_checkpoint(folder, variant, **{**shape, **settings})  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


def make_engine(folder: Path, **settings: object) -> Engine:
    return Engine(EngineConfig(model=str(folder), **{"max_len": 64, **settings}))  # type: ignore[arg-type]


def cache_of(engine: Engine, num_blocks: int) -> int:
    """The bytes of a cache of so many blocks."""
    layers = engine._replica.pool.layers
    return num_blocks * sum(t[0].nbytes for layer in layers for t in (layer.k, layer.v))


def random_prompt(length: int) -> list[int]:
    return torch.randint(
        20, 509, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()


def test_a_step_without_work_does_nothing_and_harms_nothing(folder: Path) -> None:
    with make_engine(folder) as engine:
        assert engine.step() == []
        assert len(engine.generate([30], SamplingParams(max_new_tokens=2))[0].output_ids) == 2


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
        allocator = engine._replica.scheduler.allocator
        expected = engine.generate([30, 31], SamplingParams(max_new_tokens=4))[0].output_ids
        timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            engine.generate([[40], [41]], SamplingParams(max_new_tokens=1900, ignore_eos=True))
        assert not engine.has_work
        assert allocator.num_free == allocator.num_blocks
        again = engine.generate([30, 31], SamplingParams(max_new_tokens=4))[0].output_ids
        assert again == expected


@pytest.mark.parametrize("settings", BAD_PARAMS, ids=str)
def test_bad_sampling_parameters_are_refused_in_one_line(settings: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))) as caught:
        SamplingParams(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_iterators_and_later_changes_do_no_harm_to_sampling_parameters(folder: Path) -> None:
    stops, biases = ["x"], {40: 100.0}
    params = SamplingParams(
        max_new_tokens=3,
        stop=(stop for stop in stops),
        stop_ids=iter([40]),
        logprob_ids=iter([3]),
        logit_bias=biases,
    )
    stops.append("y")
    biases.clear()
    with make_engine(folder) as engine:
        for _ in range(2):
            output = engine.generate([30], params)[0]
            assert output.output_ids == (40,)
            assert output.finish_reason is FinishReason.STOP
    assert params.stop_strings == ("x",)


def test_forbidding_every_token_is_refused(folder: Path) -> None:
    with make_engine(folder) as engine:
        params = SamplingParams(logit_bias={token: -math.inf for token in range(509)})
        with pytest.raises(RequestError, match="all forbidden"):
            engine.generate([30], params)


def test_prompts_that_do_not_fit_together_wait_and_end_as_in_a_roomy_cache(folder: Path) -> None:
    prompts = [random_prompt(length) for length in (5, 30, 17, 3, 40, 8, 22, 11)]
    params = [
        SamplingParams(max_new_tokens=20, ignore_eos=True),
        SamplingParams(max_new_tokens=9, temperature=1.0, seed=3, n=3, ignore_eos=True),
    ] * 4
    with make_engine(folder) as roomy:
        expected, memory = roomy.generate(prompts, params), cache_of(roomy, 5)
    with make_engine(folder, cache_memory=memory, max_batch_tokens=24) as tiny:
        scheduler, preempted = tiny._replica.scheduler, []
        for prompt, own in zip(prompts, params, strict=True):
            tiny.add(prompt, own)
        while tiny.has_work:
            tiny.step()
            preempted += [one for one in scheduler.waiting if one.output_ids]
        assert preempted
        assert tiny.generate(prompts, params) == expected
        assert scheduler.allocator.num_free == 5


def test_a_hundred_requests_on_one_token_a_step_all_end(folder: Path) -> None:
    prompts = [random_prompt(1 + number % 4) for number in range(100)]
    params = SamplingParams(max_new_tokens=2)
    with make_engine(folder) as usual, make_engine(folder, max_batch_tokens=1) as slow:
        outputs = [engine.generate(prompts, params) for engine in (usual, slow)]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("num_samples", [1, 3])
def test_streamed_pieces_joined_are_the_generated_text(folder: Path, num_samples: int) -> None:
    params = SamplingParams(
        max_new_tokens=30, temperature=1.2, seed=2, n=num_samples, ignore_eos=True, stop=["qu", "é"]
    )
    with make_engine(folder) as engine:
        for prompt in ("The falcon", "🦅 was dort steht", random_prompt(20)):
            [output] = engine.generate(prompt, params)
            pieces = list(engine.stream(prompt, params))
            for index, completion in enumerate(output.completions):
                own = [piece for piece in pieces if piece.index == index]
                assert "".join(piece.text for piece in own) == completion.text
                assert tuple(p.token.id for p in own if p.token) == completion.output_ids
                assert own[-1].finish_reason is completion.finish_reason
                assert {piece.finish_reason for piece in own[:-1]} <= {None}


def test_the_real_tokenizer_streams_what_it_generates(
    tmp_path: Path, data: Callable[[str], Path]
) -> None:
    for file in data("falcon-tokenizer").iterdir():
        shutil.copy(file, tmp_path)
    small(tmp_path, vocab_size=65024, num_hidden_layers=1)
    params = SamplingParams(max_new_tokens=40, temperature=1.0, seed=1, ignore_eos=True)
    with make_engine(tmp_path) as engine:
        [output] = engine.generate("Girafatron is obsessed with", params)
        pieces = list(engine.stream("Girafatron is obsessed with", params))
        assert "".join(piece.text for piece in pieces) == output.text
        assert output.text == engine.tokenizer.decode(output.output_ids)
        assert engine.tokenizer.decode(output.prompt_ids) == "Girafatron is obsessed with"


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Engine, list[int]]]:
    """An engine whose model goes on from the first token of a text with the rest and ends it there,
    and the ids of the text."""
    made: dict[str, tuple[Engine, list[int]]] = {}

    def get(text: str) -> tuple[Engine, list[int]]:
        if text not in made:
            folder = make_tokenizer(tmp_path_factory.mktemp("scripted"))
            tokenizer = Tokenizer.load(folder)
            ids = tokenizer.encode(text)
            make_scripted(folder, tokenizer.vocab_size, [*ids, tokenizer.eos_id])
            made[text] = make_engine(folder), ids
        return made[text]

    return get


Scripted = Callable[[str], tuple[Engine, list[int]]]
TEXT = "Xy🦅 zone, 7 jumps!"  # no token comes twice


def test_the_model_writes_its_script_and_end_of_text_is_not_in_the_text(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    [output] = engine.generate(ids[:1])
    assert output.text == TEXT[1:]
    assert output.output_ids == (*ids[1:], 11)
    assert output.finish_reason is FinishReason.STOP


def test_ignoring_end_of_text_goes_on_to_the_length(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    [output] = engine.generate(ids[:1], SamplingParams(max_new_tokens=40, ignore_eos=True))
    assert output.text.startswith(TEXT[1:])
    assert "endoftext" not in output.text
    assert len(output.output_ids) == 40
    assert output.finish_reason is FinishReason.LENGTH


def test_a_character_split_between_tokens_streams_whole(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    eagle = engine.tokenizer.encode("🦅")
    assert len(eagle) == 4
    pieces = list(engine.stream(ids[:1]))
    assert "�" not in "".join(piece.text for piece in pieces)
    texts = [piece.text for piece in pieces if piece.token and piece.token.id in eagle]
    assert texts == ["", "", "", "🦅"]


def test_decoding_each_token_alone_would_be_seen(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ids = scripted(TEXT)

    def alone(detokenizer: Detokenizer, token_id: int) -> str:
        return engine.tokenizer.decode([token_id])

    monkeypatch.setattr(Detokenizer, "push", alone)
    [output] = engine.generate(ids[:1])
    assert output.text != TEXT[1:]


def test_half_a_character_at_the_end_is_shown_as_one_sign(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    [output] = engine.generate(ids[:1], SamplingParams(max_new_tokens=3))
    assert output.text == "y�"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("zon", "y🦅 "),  # tokens z, o, ne
        ("y", ""),  # the text's own beginning
        ("y🦅", ""),
        ("🦅", "y"),
        (["e, 7", "7 j", "zone!"], "y🦅 zon"),
        (["jump", "jump"], "y🦅 zone, 7 "),
        (["zone", "z"], "y🦅 "),  # the first to be complete
        ("!", "y🦅 zone, 7 jumps"),
        ("jumps!?", "y🦅 zone, 7 jumps!"),  # begun, never complete
        ("Xy", "y🦅 zone, 7 jumps!"),  # the prompt does not count
    ],
    ids=str,
)
def test_stop_strings_end_the_text_before_them(
    scripted: Scripted, stop: str | list[str], expected: str
) -> None:
    engine, ids = scripted(TEXT)
    params = SamplingParams(stop=stop)
    [output] = engine.generate(ids[:1], params)
    assert output.text == expected
    assert output.finish_reason is FinishReason.STOP
    pieces = list(engine.stream(ids[:1], params))
    assert "".join(piece.text for piece in pieces) == expected
    assert not engine.has_work
    assert not engine._replica.scheduler.has_work  # the ranks were told


def test_a_stop_string_ends_one_sample_and_leaves_the_others(folder: Path) -> None:
    params = SamplingParams(
        max_new_tokens=8, temperature=1.0, seed=1, n=6, stop="a", ignore_eos=True
    )
    with make_engine(folder) as engine:
        [output] = engine.generate("The", params)
    reasons = {completion.finish_reason for completion in output.completions}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    assert not any("a" in completion.text for completion in output.completions)


def test_stop_ids_end_the_text_without_their_own(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    [output] = engine.generate(ids[:1], SamplingParams(stop_ids=[ids[7]]))
    assert output.output_ids == tuple(ids[1:8])
    assert output.text == engine.tokenizer.decode(ids[1:7])
    assert output.finish_reason is FinishReason.STOP


def test_a_stream_left_early_frees_its_blocks(folder: Path) -> None:
    with make_engine(folder) as engine:
        for piece in engine.stream("The falcon", SamplingParams(ignore_eos=True)):
            if piece.text:
                break
        del piece
        gc.collect()
        allocator = engine._replica.scheduler.allocator
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
        allocator = engine._replica.scheduler.allocator
        assert allocator.num_free == allocator.num_blocks


@pytest.mark.parametrize(
    ("prompt", "params", "kind", "words"),
    [
        ("", GREEDY, RequestError, "at least one token"),
        ([], None, RequestError, "at least one token"),
        ([5, 509], GREEDY, RequestError, "below 509, got 509"),
        ([5, -1], GREEDY, RequestError, "got -1"),
        ([5], SamplingParams(logit_bias={509: 1.0}), RequestError, "below 509"),
        ([5], SamplingParams(logprob_ids=[600]), RequestError, "below 509"),
        ([5] * 64, GREEDY, PromptTooLong, "at most 63 tokens, got 64"),
        ([5] * 65, SamplingParams(max_new_tokens=0), PromptTooLong, "at most 64 tokens, got 65"),
        ("half \ud83d", GREEDY, RequestError, "half a surrogate"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_prompts_are_refused_in_one_line_and_harm_nothing(
    folder: Path,
    prompt: str | list[int],
    params: SamplingParams | None,
    kind: type[RequestError],
    words: str,
) -> None:
    with make_engine(folder) as engine:
        with pytest.raises(kind, match=words) as caught:
            engine.generate(["fine", prompt], params or GREEDY)
        assert "\n" not in str(caught.value)
        assert not engine.has_work  # the one that was fine was given up
        assert engine.generate("fine", SamplingParams(max_new_tokens=1))[0].output_ids


def test_parameters_for_another_number_of_prompts_are_refused(folder: Path) -> None:
    with make_engine(folder) as engine, pytest.raises(RequestError, match="2 prompts, got 3"):
        engine.generate(["a", "b"], [GREEDY] * 3)


def test_no_prompts_give_no_outputs(folder: Path) -> None:
    with make_engine(folder) as engine:
        assert engine.generate([]) == []


def test_a_prompt_of_the_longest_length_is_scored_and_one_token_less_gets_one(folder: Path) -> None:
    with make_engine(folder) as engine:
        [scored] = engine.generate([5] * 64, SamplingParams(max_new_tokens=0))
        [one] = engine.generate([5] * 63, SamplingParams(max_new_tokens=9, ignore_eos=True))
    assert (scored.output_ids, len(one.output_ids)) == ((), 1)
    assert scored.finish_reason is one.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "settings",
    [
        dict(device="tpu"),
        dict(dtype="fp64"),
        dict(quant="int3"),
        dict(world_size=0),
        dict(world_size=1.5),
        dict(max_len=0),
        dict(max_len=-1),
        dict(cache_memory=0),
        dict(cache_memory=1.5),
        dict(cache_memory=math.nan),
        dict(block_size=0),
        dict(block_size=2.5),
        dict(max_batch_tokens=0),
        dict(max_sequences=0),
        dict(threads=0),
    ],
    ids=str,
)
def test_bad_engine_settings_are_refused_in_one_line(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))) as caught:
        EngineConfig(model="x", **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_more_ranks_than_the_model_can_share_are_refused(folder: Path) -> None:
    with pytest.raises(WorldSizeError, match="from 1 to 8"):
        make_engine(folder, world_size=9)


def test_rotary_positions_beyond_the_models_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="at most 2048"):
        make_engine(folder, max_len=2049)


def test_alibi_goes_beyond_the_models_positions_as_in_transformers(tmp_path: Path) -> None:
    folder = small(tmp_path, "rw-1b", max_position_embeddings=32)
    input_ids = torch.tensor([random_prompt(100)])
    model = FalconForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    with make_engine(folder, max_len=128) as engine, torch.no_grad():
        torch.testing.assert_close(
            engine.logits(input_ids, single_steps=3), model(input_ids).logits, atol=1e-4, rtol=0
        )


def test_a_cache_for_less_than_one_sequence_is_refused(folder: Path) -> None:
    with make_engine(folder) as engine:
        memory = cache_of(engine, 4)  # 64 tokens
    with pytest.raises(CacheTooSmall, match="cache for 64 tokens"):
        make_engine(folder, cache_memory=memory - 1)
    with pytest.raises(CacheTooSmall):
        make_engine(folder, max_len=None, cache_memory=memory)
    with make_engine(folder, cache_memory=memory) as engine:
        assert len(engine.generate([5] * 40, SamplingParams(ignore_eos=True))[0].output_ids) == 24


def test_without_a_max_len_the_cache_decides_how_long_a_sequence_may_be(folder: Path) -> None:
    with make_engine(folder) as engine:
        memory = cache_of(engine, 10)
    with make_engine(folder, max_len=None, cache_memory=memory) as engine:
        assert engine.max_len == 160


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


def test_closing_twice_is_fine_and_a_closed_engine_says_so(folder: Path) -> None:
    engine = make_engine(folder)
    engine.close()
    engine.close()
    with pytest.raises(RankDied, match="make a new one"):
        engine.generate("a")


def test_rows_that_end_early_are_filled_with_end_of_text(scripted: Scripted) -> None:
    engine, ids = scripted(TEXT)
    input_ids = torch.tensor([[ids[0]], [ids[-3]]])
    generated = engine.generate_ids(input_ids, max_new_tokens=6)
    assert generated.dtype == torch.int64
    assert generated[0].tolist() == ids[:7]
    assert generated[1].tolist() == [*ids[-3:], 11, 11, 11, 11]
    assert engine.generate_ids(input_ids, max_new_tokens=0).equal(input_ids)


def test_logits_are_0_at_padding(folder: Path) -> None:
    input_ids = torch.tensor([random_prompt(6), random_prompt(6)])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    with make_engine(folder) as engine:
        logits = engine.logits(input_ids, mask)
    assert logits.shape == (2, 6, 509)
    assert logits[mask == 0].eq(0).all()
    assert logits[mask == 1].ne(0).all()


SEQ = 5
CAUSAL = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()


def four_d(allowed: Tensor, masked: float = -math.inf) -> Tensor:
    """[seq, seq] of bool → an additive mask [1, 1, seq, seq]."""
    return torch.zeros(1, 1, SEQ, SEQ).masked_fill(~allowed, masked)


@pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min, -1e4])
@pytest.mark.parametrize("num_padding", [0, 2])
def test_every_usual_form_of_a_4d_mask_means_the_same(
    folder: Path, masked: float, num_padding: int
) -> None:
    input_ids = torch.tensor([random_prompt(SEQ)])
    flags = (torch.arange(SEQ) >= num_padding).long()[None]
    allowed = CAUSAL & flags.bool()
    unmasked = allowed | ~flags.bool().T  # transformers lets padding attend to everything
    with make_engine(folder) as engine:
        expected = engine.logits(input_ids, flags)
        for pattern in (allowed, unmasked):
            assert engine.logits(input_ids, four_d(pattern, masked)).equal(expected)
            assert engine.logits(input_ids, four_d(pattern, masked).half()).equal(expected)
            assert engine.logits(input_ids, pattern[None, None]).equal(expected)
        assert engine.logits(input_ids, flags.bool()).equal(expected)
        assert engine.logits(input_ids, flags.float()).equal(expected)


def holes() -> Tensor:
    """Causal, but one row does not see a token that the others see."""
    allowed = CAUSAL.clone()
    allowed[3, 1] = False
    return allowed


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (four_d(CAUSAL) - 0.5, "values between"),
        (four_d(CAUSAL) + 1.0, "values between"),
        (four_d(CAUSAL, -100.0), "values between"),
        (four_d(CAUSAL, math.nan), "values between"),
        (torch.zeros(1, 1, SEQ, SEQ), "causal"),
        (four_d(CAUSAL.flip(1)), "causal"),
        (four_d(CAUSAL & ~torch.eye(SEQ, dtype=torch.bool)), "causal"),
        (four_d(holes()), "causal"),
        (holes()[None, None], "causal"),
        (four_d(CAUSAL.triu(-2)), "causal"),  # a sliding window
        (four_d(torch.zeros(SEQ, SEQ, dtype=torch.bool)), "a real token in every row"),
        (torch.zeros(1, SEQ, dtype=torch.int64), "a real token in every row"),
        (torch.full((1, SEQ), 2), "0 and 1"),
        (torch.zeros(1, SEQ) - 1e4, "0 and 1"),
        (torch.ones(1, SEQ + 1), r"\[1, 5\] or \[1, 1, 5, 5\]"),
        (torch.ones(SEQ), "match it to input_ids"),
        (torch.ones(1, 2, SEQ, SEQ), "match it to input_ids"),
    ],
)
def test_other_masks_are_refused(folder: Path, mask: Tensor, words: str) -> None:
    with make_engine(folder) as engine, pytest.raises(RequestError, match=words) as caught:
        engine.logits(torch.tensor([random_prompt(SEQ)]), mask)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "input_ids",
    [torch.zeros(3), torch.ones(1, 3), torch.ones(0, 3).long(), torch.ones(1, 0).long()],
)
def test_other_input_ids_are_refused(folder: Path, input_ids: Tensor) -> None:
    with make_engine(folder) as engine, pytest.raises(RequestError, match="input_ids int64"):
        engine.generate_ids(input_ids)


def test_without_a_tokenizer_ids_work_and_text_is_refused(tmp_path: Path) -> None:
    with make_engine(small(tmp_path)) as engine:
        [output] = engine.generate([30, 31], SamplingParams(max_new_tokens=3, ignore_eos=True))
        assert len(output.output_ids) == 3
        assert output.text == ""
        for use in (lambda: engine.generate("text"), lambda: engine.tokenizer):
            with pytest.raises(CheckpointError, match="tokenizer files"):
                use()
        with pytest.raises(RequestError, match="a tokenizer for stop strings"):
            engine.generate([30], SamplingParams(stop="a"))
        assert engine.generate([30], SamplingParams(max_new_tokens=1))[0].output_ids


def test_the_tokenizer_knows_better_than_the_config_which_id_ends_a_text(
    scripted: Scripted, tmp_path: Path
) -> None:
    engine, ids = scripted(TEXT)
    shutil.copytree(engine.config.model, tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    config |= {"bos_token_id": 1, "eos_token_id": 2}  # as the first releases say
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    with make_engine(tmp_path / "copy") as wrong:
        assert wrong.generate(ids[:1]) == engine.generate(ids[:1])


def test_prompts_given_as_text_and_as_its_ids_are_one(folder: Path) -> None:
    with make_engine(folder) as engine:
        ids: Sequence[int] = engine.tokenizer.encode("The falcon")
        params = SamplingParams(max_new_tokens=4)
        text, tokens = (engine.generate(prompt, params)[0] for prompt in ("The falcon", ids))
        prompts: list[str | Sequence[int]] = ["The falcon", ids]
        both = engine.generate(prompts, params)
    assert text.prompt == "The falcon"
    assert tokens.prompt is None
    assert text.prompt_ids == tokens.prompt_ids == tuple(ids)
    assert both == [text, tokens]
