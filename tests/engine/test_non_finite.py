"""NaN of one sample ends that sample alone: the others' tokens, the cache and the engine go on as if it
had never been there, on any number of ranks.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_model
from engines import OPERATORS, cache_of, make_engine, random_prompt, small
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.errors import NotFinite
from gyrfalcon.request import Delta, FinishReason, RequestOutput

BAD = 7  # the token whose embedding is NaN
ERROR = FinishReason.ERROR
GREEDY = SamplingParams(max_new_tokens=8, ignore_eos=True)
PROMPTS = [random_prompt(length) for length in (5, 9, 18, 2)]
POISONED = [30, 31, BAD, 32, 33, 34]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("sound"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poisoned(tmp_path_factory.mktemp("poisoned"), BAD)


def poisoned(folder: Path, token: int, dtype: torch.dtype = torch.float32) -> Path:
    """The checkpoint of `sound`, but for this token's embedding. The head has rows of its own, so that
    NaN is in no other token's logits.
    """
    model = make_model(
        "40b", hidden_size=64, num_attention_heads=8, num_kv_heads=2, tie_word_embeddings=False
    )
    with torch.no_grad():
        model.transformer.word_embeddings.weight[token] = torch.nan
    model.to(dtype).save_pretrained(folder)
    return folder


def ids_of(outputs: Sequence[RequestOutput]) -> list[tuple[int, ...]]:
    return [output.output_ids for output in outputs]


def finish(engine: Engine) -> list[Delta]:
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    return deltas


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        replace(GREEDY, temperature=1.0, seed=1),
        replace(GREEDY, temperature=1.0, top_k=5, seed=1),
        replace(GREEDY, repetition_penalty=1.2, logprobs=2),
        replace(GREEDY, max_new_tokens=0),
        replace(GREEDY, prompt_logprobs=1),
    ],
    ids=["greedy", "all", "top-k", "penalised", "no new token", "scored"],
)
def test_a_prompt_with_nan_fails_alone_and_the_engine_goes_on(
    params: SamplingParams, dtype: str, world_size: int, folder: Path
) -> None:
    def run(engine: Engine) -> None:
        expected = engine.generate(PROMPTS, params)
        assert all(output.error is None for output in expected)
        [failed] = engine.generate(POISONED, params)
        assert (failed.finish_reason, failed.output_ids, failed.text) == (ERROR, (), "")
        assert failed.prompt_logprobs is None
        assert "of request 4, sample 0; " in str(failed.error)
        assert "wanted finite logits, got NaN or infinity at position" in str(failed.error)
        assert engine.generate(PROMPTS, params) == expected
        assert engine.stats().num_used_blocks == 0

    settings: dict[str, Any] = dict(dtype=dtype, reuse_prefixes=False, block_size=4)
    on_engines(world_size, folder, run, max_len=64, **settings)


@pytest.mark.parametrize("operators", OPERATORS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_others_get_the_tokens_that_they_get_without_it(
    world_size: int, operators: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among them, after them, in blocks that it held, and in several chunks."""
    monkeypatch.setenv("GYRFALCON_OPS", operators)
    with make_engine(folder) as engine:
        expected = ids_of(engine.generate(PROMPTS, GREEDY))
        few_blocks = cache_of(engine, 1) // engine.config.block_size * 3 * 18

    def run(engine: Engine) -> list[tuple[int, ...]]:
        for place in range(len(PROMPTS) + 1):
            prompts = [*PROMPTS[:place], POISONED * 2, *PROMPTS[place:]]
            outputs = engine.generate(prompts, GREEDY)
            assert outputs.pop(place).finish_reason is ERROR
            assert ids_of(outputs) == expected
        return ids_of(engine.generate(PROMPTS, GREEDY))

    settings: dict[str, Any] = dict(block_size=3, max_len=30, max_batch_tokens=11)
    found = on_engines(world_size, folder, run, cache_memory=few_blocks, **settings)
    assert found == expected


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_no_bit_of_the_others_changes_in_the_step_that_fails(
    world_size: int, dtype: str, folder: Path
) -> None:
    """Log-probabilities of prefills beside a prompt with NaN, and beside one of the same length."""

    def run(engine: Engine) -> None:
        params = replace(GREEDY, logprobs=5, prompt_logprobs=5)
        first: list[list[Delta]] = []
        for beside in (POISONED, [30, 31, 29, 32, 33, 34]):
            for prompt in (*PROMPTS[:2], beside, *PROMPTS[2:]):
                engine.add(prompt, params)
            first.append([replace(delta, request_id=0) for delta in engine.step()])
            finish(engine)
        assert first[0].pop(2).error
        assert first[1].pop(2).error is None
        assert first[0] == first[1]

    on_engines(world_size, folder, run, dtype=dtype, max_len=64, reuse_prefixes=False)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nor_in_a_decoding_step_that_fails(dtype: str, sound: Path, tmp_path: Path) -> None:
    params = replace(GREEDY, logprobs=5)

    number = attrgetter("request_id")

    def steps_of(folder: Path) -> list[list[Delta]]:
        with make_engine(folder, dtype=dtype) as engine:
            for prompt in PROMPTS:
                engine.add(prompt, params)
            return [sorted(engine.step(), key=number) for _ in range(GREEDY.max_new_tokens)]

    expected = steps_of(sound)
    said = [[delta.token.id for delta in step if delta.token] for step in expected]
    others = {token for step in said for token in (step[0], *step[2:])}.union(*PROMPTS)
    place = next(i for i, step in enumerate(said) if step[1] not in others)
    found = steps_of(poisoned(tmp_path, said[place][1]))
    assert found[: place + 1] == expected[: place + 1]
    failing = found[place + 1]
    assert failing.pop(1).error
    assert failing == [expected[place + 1][row] for row in (0, 2, 3)]


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_token_with_nan_ends_a_text_where_it_is_read(
    world_size: int, overlapped: bool, sound: Path, tmp_path: Path
) -> None:
    """What was generated before stays, and so do the others' tokens."""
    with make_engine(sound) as engine:
        expected = ids_of(engine.generate(PROMPTS, GREEDY))
    others = {token for ids in (*PROMPTS, *expected[:1], *expected[2:]) for token in ids}
    bad = next(token for token in expected[1] if token not in others)
    place = expected[1].index(bad)
    assert 0 < place < GREEDY.max_new_tokens - 1

    def run(engine: Engine) -> None:
        if overlapped:
            engine._take_step = Overlap(engine._core).step
        outputs = engine.generate(PROMPTS, GREEDY)
        failed = outputs[1]
        assert failed.finish_reason is ERROR
        assert failed.output_ids == expected[1][: place + 1]
        where = f"at position {len(PROMPTS[1]) + place} of request 1, sample 0; "
        assert where in str(failed.error)
        del outputs[1]
        assert ids_of(outputs) == [*expected[:1], *expected[2:]]
        assert ids_of(engine.generate(PROMPTS, GREEDY)) == [
            *expected[:1],
            failed.output_ids,
            *expected[2:],
        ]

    on_engines(world_size, poisoned(tmp_path, bad), run, max_len=64, block_size=4)


def test_of_several_samples_only_that_with_the_token_fails(sound: Path, tmp_path: Path) -> None:
    params = replace(GREEDY, n=4, temperature=1.0, seed=3)
    with make_engine(sound) as engine:
        [output] = engine.generate(PROMPTS[0], params)
    all_ids = [completion.output_ids for completion in output.completions]
    bad = all_ids[2][3]
    others = [*PROMPTS[0], *all_ids[0], *all_ids[1], *all_ids[2][:3], *all_ids[3]]
    assert bad not in others
    with make_engine(poisoned(tmp_path, bad)) as engine:
        [found] = engine.generate(PROMPTS[0], params)
    assert [completion.finish_reason is ERROR for completion in found.completions] == [
        index == 2 for index in range(4)
    ]
    assert found.completions[2].output_ids == all_ids[2][:4]
    assert "request 0, sample 2; " in str(found.completions[2].error)
    assert [c.output_ids for c in found.completions if c.index != 2] == [
        ids for index, ids in enumerate(all_ids) if index != 2
    ]
    assert (found.finish_reason, found.error) == (FinishReason.LENGTH, None)


@pytest.mark.parametrize("operators", OPERATORS)
@pytest.mark.parametrize("max_batch_tokens", [5, 8, 64])
@pytest.mark.parametrize("leave", ["fail", "keep logits", "abort"])
def test_no_later_prompt_finds_a_block_that_nan_was_beside(
    leave: str,
    max_batch_tokens: int,
    operators: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether the prompt failed, was wanted with all its NaN, or was aborted in the middle."""
    monkeypatch.setenv("GYRFALCON_OPS", operators)
    beginning = random_prompt(11)
    bad, good = [*beginning, BAD, *PROMPTS[2]], [*beginning, *PROMPTS[0]]
    settings: dict[str, object] = dict(block_size=4, max_batch_tokens=max_batch_tokens)
    with make_engine(folder, **settings) as engine:
        expected = engine.generate(good, GREEDY)
    with make_engine(folder, **settings) as engine:
        if leave == "keep logits":
            assert engine.logits(torch.tensor([bad]))[0, 11:].isnan().all()
        else:
            number = engine.add(bad, GREEDY)
            engine.step()
            engine.abort(number) if leave == "abort" else finish(engine)
        assert engine.generate(good, GREEDY) == expected


@pytest.mark.parametrize("max_batch_tokens", [5, 64])
@pytest.mark.parametrize("world_size", [1, 2])
def test_no_later_prompt_finds_a_score_that_nan_was_beside(
    world_size: int, max_batch_tokens: int, folder: Path
) -> None:
    scored = replace(GREEDY, prompt_logprobs=3)
    beginning = random_prompt(11)

    def run(engine: Engine) -> None:
        [failed] = engine.generate([*beginning, BAD, *PROMPTS[2]], scored)
        assert (failed.finish_reason, failed.prompt_logprobs) == (ERROR, None)
        assert engine.generate(good, scored) == expected

    settings: dict[str, Any] = dict(block_size=4, max_batch_tokens=max_batch_tokens, max_len=64)
    good = [*beginning, *PROMPTS[0]]
    expected = on_engines(
        world_size, folder, lambda engine: engine.generate(good, scored), **settings
    )
    on_engines(world_size, folder, run, **settings)


def test_a_step_in_the_middle_of_a_prompt_fails_at_once(folder: Path) -> None:
    with make_engine(folder, max_batch_tokens=4) as engine:
        engine.add([*PROMPTS[0], BAD, *PROMPTS[2]], GREEDY)
        assert engine.step() == []
        [failed] = engine.step()
        assert "at position 7 of request 0, sample 0; " in str(failed.error)
        assert not engine.has_work


def test_scores_of_a_prompt_name_the_position_where_nan_begins(folder: Path) -> None:
    scored = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    with make_engine(folder, max_batch_tokens=2) as engine:
        [failed] = engine.generate(POISONED, scored)
    assert "at position 2 of request 0, sample 0; " in str(failed.error)


def test_a_streams_last_delta_has_the_error(folder: Path) -> None:
    with make_engine(folder) as engine:
        [delta] = engine.stream(POISONED, GREEDY)
    assert (delta.finish_reason, delta.token, delta.text) == (ERROR, None, "")
    assert "request 0, sample 0; " in str(delta.error)


def test_tensors_have_no_place_for_an_error(folder: Path) -> None:
    both = torch.tensor([POISONED, [30, 31, 29, 32, 33, 34]])
    with make_engine(folder) as engine:
        with pytest.raises(NotFinite, match="request 0, sample 0; use dtype=bf16 or fp32"):
            engine.generate_ids(both)
        assert engine.generate_ids(both[1:]).shape == (1, 22)
        logits = engine.logits(both)
    assert logits[0, 2:].isnan().all()
    assert logits[1].isfinite().all()


def test_a_failure_is_an_error_that_a_command_can_show(folder: Path) -> None:
    with make_engine(folder) as engine:
        [failed] = engine.generate(POISONED, GREEDY)
        [delta] = engine.stream(POISONED, GREEDY)
    for failure in (failed.failure, delta.failure):
        assert isinstance(failure, NotFinite)
        assert "use --dtype bf16 or fp32" in failure.on_command_line({"dtype": "--dtype"})
    assert str(failed.failure) == failed.error
