"""Every error is in OpenAI's envelope, with the status that clients know."""

import json
from pathlib import Path

import pytest
from serve_client import Server, serving

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.serve import bodies

pytest_plugins = ["serve_fixtures"]

BODY = {"model": "nestling", "prompt": "Once", "max_tokens": 2}
JSON = {"content-type": "application/json"}


def test_an_unknown_path_or_method_is_answered_in_the_envelope(server: Server) -> None:
    assert server.get("/v2/completions").error["code"] is None
    assert server.get("/v2/completions").status == 404
    refused = server.get("/v1/completions")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert "GET /v1/completions" in refused.error["message"]
    assert server.ask("OPTIONS", "/v1/completions", b"", {}).status == 405


def test_a_model_that_is_not_served_is_404_and_told_those_that_are(server: Server) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        body = {"model": "gpt-4", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
        del body["messages" if path == "/v1/completions" else "prompt"]
        refused = server.post(path, body)
        assert (refused.status, refused.error["param"]) == (404, "model")
        assert "nestling, small" in refused.error["message"]
        assert refused.error["code"] == "model_not_found"


def test_a_fault_of_the_server_is_in_the_envelope_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str | None) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(server.service, "check_model", broken)
    refused = server.post("/v1/completions", BODY)
    assert (refused.status, refused.error["type"]) == (500, "server_error")
    assert "a fault" not in refused.error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop_token_ids", [1] * 1025), ("logit_bias", {str(i): 1 for i in range(1025)})],
)
def test_lists_that_every_step_would_walk_are_bounded(
    server: Server, name: str, value: object
) -> None:
    refused = server.post("/v1/completions", BODY | {name: value})
    assert (refused.status, refused.error["param"]) == (400, name)
    assert "1024" in refused.error["message"]


@pytest.mark.parametrize("name", ["model", "prompt"])
def test_an_option_that_is_missing_is_named(server: Server, name: str) -> None:
    for value in ({}, {name: None}):
        refused = server.post(
            "/v1/completions", {k: v for k, v in BODY.items() if k != name} | value
        )
        assert (refused.status, refused.error["param"]) == (400, name)
        assert refused.error["code"] == "missing_required_parameter"


def test_a_prompt_that_is_too_long_is_told_both_lengths(server: Server) -> None:
    refused = server.post("/v1/completions", BODY | {"prompt": [30] * 200})
    assert (refused.status, refused.error["param"]) == (400, "prompt")
    assert refused.error["code"] == "context_length_exceeded"
    assert "191" in refused.error["message"]
    assert "200" in refused.error["message"]
    text = server.post("/v1/completions", BODY | {"prompt": "word " * 100_000})
    assert (text.status, text.error["code"]) == (400, "context_length_exceeded")
    both = server.post("/v1/completions", BODY | {"prompt": [30] * 100, "max_tokens": 100})
    assert (both.status, both.error["param"]) == (400, "max_tokens")
    assert "192" in both.error["message"]
    assert "100 + 100" in both.error["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"temperature": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_a_body_that_is_no_object_of_json_is_400(server: Server, raw: bytes) -> None:
    refused = server.ask("POST", "/v1/completions", raw, JSON)
    assert refused.status == 400
    assert refused.error["type"] == "invalid_request_error"


def test_a_body_of_another_kind_is_415(server: Server) -> None:
    raw = json.dumps(BODY).encode()
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/jsonx"}):
        assert server.ask("POST", "/v1/completions", raw, headers).status == 415
    charset = {"content-type": "application/json; charset=utf-8"}
    assert server.ask("POST", "/v1/completions", raw, charset).status == 200


def test_a_body_beyond_the_bound_is_413_by_its_length_or_by_what_comes(server: Server) -> None:
    large = b'"' + b"x" * bodies.MOST_BODY_BYTES + b'"'
    assert server.ask("POST", "/v1/completions", large, JSON).status == 413
    declared = JSON | {"content-length": str(1 << 40)}
    assert server.ask("POST", "/v1/completions", b"{}", declared).status == 413


def test_unknown_options_can_be_ignored_and_are_named(model: Path) -> None:
    with serving(lambda: small_engine(model), ignore_unknown=True) as server:
        answer = server.post("/v1/completions", BODY | {"a_b": 1, "ß\n": 2, "c": None})
        assert answer.status == 200
        assert answer.headers["x-ignored-options"] == "a_b, ??"
        plain = server.post("/v1/completions", BODY)
        assert "x-ignored-options" not in plain.headers
        assert server.post("/v1/completions", BODY | {"suffix": "x"}).status == 400


def test_a_full_queue_is_429_before_the_prompt_is_read(model: Path) -> None:
    with serving(lambda: small_engine(model), max_queued_tokens=100) as server:
        assert server.post("/v1/completions", BODY | {"prompt": [30] * 150}).status == 200
        server.service._num_queued_tokens = 90
        for prompt in ([30] * 20, "word " * 100, ["word " * 20] * 10):
            refused = server.post("/v1/completions", BODY | {"prompt": prompt})
            assert (refused.status, refused.error["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) > 0
        server.service._num_queued_tokens = 0
        for _ in range(3):  # what was answered has left the queue
            server.post("/v1/completions", BODY | {"prompt": [30] * 90})
        assert server.service._num_queued_tokens == 0


def test_a_model_without_a_chat_template_refuses_a_chat() -> None:
    with serving(lambda: Engine(EngineConfig("nestling", max_len=64))) as server:
        messages = [{"role": "user", "content": "a"}]
        body = {"model": "nestling", "messages": messages}
        refused = server.post("/v1/chat/completions", body)
        assert (refused.status, refused.error["param"]) == (400, "messages")
        assert "chat template" in refused.error["message"]
        empty = server.post("/v1/completions", BODY | {"prompt": ""})
        assert (empty.status, empty.error["param"]) == (400, "prompt")
        assert server.get("/tokenizer_info").json()["chat_template"] is None


def small_engine(model: Path) -> Engine:
    return Engine(EngineConfig(str(model), max_len=192))
