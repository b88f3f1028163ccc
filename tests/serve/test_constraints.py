"""`response_format` and `structured_outputs`: what ends matches; what cannot be compiled is 400 in time, and
others are answered meanwhile.
"""

import json
import re
import time

import pytest
from schemas import BOMBS, REGEXES, SCHEMAS, WORD, closed
from serve_client import Json, Pending, Server, data_of

from gyrfalcon.structured import MOST_BYTES

pytest_plugins = ["serve_fixtures"]
pytest.importorskip("llguidance", reason="the extra serve is not installed")
jsonschema = pytest.importorskip("jsonschema")

BIRD = closed(name=WORD, wings={"type": "integer", "minimum": 0, "maximum": 2})
DIGITS = {"regex": "[0-9]{3}"}
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def body(path: str, **options: object) -> dict[str, object]:
    """Drawn, so that texts are of many kinds."""
    messages = [{"role": "user", "content": "Name a bird."}]
    asked = {"prompt": "The falcon is"} if path == COMPLETIONS else {"messages": messages}
    return {"model": "nestling", "temperature": 1, "seed": 1, "max_tokens": 100, **asked, **options}


def described(schema: object, **more: object) -> dict[str, object]:
    """A schema as OpenAI's clients send it."""
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}


def choices(answer: Json) -> list[tuple[str, str]]:
    """The text and the finish reason of each."""
    return [
        (one["text"] if "text" in one else one["message"]["content"], one["finish_reason"])
        for one in answer["choices"]
    ]


def texts_of(pending: list[Pending]) -> list[tuple[str, str]]:
    answers = [one.answer() for one in pending]
    assert [answer.status for answer in answers] == [200] * len(answers)
    return [choice for answer in answers for choice in choices(answer.json())]


def text(server: Server, path: str = COMPLETIONS, **options: object) -> str:
    """A text that has come to its end."""
    answer = server.post(path, body(path, **options))
    assert answer.status == 200, answer.body
    [(written, reason)] = choices(answer.json())
    assert reason == "stop"
    return written


def test_every_text_that_ends_validates_against_its_schema(server: Server) -> None:
    pending = [
        server.later(CHAT, body(CHAT, response_format=described(schema)))
        if number % 2
        else server.later(COMPLETIONS, body(COMPLETIONS, structured_outputs={"json": schema}))
        for number, schema in enumerate(SCHEMAS.values())
    ]
    check, num_ended = jsonschema.Draft202012Validator, 0
    for schema, (written, reason) in zip(SCHEMAS.values(), texts_of(pending), strict=True):
        if reason == "stop":
            num_ended += 1
            check(schema, format_checker=check.FORMAT_CHECKER).validate(json.loads(written))
    assert num_ended >= 36 > 0.8 * len(SCHEMAS)


def test_every_text_matches_its_expression(server: Server) -> None:
    pending = [
        server.later(COMPLETIONS, body(COMPLETIONS, structured_outputs={"regex": pattern}))
        for pattern in REGEXES
    ]
    for pattern, (written, reason) in zip(REGEXES, texts_of(pending), strict=True):
        assert (re.fullmatch(pattern, written) is not None, reason) == (True, "stop")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_both_endpoints_take_every_kind(server: Server, path: str) -> None:
    bird = json.loads(text(server, path, response_format=described(BIRD, strict=True)))
    assert set(bird) == {"name", "wings"}
    schema = json.dumps(BIRD)
    assert set(json.loads(text(server, path, structured_outputs={"json": schema}))) == set(bird)
    birds = ["falcon", "kestrel"]
    assert text(server, path, structured_outputs={"choice": birds, "json": None}) in birds
    grammar = {"grammar": 'start: "a" ("b" | "bb") "c"', "json_object": False}
    assert re.fullmatch("abb?c", text(server, path, structured_outputs=grammar))
    plain = {"response_format": {"type": "text"}}
    assert re.fullmatch("[0-9]{3}", text(server, path, structured_outputs=DIGITS, **plain))


@pytest.mark.parametrize(
    "option",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}],
)
def test_any_json_object_begins_as_one(server: Server, option: dict[str, object]) -> None:
    answer = server.post(COMPLETIONS, body(COMPLETIONS, n=3, max_tokens=12, **option)).json()
    for written, reason in choices(answer):
        assert re.match(r"\{\s*[\"}]", written)
        assert reason == "length" or isinstance(json.loads(written), dict)


def test_a_stream_and_several_samples_match(server: Server) -> None:
    asked = body(COMPLETIONS, structured_outputs=DIGITS, n=3, prompt=["In", "The"])
    whole = choices(server.post(COMPLETIONS, asked).json())
    assert all(re.fullmatch("[0-9]{3}", written) for written, _ in whole)
    parts = dict.fromkeys(range(6), "")
    for event in server.post(COMPLETIONS, asked | {"stream": True}).events():
        for one in event["choices"]:
            parts[one["index"]] += one["text"]
    assert list(parts.values()) == [written for written, _ in whole]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_400_in_time_and_the_next_request_is_served(server: Server, name: str) -> None:
    kind, value = BOMBS[name]
    begin = time.monotonic()
    refused = server.post(COMPLETIONS, body(COMPLETIONS, structured_outputs={kind: value}))
    assert time.monotonic() - begin < 5  # of which half a second for the grammar
    assert refused.status == 400
    assert refused.error["param"].startswith("structured_outputs")
    assert len(refused.error["message"]) < 1000
    assert re.fullmatch("[0-9]{3}", text(server, structured_outputs=DIGITS))


def test_a_schema_of_more_than_64_kib_is_refused_by_its_place(server: Server) -> None:
    large = {"enum": ["x" * MOST_BYTES]}
    refused = server.post(CHAT, body(CHAT, response_format=described(large)))
    assert refused.status == 400
    assert refused.error["param"] == "response_format.json_schema.schema"
    assert f"{MOST_BYTES:,}" in refused.error["message"]


def test_the_library_s_words_reach_the_caller(server: Server) -> None:
    for schema, words in (({"type": "bird"}, "bird"), ({"enum": []}, "nsatisfiable")):
        refused = server.post(CHAT, body(CHAT, response_format=described(schema)))
        assert (refused.status, refused.error["param"]) == (400, "response_format")
        assert words in refused.error["message"]


def test_others_are_answered_while_a_grammar_is_compiled(server: Server) -> None:
    compiling = server.service.engine._grammars._check._lock
    with compiling:
        asked = body(COMPLETIONS, structured_outputs={"regex": "new[0-9]"})
        pending = server.later(COMPLETIONS, asked)
        assert server.get("/health").status == 200
        assert server.complete(max_tokens=3)["usage"]["completion_tokens"] == 3
        assert not pending.parts
    [(written, _)] = texts_of([pending])
    assert re.fullmatch("new[0-9]", written)


@pytest.mark.parametrize(
    ("option", "value", "place"),
    [
        ("response_format", "json", ""),
        ("response_format", {}, ".type"),
        ("response_format", {"type": "structural_tag"}, ".type"),
        ("response_format", {"type": "json_schema"}, ".json_schema"),
        ("response_format", {"type": "text", "json_schema": {"schema": {}}}, ".json_schema"),
        ("response_format", {"type": "json_schema", "json_schema": {}}, ".json_schema.schema"),
        ("response_format", described("{}"), ".json_schema.schema"),
        ("response_format", described({}, strict=1), ".json_schema.strict"),
        ("response_format", {"type": "text", "schema": {}}, ".schema"),
        ("structured_outputs", {}, ""),
        ("structured_outputs", {"json_object": False}, ""),
        ("structured_outputs", {"regex": "a", "choice": ["a"]}, ""),
        ("structured_outputs", {"regex": 1}, ".regex"),
        ("structured_outputs", {"regex": "\ud800"}, ".regex"),
        ("structured_outputs", {"choice": []}, ".choice"),
        ("structured_outputs", {"choice": "a"}, ".choice"),
        ("structured_outputs", {"choice": [1]}, ".choice"),
        ("structured_outputs", {"json": []}, ".json"),
        ("structured_outputs", {"json_object": 1}, ".json_object"),
        ("structured_outputs", {"structural_tag": "{}"}, ".structural_tag"),
    ],
)
def test_a_wrong_value_is_refused_by_its_place(
    server: Server, option: str, value: object, place: str
) -> None:
    for path in (COMPLETIONS, CHAT):
        refused = server.post(path, body(path, **{option: value}))
        assert (refused.status, refused.error["param"]) == (400, option + place)


def test_what_leaves_no_token_is_the_caller_s_mistake(server: Server) -> None:
    """Limits that are reached midway, and a least length beyond what matches."""
    endless = {"grammar": 'start: "a" start'}
    for options in (
        {"structured_outputs": endless},
        {"structured_outputs": DIGITS, "min_tokens": 60},
    ):
        refused = server.post(COMPLETIONS, body(COMPLETIONS, **options))
        assert (refused.status, refused.error["code"]) == (400, "no_token_allowed")
        assert refused.error["type"] == "invalid_request_error"
        streamed = server.post(COMPLETIONS, body(COMPLETIONS, stream=True, **options))
        assert "no_token_allowed" in data_of(streamed.body)[-1]


def test_two_constraints_of_one_text_contradict_each_other(server: Server) -> None:
    both = {"structured_outputs": DIGITS, "response_format": {"type": "json_object"}}
    refused = server.post(COMPLETIONS, body(COMPLETIONS, **both))
    assert (refused.status, refused.error["param"]) == (400, "structured_outputs")
