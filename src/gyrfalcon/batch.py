"""Batch: the tensors of one step, for all its sequences together. Built from chunks; knows nothing
of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gyrfalcon.request import Chunk


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences lie one after the other along `tokens`; each brings the tokens it computes in this
    step.
    """

    token_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens], 0 at each sequence's first token
    rope_lengths: Tensor  # int64 [tokens], the sequence length when computed, for dynamic rotary scaling
    slots: (
        Tensor  # int64 [tokens], where keys and values go: block × block_size + place in the block
    )
    block_tables: Tensor  # int64 [sequences, most blocks], padded with 0
    query_lens: tuple[int, ...]  # [sequences], tokens each brings
    context_lens: tuple[int, ...]  # [sequences], tokens each attends to, the new ones included
    rows: Tensor  # int64 [rows], the tokens whose logits are wanted

    @classmethod
    def build(cls, chunks: Sequence[Chunk], block_size: int, device: torch.device) -> "Batch":
        """The tensors for `chunks`, whose sequences already own the blocks for every token up to
        `stop`.
        """
        starts = [0, *accumulate(chunk.stop - chunk.start for chunk in chunks)]
        tables = [torch.tensor(chunk.sequence.blocks) for chunk in chunks]

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).to(device, non_blocking=True)

        places = [torch.arange(chunk.start, chunk.stop) for chunk in chunks]
        return cls(
            token_ids=joined(
                [torch.tensor(chunk.sequence.tokens[chunk.start : chunk.stop]) for chunk in chunks]
            ),
            positions=joined(places),
            rope_lengths=joined(
                [
                    (at + 1).clamp(min=chunk.sequence.prompt_len)
                    for chunk, at in zip(chunks, places, strict=True)
                ]
            ),
            slots=joined(
                [
                    table[at // block_size] * block_size + at % block_size
                    for table, at in zip(tables, places, strict=True)
                ]
            ),
            block_tables=torch.nn.utils.rnn.pad_sequence(tables, batch_first=True).to(
                device, non_blocking=True
            ),
            query_lens=tuple(chunk.stop - chunk.start for chunk in chunks),
            context_lens=tuple(chunk.stop for chunk in chunks),
            rows=joined(
                [
                    torch.arange(start + chunk.rows.start, start + chunk.rows.stop)
                    for start, chunk in zip(starts, chunks, strict=False)
                ]
            ),
        )
