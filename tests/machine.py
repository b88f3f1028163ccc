"""A scheduler on a cache of plain Python with a model that is a hash function, which checks every step."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate

from gyrfalcon.engine.drafts import Drafts, accepted, unrolled
from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import (
    Chunk,
    ChunkResult,
    FinishReason,
    NonFinite,
    Request,
    SamplingParams,
    Sequence,
    StepOutput,
    Token,
)

EOS = 0
VOCAB = 50
Sample = tuple[int, int]  # request id and sample
Written = tuple[str, tuple[int, ...]]  # of a request with this salt, after these tokens


def next_token(tokens: list[int], index: int, repeats: bool = False) -> int:
    """What the fake model writes after `tokens`: any wrong, missing or stale token changes it. One that
    `repeats` looks at the last two alone, and for 13 tokens writes after the same ones the same.
    """
    if repeats:
        return sha256(f"{index} {len(tokens) // 13} {tokens[-2:]}".encode()).digest()[0] % 5
    return sha256(f"{index} {tokens}".encode()).digest()[0] % VOCAB


def first_poisoned(tokens: list[int]) -> int | None:
    """Where the first token lies that has NaN after those before it."""
    sums = enumerate(accumulate(tokens))
    return next((place for place, total in sums if total % 97 == 5), None)


def continuation(request: Request, index: int, max_len: int, repeats: bool = False) -> list[int]:
    """What a sample must end up with, whatever else the scheduler does."""
    tokens = list(request.prompt_ids)
    for _ in range(request.params.max_new_tokens):
        tokens.append(next_token(tokens, index, repeats))
        ends = tokens[-1] == EOS and not request.params.ignore_eos
        if ends or tokens[-1] in request.params.stop_ids or len(tokens) >= max_len:
            break
    return tokens[len(request.prompt_ids) :]


def sample_of(sequence: Sequence) -> Sample:
    return sequence.request.id, sequence.index


def decodes(sequence: Sequence) -> bool:
    """Whether its prompt, and what it recomputes, are in the cache but for the last token."""
    return sequence.prompt_len <= sequence.num_computed == len(sequence.tokens) - 1


@dataclass
class Machine:
    """A scheduler that runs on a cache of plain Python, which knows after which tokens each slot was
    written."""

    limits: StepLimits
    num_blocks: int
    block_size: int = 4
    most_drafted: int = 0  # for a sequence in a step; the model repeats itself then
    least_acceptance: float = 0.0
    poisoned: bool = False  # tokens after which first_poisoned() says so have NaN
    written: dict[int, Written] = field(default_factory=dict)  # all tokens up to its own
    num_computed: int = 0
    finished: list[Sample] = field(default_factory=list)
    outputs: dict[Sample, list[int]] = field(default_factory=dict)
    reasons: dict[Sample, FinishReason] = field(default_factory=dict)
    alive: dict[Sample, Sequence] = field(default_factory=dict)  # in the order of arrival
    num_preempted: int = 0
    num_drafted: int = 0
    overtakers: dict[Sample, set[Sample]] = field(default_factory=dict)  # of those that are alive
    begun: set[Sample] = field(default_factory=set)
    read: set[Sample] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.allocator = BlockAllocator(self.num_blocks, self.block_size)
        drafts = Drafts(self.most_drafted)
        self.scheduler = Scheduler(self.allocator, self.limits, copy_block=self.copy, drafts=drafts)

    def copy(self, source: int, target: int) -> None:
        for place in range(self.block_size):
            if (source * self.block_size + place) in self.written:
                slot = self.written[source * self.block_size + place]
                self.written[target * self.block_size + place] = slot

    def add(self, request: Request) -> None:
        before = set(self.scheduler.waiting)
        self.scheduler.add(request)
        for sequence in self.scheduler.waiting:
            if sequence not in before:
                self.alive[sample_of(sequence)] = sequence
                self.outputs[sample_of(sequence)] = []
                self.overtakers[sample_of(sequence)] = set()

    def end(self, sample: Sample) -> None:
        self.scheduler.end(*sample)
        del self.alive[sample]
        self.check_blocks()

    def step(self, prompt_tokens: int | None = None) -> list[Chunk]:
        most = self.limits.max_batch_tokens if prompt_tokens is None else prompt_tokens
        before = {sequence: sequence.num_preemptions for sequence in self.scheduler.running}
        decoding = [sequence for sequence in before if decodes(sequence)]
        chunks = self.scheduler.next_chunks(most, self.least_acceptance)
        preempted = [one for one, number in before.items() if one.num_preemptions > number]
        self.num_preempted += len(preempted)
        assert preempted == [*before][len(before) - len(preempted) :], "not the last ones"
        self.read.difference_update(map(sample_of, preempted))
        self.check_blocks()
        self.check_chunks(chunks, [one for one in decoding if one not in preempted], most)
        self.check_order(chunks)
        self.check_sharing()
        for output in self.commit(chunks):
            self.take(output)
        self.check_blocks()
        return chunks

    def run(self, steps: int = 10_000) -> Iterator[list[Chunk]]:
        for _ in range(steps):
            if not self.scheduler.has_work:
                return
            yield self.step()
        raise AssertionError("it does not end")

    def finish(self) -> "Machine":
        for _ in self.run():
            pass
        assert self.allocator.num_free == self.num_blocks
        assert not self.alive
        return self

    def commit(self, chunks: list[Chunk]) -> list[StepOutput]:
        if not any(chunk.draft for chunk in chunks):
            return self.scheduler.commit(chunks, [self.compute(chunk) for chunk in chunks])
        results = [
            accepted(chunk.draft, [self.compute(one) for one in unrolled(chunk)])
            for chunk in chunks
        ]
        return self.scheduler.commit_drafts(chunks, results)

    def compute(self, chunk: Chunk) -> ChunkResult:
        """Writes the chunk's slots, then reads the whole context back, as attention does. A chunk that
        fails may leave anything in all its slots.
        """
        sequence, salt = chunk.sequence, chunk.request.cache_salt
        own = sequence.tokens + chunk.draft
        slots = [
            sequence.blocks[place // self.block_size] * self.block_size + place % self.block_size
            for place in range(chunk.stop)
        ]
        for place in range(chunk.start, chunk.stop):
            assert self.allocator._users[slots[place] // self.block_size] == 1
            self.written[slots[place]] = salt, tuple(own[: place + 1])
            self.num_computed += 1
        read = [self.written[slot] for slot in slots]
        assert read == [(salt, tuple(own[: stop + 1])) for stop in range(chunk.stop)]
        if self.poisoned and first_poisoned(own[: chunk.stop]) is not None:
            self.written.update(dict.fromkeys(slots[chunk.start :], ("", ())))
            return NonFinite(chunk.stop - 1)
        if not chunk.samples:
            return None
        context = [tokens[-1] for _, tokens in read]
        return Token(next_token(context, sequence.index, self.most_drafted > 0))

    def take(self, output: StepOutput) -> None:
        sample = (output.request_id, output.index)
        if output.token is not None:
            self.outputs[sample].append(output.token.id)
        if output.finish_reason is not None:
            self.reasons[sample] = output.finish_reason
            self.finished.append(sample)
            del self.alive[sample]

    def check_blocks(self) -> None:
        """No block is lost or free and held at once; only blocks with the same tokens are shared."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        users = Counter(block for sequence in running for block in sequence.blocks)
        fresh = range(self.num_blocks - self.allocator._num_fresh, self.num_blocks)
        assert sorted([*users, *self.allocator._free, *fresh]) == list(range(self.num_blocks))
        assert self.allocator._users == [users[block] for block in range(self.num_blocks)]
        assert not any(sequence.blocks or sequence.num_computed for sequence in waiting)
        assert len(running) <= self.limits.max_sequences
        assert sorted(map(sample_of, (*running, *waiting))) == sorted(self.alive)
        assert waiting.num_sequences == len([*waiting])
        assert waiting.num_tokens == sum(len(sequence.tokens) for sequence in waiting)
        assert waiting.num_requests == len({sequence.request.id for sequence in waiting})
        in_order = [(sequence.priority, *sample_of(sequence)) for sequence in running]
        assert in_order == sorted(in_order)

    def check_chunks(self, chunks: list[Chunk], decoding: list[Sequence], most: int) -> None:
        """Decoding sequences get their token, prompts at most what was asked for, and if less, all that
        they lack. Nothing is empty or twice, nothing left out or computed again. Where there are no prompts,
        there may be drafts.
        """
        lengths = {chunk.sequence: chunk.stop - chunk.start - len(chunk.draft) for chunk in chunks}
        drafted = [chunk for chunk in chunks if chunk.draft]
        num_drafted = sum(len(chunk.draft) for chunk in drafted)
        self.num_drafted += num_drafted
        assert not drafted or {*lengths} <= {*decoding}
        assert all(chunk.stop < chunk.sequence.max_len for chunk in drafted)
        assert sum(lengths.values()) + num_drafted <= self.limits.max_batch_tokens
        assert min(lengths.values()) > 0
        assert len(lengths) == len(chunks)
        assert all(chunk.start == chunk.sequence.num_computed for chunk in chunks)
        assert sum(lengths.values()) <= self.limits.max_batch_tokens
        assert all(lengths.pop(sequence) == 1 for sequence in decoding)
        budget = min(most, self.limits.max_batch_tokens - len(decoding))
        assert sum(lengths.values()) <= budget
        if sum(lengths.values()) < budget:
            assert set(self.scheduler.running) == {*decoding, *lengths}

    def check_order(self, chunks: list[Chunk]) -> None:
        """Nobody is overtaken too often, and nobody before it has recomputed what it lost."""
        for chunk in chunks:
            own, sample = chunk.sequence, sample_of(chunk.sequence)
            if sample not in self.begun:
                self.begun.add(sample)
                for other, victim in self.alive.items():
                    if (
                        victim.priority <= own.priority
                        and other not in self.read
                        and other != sample
                    ):
                        assert not victim.num_preemptions
                        if other < sample:
                            self.overtakers[other].add(sample)
            if chunk.stop >= len(own.tokens):
                self.read.add(sample)
        assert max(map(len, self.overtakers.values())) <= self.limits.most_overtaken

    def check_sharing(self) -> None:
        """Of running sequences of one priority whose prompts begin alike, one has computed each full block
        and the others share it, but where a failure made others forget theirs, and where one waited for
        nobody who is read token by token.
        """
        if self.poisoned:
            return
        computed: set[tuple[int, Written]] = set()
        for sequence in self.scheduler.running:
            if sequence.wants_every_row or sequence.request.single_steps:
                continue
            stops = range(self.block_size, sequence.prompt_len, self.block_size)
            for stop in stops[sequence.num_shared : len(sequence.blocks)]:
                content = sequence.request.cache_salt, tuple(sequence.tokens[:stop])
                assert (sequence.priority, content) not in computed
                computed.add((sequence.priority, content))


def request(
    number: int,
    prompt_len: int,
    *,
    single_steps: int = 0,
    beginning: int | None = None,
    priority: int = 0,
    cache_salt: str = "",
    **params: object,
) -> Request:
    """Prompts of the same `beginning`, by default its own number, begin alike."""
    start = (number if beginning is None else beginning) * 31
    prompt = tuple((start + place) % VOCAB for place in range(prompt_len))
    sampling = SamplingParams(**{"ignore_eos": True, **params})  # type: ignore[arg-type]
    ends = frozenset((*sampling.stop_ids, *(() if sampling.ignore_eos else (EOS,))))
    return Request(
        number,
        prompt,
        sampling,
        seed=0,
        end_ids=ends,
        single_steps=single_steps,
        priority=priority,
        cache_salt=cache_salt,
    )


def machine(
    *, num_blocks: int = 100, max_len: int = 64, max_batch_tokens: int = 16, max_sequences: int = 8
) -> Machine:
    return Machine(StepLimits(max_len, max_batch_tokens, max_sequences), num_blocks)


def spans(chunks: list[Chunk]) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.request.id, chunk.start, chunk.stop) for chunk in chunks]
