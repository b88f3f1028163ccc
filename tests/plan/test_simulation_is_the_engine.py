"""The simulation against the engine itself: with the device stubbed and the same step times, the engine's own
loop computes the same batches at the same times.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import cache_of, make_engine, small
from simulations import ByLoad, Recorded, drawn_trace, ended_requests
from torch import Tensor

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.engine.scheduler import Scheduler
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_run import Simulation
from gyrfalcon.plan.simulate_steps import load_of_chunks
from gyrfalcon.plan.step_load import StepTimes
from gyrfalcon.plan.trace import TraceRequest
from gyrfalcon.request import Chunk

BLOCK = 4
Times = dict[int, list[float]]  # of tokens, by request
Batches = list[list[tuple[int, int, int]]]  # (request, start, stop) of each chunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("model"))


class Device:
    """Computes a step in the time that `times` says, on a clock of its own; every logit is 0."""

    def __init__(self, engine: Engine, times: StepTimes, overlap: bool) -> None:
        self.now = self.free_at = 0.0
        self._times, self._core = times, engine._core
        self._vocab_size = engine.model_config.vocab_size
        self._chunks: Sequence[Chunk] = ()
        scheduler, compute = self._core.scheduler, self._core.compute
        self._core.model_runner = self.launch
        engine._now = lambda: self.now
        scheduler.next_chunks = self._noted(scheduler.next_chunks)  # type: ignore[method-assign]
        scheduler.next_after = self._noted(scheduler.next_after)  # type: ignore[method-assign]
        self._core.compute = lambda chunks: self._waited(compute(chunks))  # type: ignore[method-assign]
        if overlap:
            engine._take_step = Overlap(self._core).step

    def launch(self, batch: Batch, pool: KVPool) -> Tensor:
        begun = max(self.now, self.free_at)
        self.free_at = begun + self._times.seconds(load_of_chunks(list(self._chunks)))
        return torch.zeros(len(batch.rows), self._vocab_size)

    def fetch(self, found: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
        end = self.free_at

        def read() -> Tensor:
            self.now = max(self.now, end)
            return found

        return read

    def _noted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: object) -> object:
            self._chunks = call(*args)
            return self._chunks

        return noted

    def _waited(self, outputs: Any) -> Any:
        """The host reads its tokens at once."""
        self.now = self.free_at
        return outputs


def on_engine(engine: Engine, device: Device, trace: Sequence[TraceRequest]) -> Times:
    """Runs a trace as a server does: what has arrived is added between two steps."""
    found: Times = {number: [] for number in range(len(trace))}
    arrivals: Iterator[tuple[int, TraceRequest]] = iter(enumerate(trace))
    following = next(arrivals, None)
    while following is not None or engine.has_work:
        while following is not None and following[1].arrival_s <= device.now:
            _add(engine, device, *following)
            following = next(arrivals, None)
        if not engine.has_work:
            assert following is not None
            device.now = following[1].arrival_s
            continue
        begun = device.now
        for delta in engine.step():
            if delta.token is not None:
                found[delta.request_id].append(device.now)
            if delta.error is not None:
                found[delta.request_id] = [-begun]  # its deadline had passed
    return found


def _add(engine: Engine, device: Device, number: int, request: TraceRequest) -> None:
    params = SamplingParams(max_new_tokens=request.output_tokens, ignore_eos=True)
    now, device.now = device.now, request.arrival_s  # deadlines count from there
    ids = request.prompt_ids(number, BLOCK)
    assert (
        engine.add(list(ids), params, priority=request.priority, timeout=request.deadline) == number
    )
    device.now = now


def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    """Notes from now on what is committed."""
    found: Batches = []
    commit = Scheduler.commit

    def noted(self: Scheduler, chunks: Sequence[Chunk], results: Any) -> Any:
        if chunks:
            found.append([(one.sequence.request.id, one.start, one.stop) for one in chunks])
        return commit(self, chunks, results)

    monkeypatch.setattr(Scheduler, "commit", noted)
    return found


def settings_of(engine: Engine, overlap: bool) -> SimulatedSettings:
    scheduler, config = engine._core.scheduler, engine.config
    num_blocks = scheduler.allocator.num_blocks
    reuse, target = config.reuse_prefixes, config.step_target
    return SimulatedSettings(
        scheduler.limits, num_blocks, config.block_size, reuse, target, overlap, page_tokens=BLOCK
    )


def simulated(settings: SimulatedSettings, times: StepTimes, one_by_one: bool, trace: Any) -> Times:
    own = Simulation(settings, times, one_by_one=one_by_one)
    ended = ended_requests(own, trace)
    return {one.number: [-one.end] if one.expired else list(one.token_times) for one in ended}


@pytest.mark.parametrize("step_target", [None, 0.02])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_engine_s_own_loop_gives_the_same_batches_and_time_stamps(
    overlap: bool, step_target: float | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = drawn_trace(11, 120, 40.0)
    recorded = [random.Random(2).uniform(0.002, 0.03) for _ in range(5000)]
    with make_engine(folder) as whole:
        cache = cache_of(whole, 1) // whole.config.block_size * BLOCK * 24
    with make_engine(
        folder,
        block_size=BLOCK,
        cache_memory=cache,
        max_sequences=8,
        max_batch_tokens=32,
        step_target=step_target,
    ) as engine:
        settings = settings_of(engine, overlap)
        device = Device(engine, Recorded(recorded), overlap)
        monkeypatch.setattr("gyrfalcon.engine.overlap.fetch", device.fetch)
        own = batches(monkeypatch)
        expected = on_engine(engine, device, trace)
        stats = engine.stats()
    expected_batches = list(own)
    own.clear()
    found = simulated(settings, Recorded(recorded), True, trace)
    assert own == expected_batches
    assert found == expected
    assert stats.num_cached_tokens > 100
    assert sum(times[0] < 0 for times in expected.values()) > 3


@pytest.mark.parametrize(("step_target", "rate"), [(None, 3.0), (0.03, 30.0)])
@pytest.mark.parametrize("overlap", [False, True])
def test_steps_taken_at_once_give_the_engine_s_time_stamps(
    overlap: bool,
    step_target: float | None,
    rate: float,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = drawn_trace(12, 150, rate)
    with make_engine(
        folder, block_size=BLOCK, max_sequences=8, max_batch_tokens=32, step_target=step_target
    ) as engine:
        device = Device(engine, ByLoad(), overlap)
        monkeypatch.setattr("gyrfalcon.engine.overlap.fetch", device.fetch)
        expected = on_engine(engine, device, trace)
        settings = settings_of(engine, overlap)
    assert simulated(settings, ByLoad(), False, trace) == expected
