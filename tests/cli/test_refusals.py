"""Bad parameters, prompts and settings are refused in one line that says what to do, and harm nothing."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_model
from engines import cache_of, make_engine, small
from tokenizers_ import make_tokenizer

from gyrfalcon import EngineConfig, SamplingParams
from gyrfalcon.bounds import shown
from gyrfalcon.errors import (
    CacheTooSmall,
    EngineClosed,
    PromptTooLong,
    RequestError,
    UsageError,
    WorldSizeError,
)
from gyrfalcon.request import FinishReason

GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


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
    dict(max_new_tokens=10**23),
    dict(n=10_001),
    dict(n=10**5000),
    dict(top_k=10**5000),
    dict(top_k="9" * 10**6),
    dict(logprobs=10**9),
    dict(prompt_logprobs=10**9),
    dict(seed=10**23),
    dict(temperature=1001.0),
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
    dict(stop="\udcff"),  # an argument that is not UTF-8
    dict(logprobs=True),
    dict(top_p=True),
    dict(n=True),
    dict(stop_ids=[True]),
    dict(logit_bias={True: 1.0}),
    dict(ignore_eos="no"),
    dict(stop=None),
    dict(stop_ids=7),
    dict(stop_ids=None),
    dict(stop_ids="ab"),
]


@pytest.mark.parametrize(
    "settings", BAD_PARAMS, ids=lambda settings: shown(next(iter(settings.items())))
)
def test_bad_sampling_parameters_are_refused_in_one_line(settings: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))) as caught:
        SamplingParams(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


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
        ([5.0], GREEDY, RequestError, "whole token ids"),
        (["5"], GREEDY, RequestError, "whole token ids"),
        (b"5", GREEDY, RequestError, "whole token ids"),
        (None, GREEDY, RequestError, "whole token ids"),
        ("half \ud83d", GREEDY, RequestError, "half a surrogate"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_prompts_are_refused_in_one_line_and_harm_nothing(
    folder: Path,
    prompt: Any,
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
        dict(world_size=10**23),
        dict(max_len=10**5000),
        dict(cache_memory=10**23),
        dict(cache_memory=-0.5),
        dict(seed=0.5),
    ],
    ids=lambda settings: shown(next(iter(settings.items()))),
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


def test_closing_twice_is_fine_and_a_closed_engine_says_so(folder: Path) -> None:
    engine = make_engine(folder)
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed, match="make a new one"):
        engine.generate("a")


def test_ids_beyond_the_longest_sequence_are_refused_not_filled_up(folder: Path) -> None:
    input_ids = torch.full((2, 60), 30)
    with make_engine(folder) as engine:
        assert engine.generate_ids(input_ids, max_new_tokens=4).shape == (2, 64)
        with pytest.raises(PromptTooLong, match="at most 64 tokens, new ones included, got 65"):
            engine.generate_ids(input_ids, max_new_tokens=5)


@pytest.mark.parametrize("prompts", [None, 5, 5.0, b"text", [b"text"], [[5.0]]], ids=repr)
def test_what_is_no_prompt_at_all_is_refused_in_one_line(folder: Path, prompts: Any) -> None:
    with make_engine(folder) as engine, pytest.raises(RequestError) as caught:
        engine.generate(prompts)
    assert "token ids" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_may_come_as_anything_that_gives_whole_numbers(folder: Path) -> None:
    params = SamplingParams(max_new_tokens=2)
    with make_engine(folder) as engine:
        [expected] = engine.generate([30, 31], params)
        kinds: list[Any] = [(30, 31), np.array([30, 31]), [np.int64(30), torch.tensor(31)]]
        kinds += [iter([[30, 31]]), np.array([[30, 31]]), range(30, 32)]
        for prompts in kinds:
            assert engine.generate(prompts, params) == [expected]


def test_lists_for_tensors_are_refused(folder: Path) -> None:
    lists: Any = [[30, 31]]
    with make_engine(folder) as engine:
        for input_ids, mask in ((lists, None), (torch.tensor(lists), lists)):
            with pytest.raises(RequestError, match="a tensor"):
                engine.generate_ids(input_ids, mask)


def test_a_tensor_as_a_prompt_is_sent_to_generate_ids(folder: Path) -> None:
    with make_engine(folder) as engine, pytest.raises(RequestError, match="use generate_ids"):
        engine.generate(torch.tensor([30, 31]))


def test_weights_that_overflow_are_an_error_not_a_text(tmp_path: Path) -> None:
    model = make_model("40b", hidden_size=64, num_attention_heads=8, num_kv_heads=2)
    with torch.no_grad():
        model.transformer.h[0].mlp.dense_4h_to_h.weight.fill_(float("inf"))
    model.save_pretrained(tmp_path)
    scored = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    for params in (SamplingParams(), SamplingParams(temperature=1.0), scored):
        with make_engine(tmp_path) as engine:
            [output] = engine.generate([30, 31], params)
            assert output.finish_reason is FinishReason.ERROR
            assert (output.output_ids, output.text) == ((), "")
            assert str(output.error).startswith(
                "wanted finite logits, got NaN or infinity at position"
            )
            assert "use dtype" in str(output.error)
