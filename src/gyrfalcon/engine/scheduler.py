"""Who runs next: admits, batches, chunks, preempts and finishes sequences. Pure Python, the same on
every rank.
"""

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import filterfalse

from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import Chunk, FinishReason, Request, Sequence, StepOutput, Token


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one step and one sequence may take."""

    max_len: int  # tokens of a sequence, prompt and output
    max_batch_tokens: int  # tokens of a step
    max_sequences: int  # sequences that hold cache at once


class Scheduler:
    """First come, first served. Older sequences take cache from younger ones, which then start over
    later, so the oldest always goes on and every request ends."""

    def __init__(self, allocator: BlockAllocator, limits: StepLimits) -> None:
        self.allocator = allocator
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queues the request's samples."""
        for index in range(request.params.n):
            self.waiting.append(Sequence(request, index, list(request.prompt_ids)))

    def end(self, request_id: int, index: int | None = None) -> None:
        """Cancels one sample of a request, or all of them, as far as they are still there."""

        def is_meant(sequence: Sequence) -> bool:
            return sequence.request.id == request_id and index in (None, sequence.index)

        ended = list(filter(is_meant, self.running))
        self.running = list(filterfalse(is_meant, self.running))
        if index is None or not ended:
            ended += filter(is_meant, self.waiting)
            self.waiting = deque(filterfalse(is_meant, self.waiting))
        for sequence in ended:
            sequence.finish_reason = FinishReason.ABORTED
            self._release(sequence)

    def next_chunks(self) -> list[Chunk]:
        """What the next step computes: running sequences first, then waiting ones as they fit."""
        chunks: list[Chunk] = []
        budget = self.limits.max_batch_tokens
        for sequence in tuple(self.running):
            if budget and self._make_room(sequence, budget):
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].stop - chunks[-1].start
        while budget and self.waiting and self._can_admit():
            self._admit()
            chunks.append(self._chunk(self.running[-1], budget))
            self.allocator.grow(self.running[-1].blocks, chunks[-1].stop)
            budget -= chunks[-1].stop - chunks[-1].start
        return chunks

    def next_after(self, chunks: Seq[Chunk]) -> list[Chunk]:
        """What follows on `chunks`, which all sample, while their tokens are not known: one token
        more of each sequence that will not have reached its longest length.

        Empty where more has to be decided: another could run as well, or cache is missing.
        """
        if self.waiting and self._can_admit():
            return []
        following = [
            Chunk(chunk.sequence, chunk.stop, chunk.stop + 1)
            for chunk in chunks
            if chunk.sequence.finish_reason is None
            and chunk.stop + 1 < self._longest(chunk.sequence)
        ]
        grown = all(self.allocator.grow(one.sequence.blocks, one.stop) for one in following)
        return following if grown else []

    def commit(self, chunks: Seq[Chunk], tokens: Seq[Token | None]) -> list[StepOutput]:
        """Takes in a step's result, one token (or None) per chunk; returns what it gave to whom."""
        outputs = []
        for chunk, token in zip(chunks, tokens, strict=True):
            sequence = chunk.sequence
            reached_end = chunk.stop == len(sequence.tokens)
            sequence.num_computed = chunk.stop
            if chunk.stop - chunk.start > 1:
                self.allocator.publish(sequence.blocks, sequence.tokens[: chunk.stop])
            if token is not None:
                sequence.tokens.append(token.id)
            if not reached_end:
                continue
            reason = self._ending(sequence, token)
            if reason is not None:
                self._finish(sequence, reason)
            outputs.append(StepOutput(sequence.request.id, sequence.index, token, reason))
        return outputs

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        """The sequence's next uncomputed tokens, at most `budget`."""
        start = sequence.num_computed
        stop = min(len(sequence.tokens), start + budget)
        one_by_one = sequence.prompt_len - sequence.request.single_steps
        if start < one_by_one:
            stop = min(stop, one_by_one)
        elif start < sequence.prompt_len:
            stop = start + 1
        return Chunk(sequence, start, stop)

    def _make_room(self, sequence: Sequence, budget: int) -> bool:
        """Gets the blocks for the sequence's next chunk, from the youngest if need be; False if it
        is the youngest.
        """
        while sequence in self.running:
            if self.allocator.grow(sequence.blocks, self._chunk(sequence, budget).stop):
                return True
            self._preempt(self.running[-1])
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)

    def _can_admit(self) -> bool:
        """Whether one more may run and the cache has room for all tokens of the first waiting
        sequence and one more.
        """
        if len(self.running) == self.limits.max_sequences:
            return False
        sequence = self.waiting[0]
        known = self._known(sequence)
        blocks = self.allocator.blocks_for(min(len(sequence.tokens) + 1, self.limits.max_len))
        available = self.allocator.num_free - self.allocator.num_unused(known)
        return available >= blocks - len(known)

    def _admit(self) -> None:
        """Moves the first waiting sequence to the running ones, with what is known of its cache."""
        sequence = self.waiting.popleft()
        known = self._known(sequence)
        self.allocator.take(known)
        sequence.blocks.extend(known)
        sequence.num_computed = len(known) * self.allocator.block_size
        self.running.append(sequence)

    def _known(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's beginning already."""
        return [] if sequence.wants_every_row else self.allocator.find(sequence.tokens)

    def _ending(self, sequence: Sequence, token: Token | None) -> FinishReason | None:
        if token is not None and token.id in sequence.request.end_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(sequence.tokens) >= self._longest(sequence) else None

    def _longest(self, sequence: Sequence) -> int:
        """The tokens at which the sequence ends at the latest."""
        wanted = sequence.prompt_len + sequence.request.params.max_new_tokens
        return min(wanted, self.limits.max_len)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        self._release(sequence)
        self.running.remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Gives the sequence's blocks back; what they hold may serve others, or itself once more."""
        self.allocator.publish(sequence.blocks, sequence.tokens[: sequence.num_computed])
        self.allocator.release(sequence.blocks)
