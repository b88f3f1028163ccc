"""Who runs next: admits, batches, chunks, preempts and finishes sequences. Pure Python, the same on
every rank.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from gyrfalcon.engine.drafts import NEVER, Drafts, unrolled
from gyrfalcon.engine.prefixes import PrefixesInProgress
from gyrfalcon.engine.prompt_queue import PromptQueue, Turn
from gyrfalcon.engine.waiting import Waiting
from gyrfalcon.errors import GyrfalconError
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import (
    Chunk,
    ChunkResult,
    EngineStats,
    FinishReason,
    NoneAllowed,
    NonFinite,
    Request,
    Sequence,
    StepOutput,
    Token,
)


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one step and one sequence may take."""

    max_len: int  # tokens of a sequence, prompt and output
    max_batch_tokens: int  # tokens of a step
    max_sequences: int  # sequences that hold cache at once
    most_overtaken: int = 16  # sequences that may overtake an older one before its prefill ends


class ScoreStore(Protocol):
    """Where a rank that serves a user holds the scores of prompts and of cache blocks."""

    def load(self, request: Request, blocks: Seq[int], num_tokens: int) -> None:
        """Takes over the scores of a prompt's first tokens from the blocks that hold them."""

    def store(self, request: Request, block: int, tokens: range) -> None:
        """Leaves the scores of some of a prompt's tokens with the block that begins with them."""


class Scheduler:
    """Decoding first: what a step has left goes to prompts, in the order of PromptQueue. Sequences take cache
    from those of a higher priority value, then from younger ones, which start over; so the first of all
    always goes on, and every request ends.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        limits: StepLimits,
        scores: ScoreStore | None = None,
        copy_block: Callable[[int, int], object] | None = None,
        drafts: Drafts | None = None,
    ) -> None:
        self.allocator = allocator
        self.limits = limits
        self._drafts = drafts or Drafts(most=0)
        self._scores = scores  # every rank knows which blocks have some, not all hold them
        self._copy_block = copy_block  # from one to another, where there is a cache
        self.waiting = Waiting()
        self.running: dict[Sequence, None] = {}  # by priority, then oldest first
        self.admitted: list[Sequence] = []  # those that the last step was the first to compute
        self._committed: Seq[Chunk] = ()  # what the last step computed
        self._prefilling: dict[Sequence, None] = {}  # running ones that do not decode yet
        self._queue = PromptQueue(limits.most_overtaken)
        self._prefixes = PrefixesInProgress()
        self._num_arrived = 0
        self._samples: dict[int, dict[int, Sequence]] = {}  # of requests by id, by index
        self._num_prompt_tokens = 0  # of sequences that were admitted
        self._num_cached_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting.num_sequences or self.running)

    @property
    def has_prompts(self) -> bool:
        """Whether a prompt waits or is partially prefilled."""
        return bool(self._prefilling or self.waiting.num_sequences)

    @property
    def num_decoding(self) -> int:
        """Running sequences whose prefill has ended."""
        return len(self.running) - len(self._prefilling)

    def add(self, request: Request) -> None:
        """Queues the request's samples."""
        wanted = len(request.prompt_ids) + request.params.max_new_tokens
        max_len = min(wanted, self.limits.max_len)
        digests: list[bytes] = []  # every sample's prompt has the same
        samples: dict[int, Sequence] = {}
        for index in range(request.params.n):
            tokens = list(request.prompt_ids)
            sample = Sequence(request, index, tokens, max_len, self._num_arrived)
            sample.digests = list(digests)
            digests = self._digests(sample, len(tokens) - 1)
            self._num_arrived += 1
            self._queue.add(sample, self._remainder(sample))
            self.waiting.add(sample)
            samples[index] = sample
        self._samples[request.id] = samples

    def end(self, request_id: int, index: int | None = None) -> list[StepOutput]:
        """Cancels one sample of a request, or all of them, as far as they are still there; returns the
        last output of each.
        """
        samples = self._samples.get(request_id, {})
        ended = [samples[one] for one in tuple(samples) if index in (None, one)]
        for sample in ended:
            self._finish(sample, FinishReason.ABORTED)
        return [_output(sample, None) for sample in ended]

    def committed_sizes(self) -> tuple[int, int]:
        """Of what the last step computed: tokens of prompts, and of sequences that decoded, drafts
        included.
        """
        prompts = [
            one.stop - one.start
            for one in self._committed
            if one.start < one.sequence.prompt_len or one.stop > one.start + 1 + len(one.draft)
        ]
        return sum(prompts), len(self._committed) - len(prompts) + self.num_drafted

    @property
    def num_drafted(self) -> int:
        """Draft tokens that the last step computed."""
        return sum(len(one.draft) for one in self._committed)

    def acceptance(self) -> list[float]:
        """The probability of being accepted of each token that the next step could draft."""
        if self._prefilling:
            return []
        return [one for sequence in self.running for one in self._drafts.acceptance(sequence)]

    def stats(self) -> EngineStats:
        """What it holds now and has reused so far."""
        return EngineStats(
            num_waiting=self.waiting.num_sequences,
            num_running=len(self.running),
            num_used_blocks=self.allocator.num_blocks - self.allocator.num_free,
            num_blocks=self.allocator.num_blocks,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_waiting_requests=self.waiting.num_requests,
            num_waiting_tokens=self.waiting.num_tokens,
            num_drafts=self._drafts.num_drafts,
            num_draft_tokens=self._drafts.num_tokens,
            num_accepted_tokens=self._drafts.num_accepted,
        )

    def prompt_progress(self) -> list[tuple[int, int]]:
        """Of each prompt that is being prefilled: its tokens in the cache, and all of them."""
        prefilling = tuple(self._prefilling)  # at once: another thread may ask
        return [(sequence.num_computed, len(sequence.tokens)) for sequence in prefilling]

    def next_chunks(self, prompt_tokens: int, least_acceptance: float = NEVER) -> list[Chunk]:
        """What the next step computes: a token of each sequence that decodes, and at most `prompt_tokens`
        of prompts; where there are none, draft tokens that are accepted with at least such a probability.
        """
        chunks: list[Chunk] = []
        self.admitted, self._committed = [], ()
        for sequence in tuple(self.running):
            stop = len(sequence.tokens)
            if sequence not in self._prefilling and self._make_room(sequence, stop):
                chunks.append(Chunk(sequence, sequence.num_computed, stop))
        prompts, left = list[Chunk](), self.limits.max_batch_tokens - len(chunks)
        if self._prefilling or self.waiting.num_sequences:
            prompts = self._prefill(min(left, prompt_tokens))
        if prompts or least_acceptance > 1:
            return chunks + prompts
        return self._drafts.added_to(chunks, left, least_acceptance, self.allocator)

    def next_after(self, chunks: Seq[Chunk], least_acceptance: float = NEVER) -> list[Chunk]:
        """What follows on `chunks`, which all sample, while their tokens are not known: one token
        more of each sequence that will not have reached its longest length.

        Empty where more has to be decided: another could run as well, tokens could be drafted, or cache is
        missing.
        """
        self.admitted, self._committed = [], ()
        if self._prefilling or (self.waiting.num_sequences and self._another_could_run()):
            return []
        if least_acceptance <= 1 and self._drafts.any(chunks, least_acceptance):
            return []
        following = [
            Chunk(chunk.sequence, chunk.stop, chunk.stop + 1)
            for chunk in chunks
            if chunk.sequence.finish_reason is None and chunk.stop + 1 < chunk.sequence.max_len
        ]
        grown = all(self.allocator.grow(one.sequence.blocks, one.stop) for one in following)
        return following if grown else []

    def commit_drafts(self, chunks: Seq[Chunk], results: Seq[Seq[ChunkResult]]) -> list[StepOutput]:
        """Takes in a step with drafts: of each chunk what it yielded for the tokens that were accepted, as
        if these had come one by one.
        """
        each = [
            zip(unrolled(one), own, strict=False) for one, own in zip(chunks, results, strict=True)
        ]
        outputs = self.commit(*zip(*chain(*each), strict=True))
        self._committed = chunks
        return outputs

    def commit(self, chunks: Seq[Chunk], results: Seq[ChunkResult]) -> list[StepOutput]:
        """Takes in what a step yielded for each chunk; returns one output per sequence that got a
        token or ended. A failure ends its own sequence, unless its logits are what is asked for.
        """
        outputs = []
        self._committed = chunks
        for chunk, token in zip(chunks, results, strict=True):
            sequence = chunk.sequence
            if sequence.finish_reason is not None:  # before its draft did
                continue
            if chunk.draft:
                self._drafts.accept(sequence)
            if isinstance(token, NonFinite):
                self._withdraw(sequence)
            if isinstance(token, NonFinite | NoneAllowed):
                if not sequence.request.keep_logits:
                    self._finish(sequence, FinishReason.ERROR)
                    outputs.append(_output(sequence, None, token.failure(sequence)))
                    continue
                token = None
            reached_end = chunk.stop == len(sequence.tokens)
            sequence.num_computed = chunk.stop
            size = self.allocator.block_size
            if chunk.start // size < chunk.stop // size <= len(sequence.digests):
                self._publish(sequence)
                self._wake(sequence, chunk.start, chunk.stop)
            if token is not None:
                sequence.tokens.append(token.id)
            if not reached_end:
                continue
            reason = self._ending(sequence, token)
            if reason is not None:
                self._finish(sequence, reason)
            outputs.append(_output(sequence, token))
        return outputs

    def _next_stop(self, sequence: Sequence, budget: int) -> int:
        """Where the sequence's next chunk ends, which has at most `budget` tokens."""
        start = sequence.num_computed
        stop = min(len(sequence.tokens), start + budget)
        one_by_one = sequence.prompt_len - sequence.request.single_steps
        if start < one_by_one:
            stop = min(stop, one_by_one)
        elif start < sequence.prompt_len:
            stop = start + 1
        return stop

    def _prefill(self, budget: int) -> list[Chunk]:
        """Shares what the step has left among prompts, partially prefilled and new ones."""
        chunks: list[Chunk] = []
        prefilling = list(self._prefilling)
        while budget and (sequence := self._next_to_prefill(prefilling)):
            stop = self._next_stop(sequence, budget)
            chunks.append(Chunk(sequence, sequence.num_computed, stop))
            budget -= stop - sequence.num_computed
            if stop == len(sequence.tokens):
                del self._prefilling[sequence]
                self._queue.leave(sequence)
        return chunks

    def _next_to_prefill(self, prefilling: list[Sequence]) -> Sequence | None:
        """The sequence to prefill next: one of `prefilling`, which loses it, or a new one."""
        started = min(prefilling, key=self._turn, default=None)
        new = self._next_to_begin()
        before = started is None or (new is not None and self._turn(new) < self._turn(started))
        if new is not None and before and self._has_room(new):
            return self._admit(new)
        if started is not None:
            prefilling.remove(started)
        return started

    def _next_to_begin(self) -> Sequence | None:
        """The first in the queue that need not wait for a prefix that another is computing."""
        if len(self.running) == min(self.limits.max_sequences, self.limits.max_batch_tokens):
            return None
        while sequence := self._queue.first():
            awaited = self._prefixes.awaited(sequence, self._missing(sequence))
            if awaited is None:
                return sequence
            if sequence.num_preemptions:  # nobody may overtake it
                return None
            self._queue.hold(sequence)
            self._prefixes.wait(sequence, awaited)
        return None

    def _another_could_run(self) -> bool:
        """Whether a waiting sequence has room, or waits for what the steps under way compute."""
        new = self._next_to_begin()
        return self._prefixes.any_waits or (new is not None and self._has_room(new))

    def _turn(self, sequence: Sequence) -> Turn:
        return self._queue.turn(sequence, self._remainder(sequence))

    def _remainder(self, sequence: Sequence) -> int:
        """Tokens that are still to be computed, as far as is known now."""
        if sequence in self.running:
            return len(sequence.tokens) - sequence.num_computed
        return len(sequence.tokens) - len(self._known(sequence)) * self.allocator.block_size

    def _make_room(self, sequence: Sequence, stop: int) -> bool:
        """Gets the blocks for the sequence's tokens up to `stop`, from the youngest if need be; False
        if it is the youngest.
        """
        while sequence in self.running:
            if self.allocator.grow(sequence.blocks, stop):
                return True
            self._preempt(next(reversed(self.running)))
        return False

    def _preempt(self, sequence: Sequence) -> None:
        del self.running[sequence]
        self._prefilling.pop(sequence, None)
        self._release(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        self.waiting.add(sequence)
        self._queue.put_back(sequence)

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether the cache has room for all tokens of a waiting sequence and one more."""
        known = self._known(sequence)
        blocks = self.allocator.blocks_for(min(len(sequence.tokens) + 1, self.limits.max_len))
        available = self.allocator.num_free - self.allocator.num_unused(known)
        return available >= blocks - len(known)

    def _admit(self, sequence: Sequence) -> Sequence:
        """Moves a sequence that has room to the running ones, with what is known of its cache and the
        blocks for the rest of its prompt.
        """
        self.waiting.remove(sequence)
        self._queue.begin(sequence)
        known = self._known(sequence)
        self.allocator.take(known)
        sequence.blocks.extend(known)
        sequence.num_shared = len(known)
        sequence.num_computed = len(known) * self.allocator.block_size
        if sequence.shares_scores:
            self._take_scores(sequence)  # before a block of them is given away
        grown = self.allocator.grow(sequence.blocks, len(sequence.tokens))
        assert grown, "admitted without room"
        self._note_missing(sequence)
        self._prefilling[sequence] = self.running[sequence] = None
        self.running = dict.fromkeys(sorted(self.running, key=_order))
        if not sequence.num_preemptions:  # one that was preempted finds its own blocks
            self.admitted.append(sequence)
            sequence.num_cached = sequence.num_computed
            self._num_cached_tokens += sequence.num_cached
            self._num_prompt_tokens += sequence.prompt_len
        return sequence

    def _known(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's beginning already, but never all of it: the last token has
        to be computed to know what follows. Where scores are wanted, blocks that have them, but never
        the last token that has one: the score of the next follows from it.
        """
        if not sequence.wants_every_row:
            return self.allocator.find(self._digests(sequence, len(sequence.tokens) - 1))
        blocks, num_scored = self._scored(sequence)
        return blocks[: max(0, num_scored - 1) // self.allocator.block_size]

    def _scored(self, sequence: Sequence) -> tuple[list[int], int]:
        """Blocks that hold its beginning with scores, and how many of its tokens that is."""
        if not sequence.shares_scores:
            return [], 0
        digests = self._digests(sequence, sequence.prompt_len - 1)  # its output has no scores
        request = sequence.request
        return self.allocator.find_scored(digests, request.prompt_ids, request.cache_root)

    def _missing(self, sequence: Sequence) -> list[bytes]:
        """Digests of blocks that the sequence would take over if they were there."""
        if sequence.wants_every_row and not sequence.shares_scores:
            return []
        num_found = len(self._known(sequence))
        if sequence.shares_scores:
            num_found = self._scored(sequence)[1] // self.allocator.block_size
        return self._digests(sequence, len(sequence.tokens) - 1)[num_found:]

    def _take_scores(self, sequence: Sequence) -> None:
        """Takes over the scores of its beginning, and a copy of the block with the last such token."""
        blocks, num_scored = self._scored(sequence)
        if self._scores is not None:
            self._scores.load(sequence.request, blocks, num_scored)
        num_shared, num_tokens = len(sequence.blocks), num_scored - 1
        if num_tokens > sequence.num_computed and self.allocator.grow(sequence.blocks, num_tokens):
            if self._copy_block is not None:
                self._copy_block(blocks[num_shared], sequence.blocks[num_shared])
            sequence.num_computed = num_tokens

    def _digests(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        root = sequence.request.cache_root
        return self.allocator.digests(sequence.tokens, num_tokens, sequence.digests, root)

    def _ending(self, sequence: Sequence, token: Token | None) -> FinishReason | None:
        if token is not None and token.id in sequence.request.end_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(sequence.tokens) >= sequence.max_len else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        self._release(sequence)
        self._drafts.forget(sequence)
        self._prefilling.pop(sequence, None)
        self._queue.leave(sequence)
        self._prefixes.give_up(sequence)
        if sequence in self.running:
            del self.running[sequence]
        else:
            self.waiting.remove(sequence)
        samples = self._samples[sequence.request.id]
        del samples[sequence.index]
        if not samples:
            del self._samples[sequence.request.id]

    def _release(self, sequence: Sequence) -> None:
        """Frees the sequence's blocks; what they hold may serve others, or itself once more."""
        self._publish(sequence)
        self._wake(sequence, sequence.num_computed, len(sequence.tokens))
        self.allocator.release(sequence.blocks)

    def _note_missing(self, sequence: Sequence) -> None:
        """Has others wait for the blocks, and their scores, that an admitted sequence will compute."""
        digests = self._digests(sequence, len(sequence.tokens))
        self._prefixes.compute(sequence, digests[len(self.allocator.find(digests)) :], scored=False)
        if sequence.shares_scores:
            num_scored = self._scored(sequence)[1] // self.allocator.block_size
            self._prefixes.compute(sequence, digests[num_scored:], scored=True)

    def _wake(self, sequence: Sequence, start: int, stop: int) -> None:
        """Lets those go on that wait for the sequence to compute blocks in [start, stop)."""
        size = self.allocator.block_size
        for one in self._prefixes.done(sequence, sequence.digests[start // size : stop // size]):
            self._queue.resume(one, self._remainder(one))

    def _publish(self, sequence: Sequence) -> None:
        """Lets others find the full blocks of what was computed."""
        if not sequence.is_finite:
            return
        digests = self._digests(sequence, sequence.num_computed)
        self.allocator.publish(sequence.blocks, digests)
        if sequence.shares_scores:
            request = sequence.request
            own = (sequence.blocks, digests, request.prompt_ids[: sequence.num_computed])
            for block, tokens in self.allocator.add_scores(*own, request.cache_root):
                if self._scores is not None:
                    self._scores.store(request, block, tokens)

    def _withdraw(self, sequence: Sequence) -> None:
        """Lets nobody find a block that the sequence computed: anew, all may be well. Those of others
        had finite logits behind them.
        """
        sequence.is_finite = False
        self.allocator.forget(sequence.blocks[sequence.num_shared :])


def _order(sequence: Sequence) -> tuple[int, int]:
    """Later sequences give up cache to earlier ones."""
    return sequence.priority, sequence.arrival


def _output(
    one: Sequence, token: Token | None, failure: GyrfalconError | None = None
) -> StepOutput:
    figures = (one.num_cached, one.num_preemptions, failure, one.num_accepted)
    return StepOutput(one.request.id, one.index, token, one.finish_reason, *figures)
