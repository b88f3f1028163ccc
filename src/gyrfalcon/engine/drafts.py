"""Speculative decoding, on every rank alike: which tokens of which sequences are drafted, and which of those
are accepted. A draft token is accepted if it is the token that is picked in its place.
"""

from collections.abc import Sequence as Seq

from gyrfalcon.engine.prompt_lookup import PromptLookup
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import Chunk, ChunkResult, Sequence, Token

NEVER = 2.0  # no token is accepted with such a probability


class Drafts:
    """Drafts for the sequences of a scheduler, at most `most` tokens each, and how many there were."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lookups: dict[Sequence, PromptLookup] = {}
        self.num_drafts = 0
        self.num_tokens = 0
        self.num_accepted = 0

    def added_to(
        self, chunks: Seq[Chunk], most: int, least_acceptance: float, allocator: BlockAllocator
    ) -> list[Chunk]:
        """Chunks of sequences that decode, with drafts of at most this many tokens together, as far as cache
        is free: nobody is preempted for one. The blocks of what is refused stay, since the next tokens need
        them.
        """
        found = []
        for chunk in chunks:
            sequence, stop = chunk.sequence, chunk.stop
            draft = self.draft(sequence, least_acceptance)[:most]
            if draft and not allocator.grow(sequence.blocks, stop + len(draft)):
                draft = draft[: len(sequence.blocks) * allocator.block_size - stop]
            if draft:
                chunk = Chunk(sequence, chunk.start, stop + len(draft), draft)
            found.append(chunk)
            most -= len(draft)
            self.num_drafts += bool(draft)
            self.num_tokens += len(draft)
        return found

    def draft(self, sequence: Sequence, least_acceptance: float) -> list[int]:
        """Tokens that may follow, each accepted with at least such a probability."""
        if least_acceptance > 1 or not self._may_draft(sequence):
            return []
        return self._lookup(sequence).draft(self._room(sequence), least_acceptance)

    def any(self, chunks: Seq[Chunk], least_acceptance: float) -> bool:
        """Whether a token could be drafted for a sequence of these chunks."""
        return any(self.draft(one.sequence, least_acceptance) for one in chunks)

    def acceptance(self, sequence: Sequence) -> list[float]:
        """With which probability each token that may follow is accepted."""
        if not self._may_draft(sequence):
            return []
        return self._lookup(sequence).acceptance(self._room(sequence))

    def accept(self, sequence: Sequence) -> None:
        """Counts a draft token of a sequence that was the one picked."""
        sequence.num_accepted += 1
        self.num_accepted += 1

    def forget(self, sequence: Sequence) -> None:
        """Drops what is known of a sequence that has ended."""
        self._lookups.pop(sequence, None)

    def _may_draft(self, sequence: Sequence) -> bool:
        """Not where structured output says what may follow, nor for one that has ended."""
        return bool(self._most) and not (sequence.request.constrained or sequence.finish_reason)

    def _lookup(self, sequence: Sequence) -> PromptLookup:
        lookup = self._lookups.get(sequence)
        if lookup is None:
            lookup = PromptLookup(sequence.tokens, sequence.prompt_len)
            self._lookups[sequence] = lookup
        return lookup

    def _room(self, sequence: Sequence) -> int:
        """A step yields one token more than are accepted."""
        return min(self._most, sequence.max_len - len(sequence.tokens) - 1)


def unrolled(chunk: Chunk) -> list[Chunk]:
    """A chunk with a draft as chunks of one token, each after those before it."""
    first = chunk.stop - len(chunk.draft)
    return [
        Chunk(chunk.sequence, stop - 1, stop, chunk.draft[: stop - first])
        for stop in range(first, chunk.stop + 1)
    ]


def accepted(draft: Seq[int], results: Seq[ChunkResult]) -> list[ChunkResult]:
    """Of what the tokens of a chunk with this draft yield, as many as are what decoding one by one yields:
    the draft as far as it is right, and one more.
    """
    for place, (token_id, result) in enumerate(zip(draft, results, strict=False)):
        if not (isinstance(result, Token) and result.id == token_id):
            return list(results[: place + 1])
    return list(results)
