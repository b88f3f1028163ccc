"""/v1/chat/completions: the checkpoint's own template, and the answer's end."""

from pathlib import Path

import pytest
from serve_client import Json, Server, engine_of, serving
from serve_fixtures import make_model

from gyrfalcon import Engine, SamplingParams

pytest_plugins = ["serve_fixtures"]

HELLO = [{"role": "user", "content": "Name a bird."}]
PATH = "/v1/chat/completions"


def ask(server: Server, messages: object = HELLO, **options: object) -> Json:
    body = {"model": "nestling", "messages": messages, "temperature": 0} | options
    answer = server.post(PATH, body)
    assert answer.status == 200, answer.body
    return answer.events() if options.get("stream") else answer.json()


def prompt_of(server: Server, engine: Engine, messages: object, **options: object) -> str:
    """The prompt that the server makes of messages."""
    answer = ask(server, messages, max_tokens=1, return_token_ids=True, **options)
    return engine.tokenizer.decode(answer["prompt_token_ids"], skip_special=False)


def test_an_answer_is_the_engine_s_own_for_the_template_s_prompt(
    server: Server, engine: Engine
) -> None:
    ids = engine.tokenizer.chat_ids([{"role": "user", "content": "Name a bird."}])
    params = SamplingParams(max_new_tokens=20, stop=engine.tokenizer.chat.stops)
    [output] = engine.generate([ids], params)
    answer = ask(server, max_completion_tokens=20)
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": output.text, "refusal": None}
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert answer["object"] == "chat.completion"


def test_an_answer_ends_where_the_template_shows_the_next_turn(tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message.content }} the{% endfor %}"
    model = make_model(tmp_path / "nestling", template)
    with serving(lambda: engine_of(model)) as server:
        [choice] = ask(server, ignore_eos=True, max_tokens=60)["choices"]
        [ended] = ask(server, max_tokens=60)["choices"]
    text = choice["message"]["content"]
    assert ended["message"]["content"] == text[: text.index(" the")]
    assert [choice["finish_reason"], ended["finish_reason"]] == ["length", "stop"]


def test_without_a_length_an_answer_may_fill_the_context(server: Server) -> None:
    answer = ask(server, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 192
    assert answer["choices"][0]["finish_reason"] == "length"


def test_text_parts_are_joined_and_a_developer_is_the_system(
    server: Server, engine: Engine
) -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a bird."}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
    ]
    prompt = prompt_of(server, engine, messages)
    assert prompt == "System: Be brief.\nUser: Name a bird.\nFalcon:"


def test_a_last_message_of_the_assistant_is_continued(server: Server, engine: Engine) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "The  "}]
    assert prompt_of(server, engine, begun) == "User: Name a bird.\nFalcon: The  "
    again = prompt_of(server, engine, begun, continue_final_message=False)
    assert again == "User: Name a bird.\nFalcon: The  \nFalcon:"
    assert prompt_of(server, engine, begun, add_generation_prompt=True) == again
    bare = prompt_of(server, engine, HELLO, add_generation_prompt=False)
    assert bare == "User: Name a bird."
    own = prompt_of(server, engine, HELLO, continue_final_message=True)
    assert own == "User: Name a bird."


def test_a_message_of_ours_may_be_sent_back_as_it_came(server: Server) -> None:
    message = ask(server, max_tokens=3)["choices"][0]["message"]
    back = message | {"tool_calls": [], "annotations": [], "audio": None, "function_call": None}
    assert ask(server, [*HELLO, back, *HELLO], max_tokens=1)["choices"]


def test_log_probabilities_name_each_token_with_its_bytes(server: Server, engine: Engine) -> None:
    answer = ask(server, max_tokens=5, logprobs=True, top_logprobs=2, return_token_ids=True)
    [choice] = answer["choices"]
    entries = choice["logprobs"]["content"]
    raw = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert raw.decode() == choice["message"]["content"]
    for entry, token_id in zip(entries, choice["token_ids"], strict=True):
        assert bytes(entry["bytes"]) == engine.tokenizer.token_bytes(token_id)
        assert [len(entry["top_logprobs"]), entry["top_logprobs"][0]["logprob"]] == [
            2,
            entry["logprob"],
        ]
    plain = ask(server, max_tokens=5, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in plain] == [entry["logprob"] for entry in entries]
    assert all(entry["top_logprobs"] == [] for entry in plain)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages.0"),
        ([{"role": "tool", "content": "x"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": []}], "messages.0.content"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "messages.0.name"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "x", "cache_control": {"a": 1}}],
                }
            ],
            "messages.0.content.0.cache_control",
        ),
        ([*HELLO, {"role": "user", "content": "\ud800"}], "messages"),
    ],
)
def test_messages_that_cannot_be_taken_are_refused_by_their_place(
    server: Server, messages: object, param: str
) -> None:
    refused = server.post(PATH, {"model": "nestling", "messages": messages})
    assert (refused.status, refused.error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    server: Server, options: dict[str, object], param: str
) -> None:
    refused = server.post(PATH, {"model": "nestling", "messages": HELLO} | options)
    assert (refused.status, refused.error["param"]) == (400, param)
