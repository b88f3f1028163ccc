"""Who runs next: admits, batches, chunks, preempts and finishes sequences. Pure Python, the same on
every rank.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain

from gyrfalcon.engine.drafts import NEVER, Drafts, unrolled
from gyrfalcon.engine.prefix_cache import PrefixCache, ScoreStore
from gyrfalcon.engine.prefixes import PrefixesInProgress
from gyrfalcon.engine.prompt_queue import PromptQueue, Turn
from gyrfalcon.engine.room import Room
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

MOST_HELD = 64  # waiting sequences that a step finds to need what another is computing


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one step and one sequence may take."""

    max_len: int  # tokens of a sequence, prompt and output
    max_batch_tokens: int  # tokens of a step
    max_sequences: int  # sequences that hold cache at once
    most_overtaken: int = 16  # sequences that may overtake an older one before its prefill ends


class Scheduler:
    """Decoding first: what a step has left goes to prompts, in the order of PromptQueue. Sequences take cache
    and places from those of a higher priority value, then running ones cache from younger ones, which start
    over; so the first of all always goes on, and every request ends.
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
        self._cache = PrefixCache(allocator, scores, copy_block)
        self._most_running = min(limits.max_sequences, limits.max_batch_tokens)
        self._room = Room(allocator, self._cache, limits.max_len, self._most_running)
        self.waiting = Waiting()
        self.running: dict[Sequence, None] = {}  # by priority, then oldest first
        self.admitted: list[Sequence] = []  # those that the last step was the first to compute
        self._committed: Seq[Chunk] = ()  # what the last step computed
        self._prefilling: dict[Sequence, None] = {}  # running ones that do not decode yet
        self._queue = PromptQueue(limits.most_overtaken)
        self._prefixes = PrefixesInProgress()
        self._num_arrived = 0
        self._num_held = 0  # that this step has found waiting for a prefix
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
            digests = self._cache.digests(sample, len(tokens) - 1)
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

    def prompt_progress(self) -> list[tuple[int, int, int]]:
        """Of each prompt that is being prefilled: its request, its tokens in the cache, and all of them."""
        prefilling = tuple(self._prefilling)  # at once: another thread may ask
        return [(one.request.id, one.num_computed, len(one.tokens)) for one in prefilling]

    def next_chunks(self, prompt_tokens: int, least_acceptance: float = NEVER) -> list[Chunk]:
        """What the next step computes: a token of each sequence that decodes, and at most `prompt_tokens`
        of prompts; where there are none, draft tokens that are accepted with at least such a probability.
        """
        chunks: list[Chunk] = []
        self.admitted, self._committed, self._num_held = [], (), 0
        if self.waiting.num_sequences:
            self._preempt_for_urgent()
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
        self.admitted, self._committed, self._num_held = [], (), 0
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
                self._cache.withdraw(sequence)
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
                self._cache.publish(sequence)
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
        is_full = len(self.running) == self._most_running
        new = None if is_full else self._next_to_begin()
        before = started is None or (new is not None and self._turn(new) < self._turn(started))
        if new is not None and before and self._room.is_for(new, self.running):
            return self._admit(new)
        if started is not None:
            prefilling.remove(started)
        return started

    def _next_to_begin(self) -> Sequence | None:
        """The first in the queue that need not wait for a prefix that another is computing. A step looks
        at no more than MOST_HELD that do wait, however many there are.
        """
        while self._num_held < MOST_HELD and (sequence := self._queue.first()):
            awaited = self._prefixes.awaited(sequence, self._cache.missing(sequence))
            if awaited is None:
                return sequence
            if sequence.num_preemptions:  # nobody may overtake it
                return None
            self._queue.hold(sequence)
            self._prefixes.wait(sequence, awaited)
            self._num_held += 1
        return None

    def _another_could_run(self) -> bool:
        """Whether a waiting sequence has room or can be given some, or waits for what the steps under way
        compute.
        """
        new = self._next_to_begin()
        if self._prefixes.any_waits or new is None:
            return self._prefixes.any_waits
        return self._room.is_for(new, self.running) or bool(self._room.victims(new, self.running))

    def _preempt_for_urgent(self) -> None:
        """Preempts sequences of a higher priority value for those that are next, if that gives them room."""
        while self.running and self._queue.least_priority < next(reversed(self.running)).priority:
            new = self._next_to_begin()
            started = min(self._prefilling, key=self._turn, default=None)
            if new is None or (started is not None and self._turn(started) < self._turn(new)):
                return
            victims = self._room.victims(new, self.running)
            if not victims:
                return
            for victim in victims:
                self._preempt(victim)
            self._admit(new)

    def _turn(self, sequence: Sequence) -> Turn:
        return self._queue.turn(sequence, self._remainder(sequence))

    def _remainder(self, sequence: Sequence) -> int:
        """Tokens that are still to be computed, as far as is known now."""
        if sequence in self.running:
            return len(sequence.tokens) - sequence.num_computed
        return len(sequence.tokens) - len(self._cache.known(sequence)) * self.allocator.block_size

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

    def _admit(self, sequence: Sequence) -> Sequence:
        """Moves a sequence that has room to the running ones, with what is known of its cache and the
        blocks for the rest of its prompt.
        """
        self.waiting.remove(sequence)
        self._queue.begin(sequence)
        self._cache.take_over(sequence)
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
        """Frees the sequence's blocks, and lets those go on that wait for what it will not compute."""
        self._cache.release(sequence)
        self._wake(sequence, sequence.num_computed, len(sequence.tokens))

    def _note_missing(self, sequence: Sequence) -> None:
        """Has others wait for the blocks, and their scores, that an admitted sequence will compute."""
        blocks, scores = self._cache.uncomputed(sequence)
        self._prefixes.compute(sequence, blocks, scored=False)
        self._prefixes.compute(sequence, scores, scored=True)

    def _wake(self, sequence: Sequence, start: int, stop: int) -> None:
        """Lets those go on that wait for the sequence to compute blocks in [start, stop)."""
        size = self.allocator.block_size
        for one in self._prefixes.done(sequence, sequence.digests[start // size : stop // size]):
            self._queue.resume(one, self._remainder(one))


def _order(sequence: Sequence) -> tuple[int, int]:
    """Later sequences give up cache to earlier ones."""
    return sequence.priority, sequence.arrival


def _output(
    one: Sequence, token: Token | None, failure: GyrfalconError | None = None
) -> StepOutput:
    figures = (one.num_cached, one.num_preemptions, failure, one.num_accepted)
    return StepOutput(one.request.id, one.index, token, one.finish_reason, *figures)
