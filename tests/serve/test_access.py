"""Keys, the Host header, request ids."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_client import Server, serving

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.cli.serve import _origin
from gyrfalcon.errors import UsageError
from gyrfalcon.serve.access import allowed_hosts, is_loopback
from gyrfalcon.serve.keys import keys_of_file

pytest_plugins = ["serve_fixtures"]

KEYS = ("first-key", "second-key")
BODY = {"model": "nestling", "prompt": "Once", "max_tokens": 2}
OPEN, CLOSED = ("/health", "/health/live"), ("/metrics", "/v1/models", "/openapi.json", "/nowhere")


@pytest.fixture(scope="module")
def guarded(model: Path) -> Iterator[Server]:
    with serving(
        lambda: Engine(EngineConfig(str(model), max_len=64)),
        keys=KEYS,
        hosts=allowed_hosts("127.0.0.1", ["pod.example", "rooted.example."]),
    ) as server:
        yield server


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_everything(guarded: Server, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    assert guarded.post("/v1/completions", BODY, **headers).status == 200
    assert guarded.get("/metrics", **headers).status == 200
    assert guarded.get("/metrics", authorization=f"bearer {key}").status == 200


def test_prompts_of_one_key_are_not_found_in_the_cache_with_another(guarded: Server) -> None:
    body = BODY | {"prompt": "The old captain looked at the sea and at the sky. " * 3}

    def num_cached(key: str) -> int:
        answer = guarded.post("/v1/completions", body, authorization=f"Bearer {key}")
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    first, second = KEYS
    assert num_cached(first) == 0
    assert num_cached(first) > 0
    assert num_cached(second) == 0
    assert num_cached(second) > 0


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic first-key", "first-key", "Bearer é"]
)
def test_another_key_opens_nothing_but_the_probes(guarded: Server, value: str) -> None:
    headers = {"authorization": value} if value else {}
    for path in CLOSED:
        refused = guarded.get(path, **headers)
        assert (refused.status, refused.error["type"]) == (401, "authentication_error")
        assert refused.headers["www-authenticate"] == "Bearer"
    assert guarded.post("/v1/completions", BODY, **headers).status == 401
    for path in OPEN:
        assert guarded.get(path, **headers).status == 200


def test_a_key_that_is_wrong_is_shown_nowhere(
    guarded: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    refused = guarded.get("/v1/models", authorization="Bearer mistyped-secret")
    assert b"mistyped-secret" not in refused.body
    assert "mistyped-secret" not in caplog.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("localhost.", 200),
        ("localhost.:8000", 200),
        ("[::1]:8000", 200),
        ("pod.example:80", 200),
        ("pod.example.", 200),
        ("rooted.example", 200),
        ("evil.example", 403),
        ("evil.example.", 403),
        ("localhost..", 403),
        (".", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_host_that_is_not_ours_is_refused(guarded: Server, host: str, status: int) -> None:
    answer = guarded.get("/health", host=host)
    assert answer.status == status
    assert status == 200 or answer.error["type"] == "permission_error"


def test_elsewhere_than_on_loopback_any_host_is_served_unless_some_are_named() -> None:
    assert allowed_hosts("0.0.0.0", []) is None
    assert allowed_hosts("0.0.0.0", ["a.example"]) == ("a.example",)
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "[::1]", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "a")] == [False] * 4


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-lang",
}


def test_pages_of_other_origins_may_not_ask_unless_theirs_is_allowed(
    guarded: Server, model: Path
) -> None:
    asked = {"origin": "https://chat.example"} | PREFLIGHT
    assert guarded.ask("OPTIONS", "/v1/completions", b"", asked).status == 401
    key = {"authorization": f"Bearer {KEYS[0]}"}
    answer = guarded.post("/v1/completions", BODY, origin="https://chat.example", **key)
    assert not any(name.startswith("access-control") for name in answer.headers)
    with serving(
        lambda: Engine(EngineConfig(str(model), max_len=64)),
        keys=KEYS,
        origins=["https://chat.example"],
    ) as server:
        preflight = server.ask("OPTIONS", "/v1/completions", b"", asked)
        assert preflight.status == 200
        answer = server.post("/v1/completions", BODY, origin="https://chat.example", **key)
        for one in (preflight, answer):
            assert one.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        other = {"origin": "https://evil.example"}
        assert server.ask("OPTIONS", "/v1/completions", b"", asked | other).status == 400
        answer = server.post("/v1/completions", BODY, **other, **key)
        assert "access-control-allow-origin" not in answer.headers
        assert server.post("/v1/completions", BODY, **other).status == 401


@pytest.mark.parametrize("text", ["chat.example", "https://chat.example/", "https://", ""])
def test_an_origin_that_no_browser_sends_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="without a path"):
        _origin(text)
    assert _origin("https://Chat.example:8443") == "https://chat.example:8443"


def test_metrics_can_be_public(model: Path) -> None:
    with serving(
        lambda: Engine(EngineConfig(str(model), max_len=64)), keys=KEYS, public_metrics=True
    ) as server:
        assert server.get("/metrics").status == 200
        assert server.get("/v1/models").status == 401


def test_an_answer_has_its_request_s_number_and_the_log_no_prompt(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    headers = {"x-request-id": "trace-1.a"}
    assert server.post("/v1/completions", BODY, **headers).headers["x-request-id"] == "trace-1.a"
    assert "trace-1.a POST /v1/completions 200" in caplog.text
    assert "Once" not in caplog.text
    for wrong in ("a b", "x" * 65, ""):
        given = server.post("/v1/completions", BODY, **{"x-request-id": wrong})
        assert given.headers["x-request-id"] not in (wrong, "")


def test_a_file_has_a_key_a_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# key of team A\n first \n\n# of team B\nsecond\n")
    assert keys_of_file(str(file)) == ["first", "second"]


@pytest.mark.parametrize("content", ["", "# nothing but a comment\n", "two words\n"])
def test_a_file_without_keys_or_with_a_sentence_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UsageError, match="write one a line"):
        keys_of_file(str(file))


def test_an_allowed_host_may_be_given_with_its_port(model: Path) -> None:
    hosts = allowed_hosts("0.0.0.0", ["a.example:8443"])
    with serving(lambda: Engine(EngineConfig(str(model), max_len=64)), hosts=hosts) as server:
        assert server.get("/health", host="a.example:8443").status == 200
        assert server.get("/health", host="b.example:8443").status == 403
