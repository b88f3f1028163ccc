"""The server of benchmarks/plan_simulation.py: a model on the CPU of this process, `gyrfalcon load` as the
client in another, and a log of what each step computes and how long it takes.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpu_peers_model import SHAPES, VOCAB_SIZE, make_checkpoint
from serve_overhead import Loop, served

from gyrfalcon import Engine, EngineConfig
from gyrfalcon.engine.heap import freeze_heap
from gyrfalcon.load.lengths import Lengths
from gyrfalcon.plan.simulate import SimulatedSettings
from gyrfalcon.plan.simulate_measured import TimedStep
from gyrfalcon.plan.simulate_steps import load_of_chunks
from gyrfalcon.plan.step_load import StepLoad
from gyrfalcon.request import Chunk, Delta

BODY = json.dumps({"ignore_eos": True, "temperature": 0})

Steps = list[TimedStep]
Rows = Sequence[Mapping[str, Any]]  # of requests, in load's JSON


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What is served to whom. Prefixes are not reused: the same requests cost the same again."""

    input_lens: Lengths
    output_lens: Lengths
    max_len: int
    sequences: int  # that run at once
    threads: int


class StepLog:
    """Notes the load of each step of an engine, the seconds until the next one begins, and the requests that
    are added meanwhile; not of one after which there was nothing to do.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._step, self._add = engine, engine.step, engine.add
        self._compute: Callable[..., Any] = engine._core.compute
        self._steps: Steps = []
        self._arrivals = 0
        self._last: StepLoad | None = None  # of the step under way
        self._begun: float | None = None  # of the last step, where there was more to do after it
        engine.step = self.step  # type: ignore[method-assign]
        engine.add = self.add  # type: ignore[method-assign]
        engine._core.compute = self.compute  # type: ignore[method-assign]

    def step(self) -> list[Delta]:
        """The engine's step."""
        now = time.perf_counter()
        if self._begun is not None and self._last is not None:
            self._steps.append(TimedStep(self._last, now - self._begun, self._arrivals))
        self._last, self._arrivals = None, 0
        deltas = self._step()
        self._begun = now if self._engine.has_work else None
        return deltas

    def add(self, *words: Any, **options: Any) -> int:
        """The engine's add."""
        self._arrivals += 1
        return self._add(*words, **options)

    def compute(self, chunks: Sequence[Chunk]) -> Any:
        """What the step computes."""
        self._last = load_of_chunks(list(chunks))
        return self._compute(chunks)

    def pop(self) -> Steps:
        """The steps since the last call."""
        found, self._steps = self._steps, []
        return found


@dataclass(frozen=True, slots=True)
class Served:
    """A server under test, and what simulates it."""

    loop: Loop
    log: StepLog
    settings: ServerSettings
    simulated: SimulatedSettings

    def closed(self, concurrency: int, requests: int, seed: int) -> dict[str, Any]:
        """What load says of a closed loop."""
        words = ("--concurrency", str(concurrency), "--requests", str(requests))
        return self._load(*words, "--seed", str(seed))

    def capacity(self, requests: int, seed: int) -> float:
        """Requests a second of as many at a time as run at once."""
        found = self.closed(self.settings.sequences, requests, seed)["result"]
        assert isinstance(found["finished_per_second"], float)
        return found["finished_per_second"]

    def opened(self, rate: float, requests: int, seed: int) -> Rows:
        """The requests of an open loop."""
        words = ("--rate", f"{rate:.6f}", "--requests", str(requests), "--seed", str(seed))
        rows: Rows = self._load(*words)["requests"]
        return rows

    def _load(self, *words: str) -> dict[str, Any]:
        url, own = f"http://127.0.0.1:{self.loop.port}", self.settings
        lengths = ("--in", str(own.input_lens), "--out", str(own.output_lens))
        command = [sys.executable, "-m", "gyrfalcon", "load", url, "--extra-body", BODY, *lengths]
        done = subprocess.run(
            [*command, *words, "--json", "-"], check=True, capture_output=True, text=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["result"]["finished"] == found["result"]["sent"], "not all answered"
        return found


def give_words(tokenizer: Path) -> None:
    """Gives each token of a made model a text: what has none is no event, and load times events."""
    plain = json.loads(tokenizer.read_text("utf-8"))
    words = plain["model"]["vocab"]
    words |= {f"word{number}": number for number in range(len(words), VOCAB_SIZE)}
    tokenizer.write_text(json.dumps(plain), "utf-8")


def model_folder(name: str, folder: Path) -> str:
    """What to load; a model of SHAPES is made in `folder`, unless it is there."""
    if name not in SHAPES:
        return name
    model = folder / name
    if not model.exists():
        make_checkpoint(model, SHAPES[name].config(VOCAB_SIZE))
        give_words(model / "tokenizer.json")
    return str(model)


@contextmanager
def processors(threads: int) -> Iterator[None]:
    """As many for the server as its model has threads, where that leaves some, and the others for what this
    thread starts once it serves: clients, which else take the server's processor now and then.
    """
    usable = sorted(os.sched_getaffinity(0))
    try:
        if threads < len(usable):
            os.sched_setaffinity(0, usable[:threads])
        yield
    finally:
        os.sched_setaffinity(0, usable)


@contextmanager
def opened(name: str, folder: Path, settings: ServerSettings) -> Iterator[Served]:
    """A server of a model."""
    all_processors = os.sched_getaffinity(0)
    config = EngineConfig(
        model_folder(name, folder),
        device="cpu",
        max_len=settings.max_len,
        max_sequences=settings.sequences,
        threads=settings.threads,
        reuse_prefixes=False,
    )
    with processors(settings.threads), served(config) as loop:
        freeze_heap()  # as gyrfalcon serve does
        clients = all_processors - os.sched_getaffinity(0)
        os.sched_setaffinity(0, clients or all_processors)
        engine = loop.service.engine
        scheduler = engine._core.scheduler
        simulated = SimulatedSettings(
            scheduler.limits,
            scheduler.allocator.num_blocks,
            config.block_size,
            reuse_prefixes=False,
        )
        yield Served(loop, StepLog(engine), settings, simulated)
