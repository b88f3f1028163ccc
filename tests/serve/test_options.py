"""Every row of the table of options does what its kind says: a new row without a test fails."""

import pytest
from serve_client import Answer, Json, Server

from gyrfalcon.serve.options import OPTIONS, Endpoint, Kind, Option, options_of

pytest_plugins = ["serve_fixtures"]

HELLO = [{"role": "user", "content": "Name a bird."}]
BEGUN = [*HELLO, {"role": "assistant", "content": "The"}]
NO_LENGTH: dict[str, object] = {"max_completion_tokens": None}
SAMPLED: dict[str, object] = {"temperature": 1, "seed": 3}
ENDING: dict[str, object] = {"logit_bias": {"11": 100}}  # the end of text is all but certain

BASES: dict[Endpoint, dict[str, object]] = {
    Endpoint.COMPLETIONS: {
        "model": "nestling",
        "prompt": "The old captain looked at the",
        "temperature": 0,
        "max_tokens": 24,
    },
    Endpoint.CHAT: {
        "model": "nestling",
        "messages": HELLO,
        "temperature": 0,
        "max_completion_tokens": 24,
    },
    Endpoint.TOKENIZE: {"prompt": "A bird."},
    Endpoint.DETOKENIZE: {"tokens": [30, 31]},
}

# What changes the answer of the base request, with what is added to that first.
GENERATING: dict[str, tuple[dict[str, object], object]] = {
    "model": ({}, "small"),
    "temperature": ({"seed": 3}, 1.5),
    "top_p": (SAMPLED, 0.001),
    "top_k": (SAMPLED, 1),
    "min_p": (SAMPLED, 1),
    "presence_penalty": ({}, 2),
    "frequency_penalty": ({}, 2),
    "repetition_penalty": ({}, 3),
    "logit_bias": ({}, {"11": 100}),
    "seed": (SAMPLED, 4),
    "n": ({}, 2),
    "min_tokens": (ENDING, 5),
    "stop": ({}, ["e"]),
    "stop_token_ids": ({**ENDING, "ignore_eos": True}, [11]),
    "ignore_eos": (ENDING, True),
    "stream": ({}, True),
    "stream_options": ({"stream": True}, {"include_usage": True}),
    "prompt_logprobs": ({}, 1),
    "return_token_ids": ({}, True),
    "response_format": ({}, {"type": "json_object"}),
    "structured_outputs": ({}, {"choice": ["falcon"]}),
}
EFFECTS: dict[Endpoint, dict[str, tuple[dict[str, object], object]]] = {
    Endpoint.COMPLETIONS: {
        **GENERATING,
        "prompt": ({}, "In the north"),
        "max_tokens": ({}, 3),
        "echo": ({}, True),
        "logprobs": ({}, 2),
        "add_special_tokens": ({}, False),
    },
    Endpoint.CHAT: {
        **GENERATING,
        "messages": ({}, BEGUN),
        "max_tokens": (NO_LENGTH, 3),
        "max_completion_tokens": ({}, 3),
        "logprobs": ({}, True),
        "top_logprobs": ({"logprobs": True}, 2),
        "add_generation_prompt": ({"return_token_ids": True}, False),
        "continue_final_message": ({"messages": BEGUN, "return_token_ids": True}, False),
    },
    Endpoint.TOKENIZE: {
        "model": ({}, "kestrel"),
        "prompt": ({}, "A fish."),
        "messages": ({"prompt": None, "messages": HELLO}, BEGUN),
        "return_token_strs": ({}, True),
        "add_special_tokens": ({}, False),
        "add_generation_prompt": ({"prompt": None, "messages": HELLO}, False),
        "continue_final_message": ({"prompt": None, "messages": BEGUN}, False),
    },
    Endpoint.DETOKENIZE: {"model": ({}, "kestrel"), "tokens": ({}, [32])},
}
VALUES: tuple[object, ...] = (None, "something", {"of": ["any", "kind"]}, True, {}, [])
ROWS = [(endpoint, option) for option in OPTIONS for endpoint in option.endpoints]
IDS = [f"{endpoint.value}:{option.name}" for endpoint, option in ROWS]


def ask(server: Server, endpoint: Endpoint, changes: dict[str, object]) -> Answer:
    return server.post(endpoint.value, BASES[endpoint] | changes)


def content(answer: Answer) -> Json:
    """An answer without what differs between any two."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        return [content_of(event) for event in answer.events()]
    return answer.status, content_of(answer.json())


def content_of(body: Json) -> Json:
    body = {name: value for name, value in body.items() if name not in ("id", "created")}
    if body.get("usage"):
        body["usage"].pop("prompt_tokens_details")  # what is cached depends on what came before
    return body


def of_kind(kind: Kind) -> pytest.MarkDecorator:
    rows = [(row, name) for row, name in zip(ROWS, IDS, strict=True) if row[1].kind is kind]
    return pytest.mark.parametrize(
        ("endpoint", "option"), [row for row, _ in rows], ids=[name for _, name in rows]
    )


BESIDE_OTHERS = {"priority", "cache_salt"}  # what they change is seen beside other requests


@of_kind(Kind.SERVED)
def test_a_served_option_changes_something(
    server: Server, endpoint: Endpoint, option: Option
) -> None:
    if option.name in BESIDE_OTHERS:
        return
    base, value = EFFECTS[endpoint][option.name]
    plain = content(ask(server, endpoint, base))
    assert plain == content(ask(server, endpoint, base))
    assert plain != content(ask(server, endpoint, base | {option.name: value}))


@of_kind(Kind.SERVED)
def test_a_served_option_given_its_default_or_null_changes_nothing(
    server: Server, endpoint: Endpoint, option: Option
) -> None:
    if option.required or option.name == "prompt":
        return
    base, _ = EFFECTS[endpoint].get(option.name, ({}, None))
    absent = {name: value for name, value in base.items() if name != option.name}
    plain = content(ask(server, endpoint, absent | {option.name: None}))
    if option.name not in ("temperature", "seed"):  # random without
        assert content(ask(server, endpoint, absent | {option.name: option.default})) == plain


@of_kind(Kind.AT_NO_EFFECT)
def test_a_no_effect_value_changes_nothing_and_any_other_is_refused_by_name(
    server: Server, endpoint: Endpoint, option: Option
) -> None:
    plain = content(ask(server, endpoint, {}))
    for value in (None, *option.no_effect):
        assert content(ask(server, endpoint, {option.name: value})) == plain
    other = ask(server, endpoint, {option.name: "something else"})
    assert (other.status, other.error["param"]) == (400, option.name)


@of_kind(Kind.WITHOUT_EFFECT)
def test_an_option_without_effect_changes_nothing(
    server: Server, endpoint: Endpoint, option: Option
) -> None:
    plain = content(ask(server, endpoint, {}))
    for value in VALUES[:3]:
        assert content(ask(server, endpoint, {option.name: value})) == plain


@of_kind(Kind.REFUSED)
def test_a_refused_option_is_refused_by_name_and_null_is_absent(
    server: Server, endpoint: Endpoint, option: Option
) -> None:
    for value in VALUES[1:]:
        refused = ask(server, endpoint, {option.name: value})
        assert (refused.status, refused.error["param"]) == (400, option.name)
    assert ask(server, endpoint, {option.name: None}).status == 200


CLIENTS: dict[Endpoint, dict[str, object]] = {
    Endpoint.COMPLETIONS: {
        "stop": None,
        "echo": False,
        "n": 1,
        "best_of": 1,
        "suffix": None,
        "logprobs": None,
        "stream_options": None,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "no_stop_trim": False,
        "return_hidden_states": False,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "response_format": {"type": "text"},
        "anything": None,
    },
    Endpoint.CHAT: {
        "stop": None,
        "echo": False,
        "n": 1,
        "tools": None,
        "tool_choice": "none",
        "logprobs": False,
        "top_logprobs": 0,
        "skip_special_tokens": True,
        "no_stop_trim": False,
        "return_hidden_states": False,
        "reasoning_effort": None,
        "include_reasoning": True,
        "separate_reasoning": True,
        "stream_reasoning": True,
        "user": "ann",
        "metadata": {"run": "1"},
        "anything": None,
    },
}


@pytest.mark.parametrize("endpoint", CLIENTS)
def test_what_clients_send_without_meaning_it_changes_nothing(
    server: Server, endpoint: Endpoint
) -> None:
    plain = content(ask(server, endpoint, {}))
    assert content(ask(server, endpoint, CLIENTS[endpoint])) == plain


@pytest.mark.parametrize("endpoint", Endpoint)
def test_the_effects_tested_are_those_of_served_options(endpoint: Endpoint) -> None:
    served = {one.name for one in options_of(endpoint).values() if one.kind is Kind.SERVED}
    assert set(EFFECTS[endpoint]) == served - BESIDE_OTHERS


@pytest.mark.parametrize("endpoint", Endpoint)
def test_an_unknown_option_is_refused_by_name_unless_it_is_null(
    server: Server, endpoint: Endpoint
) -> None:
    refused = ask(server, endpoint, {"temprature": 1})
    assert (refused.status, refused.error["param"]) == (400, "temprature")
    assert ask(server, endpoint, {"temprature": None}).status == 200


WRONG: dict[str, list[object]] = {
    "temperature": [-0.1, 1001, "1", True, []],
    "top_p": [0, 1.1, "x"],
    "top_k": [-2, 1.5, True],
    "n": [0, 129, 1.5, "2"],
    "max_tokens": [-1, 1.5, "3", 10**400],
    "logprobs": [-1, 21, 1.5],
    "min_tokens": [-1, 1.5, 25, "3"],
    "priority": [2**31, 0.5, "1"],
    "cache_salt": ["", 1, "x" * 1025, "\ud800"],
    "seed": [-(2**63) - 1, 2**64, 0.5],
    "stop": ["", [""], [1], ["a"] * 17, "x" * 1025, "\ud800"],
    "stop_token_ids": [1, ["1"], [-1], [True], [4096]],
    "logit_bias": [[], {"a": 1}, {"1": "1"}, {"1": 101}, {"-1": 1}, {"99999": 1}],
    "stream": ["true", 1],
    "echo": ["true", 0],
    "prompt": [[], [[]], [1, "a"], ["a", 1], [["a"]], {}, 1, [-1], [4096], "\ud800"],
    "stream_options": [True, {"include_usage": 1}, {"other": True}, {"include_obfuscation": True}],
    "model": [1, ""],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_400_or_404_and_names_the_option(server: Server, name: str) -> None:
    stream = {"stream": True} if name == "stream_options" else {}
    for value in WRONG[name]:
        refused = ask(server, Endpoint.COMPLETIONS, stream | {name: value})
        assert refused.status == (404 if value == "" and name == "model" else 400), value
        assert refused.error["param"].partition(".")[0] == name, (value, refused.error)
