"""Long prompts join running streams, which keep their pace; a short prompt need not wait for long ones.

A step gives every stream one token, so the tokens of a stream count the steps. Prompts are random token ids,
of which nothing is in the cache. --step-target is twice the time between tokens of the streams alone, as
docs/serving.md advises. --model and --serve name another model than nestling, and how it is served.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from statistics import median

from serve_checks.asking import Streamed, stream
from serve_checks.context import Context
from serve_checks.report import Report
from serve_checks.server import Server, serving

NUM_STREAMS, STREAM_TOKENS = 8, 600
LONG, SHORT, NUM_LONG = 512, 16, 4  # tokens of a prompt, and prompts
REPEATS = 7
MOST_SLOWER, MOST_STEPS = 2.5, 3
IDS = range(100, 4000)  # ordinary tokens of nestling
OPTIONS = ("--max-len", "2048", "--threads", "1", "--served-model-name", "served")


def run(context: Context, report: Report) -> None:
    """Measures alone and together."""
    random, options = Random(context.seed), (*OPTIONS, *context.options)
    with serving(context.folder, context.model, *options) as server:
        pace = asyncio.run(_pace(server, random))
    target = f"{2000 * pace:.2f}"
    report.figure("step_target_ms", target)
    with serving(context.folder, context.model, *options, "--step-target", target) as server:
        asyncio.run(_joining(server, report, random))
        asyncio.run(_overtaking(server, report, random))


async def _pace(server: Server, random: Random) -> float:
    """Seconds between the tokens of streams that nothing joins."""
    streams, tasks = await _running(server, random, NUM_STREAMS)
    await asyncio.sleep(1.0)
    await _cancel(tasks)
    return median(_gaps(streams, 0.0, time.monotonic()))


async def _joining(server: Server, report: Report, random: Random) -> None:
    """A long prompt joins the streams, again and again."""
    alone = [(await _first_token(server, random, LONG))[0] for _ in range(REPEATS)]
    streams, tasks = await _running(server, random, NUM_STREAMS)
    begin = time.monotonic()
    await asyncio.sleep(1.0)
    quiet = _gaps(streams, begin, time.monotonic())
    joined, busy = [], list[float]()
    for _ in range(REPEATS):
        seconds, sent = await _first_token(server, random, LONG)
        joined.append(seconds)
        busy += _gaps(streams, sent, sent + seconds)
        await asyncio.sleep(0.1)
    assert not any(task.done() for task in tasks), "the streams have to last as long as the prompts"
    await _cancel(tasks)
    before, beside = _p99(quiet), _p99(busy)
    report.figure("gap_ms_p50", [round(1000 * median(one), 2) for one in (quiet, busy)])
    report.figure("gap_ms_p99", [round(1000 * one, 2) for one in (before, beside)])
    report.figure("first_token_ms_p50", [round(1000 * median(one), 2) for one in (alone, joined)])
    report.claim(
        f"{NUM_STREAMS} streams keep their p99 within {MOST_SLOWER} × while {LONG} tokens are read",
        beside <= MOST_SLOWER * before,
        f"{beside / before:.2f} ×",
    )
    ratio = median(joined) / median(alone)
    report.claim(
        f"their first token comes within {MOST_SLOWER} × of alone",
        ratio <= MOST_SLOWER,
        f"{ratio:.2f} ×",
    )


async def _overtaking(server: Server, report: Report, random: Random) -> None:
    """A short prompt comes while long ones are read."""
    steps = []
    for _ in range(REPEATS):
        [counter], tasks = await _running(server, random, 1)
        long = [asyncio.ensure_future(_first_token(server, random, LONG)) for _ in range(NUM_LONG)]
        num = len(counter.times)
        while len(counter.times) == num:  # the first step with a part of them has ended
            await asyncio.sleep(0.0005)
        seconds, sent = await _first_token(server, random, SHORT)
        tokens = [one for one in counter.times if sent < one <= sent + seconds]
        steps.append(max(0, len(tokens) - 1))  # the first is of the step under way
        await asyncio.gather(*long)
        await _cancel(tasks)
    report.figure("steps_to_first_token", steps)
    report.claim(
        f"a prompt of {SHORT} beside {NUM_LONG} of {LONG}: first token within {MOST_STEPS} mixed steps",
        max(steps) <= MOST_STEPS,
        steps,
    )


async def _running(
    server: Server, random: Random, num: int
) -> tuple[list[Streamed], "list[asyncio.Task[Streamed]]"]:
    """Streams that decode."""
    streams = [Streamed() for _ in range(num)]
    tasks = [
        asyncio.ensure_future(stream(server.port, "/v1/completions", body, into))
        for into, body in ((one, _body(random, SHORT, STREAM_TOKENS * 3)) for one in streams)
    ]
    while not all(len(one.times) > 3 for one in streams):
        await asyncio.sleep(0.001)
    return streams, tasks


async def _first_token(server: Server, random: Random, length: int) -> tuple[float, float]:
    """Seconds to the first token of a new prompt, and when it was sent."""
    sent = time.monotonic()
    answer = await stream(server.port, "/v1/completions", _body(random, length, 1))
    assert answer.is_whole, answer
    return answer.times[0] - sent, sent


def _body(random: Random, length: int, num_tokens: int) -> dict[str, object]:
    return {
        "model": "served",
        "prompt": [random.choice(IDS) for _ in range(length)],
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


async def _cancel(tasks: Sequence["asyncio.Task[Streamed]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _gaps(streams: Sequence[Streamed], begin: float, end: float) -> list[float]:
    """Times between tokens of each stream that end within an interval."""
    return [
        after - before
        for one in streams
        for before, after in pairwise(one.times)
        if begin < after <= end
    ]


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]
