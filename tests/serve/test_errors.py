"""Every error is in OpenAI's envelope, with the status that clients know."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_client import Server, engine_of, serving, wait_for
from serve_fixtures import make_model

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.errors import CheckpointError, NotFinite, NoTokenAllowed, RankDied
from gyrfalcon.request import Delta, FinishReason
from gyrfalcon.serve import bodies
from gyrfalcon.serve.answers import failed
from gyrfalcon.serve.errors import as_api_error, without_folder
from gyrfalcon.text.tokenizer import Tokenizer

pytest_plugins = ["serve_fixtures"]

BODY = {"model": "nestling", "prompt": "Once", "max_tokens": 2}
CHAT: dict[str, object] = {
    "model": "nestling",
    "messages": [{"role": "user", "content": "a"}],
}
JSON = {"content-type": "application/json"}


def containers(inner: "st.SearchStrategy[object]") -> "st.SearchStrategy[object]":
    return st.lists(inner, max_size=4) | st.dictionaries(
        st.text('k"\\[', max_size=3), inner, max_size=4
    )


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


def test_an_answer_that_may_become_too_large_is_refused_before_it_begins(server: Server) -> None:
    scored = {"prompt": [30] * 100, "prompt_logprobs": 20, "n": 128}
    chat = {"messages": [{"role": "user", "content": "a"}], "n": 128, "ignore_eos": True}
    chat |= {"logprobs": True, "top_logprobs": 20}
    for path, options in (
        ("/v1/completions", BODY | scored),
        ("/v1/completions", BODY | scored | {"stream": True}),
        ("/v1/chat/completions", {"model": "nestling"} | chat),
    ):
        refused = server.post(path, options)
        assert (refused.status, refused.error["code"]) == (400, "answer_too_large")
        assert "262,144" in refused.error["message"]
    assert server.post("/v1/completions", BODY | scored | {"n": 2}).status == 200


def test_parameters_are_checked_once_for_all_prompts_of_a_request(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, check = [], SamplingParams._check_items

    def counted(params: SamplingParams) -> None:
        checked.append(params)
        check(params)

    monkeypatch.setattr(SamplingParams, "_check_items", counted)
    body = BODY | {"prompt": [[30]] * 64, "logit_bias": {str(i): 1 for i in range(1024)}}
    assert server.post("/v1/completions", body).status == 200
    assert len(checked) < 8


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


@pytest.mark.parametrize(
    ("item", "number", "named"),
    [
        (b"[]", 1_000_000, "20,000 lists and objects, got 1,000,002"),
        (b'""', 1_000_000, "100,000 strings, got 1,000,001"),
        (b"7", 4_000_000, "500,000 items, got 3,999,999"),
    ],
)
def test_a_body_of_a_million_values_is_400_and_is_not_parsed(
    server: Server, monkeypatch: pytest.MonkeyPatch, item: bytes, number: int, named: str
) -> None:
    monkeypatch.setattr(bodies, "json", None)
    raw = b'{"prompt": [' + b",".join([item] * number) + b"]}"
    refused = server.ask("POST", "/v1/completions", raw, JSON)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert named in refused.error["message"]


def test_brackets_and_commas_within_a_text_are_no_values(server: Server) -> None:
    body = BODY | {"user": '[{,"\\' * 200_000}
    assert server.post("/v1/completions", body).status == 200


@settings(max_examples=100, derandomize=True, database=None, deadline=None)
@given(st.recursive(st.text(st.sampled_from('a"\\[{,é\n'), max_size=6), containers, max_leaves=20))
def test_values_are_counted_as_json_reads_them(value: object) -> None:
    for raw in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert bodies.num_values(raw.encode()) == counted(value)


def counted(value: object) -> tuple[int, int, int]:
    """Strings, lists and objects, and commas."""
    if isinstance(value, str):
        return 1, 0, 0
    assert isinstance(value, dict | list)
    inner = [*value, *(value.values() if isinstance(value, dict) else ())]
    strings, containers, commas = map(sum, zip((0, 0, 0), *map(counted, inner), strict=True))
    return strings, containers + 1, commas + max(0, len(value) - 1)


def test_a_body_of_another_kind_is_415(server: Server) -> None:
    raw = json.dumps(BODY).encode()
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/jsonx"}):
        assert server.ask("POST", "/v1/completions", raw, headers).status == 415
    charset = {"content-type": "application/json; charset=utf-8"}
    assert server.ask("POST", "/v1/completions", raw, charset).status == 200


def test_a_body_that_is_compressed_is_415(server: Server) -> None:
    raw = json.dumps(BODY).encode()
    answer = server.ask("POST", "/v1/completions", raw, JSON | {"content-encoding": "gzip"})
    assert answer.status == 415
    assert "'gzip'" in answer.error["message"]
    as_it_is = JSON | {"content-encoding": "Identity"}
    assert server.ask("POST", "/v1/completions", raw, as_it_is).status == 200


def test_a_body_beyond_the_bound_is_413_by_its_length_or_by_what_comes(server: Server) -> None:
    large = b'"' + b"x" * bodies.MOST_BODY_BYTES + b'"'
    assert server.ask("POST", "/v1/completions", large, JSON).status == 413
    declared = JSON | {"content-length": str(1 << 40)}
    assert server.ask("POST", "/v1/completions", b"{}", declared).status == 413


def test_long_bodies_of_many_clients_are_bounded_together(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MOST_BODIES_BYTES", 300_000)
    body = json.dumps(BODY | {"user": "x" * 140_000}).encode()
    half = [server.uploading("/v1/completions", body[:120_000]) for _ in range(2)]
    wait_for(lambda: server.service.bodies._num_bytes == 240_000)
    refused = server.ask("POST", "/v1/completions", body, JSON)
    assert (refused.status, refused.error["code"]) == (503, "busy")
    assert int(refused.headers["retry-after"]) > 0
    assert server.post("/v1/completions", BODY).status == 200  # a short one has room
    for pending in half:
        pending.leave()
        assert pending.answer().status == 400
    assert server.ask("POST", "/v1/completions", body, JSON).status == 200
    assert server.service.bodies._num_bytes == 0


def test_unknown_options_can_be_ignored_and_are_named(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(lambda: small_engine(model), ignore_unknown=True) as server:
        answer = server.post("/v1/completions", BODY | {"a_b": 1, "ß\n": 2, "c": None})
        assert answer.status == 200
        assert answer.headers["x-ignored-options"] == "a_b, ??"
        assert "/v1/completions ignored options: a_b, ??" in caplog.text
        plain = server.post("/v1/completions", BODY)
        assert "x-ignored-options" not in plain.headers
        assert server.post("/v1/completions", BODY | {"suffix": "x"}).status == 400


def test_a_full_queue_is_429_before_the_prompt_is_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda: small_engine(model), max_queued_tokens=100) as server:
        assert server.post("/v1/completions", BODY | {"prompt": [30] * 150}).status == 200
        others = server.service.queue.enter(1, 90)
        monkeypatch.setattr(Tokenizer, "encode", None)
        for body in ({"prompt": [30] * 20}, {"prompt": "word " * 300}, {"prompt": [30], "n": 11}):
            refuses(server, BODY | body)
        others.add(0, 10)
        refuses(server, BODY | {"prompt": [30]})
        refuses(server, CHAT)
        others.leave()
        monkeypatch.undo()
        for _ in range(3):  # what was answered has left the queue
            server.post("/v1/completions", BODY | {"prompt": [30] * 90})
            server.post("/v1/completions", BODY | {"prompt": [30] * 200})
        assert server.service.queue.num_tokens == server.service.queue.num_requests == 0


def test_a_queue_of_many_requests_is_429_before_the_body_is_read(model: Path) -> None:
    with serving(lambda: small_engine(model), max_queued_requests=4) as server:
        assert server.post("/v1/completions", BODY | {"n": 6}).status == 200
        others = server.service.queue.enter(3, 3)
        refuses(server, BODY | {"n": 2})
        assert server.post("/v1/completions", BODY).status == 200
        others.add(1, 1)
        refused = server.uploading("/v1/completions", b"").answer()
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        others.leave()
        assert server.service.queue.num_requests == 0


def refuses(server: Server, body: dict[str, object]) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    refused = server.post(path, body)
    assert (refused.status, refused.error["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0


def test_a_sample_leaves_the_queue_with_its_own_first_token(model: Path) -> None:
    with serving(lambda: engine_of(model, max_sequences=2)) as server:
        body = BODY | {"n": 5, "ignore_eos": True, "max_tokens": 150}
        pending = server.later("/v1/completions", body)
        wait_for(lambda: server.service.queue.num_requests == 3)
        pending.leave()
        wait_for(lambda: server.service.queue.num_requests == 0)
        assert server.service.queue.num_tokens == 0


def test_a_model_without_a_chat_template_refuses_a_chat() -> None:
    with serving(lambda: Engine(EngineConfig("nestling", max_len=64))) as server:
        messages = [{"role": "user", "content": "a"}]
        body = {"model": "nestling", "messages": messages}
        refused = server.post("/v1/chat/completions", body)
        assert (refused.status, refused.error["param"]) == (400, "messages")
        assert "a chat template in the model's folder" in refused.error["message"]
        empty = server.post("/v1/completions", BODY | {"prompt": ""})
        assert (empty.status, empty.error["param"]) == (400, "prompt")
        assert server.get("/tokenizer_info").json()["chat_template"] is None


TEMPLATES = {
    "broken": "{% for %}",
    "raises": "{{ raise_exception('no') }}",
    "fails": "{{ messages[7].role }}",
    "endless": "{% for i in range(100000000) %}{{ i }}{% endfor %}",
    "drops": "{% for message in messages %}a{% endfor %}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_client_is_told_no_path_of_the_server(kind: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "nestling", TEMPLATES[kind])
    with serving(lambda: small_engine(model)) as server:
        messages = [{"role": "assistant" if kind == "drops" else "user", "content": "a"}]
        refused = server.post("/v1/chat/completions", CHAT | {"messages": messages})
        assert (refused.status, refused.error["param"]) == (400, "messages")
        assert "tokenizer_config.json" in refused.error["message"]
        assert str(tmp_path) not in refused.error["message"]


def test_a_model_s_folder_is_hidden_and_other_texts_stay() -> None:
    folder = Path("/srv/models/falcon")
    assert without_folder("in /srv/models/falcon/a.json, got", folder) == "in a.json, got"
    assert without_folder("in /srv/models/falcon, got", folder) == "in the model's folder, got"
    for text in ("in /srv/models/falcon-2/a, got", "in /x/srv/models/falcon/a"):
        assert without_folder(text, folder) == text


def test_a_sample_that_may_have_no_token_is_its_caller_s_mistake_and_nan_the_server_s() -> None:
    for failure, status in (
        (NoTokenAllowed("a token that may follow", "none", "relax it"), 400),
        (NotFinite("finite logits", "NaN", "try another dtype"), 500),
    ):
        delta = Delta(0, 0, "", None, FinishReason.ERROR, str(failure), failure=failure)
        assert (failed(delta).status, failed(delta).message) == (status, str(failure))


def test_a_failure_of_the_engine_is_told_by_its_kind_alone() -> None:
    error = RankDied("rank 1 to go on", "FileNotFoundError: /secret", "start again")
    for one, status in ((error, 503), (CheckpointError("a", "/secret", "b"), 500)):
        assert as_api_error(one).status == status
        assert "secret" not in as_api_error(one).message


def small_engine(model: Path) -> Engine:
    return Engine(EngineConfig(str(model), max_len=192))
