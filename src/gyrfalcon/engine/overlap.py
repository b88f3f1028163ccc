"""Overlapped scheduling: on an accelerator, a step is launched before the last one's tokens are read.

It knows neither how tokens are chosen nor how the model computes, only what has to wait for what.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.device.lookup import fetch, send
from gyrfalcon.engine import sampler
from gyrfalcon.engine.core import EngineCore
from gyrfalcon.engine.decode_graphs import Following
from gyrfalcon.engine.drafts import NEVER
from gyrfalcon.engine.graphs import Graphs
from gyrfalcon.request import Chunk, StepOutput


class TakeStep(Protocol):
    """EngineCore.step or Overlap.step."""

    def __call__(self, prompt_tokens: int, least_acceptance: float = NEVER) -> list[StepOutput]: ...


def stepper(core: EngineCore) -> TakeStep:
    """What takes the core's steps; on the CPU, which computes them itself, one after the other."""
    return core.step if core.device.on_host else Overlap(core).step


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A launched step, every chunk of which samples."""

    chunks: Seq[Chunk]
    found: Tensor  # on the device, see sampler.choose()
    result: Callable[[], Tensor]  # waits for the same on the host


class Overlap:
    """Takes a core's steps. The next one takes the tokens of the last where they are, on the
    device, and the host reads them while it runs:

        host    launch 1 | launch 2 | read 1 | launch 3 | read 2 | ...
        device           | 1        | 2                 | 3        ...

    Which sequences reach their longest length is known beforehand; one that a token ends is
    computed once more, for nothing. Where the host needs the tokens to go on, it reads them first.
    """

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._in_flight: _InFlight | None = None

    @torch.inference_mode()
    def step(self, prompt_tokens: int, least_acceptance: float = NEVER) -> list[StepOutput]:
        """Launches the next step, unless it needs the tokens of the one under way, as drafts do; returns
        what that gave.
        """
        if self._in_flight is None:
            return self._start(prompt_tokens, least_acceptance)
        following = self._follow(self._in_flight, least_acceptance)
        done, self._in_flight = self._in_flight, following
        return self._commit(done)

    def _start(self, prompt_tokens: int, least_acceptance: float) -> list[StepOutput]:
        """A step with none under way. One in whose tokens the host has a part ends here."""
        chunks = self._core.scheduler.next_chunks(prompt_tokens, least_acceptance)
        if not chunks:
            return []
        if not all(map(_needs_no_host, chunks)):
            return self._core.compute(chunks)
        self._in_flight = self._launch(chunks, Batch.build(chunks, self._core.pool.block_size))
        return []

    def _follow(self, in_flight: _InFlight, least_acceptance: float) -> _InFlight | None:
        """The step after one that is under way, with its tokens; None when they must be read first."""
        chunks = self._core.scheduler.next_after(in_flight.chunks, least_acceptance)
        if not chunks:
            return None
        going_on = {chunk.sequence for chunk in chunks}
        rows = [row for row, chunk in enumerate(in_flight.chunks) if chunk.sequence in going_on]
        token_ids = in_flight.found[0]
        if len(rows) < len(token_ids):
            token_ids = token_ids[send(torch.tensor(rows), token_ids.device)]
        runner, block_size = self._core.model_runner, self._core.pool.block_size
        same = len(chunks) == len(in_flight.chunks)
        if same and isinstance(runner, Graphs) and runner.can_follow(len(chunks)):
            return self._launch(chunks, Following(chunks, token_ids, block_size))
        batch = Batch.build(chunks, block_size)
        return self._launch(chunks, replace(batch, token_ids=token_ids))

    def _launch(self, chunks: Seq[Chunk], step: Batch | Following) -> _InFlight:
        found = self._found(chunks, step)
        return _InFlight(chunks, found, fetch(found, self._core.check))

    def _found(self, chunks: Seq[Chunk], step: Batch | Following) -> Tensor:
        runner, pool = self._core.model_runner, self._core.pool
        if not isinstance(runner, Graphs):
            assert isinstance(step, Batch)
            logits = runner(step, pool)
        elif sampler.all_greedy(chunks):
            return runner.greedy(step, pool)
        else:
            logits = runner(step, pool)
        return sampler.choose(logits, chunks, self._core.vocabulary)

    def _commit(self, in_flight: _InFlight) -> list[StepOutput]:
        """Commits a step's tokens; those of sequences that ended after it was launched are dropped."""
        alive = [
            row
            for row, chunk in enumerate(in_flight.chunks)
            if chunk.sequence.finish_reason is None
        ]
        chunks = [in_flight.chunks[row] for row in alive]
        results = sampler.read(in_flight.result()[:, alive], chunks)
        return self._core.scheduler.commit(chunks, results)


def _needs_no_host(chunk: Chunk) -> bool:
    """Whether the host has no part in choosing a token, nor in telling any log-probability."""
    request = chunk.request
    changed = request.changes_logits or request.constrained
    wanted = chunk.wants_every_row or request.wants_logprobs or chunk.draft
    return chunk.samples and not (changed or wanted)
