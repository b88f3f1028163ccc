"""The watchdog sees a rank that stands still, by what the ranks say and a clock of its own; it leaves alone
those that move, however long that takes."""

import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch.distributed as dist
from engines import make_engine, small
from torch import Tensor

from gyrfalcon import SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.errors import GyrfalconError, RankDied
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.watchdog import Sender, Watchdog

TIMEOUT = 10.0


@dataclass
class Ranks:
    """Ranks that look when they are told to; each is doing something."""

    size: int
    when_idle: bool = True
    dead: RankDied | None = None  # what is known of a rank that has ended
    ended: list[GyrfalconError] = field(default_factory=list)

    def __post_init__(self) -> None:
        store = dist.HashStore() if self.size > 1 else None
        self.hearts = [
            Heartbeat(doing=f"taking step {rank}", on_host=False) for rank in range(self.size)
        ]
        self.senders = [
            Sender(self.hearts[rank], store, rank, TIMEOUT, own_program=not self.when_idle)
            for rank in range(1, self.size)
            if store
        ]
        own = (self.hearts[0], store, self.size, TIMEOUT, self.ended.append)
        self.watchdog = Watchdog(*own, when_idle=self.when_idle, check=self.check)

    def check(self) -> None:
        if self.dead is not None:
            raise self.dead

    def second(self, *moving: int, silent: int | None = None) -> None:
        """A second in which some ranks move, and all but one send."""
        for rank in moving:
            self.hearts[rank].counter.value += 1
        for rank, sender in enumerate(self.senders, 1):
            if rank != silent:
                sender.look()
        self.watchdog.look(1.0)


@pytest.mark.parametrize("working", [0, 1])
def test_a_rank_that_says_nothing_ends_all_and_is_named(working: int) -> None:
    ranks = Ranks(3)
    ranks.hearts[0].num_working = working
    for _ in range(5):
        ranks.second(0, 1, 2)
    for _ in range(9):
        ranks.second(0, 1, silent=2)
    assert not ranks.ended
    ranks.second(0, 1, silent=2)
    [error] = ranks.ended
    assert f"rank 2 on {socket.gethostname()}, which stood still while taking step 2" in str(error)
    assert "within 10 s" in str(error)
    assert error.exit_code == 1


def test_ranks_that_all_stand_still_with_work_to_do_are_ended() -> None:
    ranks = Ranks(2)
    ranks.hearts[0].num_working = 1
    ranks.second(0, 1)
    ranks.second(0)
    for seconds in range(1, 10):
        ranks.second()
        assert ranks.watchdog.stalled_seconds == seconds
    assert not ranks.ended
    ranks.second()
    [error] = ranks.ended
    assert "rank 1 on" in str(error), "the one that moved last is not the one"
    ranks.second()
    assert len(ranks.ended) == 1


def test_ranks_without_work_may_stand_still() -> None:
    ranks = Ranks(2)
    for _ in range(100):
        ranks.second()
    assert not ranks.ended
    ranks.hearts[0].num_working = 1
    for _ in range(9):
        ranks.second()
    assert not ranks.ended


def test_a_program_on_another_rank_may_end_while_there_is_no_work() -> None:
    ranks = Ranks(2, when_idle=False)
    for _ in range(50):
        ranks.second(silent=1)
    assert not ranks.ended
    ranks.hearts[0].num_working = 1
    for _ in range(10):
        ranks.second(0, silent=1)
    assert ranks.ended


def test_a_program_that_is_busy_elsewhere_on_another_rank_is_waited_for() -> None:
    ranks = Ranks(2, when_idle=False)
    ranks.hearts[0].num_working = 1
    for _ in range(50):
        ranks.second()
    assert not ranks.ended
    ranks.hearts[1].num_working = 1
    for _ in range(10):
        ranks.second()
    assert ranks.ended


def test_a_rank_that_has_ended_is_not_said_to_stand_still() -> None:
    ranks = Ranks(
        2, dead=RankDied("all 2 ranks to live", "rank 1 ended by signal 9", "start again")
    )
    for _ in range(10):
        ranks.second(0, silent=1)
    assert ranks.ended == [ranks.dead] == [ranks.watchdog.error]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_step_of_many_times_the_timeout_may_go_on_while_one_rank_moves(size: int) -> None:
    ranks = Ranks(size)
    ranks.hearts[0].num_working = 1
    for second in range(100):
        ranks.second(*([second // 9 % size] if second % 9 == 0 else ()))
    assert not ranks.ended
    assert ranks.watchdog.stalled_seconds < TIMEOUT


def test_a_single_rank_is_not_ended_but_seen() -> None:
    ranks = Ranks(1)
    ranks.hearts[0].num_working = 1
    ranks.second(0)
    for _ in range(40):
        ranks.second()
    assert not ranks.ended
    assert ranks.watchdog.stalled_seconds == 40
    ranks.second(0)
    assert ranks.watchdog.stalled_seconds == 0


def test_what_takes_as_long_as_it_takes_is_not_judged() -> None:
    ranks = Ranks(2)
    ranks.hearts[0].num_working = 1
    ranks.hearts[1].exempt = True
    for _ in range(50):
        ranks.second()
    assert not ranks.ended
    ranks.hearts[1].exempt = False
    for _ in range(10):
        ranks.second()
    assert ranks.ended


def test_a_thread_that_computes_on_the_host_moves_and_one_that_waits_does_not() -> None:
    """As in one native call for a whole step."""
    heart, over = Heartbeat(num_working=1), threading.Event()
    watchdog = Watchdog(heart, None, 1, TIMEOUT, lambda error: None)
    heart.thread = threading.get_native_id()
    watchdog.look(1.0)
    begin = time.thread_time()
    while time.thread_time() - begin < 0.2:
        pass
    watchdog.look(1.0)
    assert watchdog.stalled_seconds == 0
    waiting = threading.Thread(target=over.wait)
    waiting.start()
    heart.thread = waiting.native_id or 0
    watchdog.look(1.0)
    for seconds in range(1, 4):
        watchdog.look(1.0)
        assert watchdog.stalled_seconds == seconds
    over.set()
    waiting.join()


def test_a_thread_looks_until_it_is_stopped() -> None:
    heart, seen = Heartbeat(num_working=1, on_host=False), threading.Event()
    watchdog = Watchdog(heart, None, 1, 0.05, lambda error: None).start()
    while watchdog.stalled_seconds < 0.1:
        seen.wait(0.01)
    watchdog.stop()
    heart.num_working = 0


def test_a_look_that_finds_no_store_is_followed_by_the_next() -> None:
    class Store(dist.HashStore):
        looks = 0

        def check(self, keys: list[str]) -> bool:
            self.looks += 1
            raise RuntimeError("the connection is gone")

    store = Store()
    watchdog = Watchdog(Heartbeat(), store, 2, 0.05, lambda error: None).start()
    deadline = time.monotonic() + 30
    while store.looks < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watchdog.stop()


@pytest.mark.parametrize("variant", ["rw-1b", "7b"])
def test_every_block_of_a_step_counts_in_one_native_call_too(variant: str, tmp_path: Path) -> None:
    one_token = SamplingParams(max_new_tokens=1)
    with make_engine(small(tmp_path, variant), max_batch_tokens=4) as engine:
        heart, num_layers = engine._ranks.rank_info.group.heartbeat, engine.model_config.num_layers
        before = heart.count
        engine.generate([30] * 12, one_token)  # three steps
        assert 3 * num_layers <= heart.count - before < 3 * num_layers + 10


def test_an_engine_of_one_rank_tells_for_how_long_it_has_stood_still(tmp_path: Path) -> None:
    """In a step that takes three times the timeout, and ends as any other."""
    one_token = SamplingParams(max_new_tokens=1)
    with make_engine(small(tmp_path, "rw-1b"), rank_timeout=0.2) as engine:
        [expected] = engine.generate([30, 31], one_token)
        run = engine._core.model_runner

        def standing_still(batch: Batch, pool: KVPool) -> Tensor:
            while engine.stalled_seconds < 0.6:
                time.sleep(0.1)
            return run(batch, pool)

        engine._core.model_runner = standing_still
        assert engine.generate([30, 31], one_token) == [expected]
        engine._core.model_runner = run
        while engine.stalled_seconds:
            time.sleep(0.1)
