"""Short prompts as captured graphs: to launch their kernels one by one takes the host longer than it takes
the device to run them.

Such a step has the tokens of one prompt alone, padded to one of a few sizes. Those that only pad belong to a
second sequence, which attends to nothing and is cached nowhere.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata, Batch
from gyrfalcon.device.protocol import Device, Replay
from gyrfalcon.engine.sampler import Choose
from gyrfalcon.kv.pool import KVPool
from gyrfalcon.model.builder import Model

COLUMNS = ("token_ids", "positions", "rope_lengths", "slots")  # one of each a token


def is_prompt(batch: Batch) -> bool:
    """Whether a step is one prompt alone, of which the logits of the last token are wanted."""
    return len(batch.query_lens) == len(batch.rows) == 1 < len(batch.token_ids)


class _Numbers:
    """All numbers of such a step in one tensor, in runs that begin at multiples of 16 bytes."""

    def __init__(self, flat: Tensor, size: int) -> None:
        tokens, starts, contexts, rows, tables = flat.split(
            [len(COLUMNS) * size, 4, 2, 2, len(flat) - len(COLUMNS) * size - 8]
        )
        self.flat = flat  # int64
        self.columns = tokens.view(len(COLUMNS), size)
        self.starts, self.contexts, self.rows = starts[:3], contexts, rows[:1]
        self.tables = tables.view(2, -1)

    @staticmethod
    def length(size: int, num_blocks: int) -> int:
        return len(COLUMNS) * size + 8 + 2 * num_blocks

    def take(self, batch: Batch, padding: Tensor) -> None:
        """Writes a batch's numbers, on the host; `padding` are the slots of tokens that only pad."""
        num_tokens, [context] = len(batch.token_ids), batch.context_lens
        columns = [getattr(batch, name) for name in COLUMNS]
        torch.stack(columns, out=self.columns[:, :num_tokens])
        self.columns[COLUMNS.index("slots"), num_tokens:] = padding[num_tokens:]
        self.starts[1], self.starts[2] = num_tokens, len(padding)
        self.contexts[0] = context
        self.rows[0] = num_tokens - 1
        self.tables[:1, : batch.block_tables.shape[1]] = batch.block_tables

    def batch(self) -> Batch:
        """The batch whose tensors these are."""
        of_rows = AttentionMetadata(
            query_lens=(1,),
            context_lens=(),
            block_tables=self.tables[:1],
            starts=torch.arange(2, device=self.flat.device),
            contexts=self.contexts[:1],
        )
        return Batch(
            query_lens=(self.columns.shape[1], 0),
            context_lens=(),
            block_tables=self.tables,
            starts=self.starts,
            contexts=self.contexts,
            rows=self.rows,
            of_rows=of_rows,
            **dict(zip(COLUMNS, self.columns, strict=True)),
        )


@dataclass(slots=True)
class PromptGraph:
    """One size: its numbers on the device, and what replays it."""

    device: Device
    numbers: _Numbers
    padding: Tensor  # int64 [size] on the host
    chosen: Tensor  # int64 [2, 1], what is chosen
    replay: Replay
    logits: Tensor  # of the last replay, float32 [1, own tokens]

    @classmethod
    def of(
        cls, model: Model, pool: KVPool, size: int, max_len: int, device: Device, choose: Choose
    ) -> "PromptGraph":
        """Captures a step of `size` tokens of a sequence of any length up to max_len, and the choice."""
        num_blocks = -(-max_len // pool.block_size)
        length = _Numbers.length(size, num_blocks + num_blocks % 2)
        numbers = _Numbers(torch.zeros(length, dtype=torch.int64, device=device.torch_device), size)
        padding = pool.padding_slots(size)
        numbers.columns[COLUMNS.index("slots")] = padding.to(numbers.flat.device)
        numbers.starts[2] = size
        batch, chosen = numbers.batch(), numbers.flat.new_zeros(2, 1)

        def step() -> Tensor:
            logits = model(replace(batch), pool)
            chosen.copy_(choose(logits))
            return logits

        return cls(device, numbers, padding, chosen, device.capture(step), chosen)

    def run(self, batch: Batch) -> None:
        """A copy to the device, one launch."""
        size = len(self.padding)
        on_host = _Numbers(torch.zeros_like(self.numbers.flat, device="cpu"), size)
        on_host.take(batch, self.padding)
        self.numbers.flat.copy_(self.device.pinned(on_host.flat), non_blocking=True)
        self.logits = self.replay()
