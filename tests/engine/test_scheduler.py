"""The scheduler with a model that is a hash function: budgets, blocks, preemption, order and fairness."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from itertools import accumulate

import pytest

from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.kv import blocks
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import (
    Chunk,
    ChunkResult,
    EngineStats,
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


def next_token(tokens: list[int], index: int) -> int:
    """What the fake model writes after `tokens`: any wrong, missing or stale token changes it."""
    return sha256(f"{index} {tokens}".encode()).digest()[0] % VOCAB


def first_poisoned(tokens: list[int]) -> int | None:
    """Where the first token lies that has NaN after those before it."""
    sums = enumerate(accumulate(tokens))
    return next((place for place, total in sums if total % 97 == 5), None)


def continuation(request: Request, index: int, max_len: int) -> list[int]:
    """What a sample must end up with, whatever else the scheduler does."""
    tokens = list(request.prompt_ids)
    for _ in range(request.params.max_new_tokens):
        tokens.append(next_token(tokens, index))
        ends = tokens[-1] == EOS and not request.params.ignore_eos
        if ends or tokens[-1] in request.params.stop_ids or len(tokens) >= max_len:
            break
    return tokens[len(request.prompt_ids) :]


@dataclass
class Machine:
    """A scheduler that runs on a cache of plain Python, which knows after which tokens each slot was
    written."""

    limits: StepLimits
    num_blocks: int
    block_size: int = 4
    poisoned: bool = False  # tokens after which first_poisoned() says so have NaN
    written: dict[int, tuple[int, ...]] = field(default_factory=dict)  # all tokens up to its own
    num_computed: int = 0
    finished: list[Sample] = field(default_factory=list)
    outputs: dict[Sample, list[int]] = field(default_factory=dict)
    reasons: dict[Sample, FinishReason] = field(default_factory=dict)
    alive: list[Sample] = field(default_factory=list)  # in the order of arrival
    priorities: dict[int, int] = field(default_factory=dict)  # of requests
    num_preempted: int = 0

    def __post_init__(self) -> None:
        self.allocator = BlockAllocator(self.num_blocks, self.block_size)
        self.scheduler = Scheduler(self.allocator, self.limits)

    def add(self, request: Request) -> None:
        self.scheduler.add(request)
        self.priorities[request.id] = request.priority
        for index in range(request.params.n):
            self.alive.append((request.id, index))
            self.outputs[request.id, index] = []

    def end(self, sample: Sample) -> None:
        self.scheduler.end(*sample)
        self.alive.remove(sample)
        self.check_blocks()

    def step(self) -> list[Chunk]:
        before = {id(sequence) for sequence in self.scheduler.running}
        chunks = self.scheduler.next_chunks(self.limits.max_batch_tokens)
        after = {id(sequence) for sequence in self.scheduler.running}
        self.num_preempted += len(before - after)
        self.check_blocks()
        self.check_chunks(chunks)
        for output in self.scheduler.commit(chunks, [self.compute(chunk) for chunk in chunks]):
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

    def compute(self, chunk: Chunk) -> ChunkResult:
        """Writes the chunk's slots, then reads the whole context back, as attention does. A chunk that
        fails may leave anything in all its slots.
        """
        sequence = chunk.sequence
        slots = [
            sequence.blocks[place // self.block_size] * self.block_size + place % self.block_size
            for place in range(chunk.stop)
        ]
        for place in range(chunk.start, chunk.stop):
            assert self.allocator._users[slots[place] // self.block_size] == 1
            self.written[slots[place]] = tuple(sequence.tokens[: place + 1])
            self.num_computed += 1
        read = [self.written[slot] for slot in slots]
        assert read == [tuple(sequence.tokens[: place + 1]) for place in range(chunk.stop)]
        if self.poisoned and first_poisoned(sequence.tokens[: chunk.stop]) is not None:
            self.written.update(dict.fromkeys(slots[chunk.start :], ()))
            return NonFinite(chunk.stop - 1)
        if not chunk.samples:
            return None
        return Token(next_token([tokens[-1] for tokens in read], sequence.index))

    def take(self, output: StepOutput) -> None:
        sample = (output.request_id, output.index)
        if output.token is not None:
            self.outputs[sample].append(output.token.id)
        if output.finish_reason is not None:
            self.reasons[sample] = output.finish_reason
            self.finished.append(sample)
            self.alive.remove(sample)

    def check_blocks(self) -> None:
        """No block is lost or free and held at once; only blocks with the same tokens are shared."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        users = Counter(block for sequence in running for block in sequence.blocks)
        assert sorted([*users, *self.allocator._free]) == list(range(self.num_blocks))
        assert self.allocator._users == [users[block] for block in range(self.num_blocks)]
        assert not any(sequence.blocks or sequence.num_computed for sequence in waiting)
        assert len(running) <= self.limits.max_sequences
        assert is_sorted(running)
        assert is_sorted(waiting)
        in_order = sorted((*running, *waiting), key=lambda sequence: sequence.request.priority)
        in_time = sorted(self.alive, key=lambda sample: self.priorities[sample[0]])
        assert [(s.request.id, s.index) for s in in_order] == in_time
        assert waiting.num_sequences == len([*waiting])
        assert waiting.num_tokens == sum(len(sequence.tokens) for sequence in waiting)
        assert waiting.num_requests == len({sequence.request.id for sequence in waiting})

    def check_chunks(self, chunks: list[Chunk]) -> None:
        """Within the budget, nothing empty, nothing twice, and the first sequence goes on: of those of
        the lowest priority value that run, the oldest.
        """
        lengths = [chunk.stop - chunk.start for chunk in chunks]
        assert min(lengths) > 0
        assert sum(lengths) <= self.limits.max_batch_tokens
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        assert all(chunk.start == chunk.sequence.num_computed for chunk in chunks)
        assert next(iter(self.scheduler.running)) in {chunk.sequence for chunk in chunks}


def is_sorted(sequences: Iterable[Sequence]) -> bool:
    priorities = [sequence.request.priority for sequence in sequences]
    return priorities == sorted(priorities)


def request(
    number: int,
    prompt_len: int,
    *,
    single_steps: int = 0,
    priority: int = 0,
    beginning: int | None = None,
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
    )


def machine(
    *, num_blocks: int = 100, max_len: int = 64, max_batch_tokens: int = 16, max_sequences: int = 8
) -> Machine:
    return Machine(StepLimits(max_len, max_batch_tokens, max_sequences), num_blocks)


def spans(chunks: list[Chunk]) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.request.id, chunk.start, chunk.stop) for chunk in chunks]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    own = machine(max_batch_tokens=16)
    own.add(request(0, 40, max_new_tokens=3))
    assert [spans(chunks) for chunks in own.run()] == [
        [(0, 0, 16)],
        [(0, 16, 32)],
        [(0, 32, 40)],
        [(0, 40, 41)],
        [(0, 41, 42)],
    ]


def test_what_decoding_leaves_of_the_budget_goes_to_new_prompts() -> None:
    own = machine(max_batch_tokens=10)
    own.add(request(0, 4, max_new_tokens=9))
    own.step()
    own.add(request(1, 12, max_new_tokens=9))
    own.add(request(2, 5, max_new_tokens=9))
    assert spans(own.step()) == [(0, 4, 5), (1, 0, 9)]
    assert spans(own.step()) == [(0, 5, 6), (1, 9, 12), (2, 0, 5)]
    assert spans(own.step()) == [(0, 6, 7), (1, 12, 13), (2, 5, 6)]


def test_the_last_prompt_tokens_can_be_taken_one_by_one() -> None:
    own = machine(max_batch_tokens=8)
    own.add(request(0, 20, single_steps=3, max_new_tokens=1))
    assert [spans(chunks)[0][1:] for chunks in own.run()] == [
        (0, 8),
        (8, 16),
        (16, 17),
        (17, 18),
        (18, 19),
        (19, 20),
    ]


def test_single_steps_over_the_whole_prompt_and_beyond_are_steps_of_one() -> None:
    for single_steps in (5, 50):
        own = machine()
        own.add(request(0, 5, single_steps=single_steps, max_new_tokens=0))
        assert [spans(chunks)[0][1:] for chunks in own.run()] == [(i, i + 1) for i in range(5)]


def test_no_more_sequences_run_than_allowed() -> None:
    own = machine(max_sequences=2)
    for number in range(5):
        own.add(request(number, 2, max_new_tokens=4))
    assert len(own.step()) == 2
    own.finish()
    assert own.finished == [(number, 0) for number in range(5)]


def test_a_prompt_waits_until_there_are_blocks_for_it_and_one_more_token() -> None:
    own = machine(num_blocks=4)  # 16 tokens
    own.add(request(0, 8, max_new_tokens=2))
    own.add(request(1, 8, max_new_tokens=2))
    assert spans(own.step()) == [(0, 0, 8)]  # 2 of 4 blocks are left, and 9 tokens need 3
    assert spans(own.step()) == [(0, 8, 9)]
    assert own.finished == [(0, 0)]
    assert spans(own.step()) == [(1, 0, 8)]
    own.finish()


def test_a_prompt_that_fills_the_last_block_with_its_next_token_is_admitted() -> None:
    own = machine(num_blocks=2)
    own.add(request(0, 7, max_new_tokens=1))
    assert spans(own.step()) == [(0, 0, 7)]


def test_a_later_small_prompt_never_overtakes_an_earlier_large_one() -> None:
    own = machine(num_blocks=6)
    own.add(request(0, 12, max_new_tokens=4))
    own.add(request(1, 16, max_new_tokens=1))
    own.add(request(2, 1, max_new_tokens=1))
    assert spans(own.step()) == [(0, 0, 12)]
    own.finish()
    assert own.finished == [(0, 0), (1, 0), (2, 0)]


def test_the_youngest_gives_its_blocks_up_and_starts_over_with_its_output() -> None:
    own = machine(num_blocks=6, max_len=24)  # 24 tokens for three sequences that grow to 15
    for number in range(3):
        own.add(request(number, 5, max_new_tokens=10))
    first = next(chunks for chunks in own.run() if own.num_preempted)
    assert [number for number, _, _ in spans(first)] == [0, 1]
    [preempted] = own.scheduler.waiting
    assert preempted.request.id == 2
    assert len(preempted.output_ids) > 0
    own.finish()
    assert own.finished == [(0, 0), (1, 0), (2, 0)]
    assert own.num_preempted > 1
    for number in range(3):
        expected = continuation(request(number, 5, max_new_tokens=10), 0, max_len=24)
        assert own.outputs[number, 0] == expected


def test_of_those_that_wait_the_lowest_priority_value_is_admitted_first() -> None:
    own = machine(max_sequences=1)
    for number, priority in enumerate((0, 5, -2, 0, -2)):
        own.add(request(number, 5, priority=priority, max_new_tokens=2))
    own.finish()
    assert own.finished == [(2, 0), (4, 0), (0, 0), (3, 0), (1, 0)]


def test_the_highest_priority_value_gives_its_blocks_up_though_it_is_the_oldest() -> None:
    own = machine(num_blocks=6, max_len=24)
    own.add(request(0, 5, priority=1, max_new_tokens=10))
    own.step()
    for number in (1, 2):
        own.add(request(number, 5, max_new_tokens=10))
    first = next(chunks for chunks in own.run() if own.num_preempted)
    assert [number for number, _, _ in spans(first)] == [1, 2]
    [preempted] = own.scheduler.waiting
    assert (preempted.request.id, preempted.num_preemptions) == (0, 1)
    own.finish()
    assert own.finished == [(1, 0), (2, 0), (0, 0)]


def test_who_is_computed_for_the_first_time_is_told_once() -> None:
    own = machine(num_blocks=6, max_len=24)
    told = []
    for number in range(3):
        own.add(request(number, 5, max_new_tokens=10))
    while own.scheduler.has_work:
        own.step()
        told += [sequence.request.id for sequence in own.scheduler.admitted]
    assert own.num_preempted
    assert told == [0, 1, 2]


def test_a_sequence_ends_at_its_own_limit_or_at_the_longest_length() -> None:
    own = machine(max_len=12)
    own.add(request(0, 5, max_new_tokens=3))
    own.add(request(1, 5, max_new_tokens=100))
    own.add(request(2, 12, max_new_tokens=0))
    own.finish()
    assert [len(own.outputs[number, 0]) for number in range(3)] == [3, 7, 0]
    assert set(own.reasons.values()) == {FinishReason.LENGTH}


def test_end_of_text_and_stop_ids_end_a_sequence_unless_ignored() -> None:
    longest = continuation(request(0, 5, max_new_tokens=59), 0, max_len=64)
    stop = longest[20]
    first = longest.index(stop)
    own = machine()
    own.add(request(0, 5, max_new_tokens=59, stop_ids=[stop]))
    own.finish()
    assert own.outputs[0, 0] == longest[: first + 1]
    assert own.reasons[0, 0] is FinishReason.STOP
    ends = [number for number in range(40) if EOS in continuation(request(number, 5), 0, 64)]
    for number in ends:
        for ignore in (True, False):
            own = machine()
            own.add(request(number, 5, ignore_eos=ignore, max_new_tokens=59))
            own.finish()
            assert (own.outputs[number, 0][-1] == EOS) or ignore
            assert (own.reasons[number, 0] is FinishReason.STOP) != ignore
    assert ends


def test_running_and_waiting_sequences_can_be_given_up() -> None:
    own = machine(max_sequences=1)
    for number in range(4):
        own.add(request(number, 5, max_new_tokens=5))
    own.step()
    own.end((0, 0))
    own.end((2, 0))
    own.scheduler.end(17, 0)  # never there
    own.scheduler.end(1, 1)  # no such sample
    own.finish()
    assert own.finished == [(1, 0), (3, 0)]
    own.scheduler.end(3, 0)  # over already
    own.check_blocks()


def test_all_samples_of_a_request_can_be_given_up_running_and_waiting_ones() -> None:
    own = machine(max_sequences=2)
    own.add(request(0, 4, max_new_tokens=9, n=4))
    own.step()
    assert (len(own.scheduler.running), own.scheduler.waiting.num_sequences) == (2, 2)
    samples = [*own.scheduler.running, *own.scheduler.waiting]
    outputs = own.scheduler.end(0)
    assert [(one.index, one.finish_reason) for one in outputs] == [
        (index, FinishReason.ABORTED) for index in range(4)
    ]
    assert not own.scheduler.has_work
    assert own.allocator.num_free == own.num_blocks
    assert {sample.finish_reason for sample in samples} == {FinishReason.ABORTED}


def test_one_of_several_samples_can_be_given_up() -> None:
    own = machine()
    own.add(request(0, 5, n=3, max_new_tokens=5))
    own.step()
    own.end((0, 1))
    own.finish()
    assert own.finished == [(0, 0), (0, 2)]


def test_what_follows_is_known_before_the_tokens_are_but_for_lengths_and_cache() -> None:
    own = machine(num_blocks=4, max_len=16)
    own.add(request(0, 3, max_new_tokens=2))
    own.add(request(1, 6, max_new_tokens=9))
    scheduler = own.scheduler
    first = scheduler.next_chunks(own.limits.max_batch_tokens)
    second = scheduler.next_after(first)
    assert spans(second) == [(0, 3, 4), (1, 6, 7)]
    scheduler.commit(first, [Token(1)] * 2)
    third = scheduler.next_after(second)
    assert spans(third) == [(1, 7, 8)]  # the other has its two tokens then
    scheduler.commit(second, [Token(1)] * 2)
    fourth = scheduler.next_after(third)
    assert spans(fourth) == [(1, 8, 9)]
    scheduler.commit(third, [Token(1)])
    own.add(request(2, 1, max_new_tokens=2))
    assert scheduler.next_after(fourth) == []  # there is room for another
    scheduler.commit(fourth, [Token(1)])
    fifth = scheduler.next_chunks(own.limits.max_batch_tokens)
    assert spans(fifth) == [(1, 9, 10), (2, 0, 1)]
    scheduler.commit(fifth, [Token(1)] * 2)
    last = scheduler.next_after(scheduler.next_chunks(own.limits.max_batch_tokens))
    assert spans(last) == [(1, 11, 12)]
    assert own.allocator.grow([], own.allocator.num_free * own.block_size)
    assert spans(scheduler.next_after(last)) == []  # its thirteenth token has no block


def test_a_sequence_that_has_ended_has_nothing_to_follow() -> None:
    own = machine()
    for number in range(2):
        own.add(request(number, 5, max_new_tokens=9))
    first = own.scheduler.next_chunks(own.limits.max_batch_tokens)
    own.scheduler.end(0, 0)
    assert spans(own.scheduler.next_after(first)) == [(1, 5, 6)]


def test_a_failure_ends_its_own_sample_and_says_where() -> None:
    own = machine()
    scheduler = own.scheduler
    own.add(request(0, 5, n=2, max_new_tokens=5))
    chunks = scheduler.next_chunks(own.limits.max_batch_tokens)
    failed, going_on = scheduler.commit(chunks, [NonFinite(position=4), Token(1)])
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.token is None
    assert "at position 4 of request 0, sample 0" in str(failed.error)
    assert (going_on.finish_reason, going_on.error) == (None, None)
    assert [sequence.index for sequence in scheduler.running] == [1]
    assert own.allocator.num_free == own.num_blocks - len(going_on_blocks(scheduler))


def going_on_blocks(scheduler: Scheduler) -> list[int]:
    return [block for sequence in scheduler.running for block in sequence.blocks]


def test_no_block_of_a_failed_sample_is_found_nor_one_that_it_had_found() -> None:
    own = machine(max_batch_tokens=8)
    for number in range(3):
        own.add(request(number, 20, beginning=0, max_new_tokens=1))
    first = own.scheduler.next_chunks(own.limits.max_batch_tokens)
    own.scheduler.commit(first, [None])  # two blocks that others find
    second = own.scheduler.next_chunks(own.limits.max_batch_tokens)
    [failed] = own.scheduler.commit(second, [NonFinite(position=15)])
    assert failed.finish_reason is FinishReason.ERROR
    [third] = own.scheduler.next_chunks(own.limits.max_batch_tokens)
    assert (third.sequence.request.id, third.start) == (1, 0)


def test_a_prompt_whose_logits_are_wanted_ends_well_and_serves_nobody() -> None:
    own = machine()
    own.add(replace(request(0, 9, max_new_tokens=0), keep_logits=True))
    [output] = own.scheduler.commit(
        own.scheduler.next_chunks(own.limits.max_batch_tokens), [NonFinite(position=8)]
    )
    assert (output.finish_reason, output.error) == (FinishReason.LENGTH, None)
    own.add(request(1, 9, beginning=0, max_new_tokens=1))
    assert spans(own.scheduler.next_chunks(own.limits.max_batch_tokens)) == [(1, 0, 9)]


@pytest.mark.parametrize("seed", range(20))
def test_random_loads_with_failures_end_as_without_but_for_what_failed(seed: int) -> None:
    """Anything that a failed sequence left in a block which another takes over would be noticed."""
    draw = random.Random(seed)
    block_size, max_len = draw.choice([1, 3, 4]), draw.randint(10, 40)
    least = -(-max_len // block_size)
    limits = StepLimits(max_len, draw.choice([5, 16]), draw.choice([2, 5]))
    own = Machine(limits, draw.randint(least, 3 * least), block_size, poisoned=True)
    requests = [
        request(
            number,
            draw.randint(1, max_len - 1),
            max_new_tokens=draw.choice([0, 1, 5, 100]),
            n=draw.choice([1, 3]),
            beginning=draw.choice([0, 1]),
        )
        for number in range(25)
    ]
    for one in requests:
        own.add(one)
    own.finish()
    for one in requests:
        for index in range(one.params.n):
            expected = continuation(one, index, max_len)
            computed = [*one.prompt_ids, *expected[:-1]]
            place = first_poisoned(computed)
            if place is None:
                assert own.outputs[one.id, index] == expected
                assert own.reasons[one.id, index] is FinishReason.LENGTH
            else:
                assert (
                    own.outputs[one.id, index]
                    == expected[: max(0, place + 1 - len(one.prompt_ids))]
                )
                assert own.reasons[one.id, index] is FinishReason.ERROR
    assert {*own.reasons.values()} == {FinishReason.ERROR, FinishReason.LENGTH}


@pytest.mark.parametrize("seed", range(60))
def test_random_loads_all_end_with_the_right_tokens_in_any_machine(seed: int) -> None:
    draw = random.Random(seed)
    block_size, max_len = draw.choice([1, 3, 4, 16, 100]), draw.randint(2, 60)
    least = -(-max_len // block_size)
    limits = StepLimits(max_len, draw.choice([1, 2, 5, 16, 200]), draw.choice([1, 2, 5, 30]))
    own = Machine(limits, draw.randint(least, 4 * least), block_size)
    requests = [
        request(
            number,
            length := draw.randint(1, max_len),
            max_new_tokens=0 if length == max_len else draw.choice([0, 1, 5, 100]),
            n=draw.choice([1, 1, 3]),
            single_steps=draw.choice([0, 0, 4]),
            priority=draw.choice([0, 0, 1, -1]) if seed % 2 else 0,
            beginning=draw.choice([None, 0, 1]),
            ignore_eos=draw.random() < 0.5,
            stop_ids=draw.choice([(), (3, 4)]),
        )
        for number in range(25)
    ]
    given_up = set()
    for one in requests:
        own.add(one)
        for _ in range(draw.choice([0, 0, 1, 7])):
            if own.scheduler.has_work:
                own.step()
        if own.alive and draw.random() < 0.2:
            given_up.add(sample := draw.choice(own.alive))
            own.end(sample)
    own.finish()
    for one in requests:
        for index in range(one.params.n):
            if (one.id, index) not in given_up:
                assert own.outputs[one.id, index] == continuation(one, index, max_len)
                assert (one.id, index) in own.reasons


def test_random_loads_do_preempt() -> None:
    """The test above would prove little if its caches were never too small."""
    own = machine(num_blocks=16, max_len=64, max_sequences=30)
    for number in range(12):
        own.add(request(number, 5, max_new_tokens=40))
    own.finish()
    assert own.num_preempted > 10


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_the_allocator_gives_all_or_nothing(count: int) -> None:
    allocator = BlockAllocator(4, 10)
    table: list[int] = []
    assert allocator.grow(table, 10 * count) == (count <= 4)
    assert len(table) == (count if count <= 4 else 0)
    assert allocator.num_free == 4 - len(table)
    allocator.release(table)
    assert (table, allocator.num_free) == ([], 4)


def test_the_allocator_counts_whole_blocks() -> None:
    allocator = BlockAllocator(4, 10)
    assert [allocator.blocks_for(n) for n in (0, 1, 10, 11, 40)] == [0, 1, 1, 2, 4]
    table: list[int] = []
    assert allocator.grow(table, 15)
    assert allocator.grow(table, 12)  # less than it holds: nothing changes
    assert len(table) == 2


def publish(allocator: BlockAllocator, table: list[int], tokens: list[int]) -> None:
    allocator.publish(table, allocator.digests(tokens, len(tokens), []))


def find(allocator: BlockAllocator, tokens: list[int]) -> list[int]:
    return allocator.find(allocator.digests(tokens, len(tokens), []))


def share(own: Machine, number: int, tokens: list[int]) -> int:
    """Runs one prompt to its end; returns how many tokens were computed for it."""
    before = own.num_computed
    params = SamplingParams(max_new_tokens=1)
    own.add(Request(number, tuple(tokens), params, seed=0))
    own.finish()
    return own.num_computed - before


def test_a_beginning_that_was_computed_before_is_not_computed_again() -> None:
    own = machine(num_blocks=40, max_len=64)
    prefix = [number % 7 for number in range(22)]  # five full blocks of 4, and two tokens
    assert share(own, 0, [*prefix, 8, 8]) == 24
    assert share(own, 1, [*prefix, 9, 9, 9]) == 25 - 20
    assert share(own, 2, [1, *prefix]) == 23


def test_a_prompt_takes_over_what_a_running_sequence_has_computed() -> None:
    """Its full blocks are known after the step that computed them, not only when it has ended."""
    own = machine(num_blocks=40, max_len=64, max_batch_tokens=32)
    own.add(request(0, 9, max_new_tokens=8))
    own.step()
    own.add(request(1, 10, beginning=0, max_new_tokens=1))
    assert spans(own.step()) == [(0, 9, 10), (1, 8, 10)]


def test_a_prompt_of_a_single_full_block_is_known_when_it_was_computed() -> None:
    own = Machine(StepLimits(64, 32, 8), num_blocks=8, block_size=2)
    own.add(request(0, 2, max_new_tokens=8))
    own.step()
    own.add(request(1, 3, beginning=0, max_new_tokens=1))
    assert spans(own.step())[1] == (1, 2, 3)


def test_the_output_of_a_sequence_that_starts_over_is_computed_in_one_go() -> None:
    own = machine(num_blocks=6, max_len=24)
    for number in range(3):
        own.add(request(number, 5, max_new_tokens=10))
    lengths = [
        chunk.stop - chunk.start
        for chunks in own.run()
        for chunk in chunks
        if chunk.start >= 5 and chunk.stop < len(chunk.sequence.tokens)
    ]
    started_over = [length for length in lengths if length > 1]
    assert started_over, lengths


def test_a_prompt_that_goes_on_from_an_earlier_output_takes_that_over_too() -> None:
    own = machine(num_blocks=40, max_len=64)
    first = request(0, 8, max_new_tokens=9)
    own.add(first)
    own.finish()
    turn = [*first.prompt_ids, *own.outputs[0, 0]]  # 17 tokens, of which 16 were computed
    assert share(own, 1, [*turn, 1]) == 18 - 16


def test_a_prompt_whose_every_row_is_wanted_takes_nothing_over() -> None:
    own = machine(num_blocks=40, max_len=64)
    tokens = tuple(number % 7 for number in range(20))
    assert share(own, 0, list(tokens)) == 20
    before = own.num_computed
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=0)
    own.add(Request(1, tokens, params, seed=0))
    own.finish()
    assert own.num_computed - before == 20


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    own = machine(num_blocks=40, max_len=64)
    tokens = [number % 7 for number in range(20)]
    assert [share(own, number, tokens) for number in range(2)] == [20, 4]


def test_what_was_unused_longest_is_forgotten_first() -> None:
    own = machine(num_blocks=12, max_len=24)
    texts = [[number] * 17 for number in range(3)]  # five blocks each: no three fit
    computed = [share(own, number, texts[number]) for number in (0, 1, 0, 2, 0)]
    assert computed == [17, 17, 1, 17, 1]
    assert share(own, 1, texts[1]) > 1


def test_blocks_of_unlike_texts_are_never_mixed_up() -> None:
    own = machine(num_blocks=40, max_len=64)
    first, second = [1, 2, 3, 4], [5, 6, 7, 8]
    assert share(own, 0, [*first, *second, 0]) == 9
    assert (
        share(own, 1, [*second, *second, 0]) == 9
    )  # the second block is the same, what precedes it not


def test_a_prompt_is_hashed_once_however_long_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def counted(data: bytes, digest_size: int) -> object:
        hashed.append(data)
        return blake2b(data, digest_size=digest_size)

    own = machine(num_blocks=12, max_len=48)
    own.add(request(0, 30, max_new_tokens=10))
    own.add(request(1, 40, max_new_tokens=1))
    own.step()
    monkeypatch.setattr(blocks, "blake2b", counted)
    own.step()
    assert len(hashed) == 9  # of ten full blocks all but the last, whose last token is computed
    for _ in range(5):
        own.step()
    assert len(hashed) == 9
    own.finish()


def test_a_digest_is_that_of_all_tokens_before_it_whichever_were_known() -> None:
    allocator = BlockAllocator(8, 4)
    tokens = list(range(14))
    at_once = allocator.digests(tokens, 14, [])
    known: list[bytes] = []
    assert allocator.digests(tokens, 3, known) == []
    assert allocator.digests(tokens, 4, known) == at_once[:1]
    assert allocator.digests(tokens, 13, known) == at_once == known
    assert allocator.digests(tokens, 9, known) == at_once[:2]
    assert len(set(at_once)) == 3


def test_what_it_holds_and_has_reused_is_counted() -> None:
    own = machine(num_blocks=6, max_len=24)
    for number in range(3):
        own.add(request(number, 5, beginning=0, max_new_tokens=10))
    own.step()
    assert own.scheduler.stats() == EngineStats(0, 3, 6, 6, 15, 0)
    next(chunks for chunks in own.run() if own.num_preempted)
    stats = own.scheduler.stats()
    assert (stats.num_waiting, stats.num_running) == (1, 2)
    own.finish()  # one was preempted, and found blocks of its own: that is no hit
    own.add(request(3, 5, beginning=0, max_new_tokens=1))
    own.finish()
    assert own.scheduler.stats() == EngineStats(0, 0, 0, 6, 20, 4)


def test_without_reuse_everything_is_computed() -> None:
    allocator = BlockAllocator(8, 4, reuse=False)
    table: list[int] = []
    assert allocator.grow(table, 8)
    publish(allocator, table, list(range(8)))
    assert find(allocator, list(range(9))) == []


def test_tokens_that_spell_the_same_digits_are_different_blocks() -> None:
    allocator = BlockAllocator(num_blocks=4, block_size=2)
    table: list[int] = []
    assert allocator.grow(table, 2)
    publish(allocator, table, [1, 23])
    assert find(allocator, [1, 23, 0]) == table
    assert find(allocator, [12, 3, 0]) == []


def test_of_a_released_text_the_end_is_forgotten_first() -> None:
    allocator = BlockAllocator(num_blocks=3, block_size=2)
    table: list[int] = []
    assert allocator.grow(table, 6)
    blocks, tokens = list(table), [1, 2, 3, 4, 5, 6, 7]
    publish(allocator, table, tokens)
    allocator.release(table)
    assert allocator.grow([], 2)  # another sequence takes one block
    assert find(allocator, tokens) == blocks[:2]


def test_a_shared_block_is_free_only_when_its_last_user_releases_it() -> None:
    allocator = BlockAllocator(num_blocks=2, block_size=2)
    first: list[int] = []
    assert allocator.grow(first, 2)
    publish(allocator, first, [1, 2])
    second = find(allocator, [1, 2, 3])
    allocator.take(second)
    allocator.release(first)
    assert (allocator.num_free, allocator.num_unused(second)) == (1, 0)
    allocator.release(second)
    assert allocator.num_free == 2
