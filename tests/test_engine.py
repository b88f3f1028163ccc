"""The engine as its callers see it: caches too small, streams, stops, ends, bad input, interruptions."""

import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from tokenizers_ import make_tokenizer

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.engine.interrupts import held_interrupts
from gyrfalcon.errors import RequestError
from gyrfalcon.request import FinishReason

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
    dict(repetition_penalty=math.inf),
    dict(presence_penalty=2.1),
    dict(frequency_penalty=math.nan),
    dict(logit_bias={3: math.inf}),
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
