"""vllm-router in front of two servers: answers and streams come through, both servers get requests, and
when one has ended the other answers.
"""

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

from serve_checks.asking import HOST, Reply, ask, post, stream
from serve_checks.clients.asked import MESSAGES, NUM_TOKENS, PROMPT
from serve_checks.context import Context
from serve_checks.environment import Environment, clean_environ, environment
from serve_checks.models import chat_model
from serve_checks.report import Report
from serve_checks.server import Server, serving, wait_until
from serve_checks.truth import OPTIONS, greedy

START_SECONDS, NUM_REQUESTS = 60.0, 20
BODY = {"model": "nestling", "max_tokens": NUM_TOKENS, "temperature": 0}


def run(context: Context, report: Report) -> None:
    """Asks through the router, then ends one server."""
    client = environment("router", context.environments)
    report.versions |= client.versions
    model = chat_model(context.folder)
    completion, answer = greedy(model)
    with (
        serving(context.folder, model, *OPTIONS) as one,
        serving(context.folder, model, *OPTIONS) as other,
        _routing(client, context, one, other) as port,
    ):
        reply = asyncio.run(post(port, "/v1/chat/completions", BODY | {"messages": MESSAGES}))
        same = reply.status == 200 and _content(reply) == answer.text
        report.claim("a chat comes through", same, f"{reply.status} {reply.body[:200]!r}")
        streamed = asyncio.run(stream(port, "/v1/completions", BODY | {"prompt": PROMPT}))
        same = streamed.text == completion.text and streamed.is_whole
        report.claim("a stream comes through", same, streamed.finish_reason)
        texts = asyncio.run(_many(port))
        report.claim(
            f"{NUM_REQUESTS} at once are answered", set(texts) == {completion.text}, len(texts)
        )
        _claim_shared(report, one, other)
        wrong = asyncio.run(post(port, "/v1/completions", BODY | {"prompt": PROMPT, "n": 0}))
        report.claim("an error keeps its status", wrong.status == 400, wrong.status)
        one.stop()
        texts = asyncio.run(_many(port))
        right = texts.count(completion.text)
        report.claim("when one has ended, the other answers", right == len(texts), right)


def _content(reply: Reply) -> str:
    return str(reply.json()["choices"][0]["message"]["content"])


async def _many(port: int) -> list[str]:
    replies = await asyncio.gather(
        *(post(port, "/v1/completions", BODY | {"prompt": PROMPT}) for _ in range(NUM_REQUESTS))
    )
    return [
        one.json()["choices"][0]["text"] if one.status == 200 else str(one.status)
        for one in replies
    ]


def _claim_shared(report: Report, one: Server, other: Server) -> None:
    counts = [int(server.metrics()["vllm:generation_tokens_total"]) for server in (one, other)]
    report.claim("both servers got requests", min(counts) > 0, counts)


@contextmanager
def _routing(client: Environment, context: Context, *servers: Server) -> Iterator[int]:
    """The port of a router in front of servers."""
    port, log = _free_port(), context.folder / "router.log"
    command = [client.command("vllm-router"), "--host", HOST, "--port", str(port)]
    command += ["--policy", "round_robin", "--prometheus-port", str(_free_port())]
    command += ["--worker-urls", *(server.url for server in servers)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=clean_environ(), stdout=output, stderr=output)
    try:
        if not wait_until(lambda: process.poll() is not None or _is_ready(port), START_SECONDS):
            raise RuntimeError(f"wanted a router that is ready, got {log.read_text()[-1000:]}")
        if process.poll() is not None:
            raise RuntimeError(f"wanted a router that runs, got {log.read_text()[-1000:]}")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(port: int) -> bool:
    try:
        return asyncio.run(ask(port, "GET", "/v1/models")).status == 200
    except OSError:
        return False


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
