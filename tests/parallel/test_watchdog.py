"""The watchdog sees a rank that stands still, by what the ranks say and a clock of its own; it leaves alone
those that move, however long that takes."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from engines import make_engine, small
from torch import Tensor

from gyrfalcon import SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.engine import turns
from gyrfalcon.errors import CheckpointError, EngineClosed, GyrfalconError, RankDied
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.progress_monitor import ProgressMonitor
from gyrfalcon.parallel.watchdog import SLOW, Watchdog

TIMEOUT = 10.0


@dataclass
class Ranks:
    """Ranks that look when they are told to; each is doing something."""

    size: int
    when_idle: bool = True
    dead: RankDied | None = None  # what is known of a rank that has ended

    def __post_init__(self) -> None:
        self.hearts = [
            Heartbeat(doing=f"taking step {rank}", on_host=False) for rank in range(self.size)
        ]
        self.monitors = [
            ProgressMonitor(own_program=rank > 0 and not self.when_idle)
            for rank in range(self.size)
        ]
        for monitor, heart in zip(self.monitors, self.hearts, strict=True):
            monitor.add(heart)
        self.watchdog = Watchdog(
            self.monitors[0], self.size, TIMEOUT, when_idle=self.when_idle, check=self.check
        )
        for rank in range(1, self.size):
            self.watchdog.come(rank, f"host{rank}")

    @property
    def error(self) -> GyrfalconError | None:
        return self.watchdog.error

    def check(self) -> None:
        if self.dead is not None:
            raise self.dead

    def second(self, *moving: int, silent: int | None = None) -> None:
        """A second in which some ranks move, and all but one send."""
        for rank in moving:
            self.hearts[rank].counter.value += 1
        self.watchdog.look(1.0)
        for rank in range(1, self.size):
            if rank != silent:
                self.watchdog.hear(rank, self.monitors[rank].status())


@pytest.mark.parametrize("working", [0, 1])
def test_a_rank_that_says_nothing_ends_all_and_is_named(working: int) -> None:
    ranks = Ranks(3)
    ranks.hearts[0].num_working = working
    for _ in range(5):
        ranks.second(0, 1, 2)
    for _ in range(9):
        ranks.second(0, 1, silent=2)
    assert ranks.error is None
    ranks.second(0, 1, silent=2)
    assert "rank 2 on host2, which went silent while taking step 2" in str(ranks.error)
    assert "within 10 s" in str(ranks.error)
    assert ranks.error is not None
    assert ranks.error.exit_code == 1


def test_ranks_that_all_stand_still_with_work_to_do_are_ended() -> None:
    ranks = Ranks(2)
    ranks.hearts[0].num_working = 1
    ranks.second(0, 1)
    ranks.second(0)
    for seconds in range(1, 10):
        ranks.second()
        assert ranks.watchdog.stalled_seconds == seconds
    assert ranks.error is None
    ranks.second()
    error = ranks.error
    assert "rank 1 on host1, which stood still" in str(error), "not the one that moved last"
    ranks.second()
    assert ranks.error is error


def test_of_ranks_that_all_stand_still_the_one_in_an_earlier_step_is_named() -> None:
    ranks = Ranks(3)
    ranks.hearts[0].num_working = 1
    for rank, steps in enumerate((3, 3, 2)):
        for _ in range(steps):
            ranks.hearts[rank].begin_step()
    ranks.hearts[2].counter.value += 5
    for _ in range(11):
        ranks.second()
    assert "rank 2 on host2, which stood still while in step 2 after 5 blocks" in str(ranks.error)


def test_ranks_without_work_may_stand_still() -> None:
    ranks = Ranks(2)
    for _ in range(100):
        ranks.second()
    assert ranks.error is None
    ranks.hearts[0].num_working = 1
    for _ in range(9):
        ranks.second()
    assert ranks.error is None


def test_a_program_on_another_rank_may_end_while_there_is_no_work() -> None:
    ranks = Ranks(2, when_idle=False)
    for _ in range(50):
        ranks.second(silent=1)
    assert ranks.error is None
    ranks.hearts[0].num_working = 1
    for _ in range(10):
        ranks.second(0, silent=1)
    assert ranks.error is not None


def test_a_program_that_is_busy_elsewhere_on_another_rank_is_waited_for() -> None:
    ranks = Ranks(2, when_idle=False)
    ranks.hearts[0].num_working = 1
    for _ in range(50):
        ranks.second()
    assert ranks.error is None
    ranks.hearts[1].num_working = 1
    for _ in range(10):
        ranks.second()
    assert ranks.error is not None


def test_a_rank_that_has_ended_is_not_said_to_stand_still() -> None:
    ranks = Ranks(
        2, dead=RankDied("all 2 ranks to live", "rank 1 ended by signal 9", "start again")
    )
    for _ in range(10):
        ranks.second(0, silent=1)
    assert ranks.error is ranks.dead


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_step_of_many_times_the_timeout_may_go_on_while_one_rank_moves(size: int) -> None:
    ranks = Ranks(size)
    ranks.hearts[0].num_working = 1
    for second in range(100):
        ranks.second(*([second // 9 % size] if second % 9 == 0 else ()))
    assert ranks.error is None
    assert ranks.watchdog.stalled_seconds < TIMEOUT


def test_a_single_rank_is_not_ended_but_seen() -> None:
    ranks = Ranks(1)
    ranks.hearts[0].num_working = 1
    ranks.second(0)
    for _ in range(40):
        ranks.second()
    assert ranks.error is None
    assert ranks.watchdog.stalled_seconds == 40
    ranks.second(0)
    assert ranks.watchdog.stalled_seconds == 0


def test_what_may_take_minutes_is_given_minutes() -> None:
    ranks = Ranks(2)
    ranks.hearts[0].num_working = 1
    ranks.hearts[1].exempt = True
    for _ in range(SLOW * 10 - 1):
        ranks.second()
    assert ranks.error is None
    ranks.hearts[1].exempt = False
    ranks.second()  # which says so
    ranks.second()
    assert ranks.error is not None


def test_loading_from_a_disk_that_is_gone_ends_in_the_end() -> None:
    ranks = Ranks(2)
    ranks.hearts[0].num_working = 1
    ranks.hearts[1].exempt = True
    for _ in range(SLOW * 10 + 2):
        ranks.second()
    assert ranks.error is not None


def test_a_rank_that_ends_without_a_word_is_told_at_once_and_one_that_said_why_in_its_words() -> (
    None
):
    for said in (None, CheckpointError("a part", "none", "copy it")):
        ranks = Ranks(2)
        ranks.second(0, 1)
        ranks.watchdog.end(1, said)
        ranks.second(0, silent=1)
        ended = "rank 1 on host1, which ended while taking step 1"
        assert str(said or ended) in str(ranks.error)


def test_a_rank_that_said_good_bye_is_missed_only_by_work() -> None:
    ranks = Ranks(2)
    ranks.watchdog.leave(1)
    ranks.watchdog.end(1)
    for _ in range(20):
        ranks.second(silent=1)
    assert ranks.error is None
    ranks.hearts[0].num_working = 1
    ranks.second(silent=1)
    assert ranks.error is not None


def test_a_thread_that_computes_on_the_host_moves_and_one_that_waits_does_not() -> None:
    """As in one native call for a whole step."""
    heart, over, monitor = Heartbeat(num_working=1), threading.Event(), ProgressMonitor()
    monitor.add(heart)
    watchdog = Watchdog(monitor, 1, TIMEOUT)
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


def test_a_thread_that_wakes_up_now_and_then_does_not_move_however_often_it_is_looked_at() -> None:
    """As one that waits for another rank in shared memory."""
    monitor, over = ProgressMonitor(), threading.Event()
    waiting = threading.Thread(target=lambda: [over.wait(0.05) for _ in range(20)])
    waiting.start()
    monitor.add(Heartbeat(thread=waiting.native_id or 0))
    progress = []
    while waiting.is_alive():
        progress.append(monitor.status().progress)
        time.sleep(0.005)
    assert progress[-2] == 1, "more than its first sight"


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


def test_an_engine_whose_only_rank_hangs_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "DEATH_SECONDS", 0.1)
    over, begun = threading.Event(), threading.Event()
    engine = make_engine(small(tmp_path, "rw-1b"), rank_timeout=0.5)
    run = engine._core.model_runner

    def hanging(batch: Batch, pool: KVPool) -> Tensor:
        begun.set()
        over.wait()
        return run(batch, pool)

    engine._core.model_runner = hanging
    told: list[BaseException] = []

    def generate() -> None:
        try:
            engine.generate([30, 31], SamplingParams(max_new_tokens=2))
        except EngineClosed as error:
            told.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    begun.wait()
    begin = time.monotonic()
    engine.close()
    assert 0.4 < time.monotonic() - begin < 30
    assert thread.is_alive()
    over.set()
    thread.join()
    assert told
