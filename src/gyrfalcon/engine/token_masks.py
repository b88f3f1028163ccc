"""Token masks: which tokens structured output allows in a step. Rank 0 has the matchers, one for each
sample; every rank gets its part of the masks.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from gyrfalcon.device.lookup import send
from gyrfalcon.parallel.group import Vocabulary
from gyrfalcon.request import Chunk, ChunkResult, NoneAllowed, Sequence
from gyrfalcon.text.grammar import Matcher, masks


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """Those of this rank's tokens that may follow, in the rows that are constrained."""

    rows: list[int]
    mask: Tensor  # bool [rows, own tokens], on the host

    def applied_to(self, logits: Tensor) -> Tensor:
        """The logits [all rows, own tokens], in place: -inf where a token may not follow. Those that are
        not finite stay: they tell that the model failed.
        """
        rows = send(torch.tensor(self.rows), logits.device)
        mask, own = send(self.mask, logits.device), logits[rows]
        logits[rows] = own.masked_fill(~mask & own.isfinite(), -math.inf)
        return logits


@dataclass(frozen=True, slots=True)
class _Samples:
    """A request's matcher at the beginning, and those of its samples."""

    first: Matcher
    running: dict[int, Matcher] = field(default_factory=dict)


class TokenMasks:
    """Makes the masks of steps, for one rank."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._samples: dict[int, _Samples] = {}

    def add(self, request_id: int, matcher: Matcher) -> None:
        """Takes in the matcher of a request, on rank 0."""
        self._samples[request_id] = _Samples(matcher)

    def forget(self, request_id: int) -> None:
        """Drops the matchers of a request that has ended."""
        self._samples.pop(request_id, None)

    def explained(self, chunks: Seq[Chunk], results: Seq[ChunkResult]) -> list[ChunkResult]:
        """What chunks yield, on rank 0 with what the library says where it allows no token."""
        explained = list(results)
        for place, (chunk, result) in enumerate(zip(chunks, results, strict=True)):
            samples = self._samples.get(chunk.request.id)
            if isinstance(result, NoneAllowed) and samples is not None:
                error = samples.running[chunk.sequence.index].error
                explained[place] = result if error is None else replace(result, why=error)
        return explained

    def of(self, chunks: Seq[Chunk]) -> AllowedTokens | None:
        """What may follow in chunks that sample: rank 0 computes it and tells the others. No token
        may where a matcher has an error. None where no chunk is constrained: nothing is sent then.
        """
        rows = [
            row for row, chunk in enumerate(chunks) if chunk.request.constrained and chunk.samples
        ]
        if not rows:
            return None
        group = self._vocabulary.group
        bits = b""
        if group.rank == 0:
            bits = self._bits([chunks[row].sequence for row in rows]).tobytes()
        packed = numpy.frombuffer(group.broadcast(bits), numpy.uint8).reshape(len(rows), -1)
        start = sum(self._vocabulary.widths[: group.rank])
        stop = start + self._vocabulary.widths[group.rank]
        own = packed[:, start // 8 : -(-stop // 8)]
        flags = numpy.unpackbits(own, axis=1, bitorder="little")[:, start % 8 :]
        mask = torch.from_numpy(flags[:, : stop - start].astype(numpy.bool_))
        return AllowedTokens(rows, mask)

    def _bits(self, sequences: Seq[Sequence]) -> NDArray[numpy.uint8]:
        """[sequences, bytes], one bit for each token of the vocabulary."""
        may_end, bits = masks([self._at(one) for one in sequences], self._vocabulary.size)
        for row, sequence in enumerate(sequences):
            for end in sequence.request.end_ids if may_end[row] else ():
                bits[row, end // 8] |= 1 << end % 8
        return bits

    def _at(self, sequence: Sequence) -> Matcher:
        """The sample's matcher behind its last token; a preempted one kept it."""
        samples = self._samples[sequence.request.id]
        matcher = samples.running.get(sequence.index)
        if matcher is None:
            matcher = samples.running[sequence.index] = samples.first.copy()
        new = sequence.tokens[sequence.prompt_len + matcher.num_taken :]
        if new:
            matcher.take(new)
        return matcher
