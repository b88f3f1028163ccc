"""Any thread may call an engine: each gets what it would get alone, in its turn, and one error when
another closes the engine. A forked process cannot use it and does it no harm.
"""

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from engines import make_engine, random_prompt, small
from tokenizers_ import make_tokenizer
from torch import Tensor

from gyrfalcon import (
    Delta,
    Engine,
    EngineClosed,
    FinishReason,
    RankDied,
    SamplingParams,
    UsageError,
)
from gyrfalcon.batch import Batch
from gyrfalcon.engine import turns
from gyrfalcon.engine.turns import FairLock, Turns
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.ranks import RankInfo, Ranks

PATIENCE = 120  # seconds, of what should take less than one
PROMPTS = ["A gyrfalcon is", "the", "When the wind turned, the bird left its rock", "x"]
GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=9, temperature=1.0, seed=5, n=2, ignore_eos=True)
ENDLESS = SamplingParams(max_new_tokens=100_000, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # ALiBi: no longest length.
    return make_tokenizer(small(tmp_path_factory.mktemp("model"), "rw-1b"))


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with make_engine(folder, world_size=request.param, max_len=5000) as engine:
        yield engine


def in_threads(count: int, program: Callable[[int], object]) -> list[object]:
    """What `program` returns for each number, each on a thread of its own, all begun at once."""
    start = threading.Barrier(count)

    def run(number: int) -> object:
        start.wait(PATIENCE)
        return program(number)

    with ThreadPoolExecutor(count) as pool:
        return [done.result(PATIENCE) for done in [pool.submit(run, i) for i in range(count)]]


def text_of(deltas: Iterator[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def is_idle(engine: Engine) -> bool:
    """Whether nothing of any request is left."""
    allocator = engine._core.scheduler.allocator
    return not engine.has_work and allocator.num_free == allocator.num_blocks


def call(engine: Engine, number: int) -> list[object]:
    """All ways to call an engine, in an order that depends on the number."""
    prompt = PROMPTS[number % len(PROMPTS)]
    ids = torch.tensor([random_prompt(9), random_prompt(5) + [0] * 4])
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    ways: list[Callable[[], object]] = [
        lambda: [output.text for output in engine.generate(PROMPTS, GREEDY)],
        lambda: text_of(engine.stream(prompt, GREEDY)),
        lambda: [one.text for one in engine.generate(prompt, SAMPLED)[0].completions],
        lambda: engine.generate_ids(ids, mask, max_new_tokens=6).tolist(),
        lambda: engine.logits(ids, mask).argmax(-1).tolist(),
    ]
    first = number % len(ways)
    found = {way: ways[way]() for way in (*range(first, len(ways)), *range(first))}
    return [found[way] for way in range(len(ways))]


@pytest.mark.parametrize("count", [2, 8])
def test_threads_get_what_each_would_get_alone(engine: Engine, count: int) -> None:
    expected = [call(engine, number) for number in range(count)]
    assert in_threads(count, lambda number: call(engine, number)) == expected
    assert is_idle(engine)


def test_coroutines_get_what_each_would_get_alone(engine: Engine) -> None:
    async def all_at_once() -> list[list[object]]:
        calls = (asyncio.to_thread(call, engine, number) for number in range(3))
        return await asyncio.gather(*calls)

    expected = [call(engine, number) for number in range(3)]
    assert asyncio.run(all_at_once()) == expected


@pytest.mark.parametrize("count", [2, 8])
def test_each_thread_that_adds_and_steps_finds_its_own_requests_whole(
    engine: Engine, count: int
) -> None:
    """All of them but one stream, so most of its requests' steps are taken by others."""
    expected = [engine.generate(prompt, GREEDY)[0].text for prompt in PROMPTS]

    def program(number: int) -> list[str]:
        if number:
            return [text_of(engine.stream(prompt, GREEDY)) for prompt in PROMPTS]
        texts = {engine.add(prompt, GREEDY): "" for prompt in PROMPTS}
        for _ in iter(lambda: engine.has_work, False):
            for delta in engine.step():
                texts[delta.request_id] += delta.text
        return list(texts.values())

    assert in_threads(count, program) == [expected] * count


class WatchedQueue(deque[threading.Lock]):
    """An engine's queue of threads, which notes how many steps had been taken when one thread joins."""

    def __init__(self, thread: int, steps: list[int]) -> None:
        super().__init__()
        self.thread, self.steps, self.joined = thread, steps, list[int]()

    def append(self, gate: threading.Lock) -> None:
        super().append(gate)
        if threading.get_ident() == self.thread:
            self.joined.append(len(self.steps))


def test_a_stream_beside_another_thread_has_its_first_token_within_three_steps(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of another thread, one before each of its two turns, and its own."""
    run, lock, steps = engine._core.model_runner, engine._turns._lock, list[int]()
    queue = WatchedQueue(threading.get_ident(), steps)
    acquire, waited = lock.acquire, list[int]()  # steps of others, for each turn of this thread

    def counted(batch: Batch, pool: KVPool) -> Tensor:
        steps.append(threading.get_ident())
        return run(batch, pool)

    def watched(seconds: float = -1) -> bool:
        held = acquire(seconds)  # nobody else takes a step from here on
        if threading.get_ident() == queue.thread:
            waited.append(len(steps) - queue.joined[-1])
        return held

    monkeypatch.setattr(engine._core, "model_runner", counted)
    monkeypatch.setattr(lock, "_queue", queue)
    monkeypatch.setattr(lock, "acquire", watched)
    other = engine.stream("the", ENDLESS)
    number = next(other).request_id
    going = threading.Event()

    def consume() -> None:
        for _ in other:
            going.set()

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        assert going.wait(PATIENCE)
        for _ in range(20):
            waited.clear()
            with contextlib.closing(engine.stream("A gyrfalcon is", GREEDY)) as stream:
                assert next(stream).token is not None
            assert max(waited) <= 1
            assert sum(waited) <= 2
    finally:
        engine.abort(number)
        thread.join(PATIENCE)
    assert is_idle(engine)


def test_a_stream_that_another_thread_aborts_ends(engine: Engine) -> None:
    first = threading.Event()
    numbers: list[int] = []

    def consume(_: int) -> FinishReason | None:
        reason = None
        for delta in engine.stream("the", ENDLESS):
            numbers.append(delta.request_id)
            first.set()
            reason = delta.finish_reason
        return reason

    def abort(_: int) -> None:
        assert first.wait(PATIENCE)
        engine.abort(numbers[0])

    found = in_threads(2, lambda number: (consume, abort)[number](number))
    assert found == [FinishReason.ABORTED, None]
    assert is_idle(engine)


def test_streams_that_other_threads_leave_free_their_blocks(engine: Engine) -> None:
    expected = engine.generate("the", GREEDY)[0].text

    def program(number: int) -> str:
        for times in range(5):
            for count, _ in enumerate(engine.stream(PROMPTS[number], ENDLESS)):
                if count == times:
                    break
        return engine.generate("the", GREEDY)[0].text

    assert in_threads(4, program) == [expected] * 4
    assert is_idle(engine)


def test_a_stream_may_be_collected_on_another_thread(engine: Engine) -> None:
    stream = engine.stream("the", ENDLESS)
    next(stream)
    streams = [stream]
    del stream
    in_threads(1, lambda _: streams.clear())
    assert is_idle(engine)


def test_a_stream_may_be_collected_in_the_middle_of_a_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the thread that takes the step: its finalizer must not wait for that thread."""
    expected = engine.generate("the", GREEDY)[0].text
    run = engine._core.model_runner

    def collecting(batch: Batch, pool: KVPool) -> Tensor:
        gc.collect(0)
        return run(batch, pool)

    gc.collect()
    gc.disable()  # what is made from here on waits for collecting()
    try:
        stream = engine.stream("the", ENDLESS)
        next(stream)
        cycle: list[object] = [stream]
        cycle.append(cycle)
        left = weakref.ref(stream)
        del stream, cycle
        monkeypatch.setattr(engine._core, "model_runner", collecting)
        assert left() is not None
        assert engine.generate("the", GREEDY)[0].text == expected
        assert left() is None
    finally:
        gc.enable()
    assert is_idle(engine)


def test_a_call_from_within_a_step_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = engine._core.model_runner, []

    def calling(batch: Batch, pool: KVPool) -> Tensor:
        with pytest.raises(UsageError, match="between an engine's steps") as caught:
            engine.generate("the", GREEDY)
        said.append(str(caught.value))
        return run(batch, pool)

    monkeypatch.setattr(engine._core, "model_runner", calling)
    engine.generate("the", SamplingParams(max_new_tokens=1))
    assert said


@pytest.mark.parametrize("ranks", [1, 2])
def test_closing_ends_what_other_threads_wait_for(folder: Path, ranks: int) -> None:
    others = psutil.Process().children()
    engine = make_engine(folder, world_size=ranks, max_len=5000)
    going = threading.Semaphore(0)

    def generate() -> None:
        engine.generate("the", ENDLESS)

    def stream() -> None:
        for _ in engine.stream("the", ENDLESS):
            pass

    def step() -> None:
        engine.add("the", ENDLESS)
        while True:
            engine.step()

    def program(number: int) -> str:
        going.release()
        try:
            (generate, stream, step)[number % 3]()
        except EngineClosed as error:
            return str(error)
        return "no error"

    def close(_: int) -> str:
        for _ in range(7):
            going.acquire()
        while len(engine._live) < 7:
            os.sched_yield()
        engine.close()
        engine.close()
        return "closed"

    said = in_threads(8, lambda number: close(number) if number == 7 else program(number))
    assert said == ["wanted a working engine, got one that was closed; make a new one"] * 7 + [
        "closed"
    ]
    for later in (
        lambda: engine.generate("the"),
        lambda: engine.generate([]),
        lambda: next(engine.stream("the")),
        lambda: engine.add("the"),
        engine.step,
        lambda: engine.abort(0),
        lambda: engine.logits(torch.tensor([[1]])),
        lambda: engine.generate_ids(torch.tensor([[1]])),
    ):
        with pytest.raises(EngineClosed, match="one that was closed; make a new one"):
            later()
    assert psutil.Process().children() == others


def test_threads_may_start_engines_at_once(folder: Path) -> None:
    main = sys.modules["__main__"]

    def program(number: int) -> str:
        with make_engine(folder, world_size=2) as engine:
            return engine.generate("the", GREEDY)[0].text

    one, other = in_threads(2, program)
    assert one == other
    assert sys.modules["__main__"] is main


def test_a_rank_s_death_is_told_to_every_thread(folder: Path) -> None:
    with make_engine(folder, world_size=2, max_len=5000) as engine:

        def program(number: int) -> str:
            if number == 3:
                while len(engine._live) < 3:
                    os.sched_yield()
                engine._ranks.children.processes[0].kill()  # type: ignore[union-attr]
                return ""
            with pytest.raises(RankDied) as caught:
                engine.generate("the", ENDLESS)
            return str(caught.value)

        said = in_threads(4, program)
    assert all("rank 1 ended by signal 9" in line for line in said[:3]), said  # type: ignore[operator]
    assert sum("one that failed" in line for line in said[:3]) == 2  # type: ignore[operator]


def in_fork(program: Callable[[], object]) -> object:
    """What `program` returns in a forked process, which ends as os._exit() ends one."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            result: object = program()
        except BaseException:
            result = traceback.format_exc()
        os.write(write, pickle.dumps(result))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pickle.loads(pipe.read())
    os.waitpid(process, 0)
    return found


def test_a_forked_process_is_refused_and_does_no_harm(engine: Engine) -> None:
    expected = engine.generate("the", GREEDY)[0].text
    stream = engine.stream("the", GREEDY)
    text = next(stream).text

    def refused() -> list[str]:
        calls: list[Callable[[], object]] = [
            lambda: engine.generate("the", GREEDY),
            lambda: engine.generate([]),
            lambda: next(stream),
            lambda: next(engine.stream("the")),
            lambda: engine.add("the"),
            engine.step,
            lambda: engine.abort(0),
            lambda: engine.logits(torch.tensor([[1]])),
            lambda: engine.generate_ids(torch.tensor([[1]])),
        ]
        said = []
        for one in calls:
            try:
                one()
            except UsageError as error:
                said.append(str(error))
        stream.close()
        engine.close()
        engine.__exit__(None, None, None)
        return said

    assert (
        in_fork(refused)
        == [
            "wanted a call from the process that made the engine, got one from a fork of it; "
            "make an engine in that process"
        ]
        * 9
    )
    assert text + text_of(stream) == expected
    assert engine.generate("the", GREEDY)[0].text == expected
    assert is_idle(engine)


def test_a_fork_in_the_middle_of_another_thread_s_step_can_leave_its_streams(
    engine: Engine,
) -> None:
    """The lock is taken in the fork, by a thread that is not there."""
    in_step, forked = threading.Event(), threading.Event()
    run = engine._core.model_runner
    mine = engine.stream("the", GREEDY)
    text = next(mine).text
    expected = engine.generate("the", GREEDY)[0].text

    def waiting(batch: Batch, pool: KVPool) -> Tensor:
        in_step.set()
        assert forked.wait(PATIENCE)
        return run(batch, pool)

    def leave() -> str:
        mine.close()
        with pytest.raises(UsageError, match="a fork of it"):
            engine.generate("the", GREEDY)
        return "left"

    engine._core.model_runner = waiting
    try:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(engine.generate, "x", GREEDY)
            assert in_step.wait(PATIENCE)
            assert in_fork(leave) == "left"
            forked.set()
            other.result(PATIENCE)
    finally:
        engine._core.model_runner = run
    assert text + text_of(mine) == expected


def test_closing_does_not_wait_for_ever_for_a_thread_that_no_death_wakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one in a collective of accelerators. The ranks are left when it comes back."""
    monkeypatch.setattr(turns, "DEATH_SECONDS", 0.05)
    group, left = Group(0, 2, None), threading.Event()
    monkeypatch.setattr(group, "close", left.set)
    own, began, may_end = Turns(Ranks(RankInfo(group, 0, 2))), threading.Event(), threading.Event()

    def wait() -> None:
        with own.taken(), own.all_ranks():
            began.set()
            may_end.wait(PATIENCE)

    thread = threading.Thread(target=wait)
    thread.start()
    assert began.wait(PATIENCE)
    own.close()
    assert own.are_over
    assert not left.is_set()
    may_end.set()
    thread.join(PATIENCE)
    assert left.is_set()


def test_a_lock_is_handed_over_in_the_order_of_arrival() -> None:
    lock, order = FairLock(), []

    def wait(number: int) -> None:
        lock.acquire()
        order.append(number)
        lock.release()

    lock.acquire()
    threads = [threading.Thread(target=wait, args=(number,)) for number in range(9)]
    for count, thread in enumerate(threads):
        thread.start()
        while len(lock._queue) < count + 2:
            os.sched_yield()
    assert not lock.acquire(0)
    assert not lock.acquire(0.001)
    lock.release()
    lock.acquire()
    assert order == list(range(9))
    lock.release()
    for thread in threads:
        thread.join()
    assert not lock.busy


@pytest.mark.parametrize("in_line", [False, True])
def test_ctrl_c_around_getting_in_line_leaves_nobody_there(in_line: bool) -> None:
    class Interrupted(deque[threading.Lock]):
        def append(self, gate: threading.Lock) -> None:
            if in_line:
                super().append(gate)
            raise KeyboardInterrupt

    lock = FairLock()
    lock._queue = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    assert not lock.busy


def test_ctrl_c_takes_a_thread_out_of_the_line() -> None:
    lock, held, over = FairLock(), threading.Event(), threading.Event()

    def hold() -> None:
        lock.acquire()
        held.set()
        while len(lock._queue) < 2:
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)
        assert over.wait(PATIENCE)
        lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(PATIENCE)
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    assert lock.busy
    over.set()
    thread.join()
    assert not lock.busy
