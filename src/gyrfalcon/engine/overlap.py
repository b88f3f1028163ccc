"""Lookahead: on an accelerator, a step is launched before the tokens of the step before it are read.

It knows neither how tokens are chosen nor how the model computes, only what has to wait for what.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.device import fetch, send
from gyrfalcon.engine import sampler
from gyrfalcon.engine.core import Replica
from gyrfalcon.request import Chunk, StepOutput


def stepper(replica: Replica) -> Callable[[], list[StepOutput]]:
    """What takes the replica's steps; on the CPU, which computes them itself, one after the other."""
    return replica.step if replica.device.type == "cpu" else Lookahead(replica).step


@dataclass(frozen=True, slots=True)
class _Flight:
    """A launched step, every chunk of which samples."""

    chunks: Seq[Chunk]
    found: Tensor  # on the device, see sampler.choose()
    landed: Callable[[], Tensor]  # waits for the same on the host


class Lookahead:
    """Takes a replica's steps. The next one takes the tokens of the last where they are, on the
    device, and the host reads them while it runs:

        host    launch 1 | launch 2 | read 1 | launch 3 | read 2 | ...
        device           | 1        | 2                 | 3        ...

    Which sequences reach their longest length is known beforehand; one that a token ends is
    computed once more, for nothing. Where the host needs the tokens to go on, it reads them first.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._flight: _Flight | None = None

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Launches the next step, unless it needs the tokens of the one under way; returns what that
        gave.
        """
        if self._flight is None:
            return self._start()
        landing, self._flight = self._flight, self._follow(self._flight)
        return self._settle(landing)

    def _start(self) -> list[StepOutput]:
        """A step with none under way. One in whose tokens the host has a part ends here."""
        chunks = self._replica.scheduler.next_chunks()
        if not all(map(_needs_no_host, chunks)):
            return self._replica.compute(chunks)
        self._flight = self._launch(chunks, Batch.build(chunks, self._replica.pool.block_size))
        return []

    def _follow(self, flight: _Flight) -> _Flight | None:
        """The step after one that is under way, with its tokens; None when they must be read first."""
        chunks = self._replica.scheduler.next_after(flight.chunks)
        if not chunks:
            return None
        going_on = {chunk.sequence for chunk in chunks}
        rows = [row for row, chunk in enumerate(flight.chunks) if chunk.sequence in going_on]
        token_ids = flight.found[0]
        if len(rows) < len(token_ids):
            token_ids = token_ids[send(torch.tensor(rows), token_ids.device)]
        batch = Batch.build(chunks, self._replica.pool.block_size)
        return self._launch(chunks, replace(batch, token_ids=token_ids))

    def _launch(self, chunks: Seq[Chunk], batch: Batch) -> _Flight:
        logits = self._replica.run(batch, self._replica.pool)
        found = sampler.choose(logits, chunks, self._replica.vocabulary)
        return _Flight(chunks, found, fetch(found))

    def _settle(self, flight: _Flight) -> list[StepOutput]:
        """Commits a step's tokens; those of sequences that ended after it was launched are dropped."""
        alive = [
            row for row, chunk in enumerate(flight.chunks) if chunk.sequence.finish_reason is None
        ]
        tokens = sampler.read(flight.landed()[:, alive])
        return self._replica.scheduler.commit([flight.chunks[row] for row in alive], tokens)


def _needs_no_host(chunk: Chunk) -> bool:
    return chunk.samples and not chunk.wants_every_row and not sampler.needs_host(chunk.params)
