"""`gyrfalcon load` as typed: what it asks, prints and writes, and what it exits with."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from stream_server import Asked, Reply, Server, serving_in_a_thread

from gyrfalcon.cli.main import main
from gyrfalcon.cli.parser import parse
from gyrfalcon.errors import UsageError

KEY = "secret-key-of-a-test"
FAST = ["--rate", "200", "--in", "10", "--out", "3"]


async def answer(server: Server, asked: Asked, reply: Reply) -> None:
    await reply.stream(asked, 0.0, 0.0)


async def refuse(server: Server, asked: Asked, reply: Reply) -> None:
    await reply.whole(429, b'{"error": {"message": "full"}}')


def bodies(server: Server) -> list[dict[str, object]]:
    """Those of the load, without the two requests before it."""
    return [asked.body for asked in server.asked[2:]]


def test_a_load_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "load.json"
    with serving_in_a_thread(answer) as server:
        words = [*FAST, "--requests", "20", "--goodput", "ttft:10000", "--json", str(file)]
        assert main(["load", server.url, *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{server.url}/v1/completions, tiny: Poisson 200/s, seed 0\n")
    for name in ("first token", "between tokens", "per token", "end to end"):
        assert re.search(rf"^{name}( +\d+\.\d\d){{5}}$", out, re.M), name
    assert "requests   20 sent, 20 finished, 0 refused, 0 failed; " in out
    assert "counted by usage" in out
    assert re.search(r"^goodput .* 20 requests, 100\.0%, within ttft 10000 ms$", out, re.M)
    assert re.search(r"^generator +\d+ µs of CPU a token", out, re.M)
    found = json.loads(file.read_text())
    assert (found["format"], found["model"], found["interrupted"]) == (
        "gyrfalcon-load",
        "tiny",
        False,
    )
    assert found["result"]["tokens"]["output"] == 60
    assert found["result"]["tokens"]["input"] == 20 * 10
    assert len(found["requests"]) == 20
    assert {row["output_len"] for row in found["requests"]} == {3}


def test_json_alone_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with serving_in_a_thread(answer) as server:
        assert main(["load", server.url, *FAST, "--requests", "2", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["finished"] == 2


def test_prompts_have_the_tokens_that_were_asked_for() -> None:
    with serving_in_a_thread(answer) as server:
        words = ["--in", "24", "--out", "5", "--requests", "3", "--rate", "100"]
        assert main(["load", server.url, *words]) == 0
    for body in bodies(server):
        assert len(str(body["prompt"]).split()) == 12  # the server makes two tokens of a word
        assert (body["model"], body["max_tokens"], body["stream"]) == ("tiny", 5, True)
        assert body["stream_options"] == {"include_usage": True}
    assert len({str(body["prompt"]) for body in bodies(server)}) == 3


def test_chat_fields_and_model_are_sent_as_typed() -> None:
    extra = '{"temperature": 0, "stream_options": null, "ignore_eos": true}'
    with serving_in_a_thread(answer) as server:
        words = ["--endpoint", "chat", "--model", "mine", "--extra-body", extra, "--requests", "1"]
        assert main(["load", f"{server.url}/v1", *FAST, *words]) == 0
    [body] = bodies(server)
    assert {asked.path for asked in server.asked} == {"/v1/chat/completions"}
    assert isinstance(body["messages"], list)
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert (body["model"], body["temperature"], body["ignore_eos"]) == ("mine", 0, True)
    assert "stream_options" not in body
    assert "prompt" not in body


def test_a_trace_is_sent_as_it_stands(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"prompt": f"text {n}", "output_len": n + 1, "arrival": n / 100} for n in range(3)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with serving_in_a_thread(answer) as server:
        assert main(["load", server.url, "--trace", str(trace)]) == 0
    asked = [(one.body["prompt"], one.body["max_tokens"]) for one in server.asked]
    assert asked == [("text 0", 1), ("text 1", 2), ("text 2", 3)]


@pytest.mark.parametrize("how", ["--api-key-env", "--api-key-file"])
def test_a_key_is_sent_and_never_shown(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, result = tmp_path / "key", tmp_path / "load.json"
    file.write_text(f"{KEY}\nanother\n")
    monkeypatch.setenv("LOAD_TEST_KEY", KEY)
    where = "LOAD_TEST_KEY" if how == "--api-key-env" else str(file)
    with serving_in_a_thread(answer) as server:
        words = [how, where, "--requests", "2", "--json", str(result)]
        assert main(["load", server.url, *FAST, *words]) == 0
    assert {one.headers["authorization"] for one in server.asked} == {f"Bearer {KEY}"}
    out, err = capsys.readouterr()
    assert KEY not in out + err + result.read_text()


def test_no_key_is_sent_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving_in_a_thread(answer) as server:
        assert main(["load", server.url, *FAST, "--requests", "1"]) == 0
    assert not any("authorization" in one.headers for one in server.asked)


def test_a_load_whose_every_request_failed_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with serving_in_a_thread(refuse) as server:
        assert main(["load", server.url, *FAST, "--requests", "5"]) == 1
    out, err = capsys.readouterr()
    assert "requests   5 sent, 0 finished, 5 refused, 0 failed; " in out
    assert "error      5 × HTTP 429: full\n" in out
    assert err.splitlines()[-1] == "gyrfalcon: every request failed"


def test_a_server_that_is_not_there_is_one_line_and_exits_with_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving_in_a_thread(answer) as server:
        pass
    assert main(["load", server.url]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        f"gyrfalcon: error: wanted the models at {server.url}/v1/models, got connect: "
    )
    assert err.endswith("; check the URL and the key, or name the model with --model\n")
    assert err.count("\n") == 1


def test_events_that_count_as_tokens_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    async def without_usage(server: Server, asked: Asked, reply: Reply) -> None:
        await reply.head()
        await reply.event({"choices": [{"text": "a", "finish_reason": "stop"}]})
        await reply.end()

    with serving_in_a_thread(without_usage) as server:
        assert main(["load", server.url, *FAST, "--requests", "2"]) == 0
    out, err = capsys.readouterr()
    assert "counted by events" in out
    assert "WARNING: the server gave no usage" in err
    assert "a word counts as one" in err


def test_a_run_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "load.SVG"

    async def some(server: Server, asked: Asked, reply: Reply) -> None:
        await (refuse if len(server.asked) % 3 == 0 else answer)(server, asked, reply)

    with serving_in_a_thread(some) as server:
        assert main(["load", server.url, *FAST, "--requests", "10", "--plot", str(file)]) == 0
    texts = " ".join(ElementTree.fromstring(file.read_bytes()).itertext())
    for words in (
        *("Time to the first token", "Latency", "Time between tokens", "Requests in flight"),
        *("Poisson 200/s", "4 errors"),
    ):
        assert words in texts


def test_a_run_without_a_finished_request_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "load.png"
    with serving_in_a_thread(refuse) as server:
        assert main(["load", server.url, *FAST, "--requests", "3", "--plot", str(file)]) == 1
    assert file.read_bytes().startswith(b"\x89PNG")


def test_plots_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gyrfalcon.cli.pictures.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"matplotlib for --plot, got none installed; .* install"):
        parse(["load", "http://a", "--plot", "a.png"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "2", "--concurrency", "3"], "--concurrency or --rate, got both"),
        (["--concurrency", "3", "--arrivals", "constant"], "--arrivals with a rate"),
        (["--trace", "f", "--in", "3"], "--trace or --in, got both"),
        (["--api-key-env", "A", "--api-key-file", "f"], "got both"),
        (
            ["--api-key-env", "sk-123"],
            "the name of a variable for --api-key-env, got something else",
        ),
        (["--plot", "a.pdf"], "ends in .png or .svg"),
        (["--rate", "0"], "a number above 0"),
        (["--in", "x"], "for --in"),
        (["--goodput", "x"], "--goodput"),
        (["--endpoint", "responses"], "--endpoint completions | chat"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["load", "http://a", *words])
    assert said in str(caught.value)
    assert "sk-123" not in str(caught.value)  # a key typed in the wrong place


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--extra-body", "{"], "JSON in --extra-body"),
        (["--extra-body", "[1]"], "a JSON object for --extra-body, got list"),
        (["--extra-body", '{"stream": false}'], "streamed answers"),
        (["--api-key-env", "NO_SUCH_KEY_HERE"], "a key in NO_SUCH_KEY_HERE, got none"),
        (["--trace", "{folder}/none.jsonl"], "No such file"),
        (
            ["--trace", "{folder}/timed.jsonl", "--rate", "2"],
            "a trace without arrivals with --rate",
        ),
        (["--api-key-file", "{folder}/bad"], "letters that a header cannot hold"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_sent_is_refused_before_the_load(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "timed.jsonl").write_text('{"prompt": "a", "arrival": 0}\n')
    (tmp_path / "bad").write_text("ключ\n")
    filled = [word.replace("{folder}", str(tmp_path)) for word in words]
    assert main(["load", "http://127.0.0.1:9", *filled]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


CODE = """
import sys
from gyrfalcon.cli.main import main
status = main(sys.argv[1:])
sys.exit(99 if "torch" in sys.modules else status)
"""


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "load", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_ctrl_c_shows_what_was_measured_and_nothing_imports_torch(tmp_path: Path) -> None:
    async def hang_at_the_fifth(server: Server, asked: Asked, reply: Reply) -> None:
        if len(server.asked) == 2 + 5:
            process.send_signal(signal.SIGINT)
            await asyncio.sleep(60)
        await reply.stream(asked, 0.0, 0.0)

    file = tmp_path / "load.json"
    with serving_in_a_thread(hang_at_the_fifth) as server:
        words = ["--concurrency", "1", "--in", "10", "--out", "3", "--json", str(file)]
        process = started(server.url, *words)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "requests   5 sent, 4 finished, 0 refused, 0 failed, 1 unfinished; " in out
    assert err == "gyrfalcon: interrupted; 5 requests had been sent\n"
    found = json.loads(file.read_text())
    assert found["interrupted"]
    assert [row["end"] is None for row in found["requests"]] == [False] * 4 + [True]


def test_ctrl_c_before_the_load_ends_it() -> None:
    async def hang(server: Server, asked: Asked, reply: Reply) -> None:
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(60)

    with serving_in_a_thread(hang) as server:
        process = started(server.url)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "gyrfalcon: interrupted\n")
