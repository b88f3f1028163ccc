"""Attention on Ascend cards by npu_fused_infer_attention_score, over the paged cache as it is stored.

Its limits, of torch_npu's documents: at most 64 query heads a KV head; lengths are lists on the host; pages
hold 128, 256, 384 or 512 tokens; a bias (pse_shift) is added after the scale. Which layouts it takes for a
head size depends on the CANN that is installed: choice.py asks it. In a captured graph its lengths come with
each replay (device/npu_graphs.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.device.lookup import send
from gyrfalcon.device.npu_graphs import GraphTasks
from gyrfalcon.device.protocol import CannotCapture
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference

MOST_HEADS = 64  # of queries, that share a KV head
MASK_SIZE = 2048  # of the fixed mask that sparse_mode 3 wants, whatever the lengths
CAUSAL = 3  # sparse_mode: a query sees the keys up to its own, counted from the last

# q [tokens, heads, head_dim], the layer's cache, the step, ALiBi's slopes → [tokens, heads, head_dim].
Attend = Callable[[Tensor, LayerCache, "Step", Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """Metadata as the operator takes it."""

    batch: AttentionMetadata
    tables: Tensor  # int32 [sequences, most blocks]

    @classmethod
    def of(cls, batch: AttentionMetadata) -> "Step":
        """Converted once for all layers."""
        return cls(batch, batch.block_tables.int())

    @property
    def contexts(self) -> list[int]:
        """The tokens that each sequence attends to; 1 in a graph, which gets them with each replay."""
        return list(self.batch.context_lens) or [1] * len(self.batch.query_lens)


class Kernel:
    """The operator, and the mask that it wants."""

    def __init__(self, torch_npu: Any, device: torch.device, tasks: GraphTasks) -> None:
        self._torch_npu = torch_npu
        self._attend = torch_npu.npu_fused_infer_attention_score
        self._tasks = tasks
        self._workspaces: dict[tuple[torch.Size, torch.Size], Tensor] = {}
        ones = torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.bool, device=device)
        self._mask = ones.triu(1)

    def packed(self, q: Tensor, cache: LayerCache, step: Step, slopes: Tensor | None) -> Tensor:
        """All sequences in one call, one after the other (TND). It takes no bias."""
        assert slopes is None
        parts, spread = _spread(q, cache.k.shape[2])
        ends = list(accumulate(step.batch.query_lens))
        out = self._call(
            spread,
            cache,
            step.tables,
            step.contexts,
            parts,
            input_layout="TND",
            num_heads=spread.shape[1],
            sparse_mode=CAUSAL,
            atten_mask=self._mask,
            actual_seq_lengths=[part * len(q) + end for part in range(parts) for end in ends],
        )
        return _gathered(out, parts, cache.k.shape[2], q.shape)

    def by_sequence(
        self, q: Tensor, cache: LayerCache, step: Step, slopes: Tensor | None
    ) -> Tensor:
        """Sequences with one new token in one call (BSH), each of the others in its own (BNSD)."""
        lens, contexts = step.batch.query_lens, step.contexts
        single = [place for place, length in enumerate(lens) if length == 1]
        if len(single) == len(lens):
            return self._decode(q, cache, step.tables, contexts, slopes)
        out = torch.empty_like(q)
        starts = list(accumulate(lens, initial=0))
        if single:
            rows = send(torch.tensor([starts[place] for place in single]), q.device)
            tables = step.tables[send(torch.tensor(single), q.device)]
            lengths = [contexts[place] for place in single]
            out[rows] = self._decode(q[rows], cache, tables, lengths, slopes)
        for place, length in enumerate(lens):
            if length > 1:
                new = slice(starts[place], starts[place + 1])
                table = step.tables[place : place + 1]
                out[new] = self._prefill(q[new], cache, table, contexts[place], slopes)
        return out

    def _decode(
        self,
        q: Tensor,
        cache: LayerCache,
        tables: Tensor,
        contexts: list[int],
        slopes: Tensor | None,
    ) -> Tensor:
        """One query of each sequence."""
        places = tables.shape[1] * cache.k.shape[1]
        parts, spread = _spread(q, cache.k.shape[2])
        bias = None
        if slopes is not None:
            of_parts = _bias(q, cache.k.shape[2], places, slopes)
            bias = of_parts if parts == 1 else of_parts.repeat_interleave(len(q), dim=0)
        out = self._call(
            spread.flatten(1)[:, None],
            cache,
            tables,
            contexts,
            parts,
            input_layout="BSH",
            num_heads=spread.shape[1],
            pse_shift=bias,
        )
        return _gathered(out.view(spread.shape), parts, cache.k.shape[2], q.shape)

    def _prefill(
        self, q: Tensor, cache: LayerCache, table: Tensor, context: int, slopes: Tensor | None
    ) -> Tensor:
        """All queries of one sequence."""
        parts, spread = _spread(q, cache.k.shape[2])
        heads, dim = spread.shape[1:]
        rows = spread.view(parts, len(q), heads, dim).transpose(1, 2).contiguous()
        bias = None
        if slopes is not None:
            places = table.shape[1] * cache.k.shape[1]
            of_parts = _bias(q, cache.k.shape[2], places, slopes)
            bias = of_parts.expand(-1, -1, len(q), -1).contiguous()
        out = self._call(
            rows,
            cache,
            table,
            [context],
            parts,
            input_layout="BNSD",
            num_heads=heads,
            sparse_mode=CAUSAL,
            atten_mask=self._mask,
            pse_shift=bias,
        )
        return _gathered(
            out.transpose(1, 2).reshape(spread.shape), parts, cache.k.shape[2], q.shape
        )

    def _call(
        self,
        q: Tensor,
        cache: LayerCache,
        tables: Tensor,
        contexts: list[int],
        parts: int,
        **others: Any,
    ) -> Tensor:
        """The operator, on pages [blocks, block_size, kv_heads × head_dim]; each sequence `parts` times."""
        block_size, kv_heads, dim = cache.k.shape[1:]
        tensors = (q, cache.k.flatten(2), cache.v.flatten(2))
        others |= {
            "block_table": tables.repeat(parts, 1),
            "block_size": block_size,
            "num_key_value_heads": kv_heads,
            "scale": dim**-0.5,
        }
        if self._tasks.is_warming_up:
            longest = [tables.shape[1] * block_size] * (len(contexts) * parts)
            self._reserve(tensors, others | {"actual_seq_lengths_kv": longest})
        if self._tasks.is_capturing:
            return self._captured(tensors, contexts, parts, others)
        lengths = contexts * parts
        out: Tensor = self._attend(*tensors, actual_seq_lengths_kv=lengths, **others)[0]
        return out

    def _reserve(self, tensors: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        """The memory that the operator works in, for one shape and the longest sequences: of all graphs,
        which run one after the other.
        """
        key = (tensors[0].shape, named["block_table"].shape)
        if key in self._workspaces:
            return
        ask = self._torch_npu._npu_fused_infer_attention_score_get_max_workspace
        try:
            self._workspaces[key] = ask(*tensors, **named)
        except (OSError, RuntimeError) as error:
            raise CannotCapture(" ".join(str(error).split())[:200]) from error

    def _captured(
        self, tensors: tuple[Tensor, ...], contexts: list[int], parts: int, named: dict[str, Any]
    ) -> Tensor:
        """Part of a graph, each replay of which brings lengths. A sequence that pads has one key."""
        q = tensors[0]
        workspace = self._workspaces[(q.shape, named["block_table"].shape)]
        out = [torch.empty_like(q), q.new_empty(1)]

        def issue(contexts: Sequence[int]) -> None:
            lengths = [max(1, context) for context in contexts] * parts
            self._attend.out(
                *tensors, actual_seq_lengths_kv=lengths, workspace=workspace, out=out, **named
            )

        self._tasks.add(issue, contexts)
        return out[0]


def _spread(q: Tensor, kv_heads: int) -> tuple[int, Tensor]:
    """Where more query heads share a KV head than the operator takes (7b on one card: 71), they become
    those of several sequences with the same keys: [tokens, heads, dim] → parts, and [parts × tokens,
    kv_heads × heads of a part, dim], the last part filled up with zeros.
    """
    tokens, heads, dim = q.shape
    group = heads // kv_heads
    parts = -(-group // MOST_HEADS)
    if parts == 1:
        return 1, q.contiguous()
    own = -(-group // parts)
    padding = (0, 0, 0, parts * own - group)
    padded = torch.nn.functional.pad(q.view(tokens, kv_heads, group, dim), padding)
    of_parts = padded.view(tokens, kv_heads, parts, own, dim).permute(2, 0, 1, 3, 4)
    return parts, of_parts.reshape(parts * tokens, kv_heads * own, dim)


def _gathered(out: Tensor, parts: int, kv_heads: int, shape: torch.Size) -> Tensor:
    """What _spread() took apart, in q's shape again."""
    if parts == 1:
        return out.view(shape)
    tokens, heads, dim = shape
    of_parts = out.view(parts, tokens, kv_heads, -1, dim).permute(1, 2, 0, 3, 4).flatten(2, 3)
    return of_parts[:, :, : heads // kv_heads].reshape(shape)


def _bias(q: Tensor, kv_heads: int, places: int, slopes: Tensor) -> Tensor:
    """ALiBi for every place of the longest table's pages in q's dtype, [parts, heads, 1, places] for the
    heads of each part. Falcon adds it before the scores are scaled, the operator after: so it is divided
    by √d.
    """
    parts, of_parts = _spread(slopes[None, :, None], kv_heads)
    positions = torch.arange(places, device=q.device)
    bias = reference.alibi_bias(of_parts.flatten(), positions) / math.sqrt(q.shape[-1])
    return bias.view(parts, -1, 1, places).to(q.dtype)
