"""Batch: the tensors of one step, for all its sequences together. Built from chunks; knows nothing
of the model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gyrfalcon.device.lookup import send
from gyrfalcon.request import Chunk

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Queries that lie one after the other, sequence by sequence, and the cached context of each: a
    sequence's queries are its last tokens.
    """

    query_lens: tuple[int, ...]  # [sequences], queries of each
    context_lens: tuple[int, ...]  # [sequences], what `contexts` holds
    block_tables: Tensor  # int64 [sequences, most blocks], padded with 0
    starts: Tensor  # int64 [sequences + 1], where each sequence's queries begin, and their end
    contexts: Tensor  # int64 [sequences], tokens each attends to, the new ones included

    def on(self, device: torch.device) -> Self:
        """The same on a device; what is there already stays."""
        moved: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                moved[name] = send(value, device)
            elif isinstance(value, AttentionMetadata):
                moved[name] = value.on(device)
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Batch(AttentionMetadata):
    """Sequences lie one after the other along `tokens`; each brings the tokens it computes in this
    step.
    """

    token_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens], 0 at each sequence's first token
    rope_lengths: (
        Tensor  # int64 [tokens], the sequence length when computed, for dynamic rotary scaling
    )
    slots: (
        Tensor  # int64 [tokens], where keys and values go: block × block_size + place in the block
    )
    rows: Tensor  # int64 [rows], the tokens whose logits are wanted, each sequence's last ones
    # With `rows` as queries; None where they are all.
    of_rows: AttentionMetadata | None = field(default=None, kw_only=True)

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
        rows = np.flatnonzero(tokens >= first_rows[owners])  # to the end of each chunk
        ids = _numbers(chain.from_iterable(known))
        rope_lens = np.maximum(positions + 1, prompt_lens[owners])
        slots = tables[owners, blocks] * block_size + places
        arrays = tables, starts, contexts, ids, positions, rope_lens, slots, rows
        lens = tuple(query_lens.tolist()), tuple(contexts.tolist())
        batch = cls(*lens, *map(torch.from_numpy, arrays))
        return batch if len(rows) == len(tokens) else batch._with_rows(owners[rows])

    def _with_rows(self, owners: Numbers) -> "Batch":
        """With the metadata of its rows alone, given whose token each is."""
        lens = np.bincount(owners)  # each chunk has one at least
        starts = torch.from_numpy(np.concatenate(([0], lens.cumsum())))
        parts = self.context_lens, self.block_tables, starts, self.contexts
        return replace(self, of_rows=AttentionMetadata(tuple(lens.tolist()), *parts))


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, np.int64)


def _padded(tables: Sequence[Sequence[int]]) -> Numbers:
    """Tables of different lengths as the rows of one, int64 [tables, longest]."""
    lens = _numbers(map(len, tables))
    padded = np.zeros((len(tables), lens.max()), np.int64)
    padded[np.arange(lens.max()) < lens[:, None]] = _numbers(chain.from_iterable(tables))
    return padded
