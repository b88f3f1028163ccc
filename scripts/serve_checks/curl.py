"""curl: bodies whole, chunked and after Expect, streams, connections that are used again, old HTTP."""

import json
import shutil
from pathlib import Path

from serve_checks.context import Context, run_client
from serve_checks.models import chat_model
from serve_checks.report import NotRun, Report
from serve_checks.server import Server, serving

CURL = ("curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30")
STATUS = "\n%{http_code} %{num_connects} %{http_version}\n"
JSON = ("-H", "Content-Type: application/json")
ASKED = {"model": "nestling", "prompt": "The old captain", "max_tokens": 8, "temperature": 0}
CHAT = {"model": "nestling", "messages": [{"role": "user", "content": "Name a bird."}]}
LONG_BYTES = 2 << 20  # enough for curl to ask with Expect: 100-continue


def run(context: Context, report: Report) -> None:
    """Asks in every way that curl has."""
    if shutil.which("curl") is None:
        raise NotRun("curl is not installed")
    report.versions["curl"] = run_client(["curl", "--version"], 10).stdout.split()[1]
    options = ("--max-len", "256", "--threads", "1")
    with serving(context.folder, chat_model(context.folder), *options) as server:
        _bodies(server, report, context.folder)
        _streams(server, report)
        _connections(server, report)
        _errors(server, report)
        report.claim("the server ends with exit code 0", server.stop() == 0)


def _bodies(server: Server, report: Report, folder: Path) -> None:
    url = f"{server.url}/v1/completions"
    body, status, _ = _curl(*JSON, "-d", json.dumps(ASKED), url)
    report.claim("a completion", status == 200 and bool(json.loads(body)["choices"][0]["text"]))
    again, status, _ = _curl(
        *JSON, "-H", "Transfer-Encoding: chunked", "-d", json.dumps(ASKED), url
    )
    same = status == 200 and _text(again) == _text(body)
    report.claim("the same for a chunked body", same, status)
    long = folder / "long.json"
    long.write_text(json.dumps(ASKED | {"user": "u" * LONG_BYTES}), "utf-8")
    again, status, _ = _curl(
        *JSON, "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-d", f"@{long}", url
    )
    same = status == 200 and _text(again) == _text(body)
    report.claim(f"the same after Expect: 100-continue, {LONG_BYTES:,} bytes", same, status)
    again, status, _ = _curl("--compressed", *JSON, "-d", json.dumps(ASKED), url)
    report.claim("the same with --compressed", status == 200 and _text(again) == _text(body))
    body, status, _ = _curl(
        *JSON, "-d", json.dumps(CHAT | {"max_tokens": 8}), f"{server.url}/v1/chat/completions"
    )
    role = json.loads(body)["choices"][0]["message"]["role"]
    report.claim("a chat", status == 200 and role == "assistant", status)


def _streams(server: Server, report: Report) -> None:
    url = f"{server.url}/v1/completions"
    whole, _, _ = _curl(*JSON, "-d", json.dumps(ASKED), url)
    body, status, _ = _curl("-N", *JSON, "-d", json.dumps(ASKED | {"stream": True}), url)
    *events, last = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    report.claim("a stream ends with [DONE]", status == 200 and last == "[DONE]", last[:40])
    texts = [choice["text"] for event in events for choice in json.loads(event)["choices"]]
    report.claim("its text is that of the whole answer", "".join(texts) == _text(whole))


def _connections(server: Server, report: Report) -> None:
    url = f"{server.url}/v1/models"
    _, status, (_, version) = _curl(url)
    report.claim("GET /v1/models by HTTP/1.1", status == 200 and version == "1.1", version)
    done = run_client([*CURL, "-w", STATUS, url, url, url], 40)
    counts = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("200 ")]
    report.claim("three requests share a connection", counts == ["1", "0", "0"], counts)
    _, status, _ = _curl("--http1.0", url)
    report.claim("HTTP/1.0 is answered", status == 200, status)
    _, status, _ = _curl("--http2", url)
    report.claim("an offer of HTTP/2 is answered by HTTP/1.1", status == 200, status)
    body, status, _ = _curl("--head", url)
    report.claim(
        "HEAD has a status and no body", status in (200, 405) and "data" not in body, status
    )


def _errors(server: Server, report: Report) -> None:
    url = f"{server.url}/v1/completions"
    cases = (
        ("an option that is unknown", 400, (*JSON, "-d", json.dumps(ASKED | {"temprature": 1}))),
        ("a model that is not served", 404, (*JSON, "-d", json.dumps(ASKED | {"model": "gpt"}))),
        ("curl's own content type", 415, ("-d", json.dumps(ASKED))),
        ("a body that is not JSON", 400, (*JSON, "-d", "{")),
        ("another method", 405, ("-X", "DELETE")),
        ("another Host", 403, (*JSON, "-H", "Host: example.org", "-d", json.dumps(ASKED))),
    )
    for what, wanted, words in cases:
        body, status, _ = _curl(*words, url)
        error = json.loads(body).get("error", {})
        report.claim(
            f"{what}: {wanted} with a message",
            status == wanted and bool(error.get("message")),
            f"{status} {error.get('message', '')[:80]}",
        )


def _curl(*words: str) -> tuple[str, int, tuple[str, str]]:
    """The body, the status, and how many connections were made by which version of HTTP."""
    done = run_client([*CURL, "-w", STATUS, *words], 40)
    body, _, line = done.stdout.rstrip("\n").rpartition("\n")
    if done.returncode:
        raise RuntimeError(f"wanted exit code 0 of curl, got {done.returncode}: {done.stderr}")
    status, connects, version = line.split()
    return body, int(status), (connects, version)


def _text(body: str) -> str:
    return str(json.loads(body)["choices"][0]["text"])
