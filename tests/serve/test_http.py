"""`gyrfalcon serve` as a process: OpenAI's own client, raw sockets, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import openai
import psutil
import pytest

MODEL = "nestling"
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LONG = b'{"model": "nestling", "prompt": "Once", "max_tokens": 4000, "stream": true, "ignore_eos": true}'


@dataclass
class Process:
    """A server that listens."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def exchange(self, raw: bytes) -> bytes:
        """What is answered to some bytes until the server closes the connection or says nothing more."""
        with closing(self.connect()) as connection:
            connection.sendall(raw)
            return read_answer(connection)


def read_answer(connection: socket.socket) -> bytes:
    """One answer whose length its head states."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(65536)
        if not part:
            return answer
        answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def start(
    *options: str, program: tuple[str, ...] = ("-m", "gyrfalcon"), **environment: str
) -> Process:
    """Starts one on a free port and waits until it serves."""
    words = [sys.executable, *program, "serve", MODEL, "--port", "0", *options]
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.fullmatch(r"serving \S+ at http://\S+:(\d+)/v1\n", line):
            return Process(process, int(found[1]))
    raise AssertionError("".join(said))


@pytest.fixture(scope="module")
def running() -> Iterator[Process]:
    server = start("--max-len", "4096")
    yield server
    server.process.terminate()
    assert server.process.wait(30) == 0
    assert server.process.stderr is not None
    server.process.stderr.close()


@pytest.fixture
def client(running: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url, api_key="none", max_retries=0)


def test_openai_s_client_completes_and_streams(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model=MODEL, prompt="The old captain", max_tokens=8, temperature=0, logprobs=2
    )
    [choice] = whole.choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    events = client.completions.create(
        model=MODEL,
        prompt="The old captain",
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"top_k": 5, "return_token_ids": True},
    )
    *parts, last = list(events)
    assert "".join(part.choices[0].text for part in parts) == choice.text
    assert last.usage == whole.usage
    assert [model.id for model in client.models.list()] == [MODEL]


def test_openai_s_client_gets_errors_of_the_right_kind(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nestling"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="a", suffix="b")
    assert caught.value.param == "suffix"
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nno colon\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"413"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_hostile_bytes_are_refused_and_the_server_lives(
    running: Process, raw: bytes, status: bytes
) -> None:
    head, _, body = running.exchange(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert set(json.loads(body)) == {"error"}
    assert running.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )


def test_a_body_with_two_ends_is_refused_and_ends_the_connection(running: Process) -> None:
    """A proxy that goes by the other one would take what follows for another client's request."""
    raw = HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 7\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    with closing(running.connect()) as connection:
        connection.sendall(raw + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, body = read_answer(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"got both" in body
        assert connection.recv(1) == b""


def test_a_body_of_64_megabytes_is_refused_without_being_kept(running: Process) -> None:
    before = memory_bytes(running)
    with closing(running.connect()) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        part = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        for _ in range(64):
            connection.sendall(part)
        connection.sendall(b"0\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 413")
    assert memory_bytes(running) - before < 48 << 20


def test_connections_that_say_nothing_are_many_and_harmless(running: Process) -> None:
    idle = [running.connect() for _ in range(200)]
    slow = running.connect()
    slow.sendall(HEAD)
    assert running.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )
    for connection in (*idle, slow):
        connection.close()


def test_a_client_that_hangs_up_is_computed_for_no_longer(running: Process) -> None:
    connection = running.connect()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(LONG) + LONG)
    assert b"text" in connection.recv(1000) + connection.recv(1000)
    assert gauge(running, "vllm:num_requests_running") == 1
    connection.close()
    wait_until_idle(running)


def test_bytes_after_a_request_hide_no_hang_up(running: Process) -> None:
    body = LONG.replace(b'"stream": true', b'"stream": false')
    before = gauge(running, "vllm:generation_tokens_total")
    connection = running.connect()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wait_until(lambda: gauge(running, "vllm:num_requests_running") == 1)
    connection.sendall(b"P")
    wait_until(lambda: gauge(running, "vllm:generation_tokens_total") > before + 50)
    connection.close()
    wait_until_idle(running)
    assert gauge(running, "vllm:generation_tokens_total") - before < 4000


def test_further_requests_without_end_end_the_connection(running: Process) -> None:
    with closing(running.connect()) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(LONG) + LONG)
        endless = b"GET / HTTP/1.1\r\nx: " + b"y" * 10_000_000
        with pytest.raises(OSError, match=r"reset|Broken"):
            connection.sendall(endless)
    wait_until_idle(running)


def test_a_reader_of_the_log_that_reads_nothing_stops_nobody() -> None:
    server = start("--max-len", "64")  # nobody reads its standard error from here on
    one = b"GET /%s HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: %s\r\n\r\n"
    with closing(server.connect()) as connection:
        for _ in range(800):  # 150 KB of log: more than a pipe holds
            connection.sendall(one % (b"x" * 79, b"i" * 64))
            assert read_answer(connection).startswith(b"HTTP/1.1 404")
    server.process.terminate()
    assert server.process.wait(30) == 0
    assert server.process.stderr is not None
    server.process.stderr.close()


def wait_until_idle(running: Process) -> None:
    wait_until(lambda: gauge(running, "vllm:num_requests_running") == 0)


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]  # a function without arguments
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gauge(running: Process, name: str) -> float:
    answer = running.exchange(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").decode()
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", answer, re.M)
    assert found is not None
    return float(found[1])


def memory_bytes(running: Process) -> int:
    with open(f"/proc/{running.process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_a_signal_lets_a_stream_finish_and_takes_nothing_new() -> None:
    server = start("--max-len", "2048", "--api-key", "k")
    connection, other = server.connect(), server.connect()
    key = HEAD + b"Authorization: Bearer k\r\n"
    body = LONG.replace(b"4000", b"200")
    connection.sendall(key + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    answer = connection.recv(100)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    other.sendall(key + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert read_answer(other).startswith(b"HTTP/1.1 503")
    while part := connection.recv(65536):
        answer += part
    assert b"data: [DONE]" in answer
    assert server.process.wait(30) == 0
    for one in (connection, other, server.process.stderr):
        assert one is not None
        one.close()


def test_a_rank_that_dies_under_load_ends_everything_soon() -> None:
    server = start("-w", "2", "--max-len", "2048", "--threads", "1")
    [rank] = [
        one
        for one in psutil.Process(server.process.pid).children()
        if "spawn_main" in str(one.cmdline())
    ]
    whole = LONG.replace(b"true, ", b"false, ", 1)
    connections = [server.connect() for _ in range(8)]
    for place, connection in enumerate(connections):
        body = (whole if place % 2 else LONG).replace(b"4000", b"2000")
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wait_until(lambda: gauge(server, "vllm:num_requests_running") == 8)
    rank.kill()
    answers = [read_all(connection) for connection in connections]
    assert server.process.wait(30) == 1
    for place, answer in enumerate(answers):
        assert answer.startswith(b"HTTP/1.1 503" if place % 2 else b"HTTP/1.1 200")
        assert b'"error":' in answer
    assert server.process.stderr is not None
    server.process.stderr.close()


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes the connection."""
    parts = []
    with closing(connection):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


HANGING = """
import sys, threading
from gyrfalcon.cli.main import main
from gyrfalcon.engine.core import EngineCore
from gyrfalcon.serve import engine_thread
engine_thread.CLOSE_SECONDS = 1.0
if sys.argv[1] == "card":
    engine_thread.EngineThread.computes_here = False
del sys.argv[1]
EngineCore.step = lambda core, *budget: core.scheduler.next_chunks(1) and threading.Event().wait()
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [("card", 1, "the engine's last step to end, got one that goes on"), ("host", 0, "")],
)
def test_a_step_that_does_not_end_does_not_keep_a_server_from_its_end(
    where: str, code: int, said: str
) -> None:
    """One that waits for a card, for ever; and a long one of a processor, which nobody waits for."""
    program = ("-c", HANGING, where)
    server = start("--max-len", "64", "--shutdown-timeout", "0.1", program=program)
    body = LONG.replace(b"4000", b"9")
    connection = server.connect()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wait_until(lambda: gauge(server, "vllm:num_requests_running") == 1)
    begin = time.monotonic()
    server.process.terminate()
    assert server.process.wait(60) == code
    assert time.monotonic() - begin < 15
    assert b"shut down" in read_all(connection)
    assert server.process.stderr is not None
    printed = server.process.stderr.read()
    assert said in printed
    assert ("error:" in printed) is bool(code)
    server.process.stderr.close()
