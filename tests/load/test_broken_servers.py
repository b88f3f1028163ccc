"""Servers that refuse, break off or answer something else: each becomes a counted error with its reason."""

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from stream_server import EVENT_STREAM, Asked, Reply, Script, Server, serving
from virtual_time import run_virtually

from gyrfalcon.errors import CheckFailed, UsageError
from gyrfalcon.load.api import MOST_ERROR_BYTES, Api
from gyrfalcon.load.client import Client
from gyrfalcon.load.figures import ErrorCount, Figures, figures_of
from gyrfalcon.load.lengths import Uniform
from gyrfalcon.load.plan import CONSTANT, Load, plan
from gyrfalcon.load.probe import first_model, tokens_of_text
from gyrfalcon.load.prompts import TokensOfText
from gyrfalcon.load.run import Runner
from gyrfalcon.load.target import Target, target_of

LOAD = Load(10.0, CONSTANT, None, 4, None, Uniform(8, 8), Uniform(5, 5), (), 0)
TOKEN = {"choices": [{"text": "a", "finish_reason": None}]}
JSON = "Content-Type: application/json"
Answering = Callable[[Reply], Awaitable[None]]


async def sent(target: Target, load: Load = LOAD, timeout: float = 60.0) -> Figures:
    client = Client(target, None, timeout)
    await client.look_up()
    try:
        runner = Runner(Api(client, "completions", {}), "tiny", load, lambda: None)
        return figures_of(await runner.run(plan(load, TokensOfText())), load.rate, {})
    finally:
        client.close()


def errors(script: Script, load: Load = LOAD, timeout: float = 60.0) -> Figures:
    async def main() -> Figures:
        async with serving(script) as server:
            return await sent(server.target, load, timeout)

    return run_virtually(main())


async def refuse(reply: Reply) -> None:
    await reply.whole(429, b'{"error": {"message": "the queue\\nis full"}}', JSON)


async def drain(reply: Reply) -> None:
    await reply.whole(503, b"", "Retry-After: 5")


async def html(reply: Reply) -> None:
    await reply.whole(502, b"<html><h1>Bad gateway</h1></html>", "Content-Type: text/html")


async def endless_error(reply: Reply) -> None:
    await reply.raw(b"HTTP/1.1 500 No\r\nContent-Type: text/plain\r\n\r\n")
    for _ in range(1000):
        await reply.raw(b"x" * MOST_ERROR_BYTES)


async def redirect(reply: Reply) -> None:
    await reply.whole(307, b"", "Location: https://elsewhere/v1/completions")


async def page(reply: Reply) -> None:
    await reply.head("text/html")
    await reply.chunk(b"<html>")
    await reply.end()


async def not_streamed(reply: Reply) -> None:
    await reply.whole(200, b'{"choices": [{"text": "a"}]}', JSON)


async def nothing(reply: Reply) -> None:
    await reply.whole(204, b"")


async def close_at_once(reply: Reply) -> None:
    reply.writer.close()


async def close_midway(reply: Reply) -> None:
    await reply.head()
    await reply.event(TOKEN)
    reply.writer.close()


async def reset_midway(reply: Reply) -> None:
    await reply.head()
    await reply.event(TOKEN)
    await asyncio.sleep(0.1)
    at_once = struct.pack("ii", 1, 0)
    reply.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    reply.writer.transport.abort()


async def end_early(reply: Reply) -> None:
    await reply.head()
    await reply.event(TOKEN)
    await reply.end()


async def no_http(reply: Reply) -> None:
    await reply.raw(b"220 smtp.example.org ESMTP\r\n")


async def bad_chunk(reply: Reply) -> None:
    await reply.head()
    await reply.raw(b"xyz\r\n")


async def bad_event(reply: Reply) -> None:
    await reply.head()
    await reply.event(b"{'single': 'quotes'}")


async def endless_event(reply: Reply) -> None:
    await reply.head()
    for _ in range(40):
        await reply.chunk(b"data: " + b"x" * 50_000)


async def late_failure(reply: Reply) -> None:
    await reply.head()
    await reply.event(TOKEN)
    await reply.event({"error": {"message": "request 3: NaN at position 7", "code": 500}})
    await reply.end()


async def silent(reply: Reply) -> None:
    await reply.head()
    await reply.event(TOKEN)
    await asyncio.sleep(1000)


BROKEN: list[tuple[Answering, str, int | None, str]] = [
    (refuse, "status", 429, "the queue is full"),
    (drain, "status", 503, ""),
    (html, "status", 502, "text/html"),
    (endless_error, "status", 500, "text/plain"),
    (redirect, "redirect", 307, "to https://elsewhere/v1/completions"),
    (page, "not a stream", None, "text/html"),
    (not_streamed, "not a stream", None, "application/json"),
    (nothing, "status", 204, ""),
    (close_at_once, "closed", None, "before the answer"),
    (close_midway, "closed", None, "in the middle of the answer"),
    (reset_midway, "closed", None, "Connection reset by peer"),
    (end_early, "closed", None, "the stream ended without finish_reason and [DONE]"),
    (no_http, "http", None, "no HTTP/1 answer: 220 smtp.example.org ESMTP"),
    (bad_chunk, "http", None, "chunk size xyz"),
    (bad_event, "event", None, "not JSON: {'single': 'quotes'}"),
    (endless_event, "event", None, "more than 1,048,576 bytes long"),
    (late_failure, "error event", None, "request 3: NaN at position 7"),
    (silent, "timeout", None, "no whole answer within 60 s"),
]


@pytest.mark.parametrize(
    ("answer", "kind", "status", "reason"), BROKEN, ids=[one[0].__name__ for one in BROKEN]
)
def test_a_broken_answer_is_counted_with_its_reason(
    answer: Answering, kind: str, status: int | None, reason: str
) -> None:
    async def script(server: Server, asked: Asked, reply: Reply) -> None:
        await answer(reply)

    figures = errors(script)
    assert figures.errors == (ErrorCount(kind, status, reason, 4),)
    is_refusal = status in (429, 503)
    assert (figures.refused, figures.failed) == ((4, 0) if is_refusal else (0, 4))
    assert (figures.sent, figures.finished, figures.first_token_ms) == (4, 0, None)


def test_refusals_are_timed() -> None:
    async def script(server: Server, asked: Asked, reply: Reply) -> None:
        await asyncio.sleep(0.02)
        await refuse(reply)

    spread = errors(script).refusal_ms
    assert spread is not None
    assert spread.p99 == pytest.approx(20)


def test_errors_of_one_request_leave_the_others_alone() -> None:
    async def every_other(server: Server, asked: Asked, reply: Reply) -> None:
        number = len(server.asked)
        if number % 2:
            await reply.stream(asked, 0.1, 0.01)
        else:
            await (late_failure if number % 4 else close_midway)(reply)

    figures = errors(every_other)
    assert (figures.finished, figures.failed) == (2, 2)
    assert {(one.kind, one.count) for one in figures.errors} == {("error event", 1), ("closed", 1)}
    assert figures.tokens.output == 2 * 5


def test_a_timeout_counts_from_sending_and_frees_the_connection() -> None:
    async def script(server: Server, asked: Asked, reply: Reply) -> None:
        await reply.stream(asked, 5.0 if len(server.asked) == 1 else 0.1, 0.0)

    figures = errors(script, timeout=1.0)
    assert (figures.finished, figures.failed) == (3, 1)
    assert figures.seconds == pytest.approx(1.0)


def test_a_server_that_does_not_listen_is_an_error_of_each_request() -> None:
    async def main() -> Figures:
        async with serving(lambda server, asked, reply: refuse(reply)) as server:
            target = server.target
        return await sent(target)

    assert run_virtually(main()).errors == (ErrorCount("connect", None, "Connection refused", 4),)


def test_an_unknown_host_is_refused_before_the_load() -> None:
    with pytest.raises(UsageError, match=r"a host that is known, got nowhere\.invalid"):
        asyncio.run(sent(target_of("http://nowhere.invalid")))


# ---- TLS ----


def test_tls_to_a_server_without_it_is_an_error_of_each_request() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        await Reply(writer).whole(400, b"")
        writer.close()

    async def main() -> Figures:
        listening = await asyncio.start_server(plain, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with listening:
            return await sent(target_of(f"https://127.0.0.1:{port}"))

    [error] = asyncio.run(main()).errors
    assert (error.kind, error.count) == ("tls", 4)


@dataclass(frozen=True)
class Certificate:
    """Of this machine, signed by itself."""

    file: Path
    key: Path = field(repr=False)

    @property
    def context(self) -> ssl.SSLContext:
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found.load_cert_chain(self.file, self.key)
        return found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    words = "req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=test"
    files = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-out",
        str(made.file),
        "-keyout",
        str(made.key),
    ]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    return made


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_certificate_has_to_be_trusted(
    is_trusted: bool, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))

    async def script(server: Server, asked: Asked, reply: Reply) -> None:
        await reply.stream(asked, 0.0, 0.0)

    async def main() -> Figures:
        async with serving(script, certificate.context) as server:
            return await sent(server.target)

    figures = asyncio.run(main())
    if is_trusted:
        assert (figures.finished, figures.errors) == (4, ())
    else:
        assert figures.errors == (ErrorCount("tls", None, "self-signed certificate", 4),)


# ---- before the load ----


def probed(script: Script) -> TokensOfText | None:
    async def main() -> TokensOfText | None:
        async with serving(script) as server:
            client = Client(server.target, None, 5.0)
            await client.look_up()
            try:
                return await tokens_of_text(Api(client, "completions", {}), "tiny", server.url)
            finally:
                client.close()

    return run_virtually(main())


@pytest.mark.parametrize("answer", [refuse, drain, silent])
def test_a_server_without_room_is_not_given_up(answer: Answering) -> None:
    assert probed(lambda server, asked, reply: answer(reply)) is None


@pytest.mark.parametrize("answer", [html, redirect, close_at_once, bad_event])
def test_a_server_that_cannot_answer_is_told_at_once(answer: Answering) -> None:
    with pytest.raises(CheckFailed, match="an answer to a first request at http://") as caught:
        probed(lambda server, asked, reply: answer(reply))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"data": []}', "got an empty list"),
        (b"[]", "no list of models"),
        (b"{", "no list of models"),
        (b'{"data": [5]}', "no list of models"),
        (b'{"data": null}', "no list of models"),
        (b"x" * (1 << 21), "more than 1,048,576 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_of_models_that_is_none_is_told(body: bytes, words: str) -> None:
    async def main() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await Reply(writer).whole(200, body, JSON)
            writer.close()

        listening = await asyncio.start_server(connected, "127.0.0.1", 0)
        target = target_of(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        client = Client(target, None, 5.0)
        await client.look_up()
        try:
            await first_model(Api(client, "completions", {}), target)
        finally:
            client.close()
            listening.close()

    with pytest.raises(CheckFailed, match=words) as caught:
        run_virtually(main())
    assert "\n" not in str(caught.value)
    assert EVENT_STREAM not in str(caught.value)
