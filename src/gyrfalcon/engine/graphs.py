"""Decoding on an accelerator as captured graphs: a step is launched as one piece, not kernel by kernel.

A graph's shapes are fixed, so there is one for each of a few batch sizes; a batch is padded to the
next of them with sequences that attend to nothing and are cached nowhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gyrfalcon.batch import Batch
from gyrfalcon.device import capture, pinned
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.falcon import Falcon

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
NOWHERE = -1  # the slot of a token that is not cached
NUM_COLUMNS = 5  # of a packed row, before its block table: the fields of _pack


class Graphs:
    """Runs a model on an accelerator: decoding steps as graphs, all others kernel by kernel."""

    def __init__(
        self, model: Falcon, max_len: int, device: torch.device, capturable: bool = True
    ) -> None:
        self.model = model
        self.largest = SIZES[-1] if capturable else 0
        self.max_len = max_len
        self.device = device
        self._graphs: dict[int, _Graph] = {}

    def __call__(self, batch: Batch, pool: KVPool) -> Tensor:
        """As the model: logits float32 [rows, vocab]."""
        num_sequences = len(batch.query_lens)
        decoding = set(batch.query_lens) == {1} and len(batch.rows) == num_sequences
        if not decoding or num_sequences > self.largest:
            return self.model(batch.on(self.device), pool)
        size = next(size for size in SIZES if size >= num_sequences)
        if size not in self._graphs:
            self._graphs[size] = _Graph.of(self.model, pool, size, self.max_len, self.device)
        return self._graphs[size].run(batch)


@dataclass(frozen=True, slots=True)
class _Graph:
    """One size of batch: its numbers on the host and on the device, and what replays it."""

    packed: Tensor  # int64 [size, 5 + blocks], pinned
    on_device: Tensor  # the same
    replay: Callable[[], Tensor]

    @classmethod
    def of(
        cls, model: Falcon, pool: KVPool, size: int, max_len: int, device: torch.device
    ) -> "_Graph":
        """Captures a step of `size` sequences of any length up to max_len."""
        num_blocks = -(-max_len // pool.block_size)
        packed = pinned(torch.zeros(size, NUM_COLUMNS + num_blocks, dtype=torch.int64), device)
        packed[:, 3] = NOWHERE
        on_device = packed.to(device)
        batch = _unpack(on_device)
        return cls(packed, on_device, capture(lambda: model(batch, pool), device))

    def run(self, batch: Batch) -> Tensor:
        """One copy to the device, one launch; the logits of the batch's own rows."""
        num_sequences = len(batch.query_lens)
        _pack(batch, self.packed[:num_sequences])
        self.packed[num_sequences:].zero_()
        self.packed[num_sequences:, 3] = NOWHERE
        self.on_device.copy_(self.packed, non_blocking=True)
        return self.replay()[:num_sequences].clone()  # the next replay writes over them


def _pack(batch: Batch, into: Tensor) -> None:
    """A decoding batch as one table, a row for each sequence."""
    columns = (batch.token_ids, batch.positions, batch.rope_lengths, batch.slots, batch.contexts)
    torch.stack(columns, dim=1, out=into[:, :NUM_COLUMNS])
    table = batch.block_tables
    into[:, NUM_COLUMNS:].zero_()
    into[:, NUM_COLUMNS : NUM_COLUMNS + table.shape[1]] = table


def _unpack(packed: Tensor) -> Batch:
    """The batch whose tensors are views of a table. The host does not know its contexts: ()."""
    size = len(packed)
    token_ids, positions, rope_lengths, slots, contexts = packed[:, :NUM_COLUMNS].unbind(dim=1)
    steps = torch.arange(size + 1, device=packed.device)
    return Batch(
        query_lens=(1,) * size,
        context_lens=(),
        token_ids=token_ids,
        positions=positions,
        rope_lengths=rope_lengths,
        slots=slots,
        block_tables=packed[:, NUM_COLUMNS:],
        starts=steps,
        contexts=contexts,
        rows=steps[:-1],
    )
