"""Speculative decoding changes no token, no score and no end."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engines import cache_of, make_engine, random_prompt, small
from tokenizers_ import make_tokenizer
from torch import Tensor
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams, StructuredOutput
from gyrfalcon.batch import Batch
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.errors import UsageError
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.request import FinishReason, RequestOutput, Token

LONG = SamplingParams(max_new_tokens=40, ignore_eos=True)
PROMPTS = [random_prompt(5), random_prompt(8) * 3, [30, 31, 32, 33] * 4, [40]]
# Few tokens to choose from: a text soon repeats itself, but not for ever.
DRAWN = replace(LONG, temperature=0.5, top_k=2, seed=5)
REPEATED = replace(LONG, logit_bias={40: 100.0})  # one token all the time
KINDS = {
    "greedy": LONG,
    "top_k": DRAWN,
    "all tokens": replace(LONG, temperature=0.25, seed=2),
    "several": replace(DRAWN, n=2),
    "scores": replace(DRAWN, logprobs=2, logprob_ids=[5]),
    "repetition": replace(LONG, repetition_penalty=1.05),
    "presence": replace(DRAWN, presence_penalty=0.2),
    "frequency": replace(LONG, frequency_penalty=0.1),
    "bias": replace(LONG, logit_bias={40: 1.0, 41: -math.inf}),
    "prompt scores": replace(LONG, prompt_logprobs=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Engine]:
    with make_engine(folder, max_len=96, dtype="fp32") as engine:
        yield engine


def eager(engine: Engine, least: float = 0.0) -> Engine:
    """The engine with drafts wherever there can be any, whatever they cost."""

    class Always:
        def least_acceptance(self, num_sequences: int, acceptance: list[float]) -> float:
            return least

        def record(self, num_tokens: int, num_drafted: int, seconds: float) -> None:
            pass

    assert engine._budget is not None
    engine._budget._draft_target = Always()  # type: ignore[assignment]
    return engine


def speculating(folder: Path, **settings: object) -> Engine:
    own = {"max_len": 96, "dtype": "fp32", "num_speculative_tokens": 5, **settings}
    return eager(make_engine(folder, **own))


def told(outputs: list[RequestOutput]) -> list[object]:
    """Tokens, texts and ends."""
    each = [one for output in outputs for one in output.completions]
    return [(one.output_ids, one.text, one.finish_reason) for one in each]


def logprobs(outputs: list[RequestOutput]) -> list[float]:
    tokens: list[Token | None] = []
    for output in outputs:
        tokens += output.prompt_logprobs or ()
        for one in output.completions:
            tokens += one.logprobs or ()
    return [
        number
        for token in tokens
        if token is not None
        for number in (token.logprob or 0, *(value for _, value in (*token.top, *token.asked)))
    ]


@pytest.mark.parametrize("ahead", [False, True], ids=["", "overlap"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_request_gets_the_same(
    kind: str, ahead: bool, folder: Path, plain: Engine
) -> None:
    with speculating(folder) as engine:
        if ahead:
            engine._take_step = Overlap(engine._core).step
        found, expected = (one.generate(PROMPTS, KINDS[kind]) for one in (engine, plain))
        stats = engine.stats()
    assert told(found) == told(expected)
    assert logprobs(found) == pytest.approx(logprobs(expected), abs=1e-4)
    assert 0 < stats.num_accepted_tokens <= stats.num_draft_tokens
    assert 0 < stats.num_drafts <= stats.num_draft_tokens <= 5 * stats.num_drafts


def test_draft_tokens_are_accepted_and_refused_in_what_is_compared(folder: Path) -> None:
    with speculating(folder) as engine:
        for params in (LONG, DRAWN):
            before = engine.stats()
            engine.generate(PROMPTS, params)
            drafted = engine.stats().num_draft_tokens - before.num_draft_tokens
            accepted = engine.stats().num_accepted_tokens - before.num_accepted_tokens
            assert 10 < accepted < drafted - 10, (accepted, drafted)


def test_accepted_tokens_save_steps(folder: Path) -> None:
    calls: list[int] = []
    with speculating(folder) as engine:
        run = engine._core.model_runner

        def counted(batch: Batch, pool: KVPool) -> Tensor:
            calls.append(len(batch.token_ids))
            return run(batch, pool)

        engine._core.model_runner = counted
        [output] = engine.generate([30, 31], REPEATED)
    assert output.output_ids == (40,) * 40
    # The prompt, two tokens until 40 was seen to follow 40, 40, and full drafts; a step less of the last.
    assert calls == [2, 1, 1, 6, 6, 6, 6, 6, 6, 1]
    assert output.num_accepted_tokens == 40 - len(calls)


@pytest.mark.parametrize("stop", ["id", "string", "length", "max_len", "min_tokens"])
def test_a_sample_ends_where_it_ends_without(stop: str, folder: Path, plain: Engine) -> None:
    prompt = [30, 31, 32, 33] * 4
    [whole] = plain.generate(prompt, LONG)
    tokenizer = plain.tokenizer
    with speculating(folder) as engine:
        for place in range(3, 40, 3):
            token_id = whole.output_ids[place]
            params = {
                "id": replace(LONG, stop_ids=[token_id]),
                "string": replace(LONG, stop=tokenizer.decode([token_id]) or "never"),
                "length": replace(LONG, max_new_tokens=place),
                "max_len": replace(LONG, max_new_tokens=200),
                "min_tokens": replace(LONG, stop_ids=[token_id], min_tokens=place),
            }[stop]
            own = [1] * (96 - len(prompt) - place) * (stop == "max_len") + prompt
            found, expected = (one.generate([own, own[1:]], params) for one in (engine, plain))
            assert told(found) == told(expected)
            assert engine.stats().num_used_blocks == engine.stats().num_running == 0
        assert engine.stats().num_accepted_tokens > 0


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_little_cache_and_small_steps_change_nothing(
    block_size: int, folder: Path, plain: Engine
) -> None:
    num_blocks = -(-96 // block_size)
    with speculating(folder, block_size=block_size) as engine:
        block_bytes = cache_of(engine, 1)
    settings = dict(
        cache_memory=num_blocks * block_bytes, max_batch_tokens=7, block_size=block_size
    )
    params = replace(LONG, n=2)
    with speculating(folder, **settings) as engine:
        found, expected = (one.generate(PROMPTS * 2, params) for one in (engine, plain))
        assert told(found) == told(expected)
        assert sum(one.num_preemptions for one in found) > 0
        assert engine.stats().num_accepted_tokens > 0
        allocator = engine._core.scheduler.allocator
        assert allocator.num_free == allocator.num_blocks
        assert not engine._core.scheduler._drafts._lookups


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_take_the_same_drafts(world_size: int, folder: Path, plain: Engine) -> None:
    params = [LONG, DRAWN, KINDS["repetition"], replace(DRAWN, n=2)]
    expected = told(plain.generate(PROMPTS, params))

    def program(engine: Engine) -> tuple[list[object], int, int]:
        if engine.is_first_rank:  # which alone decides
            eager(engine, least=0.3)
        found, stats = told(engine.generate(PROMPTS, params)), engine.stats()
        assert found == expected
        return found, stats.num_draft_tokens, stats.num_accepted_tokens

    _, _, accepted = on_engines(
        world_size, folder, program, max_len=96, dtype="fp32", num_speculative_tokens=5
    )
    assert accepted > 0


def test_what_was_refused_is_in_no_cached_prefix(folder: Path, plain: Engine) -> None:
    """A text is continued from the cache that its first part left."""
    with speculating(folder, block_size=4) as engine:
        for prompt in PROMPTS:
            [first] = engine.generate(prompt, DRAWN)
            longer = [*prompt, *first.output_ids]
            [found], [expected] = (one.generate(longer, LONG) for one in (engine, plain))
            assert found.output_ids == expected.output_ids
            assert found.num_cached_tokens >= len(longer) - 8


@pytest.mark.parametrize("place", [8, 15])
def test_nan_ends_a_sample_where_it_does_without_drafts(
    place: int, folder: Path, plain: Engine
) -> None:
    prompt = [30, 31, 32, 33] * 4
    [expected] = plain.generate(prompt, LONG)
    with speculating(folder) as engine:
        run = engine._core.model_runner

        def poisoned(batch: Batch, pool: KVPool) -> Tensor:
            bad = batch.positions[batch.rows] == len(prompt) + place - 1
            return run(batch, pool).masked_fill(bad[:, None], math.nan)

        engine._core.model_runner = poisoned
        [failed] = engine.generate(prompt, LONG)
        stats = engine.stats()
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.output_ids == expected.output_ids[:place]
    assert f"at position {len(prompt) + place - 1} of" in str(failed.error)
    assert stats.num_used_blocks == 0


def test_nan_behind_a_refused_token_ends_nothing(folder: Path, plain: Engine) -> None:
    prompt, num_poisoned = [30, 31, 32, 33] * 4, 0
    with speculating(folder) as engine:
        run = engine._core.model_runner

        def poisoned(batch: Batch, pool: KVPool) -> Tensor:
            nonlocal num_poisoned
            logits = run(batch, pool)
            if len(logits) == len(batch.token_ids) > 1:  # one sequence and its draft
                refused = (batch.token_ids[1:] != logits.argmax(-1)[:-1]).nonzero()[:, 0].tolist()
                if refused:
                    num_poisoned += 1
                    logits[refused[0] + 1 :] = math.nan
            return logits

        engine._core.model_runner = poisoned
        assert engine.generate(prompt, LONG) == plain.generate(prompt, LONG)
    assert num_poisoned > 0


def test_structured_output_is_not_drafted(folder: Path) -> None:
    pytest.importorskip("llguidance")
    params = SamplingParams(max_new_tokens=30, structured=StructuredOutput(regex="(ab)*c"))
    with speculating(folder) as engine, make_engine(folder, dtype="fp32") as other:
        assert told(engine.generate("abababab", params)) == told(other.generate("abababab", params))
        assert engine.stats().num_draft_tokens == 0


def test_without_the_setting_nothing_is_drafted(plain: Engine) -> None:
    plain.generate(PROMPTS, LONG)
    assert plain.stats().num_draft_tokens == plain.stats().num_drafts == 0


@pytest.mark.parametrize(("row", "pays"), [(1.0, False), (0.001, True)])
def test_steps_are_timed_and_what_does_not_pay_is_not_drafted(
    row: float, pays: bool, folder: Path, plain: Engine
) -> None:
    """A token takes as long as a step, or hardly any time."""
    now = 0.0
    with make_engine(folder, max_len=96, dtype="fp32", num_speculative_tokens=5) as engine:
        run = engine._core.model_runner

        def timed(batch: Batch, pool: KVPool) -> Tensor:
            nonlocal now
            now += 0.01 + row * len(batch.token_ids)
            return run(batch, pool)

        engine._core.model_runner, engine._now = timed, lambda: now
        num_drafted: list[int] = []
        for _ in range(4):
            assert engine.generate([30, 31], REPEATED) == plain.generate([30, 31], REPEATED)
            num_drafted.append(engine.stats().num_draft_tokens - sum(num_drafted))
    assert num_drafted[-1] > 10 if pays else num_drafted[-1] == 0


@pytest.mark.parametrize("value", [-1, 65, 1.5, None, True])
def test_wrong_numbers_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="num_speculative_tokens"):
        Engine("nestling", num_speculative_tokens=value)  # type: ignore[arg-type]
