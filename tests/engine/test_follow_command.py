"""A rank that follows a command joins each engine that rank 0 announces, and ends when there are no more."""

import dataclasses
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from engines import random_prompt, small

from gyrfalcon import Engine, EngineConfig, RankDied, SamplingParams
from gyrfalcon.cli import torchrun_rank
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.engine.rank_messages import decode_engine, encode_engine
from gyrfalcon.engine.worker import follow_command
from gyrfalcon.parallel import torchrun_ranks
from gyrfalcon.parallel.heartbeats import HeartbeatServer, connect_to_rank_0
from gyrfalcon.parallel.meeting import announce, wait_until_left
from gyrfalcon.parallel.progress_monitor import ProgressMonitor
from gyrfalcon.parallel.ranks import Ranks
from gyrfalcon.parallel.torchrun import Torchrun
from gyrfalcon.parallel.torchrun_ranks import HERE, Meeting, connect
from gyrfalcon.parallel.watchdog import Watchdog

PATIENCE = 120  # seconds, of what should take less than one
DRAWN = SamplingParams(max_new_tokens=8, temperature=1.0, seed=3, ignore_eos=True)


def process(rank: int) -> Torchrun:
    return Torchrun(rank, 2, rank, 2, HERE, 1, has_store=True)


def meetings(store: dist.Store) -> tuple[Meeting, Meeting]:
    """Rank 0's and that of the rank that follows, as of two processes."""
    monitor = ProgressMonitor()
    listener = HeartbeatServer(Watchdog(monitor, 2, PATIENCE), monitor, 2)
    listener.listen(store, HERE, HERE)
    caller = connect_to_rank_0(store, 1, ProgressMonitor(), PATIENCE, PATIENCE)
    listener.start(lambda error: None)
    caller.start(lambda error: None)
    listener.await_all(PATIENCE)
    leading = Meeting(process(0), store, listener, led=True)
    return leading, Meeting(process(1), store, caller, led=True)


def test_a_rank_follows_one_engine_after_the_other_until_the_end(tmp_path: Path) -> None:
    folder, store = small(tmp_path), dist.HashStore()
    prompts = [random_prompt(length) for length in (5, 40, 9)]
    leading, following = meetings(store)
    follower = threading.Thread(target=follow_command, args=(following,))
    follower.start()
    for dtype in ("fp32", "bf16"):
        config = EngineConfig(str(folder), dtype=dtype, max_len=64, max_batch_tokens=16)
        with Engine(config) as alone:
            expected = alone.generate(prompts, DRAWN)
        place = announce(store, encode_engine(config))
        rank_info = connect(leading, place, Cpu, PATIENCE)
        ranks = Ranks(
            rank_info, followed=True, heartbeats=leading.heartbeats, shares_heartbeats=True
        )
        with Engine(config, ranks) as engine:
            assert engine.world_size == 2
            outputs = engine.generate(prompts, DRAWN)
            late = engine.generate(prompts[0], DRAWN, timeout=1e-9)[0]
        if dtype == "fp32":
            assert outputs == expected
        assert late.output_ids == ()
    leading.heartbeats.stop()
    announce(store, encode_engine(None))
    wait_until_left(store, 2)
    follower.join(PATIENCE)
    assert not follower.is_alive()


def lost_store() -> dist.Store:
    """One whose other end has gone, as torchrun's when that is killed."""
    server = dist.TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
    store = dist.TCPStore(HERE, server.port, is_master=False)
    store.set("a", "b")
    del server
    return store


def test_a_rank_ends_with_rank_0_though_the_store_is_gone() -> None:
    leading, following = meetings(dist.HashStore())
    lost = dataclasses.replace(following, store=lost_store())
    leading.heartbeats.stop()
    follow_command(lost)
    torchrun_rank._dismiss(lost.store, 2)


def test_a_rank_that_waits_for_an_engine_tells_of_a_store_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torchrun_ranks, "GOOD_BYE_SECONDS", 0.1)
    leading, following = meetings(dist.HashStore())
    with pytest.raises(RankDied, match="wanted torchrun's store to answer, got"):
        follow_command(dataclasses.replace(following, store=lost_store()))
    deadline = time.monotonic() + PATIENCE
    while leading.heartbeats.error is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "torchrun's store to answer" in str(leading.heartbeats.error)


def test_an_announced_engine_has_every_setting() -> None:
    config = EngineConfig(
        model="nestling",
        world_size=2,
        quant="int8",
        cache_memory=0.5,
        max_queued_tokens=12,
        reuse_prefixes=False,
    )
    assert decode_engine(encode_engine(config)) == config
    assert decode_engine(encode_engine(None)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"null",
        b"{}",
        b'{"engine": []}',
        b'{"engine": {}}',
        b'{"engine": {"model": 5}}',
        b'{"engine": {"model": "nestling", "more": 1}}',
        b'{"engine": {"model": "nestling", "max_len": "4"}}',
        b'{"command": null}',
    ],
)
def test_what_announces_no_engine_is_refused(data: bytes) -> None:
    with pytest.raises(RankDied, match="wanted rank 0's announcement of an engine, got"):
        decode_engine(data)
