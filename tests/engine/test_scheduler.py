"""The scheduler with a model that is a hash function: budgets, blocks, preemption, order and fairness."""

import random
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import pytest
from machine import EOS, Machine, continuation, first_poisoned, machine, request, spans

from gyrfalcon.engine.prefixes import PrefixesInProgress
from gyrfalcon.engine.scheduler import MOST_HELD, Scheduler, StepLimits
from gyrfalcon.kv import blocks
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import EngineStats, FinishReason, NonFinite, Request, SamplingParams, Token


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


def test_what_decoding_leaves_of_the_budget_goes_to_prompts_the_shortest_first() -> None:
    own = machine(max_batch_tokens=10)
    own.add(request(0, 4, max_new_tokens=9))
    own.step()
    own.add(request(1, 12, max_new_tokens=9))
    own.add(request(2, 5, max_new_tokens=9))
    assert spans(own.step()) == [(0, 4, 5), (2, 0, 5), (1, 0, 4)]
    assert spans(own.step()) == [(0, 5, 6), (2, 5, 6), (1, 4, 12)]
    assert spans(own.step()) == [(0, 6, 7), (1, 12, 13), (2, 6, 7)]


def test_a_prompt_half_read_waits_for_shorter_ones_and_goes_on_where_it_was() -> None:
    own = machine(max_batch_tokens=10)
    own.add(request(0, 30, max_new_tokens=1))
    assert spans(own.step()) == [(0, 0, 10)]
    own.add(request(1, 12, max_new_tokens=2))
    own.add(request(2, 25, max_new_tokens=1))
    assert spans(own.step()) == [(1, 0, 10)]
    assert spans(own.step()) == [(1, 10, 12), (0, 10, 18)]  # 20 tokens were left of it, of 2 25
    assert spans(own.step()) == [(1, 12, 13), (0, 18, 27)]
    assert spans(own.step()) == [(0, 27, 30), (2, 0, 7)]


def test_a_short_prompt_is_answered_at_once_while_long_ones_are_read() -> None:
    own = machine(num_blocks=1000, max_len=1024, max_batch_tokens=64, max_sequences=16)
    for number in range(4):
        own.add(request(number, 512, max_new_tokens=5))
    own.step()
    own.add(request(4, 16, max_new_tokens=5))
    assert spans(own.step())[0] == (4, 0, 16)


def test_prompts_share_what_they_are_given_and_decoding_takes_nothing_from_it() -> None:
    own = machine(max_batch_tokens=32)
    for number in range(3):
        own.add(request(number, 2, max_new_tokens=9))
    own.step()
    own.add(request(3, 20, max_new_tokens=1))
    decoding = [(number, 2, 3) for number in range(3)]
    assert spans(own.step(prompt_tokens=4)) == [*decoding, (3, 0, 4)]
    assert spans(own.step(prompt_tokens=1))[3:] == [(3, 4, 5)]
    assert spans(own.step(prompt_tokens=1000))[3:] == [(3, 5, 20)]


def test_where_every_token_of_a_step_is_decoded_no_prompt_begins() -> None:
    own = machine(max_batch_tokens=3)
    for number in range(5):
        own.add(request(number, 1, max_new_tokens=4))
    assert spans(own.step()) == [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
    assert spans(own.step()) == [(0, 1, 2), (1, 1, 2), (2, 1, 2)]
    own.finish()
    assert own.finished == [(number, 0) for number in range(5)]


def test_a_long_prompt_is_overtaken_so_many_times_and_no_more() -> None:
    limits = StepLimits(64, 8, 8, most_overtaken=3)
    own = Machine(limits, num_blocks=100)
    own.add(request(0, 40, max_new_tokens=1))
    own.step()  # begins before anything shorter is there
    order = []
    for number in range(1, 12):
        own.add(request(number, 7, max_new_tokens=1))
        order += [one for one, start, _ in spans(own.step()) if start == 0]
    assert order[:3] == [1, 2, 3]
    own.finish()
    assert own.finished.index((0, 0)) == 3


def test_a_prompt_that_waits_is_overtaken_so_many_times_and_no_more() -> None:
    limits = StepLimits(64, 8, 1, most_overtaken=2)
    own = Machine(limits, num_blocks=100)
    own.add(request(0, 4, max_new_tokens=3))
    own.step()
    own.add(request(1, 40, max_new_tokens=1))
    for number in range(2, 7):
        own.add(request(number, 5, max_new_tokens=1))
    own.finish()
    assert [number for number, _ in own.finished] == [0, 2, 3, 1, 4, 5, 6]


def test_a_better_priority_goes_first_however_long_its_prompt() -> None:
    own = machine(max_batch_tokens=8, max_sequences=1)
    own.add(request(0, 4, priority=-1, max_new_tokens=2))
    own.step()
    for number, (length, priority) in enumerate([(3, 0), (2, 5), (30, -1), (9, -1)], start=1):
        own.add(request(number, length, priority=priority, max_new_tokens=1))
    own.finish()
    assert [number for number, _ in own.finished] == [0, 4, 3, 1, 2]


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


def test_small_prompts_do_not_take_the_room_that_an_overtaken_one_waits_for() -> None:
    own = Machine(StepLimits(64, 16, 8, most_overtaken=1), num_blocks=6)
    own.add(request(0, 12, max_new_tokens=4))
    own.step()
    own.add(request(1, 16, max_new_tokens=1))
    own.add(request(2, 1, max_new_tokens=1))
    own.add(request(3, 1, max_new_tokens=1))
    assert spans(own.step()) == [(0, 12, 13), (2, 0, 1)]
    assert spans(own.step()) == [(0, 13, 14)]
    own.finish()
    assert own.finished == [(2, 0), (0, 0), (1, 0), (3, 0)]


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


def test_a_more_urgent_sequence_takes_the_place_of_a_running_one() -> None:
    own = machine(max_sequences=2)
    for number, priority in enumerate((0, 2, 1)):
        own.add(request(number, 5, priority=priority, max_new_tokens=9))
        own.step()
    assert [one.request.id for one in own.scheduler.running] == [0, 2]
    [preempted] = own.scheduler.waiting
    assert (preempted.request.id, len(preempted.output_ids)) == (1, 1)
    own.finish()
    assert own.finished == [(0, 0), (2, 0), (1, 0)]
    for number in range(3):
        expected = continuation(request(number, 5, max_new_tokens=9), 0, max_len=64)
        assert own.outputs[number, 0] == expected


@pytest.mark.parametrize(("prompt_len", "left"), [(3, [0, 1, 2]), (9, [0, 1]), (17, [0]), (20, [])])
def test_a_more_urgent_sequence_takes_blocks_of_as_many_as_it_needs_and_no_more(
    prompt_len: int, left: list[int]
) -> None:
    own = machine(num_blocks=7, max_len=24)  # one is free
    for number in range(3):
        own.add(request(number, 6, priority=1, max_new_tokens=9))
    own.step()
    own.add(request(3, prompt_len, max_new_tokens=1))
    assert (3, 0, min(prompt_len, 16 - len(left))) in spans(own.step())
    assert [one.request.id for one in own.scheduler.running if one.priority] == left
    own.finish()


def test_nobody_is_preempted_in_vain_nor_for_one_of_the_same_priority() -> None:
    own = machine(num_blocks=6, max_len=24)
    own.add(request(0, 14, max_new_tokens=6))
    own.add(request(1, 2, priority=1, max_new_tokens=3))
    own.step()
    own.step()
    # Needs four blocks, of which two are free or could be.
    own.add(request(2, 12, max_new_tokens=1))
    own.add(request(3, 2, priority=1, max_new_tokens=1))
    assert [one[0] for one in spans(own.step())] == [0, 1]
    assert own.num_preempted == 0
    own.finish()


def test_a_step_looks_at_few_of_the_many_that_wait_for_a_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each prompt goes on where the next shorter one ends: whoever begins has all others wait anew."""
    scheduler = Scheduler(BlockAllocator(1000, 4), StepLimits(1024, 16, 8))
    looks = 0
    awaited = PrefixesInProgress.awaited

    def counted(*args: Any) -> object:
        nonlocal looks
        looks += 1
        return awaited(*args)

    monkeypatch.setattr(PrefixesInProgress, "awaited", counted)
    for number in range(200):
        prompt = (7,) * (4 * number + 5)
        scheduler.add(Request(number, prompt, SamplingParams(max_new_tokens=1), seed=0))
    most = num_ended = 0
    while scheduler.has_work:
        looks = 0
        chunks = scheduler.next_chunks(16)
        results = [Token(1) if chunk.samples else None for chunk in chunks]
        num_ended += len(scheduler.commit(chunks, results))
        most = max(most, looks)
    assert num_ended == 200
    assert most < MOST_HELD + 16


class Counted(dict[Any, Any]):
    """Counts how often something is looked for."""

    looks = 0

    def __contains__(self, key: object) -> bool:
        Counted.looks += 1
        return super().__contains__(key)

    def get(self, key: object, default: object = None) -> Any:
        Counted.looks += 1
        return super().get(key, default)


def test_blocks_and_scores_are_published_once_however_many_chunks_a_prompt_has() -> None:
    own = machine(max_len=256, max_batch_tokens=4)
    own.allocator._block_of, own.allocator._scored = Counted(), Counted()
    own.add(request(0, 250, prompt_logprobs=0, max_new_tokens=1))
    Counted.looks = 0
    assert len([*own.run()]) == 63
    assert Counted.looks < 12 * 63
    again = machine(max_len=256, max_batch_tokens=100)
    again.add(request(0, 250, prompt_logprobs=0, max_new_tokens=1))
    again.finish()
    assert own.allocator._block_of == again.allocator._block_of
    assert own.allocator._scored == again.allocator._scored


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
    own.add(request(0, 3, n=2, max_new_tokens=5))  # no full block that one would wait for
    chunks = scheduler.next_chunks(own.limits.max_batch_tokens)
    failed, going_on = scheduler.commit(chunks, [NonFinite(position=2), Token(1)])
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.token is None
    assert "at position 2 of request 0, sample 0" in str(failed.why)
    assert (going_on.finish_reason, going_on.why) == (None, None)
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


def test_a_failed_sample_leaves_others_the_blocks_that_it_had_found() -> None:
    own = machine(max_batch_tokens=64)
    own.add(request(0, 20, beginning=0, max_new_tokens=1))
    own.finish()
    own.add(request(1, 24, beginning=0, max_new_tokens=1))
    [chunk] = own.scheduler.next_chunks(64)
    assert chunk.start == 20
    own.scheduler.commit([chunk], [NonFinite(position=23)])
    own.add(request(2, 24, beginning=0, max_new_tokens=1))
    [chunk] = own.scheduler.next_chunks(64)
    assert chunk.start == 20


@pytest.mark.parametrize("settings", [{"priority": 1}, {"single_steps": 16}], ids=str)
def test_a_prompt_waits_for_nobody_who_is_read_later_or_slowly(settings: dict[str, Any]) -> None:
    own = machine(max_batch_tokens=8)
    own.add(request(0, 24, beginning=0, max_new_tokens=1, **settings))
    own.step()
    own.add(request(1, 24, beginning=0, max_new_tokens=1))
    for _ in range(4):
        own.step()
    assert own.finished[0] == (1, 0)
    own.finish()


def test_a_prompt_whose_logits_are_wanted_ends_well_and_serves_nobody() -> None:
    own = machine()
    own.add(replace(request(0, 9, max_new_tokens=0), keep_logits=True))
    [output] = own.scheduler.commit(
        own.scheduler.next_chunks(own.limits.max_batch_tokens), [NonFinite(position=8)]
    )
    assert (output.finish_reason, output.why) == (FinishReason.LENGTH, None)
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
            given_up.add(sample := draw.choice([*own.alive]))
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


def test_equal_prompts_of_different_salts_share_no_block() -> None:
    own = machine()
    for number, salt in enumerate(["", "a", "b", "a"]):
        own.add(request(number, 13, beginning=0, cache_salt=salt, max_new_tokens=1))
        own.finish()
    assert own.num_computed == 13 * 3 + 1
    together = machine(max_batch_tokens=64)
    for number, salt in enumerate(["a", "b", "a"]):
        together.add(request(number, 13, beginning=0, cache_salt=salt, max_new_tokens=1))
    together.finish()
    assert together.num_computed == 13 * 2 + 1


def test_a_salt_cannot_stand_for_tokens() -> None:
    first = machine().allocator.digests([1, 2, 3, 4], 4, [])
    for salt in ("1,2,3,4", first[0].decode("latin-1")):
        own = request(0, 4, cache_salt=salt)
        assert own.cache_root not in first


def test_a_prompt_waits_for_the_blocks_that_another_is_computing() -> None:
    own = machine(num_blocks=40, max_len=64, max_batch_tokens=32)
    own.add(request(0, 30, max_new_tokens=8))
    own.add(request(1, 33, beginning=0, max_new_tokens=1))
    own.add(request(2, 12, beginning=0, max_new_tokens=1))
    own.add(request(3, 40, max_new_tokens=1))
    assert spans(own.step()) == [(2, 0, 12), (3, 0, 20)]
    assert spans(own.step()) == [
        (0, 12, 30),
        (3, 20, 34),
    ]  # 2 left three blocks, not the two it shares
    assert spans(own.step()) == [(0, 30, 31), (1, 28, 33), (3, 34, 40)]


def test_who_waits_for_blocks_computes_them_when_the_other_ends_or_is_preempted() -> None:
    own = machine(num_blocks=40, max_len=64, max_batch_tokens=8)
    own.add(request(0, 30, max_new_tokens=8))
    own.add(request(1, 33, beginning=0, max_new_tokens=1))
    assert spans(own.step()) == [(0, 0, 8)]
    own.end((0, 0))
    assert spans(own.step()) == [(1, 8, 16)]
    own.finish()


def test_all_samples_of_a_prompt_compute_its_full_blocks_once() -> None:
    own = machine(num_blocks=40, max_len=64, max_batch_tokens=64)
    own.add(request(0, 30, n=4, max_new_tokens=1))
    own.finish()
    assert own.num_computed == 30 + 3 * 2  # and its last two tokens, which fill no block


def test_a_prompt_whose_every_row_is_wanted_waits_for_nothing_and_others_wait_for_it() -> None:
    own = machine(num_blocks=40, max_len=64, max_batch_tokens=20)
    own.add(request(0, 30, max_new_tokens=1))
    own.add(request(1, 30, beginning=0, max_new_tokens=1, prompt_logprobs=0))
    assert spans(own.step()) == [(0, 0, 20)]
    assert spans(own.step()) == [(0, 20, 30), (1, 0, 10)]
    own.finish()
    own = machine(num_blocks=40, max_len=64, max_batch_tokens=20)
    own.add(request(0, 30, max_new_tokens=1, prompt_logprobs=0))
    own.add(request(1, 31, beginning=0, max_new_tokens=1))
    assert spans(own.step()) == [(0, 0, 20)]
    assert spans(own.step()) == [(0, 20, 30)]
    assert spans(own.step()) == [(1, 28, 31)]


def test_scored_prompts_wait_for_scores_and_not_for_blocks_without() -> None:
    own = machine(num_blocks=40, max_len=64, max_batch_tokens=40)
    own.add(request(0, 30, max_new_tokens=1))
    own.add(request(1, 31, beginning=0, max_new_tokens=1, prompt_logprobs=0))
    own.add(request(2, 32, beginning=0, max_new_tokens=1, prompt_logprobs=0))
    own.add(request(3, 32, beginning=0, max_new_tokens=1, prompt_logprobs=0))
    assert spans(own.step()) == [(0, 0, 30), (1, 0, 10)]
    assert spans(own.step()) == [(1, 10, 31)]
    assert spans(own.step()) == [(2, 30, 32), (3, 30, 32)]


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
    # The second block is the same, what precedes it not.
    assert share(own, 1, [*second, *second, 0]) == 9


def test_a_prompt_is_hashed_once_however_long_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def counted(data: bytes, digest_size: int) -> object:
        hashed.append(data)
        return blake2b(data, digest_size=digest_size)

    monkeypatch.setattr(blocks, "blake2b", counted)
    own = machine(num_blocks=12, max_len=48)
    own.add(request(0, 30, max_new_tokens=10))
    own.step()
    hashed.clear()
    own.add(request(1, 40, n=3, max_new_tokens=1))
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
        own.add(request(number, 5, max_new_tokens=10))
    own.step()
    assert own.scheduler.stats() == EngineStats(0, 3, 6, 6, 15, 0)
    next(chunks for chunks in own.run() if own.num_preempted)
    stats = own.scheduler.stats()
    assert (stats.num_waiting, stats.num_running) == (1, 2)
    own.finish()  # one was preempted, and found blocks of its own: that is no hit
    own.add(request(3, 5, beginning=2, max_new_tokens=1))
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


def test_blocks_that_were_never_used_go_first_then_the_one_unused_longest() -> None:
    allocator = BlockAllocator(num_blocks=4, block_size=2)
    tables: list[list[int]] = [[], [], []]
    for table in tables[:2]:
        assert allocator.grow(table, 2)
    [first], [second] = tables[:2]
    allocator.release(tables[1])
    allocator.release(tables[0])
    assert allocator.num_free == 4
    assert allocator.grow(tables[2], 8)
    assert tables[2][2:] == [second, first]
    assert sorted(tables[2]) == [0, 1, 2, 3]
    assert (allocator.num_free, allocator.grow([], 1)) == (0, False)
