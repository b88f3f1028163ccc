"""Engines with a `step_target` read prompts in chunks that keep to it, and give the same tokens."""

from pathlib import Path

import pytest
from engines import make_engine, random_prompt, small
from torch import Tensor
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.engine.overlap import Overlap
from gyrfalcon.kv.pool import KVPool

ENDLESS = SamplingParams(max_new_tokens=150, ignore_eos=True)
BASE, PER_TOKEN = 0.010, 0.001  # seconds of a step on a clock of our own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("model"), "rw-1b")  # ALiBi


class Clock:
    """Times an engine's steps by their tokens, and notes how many each had."""

    def __init__(self, engine: Engine) -> None:
        self.now = 0.0
        self.sizes: list[int] = []
        run = engine._core.model_runner

        def timed(batch: Batch, pool: KVPool) -> Tensor:
            self.now += BASE + PER_TOKEN * len(batch.token_ids)
            self.sizes.append(len(batch.token_ids))
            return run(batch, pool)

        engine._core.model_runner = timed
        engine._now = lambda: self.now


def while_two_decode(engine: Engine) -> tuple[list[int], list[list[int]]]:
    """The sizes of the steps from when a long prompt joins two that decode until it is read, and the
    tokens of all three."""
    clock, ids = Clock(engine), dict[int, list[int]]()
    for number in range(2):
        engine.add(random_prompt(10 + number), ENDLESS)
    for _ in range(20):
        _take(engine, ids)
    clock.sizes.clear()
    last = engine.add(random_prompt(400), ENDLESS)
    while last not in ids:
        _take(engine, ids)
    sizes = list(clock.sizes)
    while engine.has_work:
        _take(engine, ids)
    return sizes, [ids[number] for number in sorted(ids)]


def _take(engine: Engine, ids: dict[int, list[int]]) -> None:
    for delta in engine.step():
        assert delta.token is not None
        ids.setdefault(delta.request_id, []).append(delta.token.id)


def test_steps_keep_to_their_target_while_a_long_prompt_is_read(folder: Path) -> None:
    with make_engine(folder, max_len=600) as engine:
        sizes, expected = while_two_decode(engine)
    assert sizes == [402]
    with make_engine(folder, max_len=600, step_target=0.065) as engine:
        sizes, found = while_two_decode(engine)
    assert found == expected
    seconds = [BASE + PER_TOKEN * size for size in sizes]
    assert max(seconds) <= 0.065
    assert sizes[2:-1] == [2 + 48] * len(sizes[2:-1])  # the whole blocks that fit
    assert sum(sizes) == 400 + 2 * len(sizes)


def test_a_target_that_cannot_be_met_reads_a_block_a_step(folder: Path) -> None:
    with make_engine(folder, max_len=600, step_target=1e-9) as engine:
        sizes, _ = while_two_decode(engine)
    assert sizes == [2 + 16] * 25


def test_ranks_read_the_chunks_that_rank_0_decides(folder: Path) -> None:
    def program(engine: Engine) -> list[int]:
        return list(
            engine.generate([random_prompt(50)], SamplingParams(max_new_tokens=5))[0].output_ids
        )

    alone = on_engines(1, folder, program, max_len=64)
    assert on_engines(2, folder, program, max_len=64, step_target=1e-9) == alone


def test_overlapped_steps_keep_to_their_target_too(folder: Path) -> None:
    with make_engine(folder, max_len=600) as engine:
        _, expected = while_two_decode(engine)
    with make_engine(folder, max_len=600, step_target=0.065) as engine:
        engine._take_step = Overlap(engine._core).step
        sizes, found = while_two_decode(engine)
    assert found == expected
    assert max(sizes) == 2 + 48
