"""vllm-router in front of two servers: answers and streams come through, both servers get requests, when one
has ended the other answers, and of one that is killed under load only its own streams break.
"""

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from serve_checks.asking import HOST, Reply, Streamed, ask, post, stream
from serve_checks.clients.asked import MESSAGES, NUM_TOKENS, PROMPT
from serve_checks.context import Context
from serve_checks.environment import Environment, clean_environ, environment
from serve_checks.models import chat_model
from serve_checks.report import Report
from serve_checks.server import Server, serving, wait_until
from serve_checks.truth import OPTIONS, greedy

START_SECONDS, NUM_REQUESTS = 60.0, 20
NUM_STREAMS, NUM_STREAM_TOKENS = 16, 800
BODY = {"model": "nestling", "max_tokens": NUM_TOKENS, "temperature": 0}


def run(context: Context, report: Report) -> None:
    """Asks through the router and ends one server; then kills one of two others under load."""
    client = environment("router", context.environments)
    report.versions |= client.versions
    _check_answers(client, context, report)
    with (
        serving(context.folder, "nestling", "--threads", "1") as one,
        serving(context.folder, "nestling", "--threads", "1") as other,
        _routing(client, context, one, other) as port,
    ):
        _check_kill(port, one, report)


def _check_answers(client: Environment, context: Context, report: Report) -> None:
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


def _check_kill(port: int, victim: Server, report: Report) -> None:
    """Kills a server while it streams."""
    ends, num_running, seconds = asyncio.run(_load(port, victim))
    num_broken = len(ends) - ends.count("whole")
    report.figure("streams", len(ends))
    report.figure("streams_on_the_killed_server", num_running)
    report.figure("streams_broken", num_broken)
    report.figure("seconds_to_next_answer", round(seconds, 3))
    claim = "a killed server breaks its own streams alone"
    report.claim(claim, 0 < num_broken <= num_running < len(ends), ends)
    report.claim("each of them with an error", "cut off in silence" not in ends, ends)
    report.claim("the other server answers the next request", seconds < START_SECONDS, seconds)


async def _load(port: int, victim: Server) -> tuple[list[str], int, float]:
    """How each stream ended, how many ran on the victim, and after how many seconds the next request was
    answered.
    """
    body = BODY | {"max_tokens": NUM_STREAM_TOKENS, "ignore_eos": True}
    streams = [Streamed() for _ in range(NUM_STREAMS)]
    asked = [
        stream(port, "/v1/completions", body | {"prompt": f"Ship {number}"}, into)
        for number, into in enumerate(streams)
    ]
    waiting = asyncio.gather(*asked, return_exceptions=True)
    while not all(one.times for one in streams) and not waiting.done():
        await asyncio.sleep(0.01)
    metrics = await asyncio.to_thread(victim.metrics)
    victim.process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    while (await post(port, "/v1/completions", BODY | {"prompt": PROMPT})).status != 200:
        if time.monotonic() > killed + START_SECONDS:
            break
        await asyncio.sleep(0.02)
    seconds = time.monotonic() - killed
    ends = [_end(one) for one in await waiting]
    return ends, int(metrics["vllm:num_requests_running"]), seconds


def _end(found: Streamed | BaseException) -> str:
    if isinstance(found, BaseException):
        return f"error: {type(found).__name__}"
    if found.is_whole:
        return "whole"
    return "error event" if found.error else "cut off in silence"


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
    port, log = free_port(), context.folder / "router.log"
    command = [client.command("vllm-router"), "--host", HOST, "--port", str(port)]
    command += ["--policy", "round_robin", "--prometheus-port", str(free_port())]
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


def free_port() -> int:
    """A port that nobody listens at now."""
    with closing(socket.socket()) as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
