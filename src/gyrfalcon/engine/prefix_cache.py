"""PrefixCache: what the KV cache holds of sequences' beginnings. Finds it, takes it over, and publishes what
is new, scores of prompts included. Pure bookkeeping over BlockAllocator, the same on every rank.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol

from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import Request, Sequence


class ScoreStore(Protocol):
    """Where a rank that serves a user holds the scores of prompts and of cache blocks."""

    def load(self, request: Request, blocks: Seq[int], num_tokens: int) -> None:
        """Takes over the scores of a prompt's first tokens from the blocks that hold them."""

    def store(self, request: Request, block: int, tokens: range) -> None:
        """Leaves the scores of some of a prompt's tokens with the block that begins with them."""


class PrefixCache:
    """The allocator as sequences see it."""

    def __init__(
        self,
        allocator: BlockAllocator,
        scores: ScoreStore | None,
        copy_block: Callable[[int, int], object] | None,
    ) -> None:
        self._allocator = allocator
        self._scores = scores  # every rank knows which blocks have some, not all hold them
        self._copy_block = copy_block  # from one to another, where there is a cache

    def known(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's beginning already, but never all of it: the last token has
        to be computed to know what follows. Where scores are wanted, blocks that have them, but never
        the last token that has one: the score of the next follows from it.
        """
        if not sequence.wants_every_row:
            return self._allocator.find(self.digests(sequence, len(sequence.tokens) - 1))
        blocks, num_scored = self._scored(sequence)
        return blocks[: max(0, num_scored - 1) // self._allocator.block_size]

    def missing(self, sequence: Sequence) -> list[bytes]:
        """Digests of blocks that the sequence would take over if they were there."""
        if sequence.wants_every_row and not sequence.shares_scores:
            return []
        num_found = len(self.known(sequence))
        if sequence.shares_scores:
            num_found = self._scored(sequence)[1] // self._allocator.block_size
        return self.digests(sequence, len(sequence.tokens) - 1)[num_found:]

    def uncomputed(self, sequence: Sequence) -> tuple[list[bytes], list[bytes]]:
        """Digests of the full blocks that an admitted sequence will compute, and of those whose tokens'
        scores it will.
        """
        digests = self.digests(sequence, len(sequence.tokens))
        blocks = digests[len(self._allocator.find(digests)) :]
        if not sequence.shares_scores:
            return blocks, []
        return blocks, digests[self._scored(sequence)[1] // self._allocator.block_size :]

    def take_over(self, sequence: Sequence) -> None:
        """Gives a waiting sequence what is known of its beginning, with the scores."""
        known = self.known(sequence)
        self._allocator.take(known)
        sequence.blocks.extend(known)
        sequence.num_shared = len(known)
        sequence.num_computed = len(known) * self._allocator.block_size
        if sequence.shares_scores:
            self._take_scores(sequence)  # before a block of them is given away

    def publish(self, sequence: Sequence) -> None:
        """Lets others find the full blocks of what was computed since the last time."""
        if not sequence.is_finite:
            return
        first = sequence.num_published
        digests = self.digests(sequence, sequence.num_computed)
        self._allocator.publish(sequence.blocks, digests, first)
        sequence.num_published = len(digests)
        if sequence.shares_scores:
            request = sequence.request
            own = (sequence.blocks, digests, request.prompt_ids[: sequence.num_computed])
            for block, tokens in self._allocator.add_scores(*own, request.cache_root, first):
                if self._scores is not None:
                    self._scores.store(request, block, tokens)

    def release(self, sequence: Sequence) -> None:
        """Frees the sequence's blocks; what they hold may serve others, or itself once more. All of it is
        published: another's block of the same tokens may be gone.
        """
        sequence.num_published = 0
        self.publish(sequence)
        self._allocator.release(sequence.blocks)
        sequence.num_published = 0

    def withdraw(self, sequence: Sequence) -> None:
        """Lets nobody find a block that the sequence computed: anew, all may be well. Those of others
        had finite logits behind them.
        """
        sequence.is_finite = False
        self._allocator.forget(sequence.blocks[sequence.num_shared :])

    def digests(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        """Those of the full blocks of its first tokens."""
        root = sequence.request.cache_root
        return self._allocator.digests(sequence.tokens, num_tokens, sequence.digests, root)

    def _scored(self, sequence: Sequence) -> tuple[list[int], int]:
        """Blocks that hold its beginning with scores, and how many of its tokens that is."""
        if not sequence.shares_scores:
            return [], 0
        digests = self.digests(sequence, sequence.prompt_len - 1)  # its output has no scores
        request = sequence.request
        return self._allocator.find_scored(digests, request.prompt_ids, request.cache_root)

    def _take_scores(self, sequence: Sequence) -> None:
        """Takes over the scores of its beginning, and a copy of the block with the last such token."""
        blocks, num_scored = self._scored(sequence)
        if self._scores is not None:
            self._scores.load(sequence.request, blocks, num_scored)
        num_shared, num_tokens = len(sequence.blocks), num_scored - 1
        if num_tokens > sequence.num_computed and self._allocator.grow(sequence.blocks, num_tokens):
            if self._copy_block is not None:
                self._copy_block(blocks[num_shared], sequence.blocks[num_shared])
            sequence.num_computed = num_tokens
