"""/v1/completions gives what the engine gives for the same prompt and parameters."""

import pytest
from serve_client import Server

from gyrfalcon import Engine, SamplingParams

pytest_plugins = ["serve_fixtures"]

PROMPT = "The old captain looked at the"
GREEDY = SamplingParams(max_new_tokens=12)


def test_the_text_is_the_engine_s_own(server: Server, engine: Engine) -> None:
    [output] = engine.generate(PROMPT, GREEDY)
    answer = server.complete(PROMPT, max_tokens=12)
    [choice] = answer["choices"]
    assert choice["text"] == output.text
    assert choice["finish_reason"] == "length"
    assert answer["object"] == "text_completion"
    num, usage = len(output.prompt_ids), answer["usage"]
    assert usage.pop("prompt_tokens_details")["cached_tokens"] < num
    assert usage == {"prompt_tokens": num, "completion_tokens": 12, "total_tokens": num + 12}


def test_usage_tells_the_prompt_s_tokens_that_were_cached(server: Server) -> None:
    prompt = list(range(300, 340))
    cached = [
        server.complete(prompt, n=2, max_tokens=2)["usage"]["prompt_tokens_details"]
        for _ in range(2)
    ]
    assert cached == [{"cached_tokens": 0}, {"cached_tokens": 32}]  # two blocks of 16


def test_a_prompt_may_be_text_or_ids_one_or_many(server: Server, engine: Engine) -> None:
    texts = [PROMPT, "In the far north"]
    ids = [engine.encode(text) for text in texts]
    wanted = [output.text for output in engine.generate(texts, GREEDY)]
    for prompt, many in ((texts[0], 1), (ids[0], 1), (texts, 2), (ids, 2)):
        choices = server.complete(prompt, max_tokens=12)["choices"]
        assert [choice["text"] for choice in choices] == wanted[:many]
        assert [choice["index"] for choice in choices] == list(range(many))


def test_samples_of_several_prompts_are_numbered_through(server: Server, engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=8, temperature=1, seed=5, n=2)
    outputs = engine.generate([PROMPT, "In"], params)
    answer = server.complete([PROMPT, "In"], max_tokens=8, temperature=1, seed=5, n=2)
    wanted = [completion.text for output in outputs for completion in output.completions]
    assert [choice["text"] for choice in answer["choices"]] == wanted
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len(set(wanted)) > 2


def test_a_default_length_is_16_tokens_and_fits_into_the_context(server: Server) -> None:
    assert server.complete()["usage"]["completion_tokens"] == 16
    long = [30] * 184  # of 192
    assert server.complete(long)["usage"]["completion_tokens"] == 8


def test_a_stop_string_ends_the_text_before_it(server: Server) -> None:
    text = server.complete(PROMPT, max_tokens=24)["choices"][0]["text"]
    word = text.split()[3]
    [choice] = server.complete(PROMPT, max_tokens=24, stop=[word])["choices"]
    assert choice["text"] == text[: text.index(word)]
    assert choice["finish_reason"] == "stop"


def test_log_probabilities_are_the_engine_s_with_offsets_into_the_text(
    server: Server, engine: Engine
) -> None:
    [output] = engine.generate(PROMPT, SamplingParams(max_new_tokens=6, logprobs=3))
    [choice] = server.complete(PROMPT, max_tokens=6, logprobs=3)["choices"]
    found, tokens = choice["logprobs"], output.completions[0].logprobs
    assert tokens is not None
    assert found["token_logprobs"] == pytest.approx([token.logprob for token in tokens])
    assert "".join(found["tokens"]) == choice["text"]
    assert [choice["text"][at:][: len(name)] for at, name in offsets(found)] == found["tokens"]
    assert [len(top) for top in found["top_logprobs"]] == [3] * 6
    for name, logprob, top in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert top[name] == logprob == max(top.values())


def test_an_echoed_prompt_has_its_own_log_probabilities(server: Server, engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=2, logprobs=1, prompt_logprobs=1)
    [output] = engine.generate(PROMPT, params)
    [choice] = server.complete(PROMPT, max_tokens=2, logprobs=1, echo=True)["choices"]
    assert choice["text"] == PROMPT + output.text
    scores, new = output.prompt_logprobs, output.completions[0].logprobs
    assert scores is not None
    assert new is not None
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    wanted = [token.logprob for token in (*scores, *new) if token is not None]
    assert found["token_logprobs"][1:] == pytest.approx(wanted)
    assert found["tokens"][0] == ">>TITLE<<"  # with which the tokenizer begins a text
    assert found["text_offset"][:2] == [0, 0]
    at = found["text_offset"][-1]
    assert choice["text"][at:] == found["tokens"][-1]


def test_a_prompt_alone_is_scored_with_no_new_token(server: Server, engine: Engine) -> None:
    answer = server.complete(PROMPT, max_tokens=0, echo=True, logprobs=1)
    [choice] = answer["choices"]
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["tokens"]) == len(engine.encode(PROMPT))
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


def test_prompt_log_probabilities_and_token_ids_stand_in_each_choice(
    server: Server, engine: Engine
) -> None:
    options = {"prompt_logprobs": 2, "return_token_ids": True, "max_tokens": 3}
    [choice] = server.complete(PROMPT, **options)["choices"]
    ids = engine.encode(PROMPT)
    assert choice["prompt_token_ids"] == ids
    assert engine.tokenizer.decode(choice["token_ids"]) == choice["text"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for token_id, scores in zip(ids[1:], others, strict=True):
        own, *top = scores.values()
        assert own == scores[str(token_id)]
        assert own["logprob"] <= 0
        ranks = [1, 2] if own["rank"] is None else sorted({1, 2} - {own["rank"]})
        assert [one["rank"] for one in top] == ranks
        assert len(scores) in (2, 3)
    assert choice["logprobs"] is None


def test_a_prompt_echoed_for_fewer_log_probabilities_than_its_own_shows_these(
    server: Server,
) -> None:
    options = {"prompt_logprobs": 4, "echo": True, "logprobs": 1, "max_tokens": 1}
    [choice] = server.complete(PROMPT, **options)["choices"]
    assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"][1:])
    assert all(len(one) >= 4 for one in choice["prompt_logprobs"][1:])


def test_half_a_character_is_written_as_its_bytes(server: Server, engine: Engine) -> None:
    ids = [one for byte in "é".encode() for one in [byte_id(engine, byte)]]
    options = {"echo": True, "logprobs": 0, "max_tokens": 0}
    [choice] = server.complete([30, *ids, 30], **options)["choices"]
    assert choice["logprobs"]["tokens"][1:3] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert choice["text"][1:2] == "é" or "é" in choice["text"]


def byte_id(engine: Engine, byte: int) -> int:
    """The token of one byte."""
    tokenizer = engine.tokenizer
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == bytes([byte]))


def offsets(found: dict[str, list[object]]) -> list[tuple[int, str]]:
    return list(zip(found["text_offset"], found["tokens"], strict=True))  # type: ignore[arg-type]  # of JSON
