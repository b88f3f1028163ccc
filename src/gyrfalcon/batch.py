"""Batch: the tensors of one step, for all its sequences together. Built from chunks; knows nothing
of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gyrfalcon.device.lookup import send
from gyrfalcon.request import Chunk


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences lie one after the other along `tokens`; each brings the tokens it computes in this
    step.
    """

    query_lens: tuple[int, ...]  # [sequences], tokens each brings
    context_lens: tuple[int, ...]  # [sequences], what `contexts` holds
    token_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens], 0 at each sequence's first token
    rope_lengths: (
        Tensor  # int64 [tokens], the sequence length when computed, for dynamic rotary scaling
    )
    slots: (
        Tensor  # int64 [tokens], where keys and values go: block × block_size + place in the block
    )
    block_tables: Tensor  # int64 [sequences, most blocks], padded with 0
    starts: Tensor  # int64 [sequences + 1], where each sequence's tokens begin, and their end
    contexts: Tensor  # int64 [sequences], tokens each attends to, the new ones included
    rows: Tensor  # int64 [rows], the tokens whose logits are wanted

    @classmethod
    def build(cls, chunks: Sequence[Chunk], block_size: int) -> "Batch":
        """The tensors for `chunks`, on the host; the sequences already own the blocks for every
        token up to `stop`. Tokens that are not known yet are missing in token_ids.
        """
        query_lens = tuple(chunk.stop - chunk.start for chunk in chunks)
        context_lens = tuple(chunk.stop for chunk in chunks)
        parts = [_tensors(chunk, block_size) for chunk in chunks]
        token_ids, positions, rope_lengths, slots, rows = map(torch.cat, zip(*parts, strict=True))
        starts = torch.tensor([0, *accumulate(query_lens)])
        rows += starts[:-1].repeat_interleave(torch.tensor([len(chunk.rows) for chunk in chunks]))
        tables = [torch.tensor(chunk.sequence.blocks) for chunk in chunks]
        of_sequences = pad_sequence(tables, batch_first=True), starts, torch.tensor(context_lens)
        tensors = (token_ids, positions, rope_lengths, slots, *of_sequences, rows)
        return cls(query_lens, context_lens, *tensors)

    def on(self, device: torch.device) -> "Batch":
        """The same batch on a device; what is there already stays."""
        tensors = (getattr(self, field.name) for field in fields(self)[2:])
        return Batch(self.query_lens, self.context_lens, *(send(one, device) for one in tensors))


def _tensors(chunk: Chunk, block_size: int) -> tuple[Tensor, ...]:
    """One chunk's token ids, positions, rope lengths, slots, and wanted rows counted from its start."""
    sequence = chunk.sequence
    positions = torch.arange(chunk.start, chunk.stop)
    blocks = torch.tensor(sequence.blocks)[positions // block_size]
    return (
        torch.tensor(sequence.tokens[chunk.start : chunk.stop], dtype=torch.int64),
        positions,
        (positions + 1).clamp(min=sequence.prompt_len),
        blocks * block_size + positions % block_size,
        torch.arange(chunk.rows.start, chunk.rows.stop),
    )
