"""The interface between benchmarks/cpu_peers.py and each engine that it compares.

An engine is a module with the functions of `EngineModule`. Imports nothing that an engine's own
environment may lack.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

Prompts = Sequence[Sequence[int]]  # token ids, all of one length


@dataclass(frozen=True)
class Setup:
    """How to load a model."""

    path: str  # the engine's form of the checkpoint, or the Hugging Face folder itself
    precision: str  # bf16, int8 or int4
    threads: int
    batch: int  # the most sequences at a time
    total_len: int  # the most tokens of a sequence, prompt and new ones together


@dataclass
class Generation:
    """A running greedy generation: when each step ended, in seconds since it began, and the first
    ids of every sequence. The first step is the prefill.
    """

    ends: list[float] = field(default_factory=list)
    first_ids: list[int] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def step_ended(self, ids: Sequence[int]) -> None:
        """Every sequence has one more token: one of `ids` each."""
        self.ends.append(time.perf_counter() - self.start)
        if not self.first_ids:
            self.first_ids = [int(number) for number in ids]


Generate = Callable[[Prompts, int], Generation]  # prompts, decoding steps after them


class EngineModule(Protocol):
    """A module named cpu_engine_*.py. Importing it imports the engine. An engine that does not have
    all of its precisions on every processor also has lacks(): those that it lacks here, and why.
    """

    def versions(self) -> dict[str, str]:
        """The packages that do the work."""

    def prepare(self, checkpoint: Path, target: Path, precision: str) -> None:
        """Writes the engine's own form of a Hugging Face folder to `target`, which does not exist."""

    def load(self, setup: Setup) -> Generate:
        """The model, ready to generate."""
