"""The engine's thread: batches what comes together, sleeps when idle, and tells everybody when it fails."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import pytest
from serve_client import Pending, Server, engine_of, held, serving, wait_for

from gyrfalcon import Engine
from gyrfalcon.errors import CheckpointError, QueueFull, RankDied
from gyrfalcon.request import Delta
from gyrfalcon.serve import engine_thread
from gyrfalcon.serve.answers import WholeAnswer

pytest_plugins = ["serve_fixtures"]

BODY = {"model": "nestling", "prompt": "Once", "max_tokens": 60, "ignore_eos": True}


def test_requests_that_come_together_run_side_by_side(server: Server) -> None:
    asked = [server.later("/v1/completions", BODY) for _ in range(8)]
    wait_for(lambda: server.service.engine.stats().num_running == 8)
    texts = {pending.answer().json()["choices"][0]["text"] for pending in asked}
    assert len(texts) > 1  # sampled, each with a seed of its own


def test_an_idle_engine_takes_no_processor_time(server: Server) -> None:
    server.post("/v1/completions", BODY)
    [thread] = [one for one in threading.enumerate() if one is server.service.thread._thread]
    before = cpu_of(thread)
    time.sleep(0.3)
    assert cpu_of(thread) == before


def cpu_of(thread: threading.Thread) -> float:
    """Seconds of processor time, as the system counts them."""
    [found] = [one for one in psutil.Process().threads() if one.id == thread.native_id]
    return float(found.user_time + found.system_time)


def test_a_step_that_fails_answers_everybody_and_turns_the_server_red(model: Path) -> None:
    with serving(lambda: engine_of(model)) as server:
        long = {"max_tokens": 180}
        asked = [server.later("/v1/completions", BODY | long) for _ in range(2)]
        stream = server.later("/v1/completions", BODY | long | {"stream": True})
        with held(server, num_running=3):
            server.service.engine.close()  # its next step raises
        for pending in asked:
            assert pending.answer().status == 503
            assert pending.answer().error["type"] == "service_unavailable_error"
        assert b'data: {"error":' in stream.answer().body
        assert b"[DONE]" not in stream.answer().body
        assert server.get("/health").status == 503
        assert server.get("/health").json() == {"status": "failed"}
        assert server.get("/health/live").status == 200
        assert server.post("/v1/completions", BODY).status == 503
        [failure] = server.failures
        assert "closed" in str(failure)


def test_an_engine_that_ends_between_requests_turns_the_server_red(model: Path) -> None:
    """As when a rank dies while nobody asks: the next request finds out, and is the last."""
    with serving(lambda: engine_of(model)) as server:
        server.service.engine.close()
        assert server.post("/v1/completions", BODY).status == 503
        wait_for(lambda: server.get("/health").status == 503)
        [failure] = server.failures
        assert "closed" in str(failure)


def test_a_request_is_told_once_why_the_engine_does_not_take_it(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that nobody hears of is logged by asyncio when it is collected, whatever runs then."""
    with serving(lambda: engine_of(model)) as server:
        server.service.engine.close()
        assert server.post("/v1/completions", BODY).status == 503
    del server  # which keeps the failure, and its traceback the answer
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_an_answer_that_cannot_be_written_does_not_take_others_along(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = WholeAnswer.take

    def broken(answer: WholeAnswer, prompt: int, delta: Delta) -> None:
        if answer._head.format.prompts[prompt].ids == (31, 32):
            raise KeyError("a fault")
        take(answer, prompt, delta)

    monkeypatch.setattr(WholeAnswer, "take", broken)
    sound = server.later("/v1/completions", BODY | {"n": 2})
    failing = server.later("/v1/completions", BODY | {"prompt": [31, 32]})
    assert failing.answer().status == 500
    assert failing.answer().error["type"] == "server_error"
    assert len(sound.answer().json()["choices"]) == 2
    wait_for(lambda: server.service.engine.stats().num_running == 0)


def test_while_the_model_loads_the_server_lives_and_is_not_ready(model: Path) -> None:
    may_load = threading.Event()

    def load() -> Engine:
        may_load.wait(30)
        return engine_of(model)

    with serving(load, wait=False) as server:
        assert server.get("/health/live").status == 200
        assert server.get("/health").json() == {"status": "loading"}
        assert int(server.get("/health").headers["retry-after"]) > 0
        refused = server.post("/v1/completions", BODY)
        assert (refused.status, refused.error["code"]) == (503, "loading")
        assert int(refused.headers["retry-after"]) > 0
        may_load.set()
        wait_for(lambda: server.get("/health").status == 200)
        assert server.post("/v1/completions", BODY).status == 200


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (CheckpointError("weights", "none", "fetch them"), 0),  # whoever started the server says it
        (ZeroDivisionError("a fault of ours"), 1),
    ],
)
def test_a_model_that_cannot_be_loaded_is_reported(
    error: Exception, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Engine:
        raise error

    with serving(load) as server:
        assert server.get("/health").json() == {"status": "failed"}
        assert server.failures == [error]
    assert [record.exc_info is not None for record in caplog.records] == [True] * lines


def test_a_server_that_drains_finishes_streams_and_takes_nothing_new(model: Path) -> None:
    with serving(lambda: engine_of(model)) as server:
        stream = server.later("/v1/completions", BODY | {"stream": True, "max_tokens": 180})
        wait_for(lambda: bool(stream.parts))
        server.service.is_draining = True
        assert server.get("/health").json() == {"status": "draining"}
        refused = server.post("/v1/completions", BODY)
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert stream.answer().events()[-1]["choices"][0]["finish_reason"] == "length"


def test_while_an_engine_ends_its_last_step_the_server_goes_on_answering(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    with serving(lambda: engine_of(model)) as server:
        step = server.service.engine.step

        def held() -> list[Delta]:
            deltas = step()
            may_end.wait(30)
            return deltas

        monkeypatch.setattr(server.service.engine, "step", held)
        pending = server.later("/v1/completions", BODY)
        wait_for(lambda: server.service.engine.stats().num_running == 1)
        stopping = asyncio.run_coroutine_threadsafe(server.service.thread.stop(), server.loop)
        assert pending.answer().status == 503
        assert server.get("/health/live").status == 200
        assert not stopping.done()
        may_end.set()
        stopping.result(30)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_stopped_answers_what_it_has_begun(model: Path, stream: bool) -> None:
    with serving(lambda: engine_of(model)) as server:
        pending = server.later("/v1/completions", BODY | {"stream": stream, "max_tokens": 180})
        wait_for(lambda: server.service.engine.stats().num_running == 1)
    # Leaving the server has stopped it.
    assert b"shut down" in pending._answer.result(0).body


def test_ranks_that_stand_still_turn_health_red(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda: engine_of(model)) as server:
        assert server.get("/health").status == 200
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "stalled_seconds", 10.0)
            answer = server.get("/health")
            assert (answer.status, answer.json()) == (503, {"status": "stalled"})
        assert server.get("/health").status == 200


def test_a_rank_that_stood_still_ends_an_idle_server(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RankDied("every rank to move", "rank 1", "look")
    with serving(lambda: engine_of(model)) as server:
        assert server.post("/v1/completions", BODY).status == 200

        def found() -> None:
            raise error

        monkeypatch.setattr(server.service.engine, "check_ranks", found)
        wait_for(lambda: server.get("/health").json() == {"status": "failed"})
        assert server.service.failure is error
        refused = server.post("/v1/completions", BODY)
        assert (refused.status, refused.error["code"]) == (503, "failed")


def test_a_dead_rank_is_told_while_a_step_waits_for_it_without_end(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a collective of accelerators does, which no death interrupts."""
    error, may_end = (
        RankDied("all ranks to live", "rank 1 ended by signal 9", "look"),
        threading.Event(),
    )
    monkeypatch.setattr(engine_thread, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(engine_thread, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(engine_thread, "CLOSE_SECONDS", 0.1)

    def found() -> None:
        raise error

    with serving(lambda: engine_of(model)) as server:
        engine, began = server.service.engine, threading.Event()
        monkeypatch.setattr(engine, "_take_step", hanging(began, may_end))
        pending = server.later("/v1/completions", BODY)
        assert began.wait(20)
        monkeypatch.setattr(engine, "check_ranks", found)
        assert pending.answer().status == 503
        assert server.get("/health").json() == {"status": "failed"}
        assert server.failures == [error]
        assert not server.on_loop(server.service.thread.stop())
        may_end.set()
        assert server.on_loop(server.service.thread.stop())


def hanging(began: threading.Event, may_end: threading.Event) -> Callable[..., list[Delta]]:
    def step(*budget: object) -> list[Delta]:
        began.set()
        may_end.wait(60)
        return []

    return step


def test_a_request_of_many_prompts_lets_steps_run_between_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("add", "step"):
        monkeypatch.setattr(server.service.engine, name, noted(server.service.engine, name, calls))
    stream = server.later("/v1/completions", BODY | {"stream": True, "max_tokens": 180})
    wait_for(lambda: len(stream.parts) > 3)
    many = {"model": "nestling", "prompt": [[30, 31]] * 300, "max_tokens": 1}
    answer = server.post("/v1/completions", many)
    assert len(answer.json()["choices"]) == 300
    stream.answer()
    runs = [len(list(run)) for name, run in groupby(calls) if name == "add"]
    assert sum(runs) == 301
    assert max(runs) <= engine_thread.ADDED_AT_ONCE


def test_many_requests_that_come_during_a_step_let_steps_run_between_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, calls, may_step = server.service.engine, list[int | None](), threading.Event()
    add, step = engine.add, engine.step

    def noted_add(*args: Any, **options: Any) -> int:
        calls.append(options["priority"])
        return add(*args, **options)

    def held() -> list[Delta]:
        may_step.wait(20)
        calls.append(None)
        return step()

    monkeypatch.setattr(engine, "add", noted_add)
    monkeypatch.setattr(engine, "step", held)
    one = BODY | {"max_tokens": 1}
    asked = [server.later("/v1/completions", one)]
    wait_for(lambda: calls == [0])
    asked += [server.later("/v1/completions", one) for _ in range(100)]
    asked += [server.later("/v1/completions", one | {"prompt": [[30, 31]] * 40})]
    asked += [server.later("/v1/completions", one | {"priority": -1})]
    wait_for(lambda: server.service.thread.num_live == 103)
    may_step.set()
    assert [each.answer().status for each in asked] == [200] * 103
    assert calls[:3] == [0, None, -1]  # the most urgent one is added first
    runs = [
        len(list(run)) for is_step, run in groupby(calls, lambda each: each is None) if not is_step
    ]
    assert sum(runs) == 142
    assert max(runs) <= engine_thread.ADDED_AT_ONCE


def test_a_client_that_leaves_before_the_engine_has_its_request_costs_it_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.service.engine
    calls, may_step = holding_steps(engine, monkeypatch)
    first = server.later("/v1/completions", BODY | {"max_tokens": 1})
    wait_for(lambda: calls == ["add"])
    leaving = [server.later("/v1/completions", BODY | {"stream": one}) for one in (False, True)]
    wait_for(lambda: server.service.thread.num_live == 3)
    for one in leaving:
        one.leave()
    wait_for(lambda: server.service.thread.num_live == 1)
    assert [(one.answer().status, one.answer().body) for one in leaving] == [(0, b"")] * 2
    may_step.set()
    assert first.answer().status == 200
    server.complete(max_tokens=2)
    assert calls == ["add", "add"]
    assert server.service.queue.num_requests == 0


def holding_steps(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], threading.Event]:
    """Notes what is added, and holds each step until the event is set."""
    calls, may_step, step = list[str](), threading.Event(), engine.step

    def held() -> list[Delta]:
        may_step.wait(20)
        return step()

    monkeypatch.setattr(engine, "add", noted(engine, "add", calls))
    monkeypatch.setattr(engine, "step", held)
    return calls, may_step


def noted(engine: Engine, name: str, calls: list[str]) -> Callable[..., object]:
    call = getattr(engine, name)

    def counted(*args: object, **options: object) -> object:
        calls.append(name)
        return call(*args, **options)

    return counted


def test_many_prompts_of_a_client_who_leaves_are_added_no_further(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.service.engine
    calls, may_step = holding_steps(engine, monkeypatch)
    pending = server.later("/v1/completions", BODY | {"prompt": [[30, 31]] * 300})
    wait_for(lambda: len(calls) == engine_thread.ADDED_AT_ONCE)
    pending.leave()
    wait_for(lambda: server.service.thread.num_live == 0)
    may_step.set()
    wait_for(lambda: engine.stats().num_running == 0 == len(server.service.thread._routes))
    assert len(calls) <= 2 * engine_thread.ADDED_AT_ONCE  # those that were under way, too
    server.complete(max_tokens=2)


def test_a_prompt_that_the_engine_refuses_after_others_ends_the_whole_request(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has checked it before: only what another of the engine's callers queued can do that."""
    engine, add, num_added = server.service.engine, server.service.engine.add, 0

    def full(*args: Any, **options: Any) -> int:
        nonlocal num_added
        num_added += 1
        if num_added > 40:
            raise QueueFull("room", "none", "ask again later")
        return add(*args, **options)

    monkeypatch.setattr(engine, "add", full)
    for stream in (False, True):
        num_added = 0
        many = BODY | {"prompt": [[30, 31]] * 50, "stream": stream, "max_tokens": 100}
        answer = server.post("/v1/completions", many)
        assert b"wanted room, got none" in answer.body
        assert b"[DONE]" not in answer.body
        assert answer.status == (200 if stream else 429)
    wait_for(lambda: engine.stats().num_running == 0 == len(server.service.thread._routes))
    assert server.service.queue.num_requests == 0


def test_clients_that_leave_at_any_time_end_nothing_but_their_own(server: Server) -> None:
    """Between the end of a sample and its being handed over, too: some texts end at a stop string."""
    asked = BODY | {"n": 3, "stop": ["e", "a"], "max_tokens": 30, "stream": True}
    for num_parts in range(0, 60, 10):
        pending = [server.later("/v1/completions", asked | {"seed": seed}) for seed in range(8)]
        wait_for(partial(have_parts, pending, num_parts))
        for one in pending[::2]:
            one.leave()
        for one in pending[1::2]:
            choices = [choice for event in one.answer().events() for choice in event["choices"]]
            assert sum(choice["finish_reason"] is not None for choice in choices) == 3
    engine, routes = server.service.engine, server.service.thread._routes
    wait_for(lambda: engine.stats().num_running == 0 == len(routes))
    assert not server.failures


def have_parts(pending: list[Pending], number: int) -> bool:
    """Or all they will have."""
    return sum(len(one.parts) for one in pending) >= number or all(one.has_ended for one in pending)
