"""Steps that only decode, as captured graphs.

A batch is padded with sequences that attend to nothing and are cached nowhere, or where no sequence is.
As long as the same sequences decode, their numbers are counted up where they are, on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.device.lookup import send
from gyrfalcon.device.protocol import Device, Replay
from gyrfalcon.engine.sampler import Choose
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.builder import Model
from gyrfalcon.request import Chunk

RUN = 2  # numbers of 8 bytes: kernels are compiled for runs that begin at multiples of 16
COLUMNS = ("token_ids", "positions", "rope_lengths", "slots", "contexts")  # one of each a sequence


@dataclass(frozen=True, slots=True)
class Following:
    """The step after one that a graph replayed: the next token of each of its sequences."""

    chunks: Sequence[Chunk]
    token_ids: Tensor  # int64 [sequences], on the device
    block_size: int


@dataclass(slots=True)
class DecodeGraph:
    """One size of batch: its numbers on the device, what replays it, and what the last replay gave."""

    device: Device
    numbers: "_Numbers"
    nowhere: Tensor  # int64 [sequences] on the host, the slots of those that only pad
    found: Tensor  # int64 [2, sequences], what is chosen
    replay: Replay
    num_sequences: int = 0  # of the last replay, as its logits
    logits: Tensor = field(init=False)

    @classmethod
    def of(
        cls,
        model: Model,
        pool: KVPool,
        size: int,
        max_len: int,
        device: Device,
        choose: Choose | None = None,
    ) -> "DecodeGraph":
        """Captures a step of `size` sequences of any length up to max_len, with what `choose` does."""
        num_blocks = -(-max_len // pool.block_size)
        length = len(COLUMNS) * _aligned(size) + size * num_blocks
        flat = torch.zeros(length, dtype=torch.int64, device=device.torch_device)
        nowhere = pool.padding_slots(size)
        numbers = _Numbers(flat, nowhere.to(flat.device))
        numbers.fill_up(0)
        batch = numbers.batch()
        found = flat.new_zeros(2, size)

        def step() -> Tensor:
            """With a batch of its own: operators keep for all layers what they made of one."""
            logits = model(replace(batch), pool)
            if choose is not None:
                found.copy_(choose(logits))
            return logits

        return cls(device, numbers, nowhere, found, device.capture(step))

    @property
    def chosen(self) -> Tensor:
        """What was chosen in the last replay, int64 [2, sequences]."""
        return self.found[:, : self.num_sequences]

    def run(self, batch: Batch) -> None:
        """Copies to the device, one launch."""
        num_sequences = len(batch.query_lens)
        on_device = self.numbers
        # Anew for each step: the copy for the one before may still have to be made.
        on_host = _Numbers(torch.zeros_like(on_device.flat, device="cpu"), self.nowhere)
        on_host.take(batch)
        on_host.fill_up(num_sequences)
        on_device.flat.copy_(self.device.pinned(on_host.flat), non_blocking=True)
        on_device.token_ids[:num_sequences].copy_(batch.token_ids, non_blocking=True)
        self._launch(batch.context_lens)

    def go_on(self, step: Following) -> None:
        """The same for the next token of each sequence; only new blocks come from the host."""
        self.numbers.count_up(step)
        self._launch([chunk.stop for chunk in step.chunks])

    def _launch(self, contexts: Sequence[int]) -> None:
        self.num_sequences = len(contexts)
        padding = (0,) * (len(self.nowhere) - self.num_sequences)
        self.logits = self.replay((*contexts, *padding))[: self.num_sequences]


def _aligned(size: int) -> int:
    return -(-size // RUN) * RUN


class _Numbers:
    """All numbers of a decoding batch in one tensor: a run for each of COLUMNS, then the block
    tables row by row. Kernels read each as a run of its own.
    """

    def __init__(self, flat: Tensor, nowhere: Tensor) -> None:
        size = len(nowhere)
        self.flat = flat  # int64
        self._nowhere = nowhere  # the slots of padding
        end = len(COLUMNS) * _aligned(size)
        self.columns = flat[:end].view(len(COLUMNS), -1)[:, :size]
        self.token_ids = self.columns[COLUMNS.index("token_ids")]
        self.slots = self.columns[COLUMNS.index("slots")]
        self.tables = flat[end:].view(size, -1)

    def take(self, batch: Batch) -> None:
        """Writes a batch's numbers to the first places, but for token_ids: the device may have them
        already, and the host not yet.
        """
        num_sequences, num_blocks = batch.block_tables.shape
        columns = [getattr(batch, name) for name in COLUMNS[1:]]
        torch.stack(columns, out=self.columns[1:, :num_sequences])
        self.tables[:num_sequences, :num_blocks] = batch.block_tables

    def count_up(self, step: Following) -> None:
        """The numbers of the step after: each sequence has a token more, in its last block."""
        self.columns[1:, : len(step.chunks)] += 1
        self.token_ids[: len(step.chunks)].copy_(step.token_ids)
        size = step.block_size
        new = [
            (row, chunk.start // size, chunk.sequence.blocks[-1])
            for row, chunk in enumerate(step.chunks)
            if chunk.start % size == 0
        ]
        if new:
            rows, places, blocks = send(torch.tensor(new), self.flat.device).T
            self.tables[rows, places] = blocks
            self.slots[rows] = blocks * size

    def fill_up(self, first: int) -> None:
        """Sequences from `first` on attend to nothing and are cached where no other is."""
        self.columns[:, first:] = 0
        self.slots[first:] = self._nowhere[first:]

    def batch(self) -> Batch:
        """The batch whose tensors these are. The host does not know its contexts: ()."""
        size = self.columns.shape[1]
        steps = torch.arange(size + 1, device=self.flat.device)
        return Batch(
            query_lens=(1,) * size,
            context_lens=(),
            block_tables=self.tables,
            starts=steps,
            rows=steps[:-1],
            **dict(zip(COLUMNS, self.columns, strict=True)),
        )
