"""5,000 prompts scored by two workers, five of which are killed: each id once, a part lost for each kill."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engines import make_engine, small
from job_fixtures import write_rows, written
from tokenizers_ import make_tokenizer

from gyrfalcon import SamplingParams

NUM_PROMPTS, PART_ROWS, NUM_KILLS = 5000, 100, 5
NUM_PARTS = NUM_PROMPTS // PART_ROWS
CHECKED = 10  # every tenth row is compared with an engine
SECONDS = 240.0


class Workers:
    """Processes that run one command; one that is killed is replaced."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """One more worker, on one thread."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        worker = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        self.running.append(worker)

    def kill_one(self, which: random.Random) -> None:
        """Kills one that has not ended, and starts another."""
        worker = which.choice(self.running)
        assert worker.poll() is None, "it ended before it was killed"
        worker.kill()
        worker.communicate()
        self.running.remove(worker)
        self.start()


@contextmanager
def workers(command: list[str], count: int) -> Iterator[Workers]:
    """So many workers; none is left behind."""
    started = Workers(command)
    try:
        for _ in range(count):
            started.start()
        yield started
    finally:
        for worker in started.running:
            worker.kill()
            worker.communicate()


def wait_for_parts(out: Path, count: int) -> None:
    """Until so many parts are finished."""
    deadline = time.monotonic() + SECONDS
    while len(list(out.glob("part-*.jsonl"))) < count:
        assert time.monotonic() < deadline, f"not {count} parts after {SECONDS:.0f} s"
        time.sleep(0.01)


@pytest.mark.slow
def test_five_random_kills_of_workers_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    model, out, which = make_tokenizer(small(tmp_path / "model")), tmp_path / "out", random.Random()
    prompts = [[which.randrange(20, 509) for _ in range(8)] for _ in range(NUM_PROMPTS)]
    rows = ({"id": number, "prompt": prompt} for number, prompt in enumerate(prompts))
    source = write_rows(tmp_path / "prompts.jsonl", rows)
    words = ["score", str(source), str(out), "-m", str(model), "--max-len", "64", "--threads", "1"]
    command = [sys.executable, "-m", "gyrfalcon", *words, "--part-rows", str(PART_ROWS)]
    with workers(command, 2) as started:
        for finished in sorted(which.sample(range(1, NUM_PARTS - 10), NUM_KILLS)):
            wait_for_parts(out, finished)
            started.kill_one(which)
        for worker in started.running:
            _, err = worker.communicate(timeout=SECONDS)
            assert worker.returncode == 0, err.decode()
    results = written(out)
    assert [row["id"] for row in results] == list(range(NUM_PROMPTS))
    begun = (out / "log").read_text().count(" begun ")
    assert NUM_PARTS <= begun <= NUM_PARTS + NUM_KILLS
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    with make_engine(model) as engine:
        outputs = engine.generate(prompts[::CHECKED], params)
    for row, output in zip(results[::CHECKED], outputs, strict=True):
        assert output.prompt_logprobs is not None
        expected = [token.logprob for token in output.prompt_logprobs if token is not None]
        assert row["logprobs"] == pytest.approx(expected, abs=1e-4)
