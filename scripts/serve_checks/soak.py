"""Half an hour of users who finish, leave or send garbage: every answer is right, nothing is lost."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.request import RequestOutput
from serve_checks.asking import ask, leave, post, send_raw, stream
from serve_checks.context import Context
from serve_checks.memory import claim_steady, sampled
from serve_checks.report import Report
from serve_checks.server import Server, serving, wait_until

MINUTES, NUM_USERS, NUM_PROMPTS, NUM_TOKENS = 30.0, 12, 32, 32
ANSWER_SECONDS = 60.0
PATH = "/v1/completions"
OPTIONS = ("--dtype", "fp32", "--max-len", "256", "--threads", "1", "--cache-memory", "32MB")
# Nats between the two most likely tokens, where rounding cannot change the greedy one.
LEAST_MARGIN = 0.01
GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: nine\r\n\r\n",
    b"\x00" * 300 + b"\r\n\r\n",
)
WRONG = (
    b"{",
    b"[1, 2]",
    b"\xff\xfe",
    b'{"model": "nestling"}',
    b'{"model": "nestling", "prompt": "a", "max_tokens": -1}',
    b'{"model": "nestling", "prompt": "a", "temprature": 1}',
)


@dataclass(slots=True)
class Tally:
    """What users did, and what went wrong."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def run(context: Context, report: Report) -> None:
    """Runs the users for the whole time."""
    seconds = 60 * (context.minutes or MINUTES)
    report.figure("soak_seconds", seconds)
    texts = _texts()
    report.figure("prompts", len(texts))
    with serving(context.folder, "nestling", *OPTIONS) as server:
        tally = Tally()
        with sampled(server) as samples:
            asyncio.run(_users(server, texts, seconds, context.seed, tally))
        report.figure("requests", dict(tally.done))
        wrong = f"{len(tally.wrong)}, such as {tally.wrong[:3]}" if tally.wrong else ""
        report.claim("every answer is whole and right", not tally.wrong, wrong)
        claim_steady(report, samples)
        report.claim("no cache block is lost", wait_until(server.is_idle, 10))
        report.claim("the server ends with exit code 0", server.stop() == 0)


def _texts() -> dict[str, str]:
    """Prompts and how the engine continues them: those whose greedy tokens are clear all the way."""
    with Engine("nestling", dtype="fp32", threads=1) as engine:
        prompts = [f"Chapter {number}. The captain" for number in range(NUM_PROMPTS)]
        params = SamplingParams(max_new_tokens=NUM_TOKENS, logprobs=2)
        outputs = engine.generate(prompts, params)
    return {
        prompt: output.text
        for prompt, output in zip(prompts, outputs, strict=True)
        if _least_margin(output) >= LEAST_MARGIN
    }


def _least_margin(output: RequestOutput) -> float:
    tokens = output.completions[0].logprobs or ()
    return min(token.top[0][1] - token.top[1][1] for token in tokens)


async def _users(
    server: Server, texts: dict[str, str], seconds: float, seed: int, tally: Tally
) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    users = (
        _user(server, texts, deadline, Random(f"{seed} {number}"), tally)
        for number in range(NUM_USERS)
    )
    await asyncio.gather(*users)


async def _user(
    server: Server, texts: dict[str, str], deadline: float, random: Random, tally: Tally
) -> None:
    """Does one thing after the other; a failure is noted, and the user goes on."""
    acts: Sequence[tuple[int, str, Callable[[int, str, str, Random], Awaitable[str]]]] = (
        (40, "whole", _whole),
        (20, "streamed", _streamed),
        (20, "left", _left),
        (10, "wrong", _wrong),
        (10, "garbage", _garbage),
    )
    while asyncio.get_running_loop().time() < deadline:
        [(_, name, act)] = random.choices(acts, [weight for weight, _, _ in acts])
        prompt = random.choice(list(texts))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                fault = await act(server.port, prompt, texts[prompt], random)
        except Exception as error:  # no answer at all
            fault = f"{type(error).__name__} {error}"
        tally.done[name] += 1
        if fault:
            tally.wrong.append(f"{name}: {fault}"[:200])


async def _whole(port: int, prompt: str, wanted: str, random: Random) -> str:
    reply = await post(port, PATH, _body(prompt))
    if reply.status != 200:
        return f"{reply.status} {reply.body[:80]!r}"
    text = json.loads(reply.body)["choices"][0]["text"]
    return "" if text == wanted else f"{text!r} for {wanted!r}"


async def _streamed(port: int, prompt: str, wanted: str, random: Random) -> str:
    answer = await stream(port, PATH, _body(prompt))
    if not answer.is_whole:
        return f"{answer.status}, cut off: {answer.error}"
    return "" if answer.text == wanted else f"{answer.text!r} for {wanted!r}"


async def _left(port: int, prompt: str, wanted: str, random: Random) -> str:
    await leave(port, PATH, _body(prompt) | {"n": random.randint(1, 4)}, random.randint(0, 20))
    return ""


async def _wrong(port: int, prompt: str, wanted: str, random: Random) -> str:
    reply = await ask(port, "POST", PATH, random.choice(WRONG))
    return "" if reply.status == 400 else f"{reply.status} for what is wrong"


async def _garbage(port: int, prompt: str, wanted: str, random: Random) -> str:
    found = await send_raw(port, random.choice(GARBAGE), 5)
    return "" if not found or b" 400 " in found.splitlines()[0] else f"{found[:80]!r}"


def _body(prompt: str) -> dict[str, object]:
    return {"model": "nestling", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
