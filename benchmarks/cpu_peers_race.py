"""The turns of benchmarks/cpu_peers.py: engines are found, write their own form of a model, and then
generate in turn, each in a process of its own.
"""

import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from cpu_engine import Setup
from cpu_peers_model import make_checkpoint
from cpu_peers_plan import ENGINES, Plan
from cpu_peers_process import EngineFailed, EngineProcess
from cpu_peers_results import OURS, Case, Turn, least_ms, quant_of

from gyrfalcon.console.format import counted
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.limits import machine_limits
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.model.architectures import config_from_json

WARM_UP_STEPS = 2


def find_engines(plan: Plan, work: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The versions of those that are installed, and why others are missing, or a precision of one on this
    processor ("engine precision"); these are named. UsageError when ours is among them.
    """
    versions: dict[str, dict[str, str]] = {}
    missing: dict[str, str] = {}
    for engine in plan.engines:
        with _started(plan, engine, work) as process:
            try:
                answer = process.ask("versions", plan.silence_seconds)
                versions[engine] = answer["versions"]
                missing |= {
                    f"{engine} {precision}": why for precision, why in answer["lacks"].items()
                }
            except EngineFailed as error:
                if engine == OURS:
                    python = plan.pythons.get(engine, sys.executable)
                    raise UsageError(
                        f"{OURS} in {python}", str(error), "install it there"
                    ) from None
                missing[engine] = str(error)
    for what, why in missing.items():
        print(f"missing: {what}: {why}", file=sys.stderr)
    return versions, missing


def race(
    plan: Plan, model: str, missing: Collection[str], work: Path, done: int = 0
) -> Iterator[list[Turn]]:
    """The turns of each round but the first `done` on one model, whose files are made first and removed in
    the end. Says on standard error how long they take at least.
    """
    if done >= plan.rounds:
        return
    limits = {precision: _limits(precision) for precision in plan.precisions}
    minutes = (plan.rounds - done) * least_seconds(plan, model, missing, limits) / 60
    print(
        f"{model}: {counted(plan.rounds - done, 'round')} would take {minutes:.1f} minutes "
        "at this machine's limits; engines take longer, and to write and load their models",
        file=sys.stderr,
    )
    folder = work / model
    folder.mkdir()
    make_checkpoint(folder / "checkpoint", plan.configs[model])
    runners = [
        Runner(plan, model, precision, engine, folder)
        for precision, engine in plan.pairs(model, missing)
    ]
    for number in range(done, plan.rounds):
        yield list(_round(plan, runners, number))
    shutil.rmtree(folder)


def least_seconds(
    plan: Plan, model: str, missing: Collection[str], limits: Mapping[str, MachineLimits]
) -> float:
    """What a round of a model takes when every engine reaches the machine's limits, of each precision."""
    config = config_from_json(plan.configs[model])
    total = 0.0
    for precision, _ in plan.pairs(model, missing):
        for batch, steps in [(1, WARM_UP_STEPS), *((batch, plan.steps) for batch in plan.batches)]:
            case = Case(model, precision, batch, plan.prompt_len, steps)
            total += least_ms("prefill", case, config, limits[precision])
            total += steps * least_ms("decode", case, config, limits[precision])
    return total / 1000


class Runner:
    """One engine with one precision of a model. After a failure it only reports it."""

    def __init__(self, plan: Plan, model: str, precision: str, engine: str, folder: Path) -> None:
        self.engine, self.precision = engine, precision
        self._plan, self._model, self._folder = plan, model, folder
        self._failed: str | None = None
        self._path = folder / "checkpoint"
        if ENGINES[engine].form_bytes[precision]:
            self._path = folder / f"{engine}-{precision}"
            self._prepare()

    def turn(self, number: int, limits: MachineLimits) -> Iterator[Turn]:
        """Generates once for each batch."""
        plan, load_average = self._plan, os.getloadavg()[0]
        found = self._ends(number)
        for batch in plan.batches:
            case = Case(self._model, self.precision, batch, plan.prompt_len, plan.steps)
            ends, first_ids = found.get(batch, ([], []))
            failed = None if ends else self._failed
            yield Turn(case, self.engine, number, limits, load_average, ends, first_ids, failed)

    def _prepare(self) -> None:
        self._tell("prepares")
        form = {"target": str(self._path), "precision": self.precision}
        try:
            with _started(self._plan, self.engine, self._folder) as process:
                checkpoint = str(self._folder / "checkpoint")
                process.ask("prepare", self._plan.silence_seconds, checkpoint=checkpoint, **form)
        except EngineFailed as error:
            self._fail(error)

    def _ends(self, number: int) -> dict[int, tuple[list[float], list[int]]]:
        """batch → when its steps ended, and the first ids; without those that failed."""
        found: dict[int, tuple[list[float], list[int]]] = {}
        if self._failed is not None:
            return found
        self._tell(f"round {number + 1}")
        try:
            with _started(self._plan, self.engine, self._folder) as process:
                self._load(process)
                self._generate(process, 1, WARM_UP_STEPS, number)
                for batch in self._plan.batches:
                    found[batch] = self._generate(process, batch, self._plan.steps, number)
        except EngineFailed as error:
            self._fail(error)
        return found

    def _load(self, process: EngineProcess) -> None:
        plan = self._plan
        setup = Setup(
            path=str(self._path),
            precision=self.precision,
            threads=plan.threads,
            batch=max(plan.batches),
            total_len=plan.total_len,
        )
        process.ask("load", plan.silence_seconds, **asdict(setup))

    def _generate(
        self, process: EngineProcess, batch: int, steps: int, seed: int
    ) -> tuple[list[float], list[int]]:
        plan = self._plan
        answer = process.ask(
            "generate",
            plan.silence_seconds,
            batch=batch,
            prompt_len=plan.prompt_len,
            steps=steps,
            vocab_size=plan.configs[self._model]["vocab_size"],
            seed=seed,
        )
        return answer["ends"], answer["first_ids"]

    def _fail(self, error: EngineFailed) -> None:
        self._failed = str(error)
        self._tell(f"failed: {error}")

    def _tell(self, what: str) -> None:
        print(f"{self._model} {self.precision} {self.engine}: {what}", file=sys.stderr)


def _round(plan: Plan, runners: list[Runner], number: int) -> Iterator[Turn]:
    """One turn of each; every round begins with another engine."""
    for precision in plan.precisions:
        there = [runner for runner in runners if runner.precision == precision]
        limits = _limits(precision)
        first = number % max(1, len(there))
        for runner in there[first:] + there[:first]:
            yield from runner.turn(number, limits)


def _limits(precision: str) -> MachineLimits:
    """Of this machine, now."""
    return machine_limits(Cpu.at(0), torch.bfloat16, quant_of(precision))


def _started(plan: Plan, engine: str, folder: Path) -> EngineProcess:
    python = plan.pythons.get(engine, sys.executable)
    return EngineProcess(engine, python, plan.threads, folder / f"{engine}.log")
