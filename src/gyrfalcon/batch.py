"""Batch: the tensors of one step, for all its sequences together. Built from chunks; knows nothing
of the model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gyrfalcon.device.lookup import send
from gyrfalcon.request import Chunk

Numbers = NDArray[np.int64]


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

        In numpy and for all chunks at once: a call of torch's for each would cost more than small
        models take.
        """
        sequences = [chunk.sequence for chunk in chunks]
        firsts = _numbers(chunk.start for chunk in chunks)
        contexts = _numbers(chunk.stop for chunk in chunks)
        query_lens = contexts - firsts
        starts = np.concatenate(([0], query_lens.cumsum()))
        owners = np.arange(len(chunks)).repeat(query_lens)  # [tokens], whose token it is
        tokens = np.arange(len(owners))
        positions = tokens - (starts[:-1] - firsts)[owners]
        tables = _padded([sequence.blocks for sequence in sequences])
        blocks, places = np.divmod(positions, block_size)
        prompt_lens = _numbers(sequence.prompt_len for sequence in sequences)
        first_rows = starts[:-1] + _numbers(chunk.rows.start for chunk in chunks)
        known = (chunk.sequence.tokens[chunk.start : chunk.stop] + chunk.draft for chunk in chunks)
        arrays = (
            _numbers(chain.from_iterable(known)),
            positions,
            np.maximum(positions + 1, prompt_lens[owners]),
            tables[owners, blocks] * block_size + places,
            tables,
            starts,
            contexts,
            np.flatnonzero(tokens >= first_rows[owners]),  # to the end of each chunk
        )
        lens = tuple(query_lens.tolist()), tuple(contexts.tolist())
        return cls(*lens, *map(torch.from_numpy, arrays))

    def on(self, device: torch.device) -> "Batch":
        """The same batch on a device; what is there already stays."""
        tensors = (getattr(self, field.name) for field in fields(self)[2:])
        return Batch(self.query_lens, self.context_lens, *(send(one, device) for one in tensors))


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, np.int64)


def _padded(tables: Sequence[Sequence[int]]) -> Numbers:
    """Tables of different lengths as the rows of one, int64 [tables, longest]."""
    lens = _numbers(map(len, tables))
    padded = np.zeros((len(tables), lens.max()), np.int64)
    padded[np.arange(lens.max()) < lens[:, None]] = _numbers(chain.from_iterable(tables))
    return padded
