"""What waits: who runs first, how much may wait, until when, and what an output says of it."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engines import cache_of, make_engine, random_prompt, small
from tokenizers_ import make_tokenizer
from worlds import on_engines

from gyrfalcon import Delta, Engine, FinishReason, QueueFull, RequestError, SamplingParams

FEW = SamplingParams(max_new_tokens=4, ignore_eos=True)
ENDLESS = SamplingParams(max_new_tokens=100_000, ignore_eos=True)
SOON = 1e-4  # seconds
ROOM: dict[str, Any] = {
    "max_len": 5000,
    "max_sequences": 4,
}  # for what is endless, and little memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(small(tmp_path_factory.mktemp("model"), "rw-1b"))  # ALiBi


@pytest.fixture
def one_by_one(folder: Path) -> Iterator[Engine]:
    """An engine that runs one sequence at a time."""
    with make_engine(folder, max_len=5000, max_sequences=1) as engine:
        yield engine


def finish(engine: Engine) -> dict[int, Delta]:
    """The last delta of each request, in the order in which they end."""
    last = {}
    while engine.has_work:
        for delta in engine.step():
            if delta.finish_reason is not None:
                last[delta.request_id] = delta
    return last


def test_waiting_requests_run_by_priority_then_in_the_order_they_came(one_by_one: Engine) -> None:
    running = one_by_one.add([30], FEW, priority=-3)
    one_by_one.step()
    priorities = [0, 5, -3, 0, 5, -3]
    numbers = [one_by_one.add([31 + i], FEW, priority=p) for i, p in enumerate(priorities)]
    expected = [numbers[place] for place in (2, 5, 0, 3, 1, 4)]
    assert [*finish(one_by_one)] == [running, *expected]


def test_cache_that_runs_out_is_taken_from_the_highest_priority_value(folder: Path) -> None:
    long = SamplingParams(max_new_tokens=40, ignore_eos=True)
    with make_engine(folder) as roomy:
        alone = [roomy.generate(random_prompt(9), long)[0].output_ids]
        num_bytes = cache_of(roomy, 5)
    with make_engine(folder, cache_memory=num_bytes, max_len=64) as engine:
        unhurried = engine.add(random_prompt(9), long, priority=1)
        deltas = engine.step()
        urgent = engine.add(random_prompt(9), long, priority=0)
        while engine.has_work:
            deltas += engine.step()
    ids = [delta.token.id for delta in deltas if delta.token and delta.request_id == unhurried]
    last = {delta.request_id: delta for delta in deltas if delta.finish_reason is not None}
    assert [*last] == [urgent, unhurried]
    assert last[urgent].num_preemptions == 0
    assert last[unhurried].num_preemptions > 0
    assert [tuple(ids)] == alone


def test_a_full_queue_refuses_the_next_request_and_keeps_its_own(folder: Path) -> None:
    with make_engine(folder, max_sequences=1, max_queued_requests=2) as engine:
        running = engine.add([30], FEW)
        engine.step()
        queued = [engine.add([31, 32], FEW), engine.add([33], FEW)]
        said = (
            "at most 2 requests queued, got 2 requests of 3 tokens queued, and one of 1 more; ask"
        )
        with pytest.raises(QueueFull, match=said):
            engine.add([34], FEW)
        with pytest.raises(QueueFull, match="max_queued_requests"):
            engine.stream([34], FEW)
        stats = engine.stats()
        assert (stats.num_waiting_requests, stats.num_waiting_tokens) == (2, 3)
        assert [*finish(engine)] == [running, *reversed(queued)]  # the shortest first
        engine.add([34], FEW)


def test_what_the_next_step_can_run_with_all_that_waits_is_not_refused(folder: Path) -> None:
    with make_engine(folder, max_sequences=3, max_queued_requests=1) as engine:
        for prompt in ([30], [31], [32]):
            engine.add(prompt, FEW)
        with pytest.raises(QueueFull):
            engine.add([33], FEW)
        engine.step()
        engine.add([33], FEW)
        with pytest.raises(QueueFull):
            engine.add([34], FEW)


def test_a_queue_is_full_by_the_tokens_of_all_samples(folder: Path) -> None:
    with make_engine(folder, max_sequences=1, max_queued_tokens=10) as engine:
        engine.add(random_prompt(30), FEW)  # finds nothing waiting
        engine.step()
        engine.add([30, 31, 32], SamplingParams(max_new_tokens=1, n=2))
        assert engine.stats().num_waiting_tokens == 6
        with pytest.raises(QueueFull, match="at most 10 tokens queued, got 1 request of 6 tokens"):
            engine.add([30] * 5, FEW)
        engine.add([30] * 4, FEW)


def test_a_text_that_finds_the_queue_full_is_refused_without_being_tokenised(folder: Path) -> None:
    with make_engine(folder, max_sequences=1, max_queued_tokens=10, max_len=5000) as engine:
        text = "the gyrfalcon " * 10_000  # too long for the engine: tokenising would say so
        engine.add([30], FEW)
        with pytest.raises(QueueFull):
            engine.add(text, FEW)


def test_generate_queues_all_of_its_prompts(folder: Path) -> None:
    with make_engine(folder, max_sequences=1, max_queued_requests=1) as engine:
        assert len(engine.generate([[30], [31], [32]], FEW)) == 3


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_deadline_ends_a_running_request_and_no_other(folder: Path, world_size: int) -> None:
    def program(engine: Engine) -> tuple[object, ...]:
        expected = engine.generate([31], FEW)[0].output_ids
        late = engine.add([30], ENDLESS, timeout=0.05)
        [first, *_] = engine.step()
        other = engine.add([31], FEW)
        last = finish(engine)
        blocks = engine.stats().num_used_blocks
        return (
            first.request_id == late and first.error is None,
            last[late].finish_reason,
            last[late].error,
            last[other].finish_reason,
            engine.generate([31], FEW)[0].output_ids == expected,
            blocks,
        )

    wanted = (
        True,
        FinishReason.ABORTED,
        "deadline of 0.05 s passed",
        FinishReason.LENGTH,
        True,
        0,
    )
    assert on_engines(world_size, folder, program, **ROOM) == wanted


def test_a_deadline_ends_a_waiting_request_which_was_queued_all_the_time(
    one_by_one: Engine,
) -> None:
    one_by_one.add([30], ENDLESS, timeout=0.2)
    one_by_one.step()
    start = time.monotonic()
    waiting = one_by_one.add([31], FEW, timeout=0.05)
    last = finish(one_by_one)[waiting]
    assert (last.finish_reason, last.text, last.token) == (FinishReason.ABORTED, "", None)
    assert 0.05 <= last.queued_seconds <= time.monotonic() - start


def test_a_prompt_that_was_not_read_has_no_scores(one_by_one: Engine) -> None:
    one_by_one.add([30], ENDLESS)
    [last] = one_by_one.stream([31, 32], replace(FEW, prompt_logprobs=1), timeout=1e-4)
    assert last.prompt_logprobs is None


def test_streams_and_generate_take_a_deadline(one_by_one: Engine) -> None:
    [*_, last] = one_by_one.stream("the", ENDLESS, timeout=SOON)
    assert (last.finish_reason, last.error) == (FinishReason.ABORTED, "deadline of 0.0001 s passed")
    [output] = one_by_one.generate("the", ENDLESS, timeout=SOON)
    assert (output.finish_reason, output.error) == (last.finish_reason, last.error)
    assert one_by_one.generate("the", FEW, timeout=1e6)[0].error is None
    assert not one_by_one.has_work


def test_a_stream_that_each_rank_collects_at_another_time_ends_on_all_at_once(folder: Path) -> None:
    def program(engine: Engine) -> tuple[tuple[int, ...], int]:
        stream = engine.stream([30], ENDLESS)
        next(stream)
        if engine.is_first_rank:
            stream.close()
        [output] = engine.generate([31], FEW)
        running = engine.stats().num_running
        stream.close()
        return output.output_ids, running

    with make_engine(folder) as alone:
        expected = alone.generate([31], FEW)[0].output_ids
    assert on_engines(2, folder, program, **ROOM) == (expected, 0)


def test_only_rank_0_looks_at_the_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clockless: set[int] = set()

    def clock() -> float:
        assert threading.get_ident() not in clockless
        return time.monotonic()

    def program(engine: Engine) -> list[object]:
        if not engine.is_first_rank:
            clockless.add(threading.get_ident())
        late = engine.add([30], ENDLESS, timeout=0.05)
        last = finish(engine)[late]
        [output] = engine.generate([31], FEW, timeout=1e6)
        assert last.finish_reason is FinishReason.ABORTED
        return [last.error, output.output_ids, engine.has_work]

    monkeypatch.setattr("gyrfalcon.engine.engine.monotonic", clock)
    [error, ids, has_work] = on_engines(3, folder, program, **ROOM)
    assert (error, has_work) == ("deadline of 0.05 s passed", False)
    with make_engine(folder) as alone:
        assert ids == alone.generate([31], FEW)[0].output_ids


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"priority": 0.5}, "whole number from -2.31 to 2.31 - 1 for priority, got 0.5"),
        ({"priority": True}, "for priority, got True"),
        ({"priority": 2**31}, "for priority, got 2147483648"),
        ({"timeout": 0}, "seconds above 0, at most 1,000,000,000, or None, for timeout, got 0"),
        ({"timeout": -1.0}, "for timeout, got -1.0"),
        ({"timeout": float("nan")}, "for timeout, got nan"),
        ({"timeout": "1"}, "for timeout, got '1'"),
    ],
)
def test_what_is_no_priority_or_deadline_is_refused(
    one_by_one: Engine, options: dict[str, Any], said: str
) -> None:
    for call in (one_by_one.add, one_by_one.stream, one_by_one.generate):
        with pytest.raises(RequestError, match=said):
            call([30], FEW, **options)
    assert not one_by_one.has_work


def test_an_output_says_how_long_its_request_was_queued_and_what_was_cached(folder: Path) -> None:
    with make_engine(folder, max_sequences=1, block_size=4) as engine:
        [first] = engine.generate(random_prompt(13), FEW)
        start = time.monotonic()
        second, third = engine.generate([random_prompt(13), [30]], FEW)
        seconds = time.monotonic() - start
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 12)
    assert first.queued_seconds < second.queued_seconds + third.queued_seconds < 2 * seconds
    assert 0 <= second.queued_seconds < third.queued_seconds < seconds
    others = replace(first, num_cached_tokens=9, queued_seconds=1.5, num_preemptions=2)
    assert first == others
