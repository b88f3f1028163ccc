"""A load against a server that follows a script, in virtual time: what it measures is what the script says,
to the millisecond.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest
from stream_server import Asked, Reply, Script, Server, serving
from virtual_time import run_virtually, stand_still

from gyrfalcon.load.api import Api
from gyrfalcon.load.client import Client
from gyrfalcon.load.figures import Figures, figures_of
from gyrfalcon.load.lengths import Uniform
from gyrfalcon.load.plan import CONSTANT, POISSON, Load, plan
from gyrfalcon.load.probe import tokens_of_text
from gyrfalcon.load.prompts import TokensOfText
from gyrfalcon.load.run import Run, Runner

LOAD = Load(10.0, CONSTANT, None, 20, None, Uniform(8, 8), Uniform(5, 5), (), 0)
CLOSED = replace(LOAD, rate=None, concurrency=3, requests=9)


async def sent(
    server: Server, load: Load, timeout: float = 60.0, endpoint: str = "completions"
) -> Run:
    client = Client(server.target, None, timeout)
    await client.look_up()
    try:
        api = Api(client, endpoint, {})
        return await Runner(api, "tiny", load, lambda: None).run(plan(load, TokensOfText()))
    finally:
        client.close()


def measured(
    script: Script, load: Load, limits: Mapping[str, float] | None = None, timeout: float = 60.0
) -> tuple[Figures, Run, Server]:
    async def main() -> tuple[Figures, Run, Server]:
        async with serving(script) as server:
            run = await sent(server, load, timeout)
            return figures_of(run, load.rate, limits or {}), run, server

    return run_virtually(main())


def good(run: Run, limits: Mapping[str, float]) -> int:
    """How many requests of a run keep limits in milliseconds."""
    goodput = figures_of(run, None, limits).goodput
    assert goodput is not None
    return goodput.count


def ms(value: float) -> object:
    return pytest.approx(value, abs=1e-6)


async def steady(server: Server, asked: Asked, reply: Reply) -> None:
    """First token after 200 ms, the others 30 ms apart."""
    await reply.stream(asked, 0.2, 0.03)


# ---- what is measured ----


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_times_are_those_of_the_script(endpoint: str) -> None:
    async def main() -> Figures:
        async with serving(steady) as server:
            return figures_of(await sent(server, LOAD, endpoint=endpoint), LOAD.rate, {})

    figures = run_virtually(main())
    for spread, value in (
        (figures.first_token_ms, 200),
        (figures.inter_token_ms, 30),
        (figures.time_per_token_ms, 30),
        (figures.end_to_end_ms, 320),
    ):
        assert spread is not None
        assert (spread.p50, spread.p99, spread.max) == (ms(value), ms(value), ms(value))
    assert (figures.sent, figures.finished, figures.failed) == (20, 20, 0)
    assert figures.seconds == pytest.approx(19 * 0.1 + 0.32)
    assert figures.sent_per_second == pytest.approx(10)
    assert figures.finished_per_second == pytest.approx(20 / 2.22)


def test_percentiles_are_those_of_the_script() -> None:
    """The n-th of 101 requests has its first token after n ms."""

    async def later_each_time(server: Server, asked: Asked, reply: Reply) -> None:
        await reply.stream(asked, 0.001 * (len(server.asked) - 1), 0.0, num_tokens=1)

    figures, _, _ = measured(later_each_time, replace(LOAD, rate=1.0, requests=101))
    spread = figures.first_token_ms
    assert spread is not None
    assert (spread.p50, spread.p90, spread.p99) == (ms(50), ms(90), ms(99))
    assert (spread.mean, spread.max) == (ms(50), ms(100))
    assert figures.inter_token_ms is None


def test_tokens_are_counted_by_usage() -> None:
    figures, _, _ = measured(steady, LOAD)
    tokens = figures.tokens
    assert (tokens.input, tokens.output, tokens.counted_by) == (20 * 16, 20 * 5, "usage")
    assert tokens.output_per_second == pytest.approx(100 / figures.seconds)
    assert tokens.input_per_second == pytest.approx(320 / figures.seconds)


def test_tokens_are_counted_by_events_where_there_is_no_usage() -> None:
    async def without_usage(server: Server, asked: Asked, reply: Reply) -> None:
        await reply.head()
        for reason in (None, None, "stop"):
            await reply.event({"choices": [{"text": "a", "finish_reason": reason}]})
        await reply.end()

    figures, _, _ = measured(without_usage, LOAD)
    tokens = figures.tokens
    assert (tokens.input, tokens.output, tokens.counted_by) == (None, 20 * 3, "events")


def test_time_per_token_is_of_tokens_where_an_event_has_several() -> None:
    async def two_in_each(server: Server, asked: Asked, reply: Reply) -> None:
        await reply.head()
        for _ in range(3):
            await asyncio.sleep(0.1)
            await reply.event({"choices": [{"text": "a b", "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 1, "completion_tokens": 6}
        await reply.event({"choices": [], "usage": usage})
        await reply.end()

    figures, _, _ = measured(two_in_each, LOAD)
    assert figures.inter_token_ms is not None
    assert figures.time_per_token_ms is not None
    assert figures.inter_token_ms.p50 == ms(100)
    assert figures.time_per_token_ms.p50 == ms(200 / 5)


def test_goodput_counts_the_requests_within_all_limits() -> None:
    """Of each four one is late with its first token, one slow between tokens, one both."""

    async def changing(server: Server, asked: Asked, reply: Reply) -> None:
        number = len(server.asked)
        await reply.stream(asked, 0.6 if number % 2 else 0.4, 0.08 if number % 4 < 2 else 0.02)

    limits = {"ttft": 500.0, "itl": 50.0}
    figures, run, _ = measured(changing, LOAD, limits)
    assert figures.goodput is not None
    assert (figures.goodput.count, figures.goodput.share) == (5, 0.25)
    assert figures.goodput.per_second == pytest.approx(5 / figures.seconds)
    for limits, count in (
        ({"ttft": 500.0}, 10), ({"itl": 50.0}, 10), ({"tpot": 50.0}, 10),
        ({"e2e": 481.0}, 5), ({"e2e": 921.0}, 20), ({"ttft": 1.0}, 0),
    ):  # fmt: skip
        assert good(run, limits) == count, limits


def test_one_stall_breaks_the_limit_between_tokens_but_not_the_mean() -> None:
    async def stalls(server: Server, asked: Asked, reply: Reply) -> None:
        await reply.head()
        for number in range(10):
            await asyncio.sleep(0.3 if number == 5 else 0.01)
            await reply.event({"choices": [{"text": "a", "finish_reason": "stop"}]})
        await reply.end()

    _, run, _ = measured(stalls, LOAD)
    assert [good(run, {name: 50.0}) for name in ("itl", "tpot")] == [0, 20]


# ---- arrivals ----


@pytest.mark.parametrize("first", [0.0, 30.0])
def test_a_slow_server_does_not_slow_the_arrivals(first: float) -> None:
    async def slow(server: Server, asked: Asked, reply: Reply) -> None:
        await reply.stream(asked, first, 0.0)

    load = replace(LOAD, arrivals=POISSON)
    _, run, server = measured(slow, load)
    due = [one.arrival for one in plan(load, TokensOfText())]
    assert [one.due for one in run.outcomes] == due
    assert [one.sent for one in run.outcomes] == pytest.approx(due)
    assert [asked.time - run.start for asked in server.asked] == pytest.approx(due, abs=1e-6)


def test_times_count_from_when_a_request_was_due_though_it_was_sent_late() -> None:
    """The event loop stands still for 450 ms at the sixth request, due after 500 ms: the answers of it and
    of two before it are late, and those to the three due after 600, 700 and 800 ms, which were sent late.
    """

    async def blocks(server: Server, asked: Asked, reply: Reply) -> None:
        if len(server.asked) == 6:
            stand_still(0.45)
        await reply.stream(asked, 0.21, 0.03)

    figures, run, _ = measured(blocks, LOAD)
    assert figures.generator.late_ms is not None
    assert figures.generator.late_ms.max == ms(350)
    assert good(run, {"ttft": 300.0}) == 20 - 6
    assert good(run, {"ttft": 559.0}) == 20 - 3
    assert good(run, {"ttft": 561.0}) == 20 - 2


def test_a_closed_loop_keeps_its_number_of_requests_in_flight() -> None:
    _, run, server = measured(steady, CLOSED)
    assert [one.sent for one in run.outcomes] == pytest.approx([n // 3 * 0.32 for n in range(9)])
    assert [one.due for one in run.outcomes] == [one.sent for one in run.outcomes]
    assert server.num_connections == 3


def test_a_closed_loop_ends_with_its_duration() -> None:
    _, run, _ = measured(steady, replace(CLOSED, requests=None, duration=1.0))
    assert len(run.outcomes) == 3 * 4  # at 0, 0.32, 0.64, 0.96 s
    assert run.seconds == pytest.approx(4 * 0.32)
    assert all(one.is_finished for one in run.outcomes)


def test_connections_are_kept_for_the_next_request() -> None:
    _, _, server = measured(steady, replace(LOAD, rate=2.0))
    assert (len(server.asked), server.num_connections) == (20, 1)


def test_a_connection_that_was_closed_meanwhile_is_replaced() -> None:
    """The server ends it just as the next request is on its way."""

    async def only_once(server: Server, asked: Asked, reply: Reply) -> None:
        if len(server.asked) % 2 == 0:
            reply.writer.transport.abort()  # unread, as it were
            return
        await reply.stream(asked, 0.2, 0.03)

    figures, _, server = measured(only_once, replace(LOAD, rate=2.0, requests=5))
    assert (figures.finished, figures.failed) == (5, 0)
    assert server.num_connections == 5


def test_an_interrupted_run_keeps_what_has_ended() -> None:
    async def main() -> Run:
        async with serving(steady) as server:
            task = asyncio.create_task(sent(server, LOAD))
            await asyncio.sleep(1.01)
            task.cancel()
            return await task

    run = run_virtually(main())
    figures = figures_of(run, LOAD.rate, {})
    assert run.interrupted
    assert (figures.sent, figures.finished, figures.unfinished) == (11, 7, 4)
    assert figures.seconds == pytest.approx(1.01)


# ---- before the load ----


@pytest.mark.parametrize(("endpoint", "around"), [("completions", 0), ("chat", 5)])
def test_the_tokens_of_words_are_measured(endpoint: str, around: int) -> None:
    async def main() -> TokensOfText | None:
        async with serving(steady) as server:
            client = Client(server.target, None, 60)
            await client.look_up()
            try:
                return await tokens_of_text(Api(client, endpoint, {}), "tiny", server.url)
            finally:
                client.close()

    assert run_virtually(main()) == TokensOfText(per_word=2.0, around=around)
