"""Structured output: every finished text matches; what is beside it in a batch, on other ranks or before a
preemption changes nothing; an error ends its own sample or refuses its own request."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import regex
from engines import cache_of
from schemas import REGEXES, SCHEMAS, WORD, closed, listed
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams, StructuredOutput
from gyrfalcon.checkpoint.hub import NESTLING
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.engine.scheduler import Scheduler
from gyrfalcon.errors import EngineClosed, NoTokenAllowed, RequestError
from gyrfalcon.request import FinishReason, RequestOutput, Sequence, check_finite
from gyrfalcon.structured import CompiledOutput
from gyrfalcon.text.grammar import LIMITS, Grammars
from gyrfalcon.text.grammar_check import GrammarCheck

pytest.importorskip("llguidance", reason="the extra serve is not installed")
jsonschema = pytest.importorskip("jsonschema")

PROMPT = "The falcon is"
DIGITS = StructuredOutput(regex="[0-9]{3}")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("nestling", max_len=256, dtype="fp32") as own:  # texts that depend on prompts alone
        yield own


def drawn(structured: StructuredOutput, **settings: object) -> SamplingParams:
    """Drawn, so that texts are of many kinds."""
    plain: dict[str, object] = dict(temperature=1.0, seed=1, max_new_tokens=100)
    return SamplingParams(structured=structured, **(plain | settings))  # type: ignore[arg-type]


def finished(outputs: list[RequestOutput]) -> list[str]:
    """The texts of samples, all of which came to the end of what they have to match."""
    samples = [sample for output in outputs for sample in output.completions]
    assert {sample.finish_reason for sample in samples} == {FinishReason.STOP}
    return [sample.text for sample in samples]


def test_every_finished_text_validates_against_its_schema(engine: Engine) -> None:
    params = [drawn(StructuredOutput(json=schema), n=2) for schema in SCHEMAS.values()]
    check, num_finished = jsonschema.Draft202012Validator, Counter[str]()
    for name, output in zip(SCHEMAS, engine.generate([PROMPT] * len(params), params), strict=True):
        for sample in output.completions:
            if sample.finish_reason is FinishReason.STOP:
                check(SCHEMAS[name], format_checker=check.FORMAT_CHECKER).validate(
                    json.loads(sample.text)
                )
                num_finished[name] += 1
    assert len(num_finished) >= 40
    assert num_finished.total() >= 80


def test_every_finished_text_matches_its_expression(engine: Engine) -> None:
    params = [drawn(StructuredOutput(regex=pattern), n=2) for pattern in REGEXES]
    texts = finished(engine.generate([PROMPT] * len(params), params))
    for number, text in enumerate(texts):
        assert re.fullmatch(REGEXES[number // 2], text)


def test_any_json_object_is_one(engine: Engine) -> None:
    likely = {engine.encode(text)[0]: 9.0 for text in ('"', "}")}  # short names and texts
    json_object = StructuredOutput(json_object=True)
    params = [drawn(json_object, seed=seed, logit_bias=likely) for seed in range(8)]
    outputs = engine.generate(["{"] * 8, params)
    texts = [one.text for one in outputs if one.finish_reason is FinishReason.STOP]
    assert texts
    for text in texts:
        assert isinstance(json.loads(text), dict)


def test_a_choice_is_one_of_the_choices_whatever_is_in_it(engine: Engine) -> None:
    choices = [
        "yes",
        "no",
        'a "quoted" one',
        "back\\slash",
        "new\nline",
        "größe 漢字 \U0001f985",
        " ",
    ]
    params = [drawn(StructuredOutput(choice=choices), temperature=9.0, seed=i) for i in range(12)]
    texts = finished(engine.generate([PROMPT] * 12, params))
    assert set(texts) <= set(choices)
    assert len(set(texts)) > 2
    for one in choices:
        alone = drawn(StructuredOutput(choice=[one]))
        assert finished(engine.generate([PROMPT], alone)) == [one]


def test_a_grammar_in_larks_syntax_is_followed(engine: Engine) -> None:
    sums = 'start: NUMBER (" + " NUMBER){1,3}\nNUMBER: /[1-9]/'
    params = drawn(StructuredOutput(grammar=sums), n=4)
    for text in finished(engine.generate([PROMPT], params)):
        assert re.fullmatch(r"[1-9]( \+ [1-9]){1,3}", text)


def test_samples_of_one_request_match_each_by_itself(engine: Engine) -> None:
    texts = finished(engine.generate([PROMPT], drawn(DIGITS, n=6)))
    assert len(set(texts)) > 1
    assert all(re.fullmatch("[0-9]{3}", text) for text in texts)


def test_the_longest_length_leaves_the_beginning_of_a_match(engine: Engine) -> None:
    pattern = '\\{"name": "[a-z]{200}"\\}'
    for length in (1, 5, 12):
        params = drawn(StructuredOutput(regex=pattern), max_new_tokens=length)
        [output] = engine.generate([PROMPT], params)
        assert output.finish_reason is FinishReason.LENGTH
        assert len(output.output_ids) == length
        assert regex.fullmatch(pattern, output.text, partial=True)


def test_a_stop_string_ends_the_text_before_it_matches(engine: Engine) -> None:
    params = drawn(StructuredOutput(regex=r"[a-z]{4}\.[a-z]{4}"), stop=".")
    [text] = finished(engine.generate([PROMPT], params))
    assert re.fullmatch("[a-z]{4}", text)


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.0),
        dict(top_k=3),
        dict(top_p=0.5, min_p=0.1),
        dict(temperature=0.0, repetition_penalty=1.5, frequency_penalty=1.0),
        dict(presence_penalty=-1.0, logit_bias={5: 3.0}),
    ],
    ids=str,
)
def test_every_way_of_sampling_matches(engine: Engine, settings: dict[str, object]) -> None:
    structured = StructuredOutput(json=closed(name=WORD, sizes=listed({"type": "boolean"}, 2, 2)))
    params = drawn(structured, n=2, **settings)
    for text in finished(engine.generate([PROMPT], params)):
        assert json.loads(text).keys() == {"name", "sizes"}


def test_log_probabilities_are_the_models_among_all_tokens(engine: Engine) -> None:
    [output] = engine.generate([PROMPT], drawn(DIGITS, temperature=0.0, logprobs=3))
    tokens = output.completions[0].logprobs
    assert tokens is not None
    ids = output.prompt_ids + output.output_ids
    [scored] = engine.generate([ids], SamplingParams(max_new_tokens=0, prompt_logprobs=3))
    assert scored.prompt_logprobs is not None
    expected = scored.prompt_logprobs[len(output.prompt_ids) :]
    for told, own in zip(tokens, expected, strict=True):
        assert own is not None
        assert told.logprob == pytest.approx(own.logprob, abs=0.05)
    assert any(token.id not in [other for other, _ in token.top] for token in tokens)


def test_rows_beside_constrained_ones_get_what_they_get_beside_others(engine: Engine) -> None:
    plain = SamplingParams(max_new_tokens=24, ignore_eos=True, logprobs=3)
    sampled = replace(plain, temperature=1.0, seed=5)
    free = [plain, sampled, replace(sampled, top_k=5), replace(plain, frequency_penalty=0.5)]
    structured = drawn(StructuredOutput(regex="[a-z ]{200,}"), max_new_tokens=24)
    unconstrained = replace(structured, structured=None, ignore_eos=True)
    beside_others = engine.generate([PROMPT] * 8, [*free, *[unconstrained] * 4])
    beside_constrained = engine.generate([PROMPT] * 8, [*free, *[structured] * 4])
    assert beside_constrained[:4] == beside_others[:4]
    assert beside_constrained[4].text != beside_others[4].text


def test_a_prefix_that_is_cached_changes_nothing(engine: Engine) -> None:
    prompt = "Which bird of prey nests on rocks in the far north and is larger than the others?"
    first, again = (engine.generate([prompt], drawn(DIGITS))[0] for _ in range(2))
    assert again == first
    assert again.num_cached_tokens > 0


def test_two_ranks_choose_the_same_text_as_one() -> None:
    asked = [
        drawn(StructuredOutput(json=closed(name=WORD)), temperature=0.0),
        drawn(StructuredOutput(regex="[a-z]{2,9}"), n=2),
        drawn(StructuredOutput(choice=["falcon", "kestrel"]), top_k=4),
        SamplingParams(max_new_tokens=12, temperature=1.0, seed=4),
    ]

    def texts(engine: Engine) -> list[list[str]]:
        outputs = engine.generate([PROMPT] * len(asked), asked)
        return [[sample.text for sample in output.completions] for output in outputs]

    one, two = (on_engines(size, NESTLING, texts, dtype="fp32", max_len=64) for size in (1, 2))
    assert one == two


def test_a_preempted_sample_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    structured = StructuredOutput(regex="[a-z ]{300}")
    params = [drawn(structured, seed=seed, max_new_tokens=90) for seed in range(4)]
    preempted: list[Sequence] = []
    preempt = Scheduler._preempt

    def counted(self: Scheduler, sequence: Sequence) -> None:
        preempted.append(sequence)
        preempt(self, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", counted)
    settings: dict[str, object] = dict(max_len=128, block_size=4, dtype="fp32")
    with Engine("nestling", **settings) as roomy:  # type: ignore[arg-type]
        expected = roomy.generate([PROMPT] * 4, params)
        settings["cache_memory"] = cache_of(roomy, 40)
    assert not preempted
    with Engine("nestling", **settings) as tight:  # type: ignore[arg-type]
        assert tight.generate([PROMPT] * 4, params) == expected
    assert preempted


def test_overlapped_steps_choose_the_same_text() -> None:
    asked = [drawn(DIGITS, n=2), SamplingParams(max_new_tokens=9), drawn(DIGITS, seed=3)]
    with Engine("nestling", max_len=64) as own:
        expected = own.generate([PROMPT] * 3, asked)
        own._take_step = Overlap(own._core).step
        assert own.generate([PROMPT] * 3, asked) == expected


def test_nothing_is_kept_of_requests_that_have_ended(engine: Engine) -> None:
    masks = engine._core.token_masks
    engine.generate([PROMPT], drawn(DIGITS, n=2))
    number = engine.add(PROMPT, drawn(DIGITS))
    engine.step()
    assert masks._samples
    engine.abort(number)
    assert not masks._samples
    while engine.has_work:
        engine.step()


def test_a_structure_after_which_nothing_could_end_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="token that ends"):
        engine.add(PROMPT, drawn(DIGITS, ignore_eos=True))
    end = engine.encode("!")[0]
    params = drawn(DIGITS, ignore_eos=True, stop_ids=[end])
    [output] = engine.generate([PROMPT], params)
    assert output.output_ids[-1] == end
    assert re.fullmatch("[0-9]{3}", output.text)


def test_what_was_prepared_or_checked_is_compiled_no_more(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = drawn(StructuredOutput(regex="[a-z]{5}"))
    expected = engine.generate([PROMPT], params)
    prepared = [engine.prepare(params), engine.check(PROMPT, params)]
    monkeypatch.setattr(Grammars, "matcher", None)
    for own in prepared:
        assert own == engine.prepare(own) == replace(params, structured=own.structured)
        assert engine.generate([PROMPT] * 2, own) == expected * 2
        [*deltas] = engine.stream(PROMPT, own)
        assert "".join(delta.text for delta in deltas) == expected[0].text
    assert engine.prepare(SamplingParams(n=2)) == SamplingParams(n=2)


def test_what_another_engine_prepared_is_compiled_anew(engine: Engine) -> None:
    with Engine("nestling", max_len=64) as other:
        foreign = other.prepare(drawn(DIGITS))
    assert finished(engine.generate([PROMPT], foreign)) == finished(
        engine.generate([PROMPT], drawn(DIGITS))
    )


def test_a_grammar_that_reached_a_limit_fails_no_other_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "max_lexer_states", 300)
    pattern = "([a-z]{3,40} ){0,30}(?:x|y).*z[0-9]{20}"
    params = [drawn(StructuredOutput(regex=pattern), seed=i, max_new_tokens=20) for i in range(8)]
    alone = engine.generate([PROMPT] * 8, params)
    good = [one for one, output in zip(params, alone, strict=True) if not output.error]
    assert len(good) > 4
    shared = engine.prepare(good[0])
    asked = [replace(one, structured=shared.structured) for one in good]
    failed = engine.generate([PROMPT] * len(good), asked)
    assert any("too many states" in str(output.error) for output in failed)
    again = engine.prepare(shared).structured
    assert isinstance(shared.structured, CompiledOutput)
    assert isinstance(again, CompiledOutput)
    assert again.grammar is not shared.structured.grammar, "it is not compiled anew"


def test_a_failure_to_compile_on_rank_0_is_told_to_all() -> None:
    def ends(engine: Engine) -> str:
        if engine.is_first_rank:
            engine._grammars.compiled = None  # type: ignore[method-assign,assignment]
        try:
            engine.prepare(drawn(DIGITS))
        except Exception as error:
            return type(error).__name__
        return "nothing"

    told = on_engines(2, NESTLING, lambda engine: (ends(engine), engine.is_first_rank), max_len=64)
    assert told == ("TypeError", True)


def test_the_first_mask_is_computed_when_a_structure_is_prepared(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_token = drawn(StructuredOutput(choice=["a", "b"]), max_new_tokens=1)
    prepared = engine.prepare(one_token)
    monkeypatch.setattr("gyrfalcon.text.grammar._executor", None)
    [output] = engine.generate([PROMPT], prepared)
    assert output.text in ("a", "b")


def test_what_llguidance_refuses_is_refused_before_it_is_queued(engine: Engine) -> None:
    with pytest.raises(RequestError, match="llguidance takes"):
        engine.add(PROMPT, drawn(StructuredOutput(json={"$ref": "#"})))
    assert not engine.has_work


def test_a_sample_of_which_no_token_is_left_ends_alone_with_an_error(engine: Engine) -> None:
    numbers = engine.tokenizer.vocab_size
    digits = [i for i in range(numbers) if engine.tokenizer.token_bytes(i).strip().isdigit()]
    forbidden = drawn(DIGITS, n=2, logit_bias=dict.fromkeys(digits, -math.inf))
    asked = [drawn(DIGITS), forbidden, SamplingParams(max_new_tokens=6)]
    expected = engine.generate([PROMPT], asked[0])[0].text
    good, bad, plain = engine.generate([PROMPT] * 3, asked)
    assert good.text == expected
    assert plain.finish_reason is FinishReason.LENGTH
    for sample in bad.completions:
        assert sample.finish_reason is FinishReason.ERROR
        assert sample.error is not None
        assert f"sample {sample.index}" in sample.error
        assert "biases" in sample.error
        assert isinstance(sample.failure, NoTokenAllowed)
        assert str(sample.failure) == sample.error
    with pytest.raises(NoTokenAllowed, match="sample 0"):
        check_finite(*bad.completions)


def test_a_limit_of_the_library_ends_its_sample_in_its_words_on_every_rank() -> None:
    endless = drawn(StructuredOutput(grammar='start: "a" start'))

    def ends(engine: Engine) -> list[tuple[FinishReason, str]]:
        outputs = engine.generate([PROMPT] * 2, [endless, drawn(DIGITS)])
        if engine.is_first_rank:
            assert "Too many items" in str(outputs[0].error)
        return [(output.finish_reason, output.text) for output in outputs]

    one, two = (on_engines(size, NESTLING, ends, dtype="fp32", max_len=64) for size in (1, 2))
    assert one == two
    assert [reason for reason, _ in one] == [FinishReason.ERROR, FinishReason.STOP]


def test_a_prompt_that_is_read_in_parts_is_constrained_from_its_end_on() -> None:
    with Engine("nestling", max_len=96, max_batch_tokens=8) as own:
        outputs = own.generate([PROMPT * 4, PROMPT], drawn(DIGITS, max_new_tokens=8))
    assert all(re.fullmatch("[0-9]{3}", text) for text in finished(outputs))


def test_who_waits_for_a_grammar_while_the_engine_closes_is_told_that() -> None:
    check = GrammarCheck({"tokens": ["a", "b"], "special": []}, {})
    check.close()
    with pytest.raises(EngineClosed):
        check.error("start: /a/")
