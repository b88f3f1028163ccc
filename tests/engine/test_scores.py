"""Scores of prompts that begin alike: taken over from cache blocks exactly as they were computed, and the
blocks that have some are the same on every rank."""

import argparse
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import cache_of, make_engine, random_prompt, small
from numpy.typing import NDArray
from scored_prefixes import num_computed, num_distinct, read_prompts
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.engine import sampler
from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.engine.scores import PromptScores
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.request import Chunk, Request, RequestOutput, Token

VOCAB = 50
SCORED = SamplingParams(max_new_tokens=1, prompt_logprobs=5, ignore_eos=True)


def score_of(tokens: tuple[int, ...], num_top: int) -> tuple[float, int, list[int], list[float]]:
    """What the fake model says of the last of `tokens` after those before it, its rank, and of the most
    likely.
    """
    before = sha256(str(tokens[:-1]).encode()).digest()
    own = sha256(str(tokens).encode()).digest()
    return own[0] / 7, own[1], [*before[:num_top]], [byte / 9 for byte in before[8 : 8 + num_top]]


@dataclass
class Rank:
    """A scheduler on one rank with a cache of plain Python, which knows after which tokens each place of a
    block was written, and scores from a hash function where it holds any."""

    limits: StepLimits
    num_blocks: int
    block_size: int
    serves: bool
    num_computed: int = 0
    # All up to its own.
    written: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    finished: dict[int, list[Token]] = field(default_factory=dict)  # scores by request

    def __post_init__(self) -> None:
        self.allocator = BlockAllocator(self.num_blocks, self.block_size)
        self.scores = PromptScores(self.num_blocks, self.block_size, VOCAB) if self.serves else None
        self.scheduler = Scheduler(self.allocator, self.limits, self.scores, self.copy)

    def copy(self, source: int, target: int) -> None:
        for place in range(self.block_size):
            self.written[target, place] = self.written.get((source, place), ())

    def step(self) -> list[tuple[int, int, int, int]]:
        """A step; returns what it computed: request, sample, and the chunk's ends."""
        chunks = self.scheduler.next_chunks(self.limits.max_batch_tokens)
        for chunk in chunks:
            self.compute(chunk)
            self.score(chunk)
        tokens = [
            Token(len(chunk.sequence.tokens) % VOCAB) if chunk.samples else None for chunk in chunks
        ]
        for output in self.scheduler.commit(chunks, tokens):
            if output.finish_reason is not None and output.index == 0 and self.scores is not None:
                self.finished[output.request_id] = self.scores.read(output.request_id)
                self.scores.drop(output.request_id)
        return [(one.request.id, one.sequence.index, one.start, one.stop) for one in chunks]

    def compute(self, chunk: Chunk) -> None:
        """Writes the chunk's places, then reads all before them back, as attention does."""
        tokens, blocks = tuple(chunk.sequence.tokens[: chunk.stop]), chunk.sequence.blocks
        places = [
            (blocks[place // self.block_size], place % self.block_size)
            for place in range(chunk.stop)
        ]
        for place in range(chunk.start, chunk.stop):
            assert self.allocator._users[places[place][0]] == 1
            self.written[places[place]] = tokens[: place + 1]
        assert [self.written[place] for place in places] == [
            tokens[: stop + 1] for stop in range(chunk.stop)
        ]
        self.num_computed += chunk.stop - chunk.start

    def score(self, chunk: Chunk) -> None:
        request = chunk.request
        if self.scores is None or not chunk.wants_every_row or request.keep_logits:
            return
        new = self.scores.missing(request, chunk.stop)
        assert new.start > chunk.start, "a score is missing whose row is not computed"
        num_top = self.scores.num_top(request)
        found = [score_of(request.prompt_ids[: place + 1], num_top) for place in new]
        own, ranks = (np.array([one[place] for one in found]) for place in (0, 1))
        ids, values = (
            np.array([one[place] for one in found]).reshape(-1, num_top) for place in (2, 3)
        )
        self.scores.add(request, (own, ranks, ids, values))

    def run(self, *requests: Request) -> int:
        """Runs requests to their end; returns how many tokens were computed for them."""
        before = self.num_computed
        for request in requests:
            self.scheduler.add(request)
        while self.scheduler.has_work:
            self.step()
        return self.num_computed - before


def rank(
    num_blocks: int = 40, block_size: int = 4, *, serves: bool = True, budget: int = 16
) -> Rank:
    return Rank(StepLimits(64, budget, 8), num_blocks, block_size, serves)


def request(number: int, prompt: Iterable[int], **params: object) -> Request:
    sampling = {"max_new_tokens": 1, "prompt_logprobs": 2, "ignore_eos": True, **params}
    return Request(number, tuple(prompt), SamplingParams(**sampling), seed=0)  # type: ignore[arg-type]


def expected(one: Request) -> list[Token]:
    num_top = one.params.prompt_logprobs or 0
    told = []
    for stop in range(2, len(one.prompt_ids) + 1):
        own, rank, ids, values = score_of(one.prompt_ids[:stop], num_top)
        top = tuple(zip(ids, values, strict=True))
        told.append(Token(one.prompt_ids[stop - 1], own, top, rank=rank))
    return told


PREFIX = [number % 7 for number in range(22)]  # five full blocks of 4, and two tokens


def test_a_scored_prompt_computes_only_what_is_new_and_the_token_before() -> None:
    """From whose row the score of the first new token follows, wherever in a block it lies."""
    own = rank()
    first, second = request(0, [*PREFIX, 8, 8]), request(1, [*PREFIX, 9, 9, 9], prompt_logprobs=5)
    third = request(2, [*PREFIX[:20], 30, 31])
    assert own.run(first) == 24
    assert own.run(second) == 25 - 21
    assert own.run(third) == 22 - 19
    for one in (first, second, third):
        assert own.finished[one.id] == expected(one)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 20, 22])
def test_of_a_scored_prompt_that_comes_again_the_last_token_is_computed(length: int) -> None:
    own = rank()
    assert [own.run(request(number, PREFIX[:length])) for number in range(3)] == [length, 1, 1]
    assert own.finished[0] == own.finished[2] == expected(request(0, PREFIX[:length]))


def test_prompts_that_differ_in_their_last_token_compute_two() -> None:
    """As the four answers to a question do, one prompt each."""
    own = rank()
    prompts = [request(number, [*PREFIX[:19], 40 + number]) for number in range(4)]
    assert [own.run(prompt) for prompt in prompts] == [20, 2, 2, 2]
    assert [own.finished[number] for number in range(4)] == [expected(one) for one in prompts]


def test_a_copied_block_stays_as_it_was_for_others() -> None:
    own = rank()
    own.run(request(0, PREFIX[:20], max_new_tokens=4))
    again = own.run(request(1, [*PREFIX[:18], 30, 31, 32, 33]))
    assert (again, own.run(request(2, [*PREFIX[:20], 33], prompt_logprobs=None))) == (22 - 17, 1)


def test_a_preempted_prompt_takes_no_scores_of_its_own_output() -> None:
    """Which another prompt has, where it is the text that the first one went on with."""
    own = rank(num_blocks=16, budget=64)
    older = request(0, [*[7] * 10, *range(10, 17)], max_new_tokens=40)
    younger = request(1, [7] * 10, max_new_tokens=30)
    assert own.run(older, younger) > 57 + 40 - 8, "nobody was preempted"
    assert [own.finished[0], own.finished[1]] == [expected(older), expected(younger)]


def test_of_a_block_that_was_needed_otherwise_nothing_is_copied() -> None:
    own = rank(num_blocks=6)
    own.run(request(0, PREFIX[:6]))
    own.run(request(1, [40, 41] * 11))
    assert own.run(request(2, PREFIX[:6])) == 6


def test_a_block_without_scores_is_none_to_a_prompt_that_wants_them_and_one_to_others() -> None:
    own = rank()
    tokens = [*PREFIX, 8]
    assert own.run(request(0, tokens, prompt_logprobs=None)) == 23
    assert own.run(request(1, tokens)) == 23
    assert own.run(request(2, tokens, prompt_logprobs=None)) == 3
    assert own.run(request(3, tokens)) == 1  # the second left its scores with the first's blocks
    assert own.finished[3] == expected(request(3, tokens))


@pytest.mark.parametrize(
    "params", [dict(prompt_logprobs=6), dict(prompt_logprobs=None, n=2)], ids=str
)
def test_more_than_five_likely_tokens_are_computed_anew(params: dict[str, object]) -> None:
    own = rank()
    tokens = [*PREFIX, 8]
    own.run(request(0, tokens))
    logits = Request(1, tuple(tokens), SamplingParams(**params), seed=0, keep_logits="n" in params)  # type: ignore[arg-type]
    own.scheduler.add(logits)
    spans = own.step() + own.step()
    starts = [[start for _, sample, start, _ in spans if sample == index] for index in (0, 1)]
    assert starts == ([[0, 13], [20, 23]] if "n" in params else [[0, 16], []])


def test_further_samples_of_a_scored_prompt_take_any_block_over() -> None:
    own = rank(budget=64)
    tokens = [*PREFIX, 8]
    assert own.run(request(0, tokens, prompt_logprobs=None)) == 23
    assert own.run(request(1, tokens, n=3)) == 23 + 3 + 3


def test_scores_are_forgotten_with_the_content_of_their_block() -> None:
    own = Rank(StepLimits(24, 16, 8), num_blocks=6, block_size=4, serves=True)
    tokens = [*PREFIX, 8, 8]
    assert own.run(request(0, tokens, max_new_tokens=0)) == 24
    assert own.run(request(1, [40, 41] * 12, max_new_tokens=0)) == 24  # takes all blocks
    assert own.run(request(2, tokens, max_new_tokens=0, prompt_logprobs=None)) == 24
    assert own.run(request(3, tokens, max_new_tokens=0)) == 24
    assert own.finished[3] == expected(request(3, tokens))


def test_what_was_computed_first_is_what_is_told() -> None:
    """Of one that waits for another's blocks, too."""
    own = rank(budget=64)
    assert own.scores is not None
    add, number = own.scores.add, iter(range(100))

    def marked(one: Request, new: tuple[NDArray[np.generic], ...]) -> None:
        add(one, (np.full(len(new[0]), float(next(number))), *new[1:]))

    own.scores.add = marked  # type: ignore[assignment,method-assign]
    own.run(request(0, PREFIX[:20]), request(1, PREFIX[:20]))
    own.run(request(2, [*PREFIX[:20], 30, 31]))
    marks = [[token.logprob for token in own.finished[one]] for one in range(3)]
    assert marks == [[0.0] * 19, [0.0] * 19, [0.0] * 19 + [2.0] * 2]


def random_request(number: int, draw: random.Random, longest: int) -> Request:
    """Of few beginnings, so that many are shared, to any length."""
    beginning = [draw.choice([0, 1])] * draw.choice([0, 3, 4, 8, 13, 30])
    prompt = [*beginning, *(draw.choice([1, 2]) for _ in range(draw.randint(1, 12)))][:longest]
    params = SamplingParams(
        max_new_tokens=0 if len(prompt) == longest else draw.choice([0, 1, 9, 25]),
        prompt_logprobs=draw.choice([None, 0, 1, 3, 5, 5, 7]),
        n=draw.choice([1, 1, 1, 2]),
    )
    keep_logits = draw.random() < 0.1 and params.prompt_logprobs is None
    return Request(number, tuple(prompt), params, seed=0, keep_logits=keep_logits)


@pytest.mark.parametrize("seed", range(60))
def test_random_loads_get_the_right_scores_and_every_rank_schedules_alike(seed: int) -> None:
    draw = random.Random(seed)
    block_size, longest = draw.choice([1, 3, 4, 16]), draw.randint(8, 40)
    num_blocks = draw.randint(-(-longest // block_size), 4 * -(-longest // block_size))
    limits = StepLimits(longest, draw.choice([1, 5, 16, 200]), draw.choice([1, 3, 8]))
    ranks = [Rank(limits, num_blocks, block_size, serves) for serves in (True, False)]
    requests = {number: random_request(number, draw, longest) for number in range(40)}
    ended = set()

    def step() -> None:
        first, second = (one.step() for one in ranks)
        assert first == second

    for one in requests.values():
        for each in ranks:
            each.scheduler.add(one)
        for _ in range(draw.choice([0, 1, 5])):
            if ranks[0].scheduler.has_work:
                step()
        if draw.random() < 0.1:
            ended.add(number := draw.choice(list(requests)[: one.id + 1]))
            for each in ranks:
                each.scheduler.end(number)
    while ranks[0].scheduler.has_work:
        step()
    assert ranks[0].allocator.num_free == ranks[1].allocator.num_free == num_blocks
    scored = {
        number: one for number, one in requests.items() if one.params.prompt_logprobs is not None
    }
    for number in scored.keys() - ended:
        assert ranks[0].finished[number] == expected(requests[number])


def test_random_loads_do_take_scores_over_and_preempt() -> None:
    """The test above would prove little if no block with scores were ever found, or all always free."""
    own, draw = rank(num_blocks=16), random.Random(1)
    requests = [random_request(number, draw, 40) for number in range(40)]
    preempted = 0
    for one in requests:
        own.scheduler.add(one)
    while own.scheduler.has_work:
        own.step()
        preempted += sum(
            one.num_preemptions > 0 and one.shares_scores for one in own.scheduler.waiting
        )
    assert preempted
    roomy = rank(num_blocks=400)
    roomy.run(*(one for one in requests if one.shares_scores))
    assert roomy.scheduler.stats().num_cached_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("model"))


def prompts_alike(num: int, shared: int = 37) -> list[list[int]]:
    """Prompts of different lengths with the same beginning."""
    return [[*random_prompt(shared), *random_prompt(3 + 2 * number)] for number in range(num)]


def logprobs(outputs: Iterable[RequestOutput]) -> list[float]:
    told = [token for output in outputs for token in output.prompt_logprobs or () if token]
    return [
        value for token in told for value in (token.logprob, *dict(token.top).values()) if value
    ]


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_a_second_prompt_with_the_same_beginning_computes_only_what_is_new(
    folder: Path, block_size: int
) -> None:
    first, second = prompts_alike(2)
    with make_engine(folder, block_size=block_size) as engine:
        [left] = engine.generate([first], SCORED)
        [taken] = engine.generate([second], SCORED)
        [fewer] = engine.generate([second], SamplingParams(max_new_tokens=1, prompt_logprobs=1))
    assert taken.num_cached_tokens == 36
    assert left.prompt_logprobs is not None
    assert taken.prompt_logprobs is not None
    assert fewer.prompt_logprobs is not None
    same = taken.num_cached_tokens + 1
    assert taken.prompt_logprobs[:same] == left.prompt_logprobs[:same]
    assert [token and (token.logprob, token.top[:1]) for token in taken.prompt_logprobs] == [
        token and (token.logprob, token.top) for token in fewer.prompt_logprobs
    ]


@pytest.mark.parametrize("block_size", [3, 16])
@pytest.mark.parametrize("world_size", [1, 2])
def test_scores_are_those_of_an_engine_that_reuses_nothing(
    folder: Path, world_size: int, block_size: int
) -> None:
    prompts = [*prompts_alike(4), *prompts_alike(2, shared=20), *prompts_alike(3)]

    def program(engine: Engine) -> tuple[list[float], int]:
        outputs = [
            engine.generate(pair, SCORED) for pair in zip(prompts[::2], prompts[1::2], strict=False)
        ]
        flat = [one for pair in outputs for one in pair]
        return logprobs(flat), sum(one.num_cached_tokens for one in flat)

    settings: dict[str, Any] = dict(max_len=64, max_batch_tokens=24, block_size=block_size)
    found, num_cached = on_engines(world_size, folder, program, **settings)
    fresh, none = on_engines(1, folder, program, reuse_prefixes=False, **settings)
    assert found == pytest.approx(fresh, abs=1e-4)
    assert (num_cached > 100, none) == (True, 0)


def test_scores_survive_a_cache_that_is_too_small_and_preemption(folder: Path) -> None:
    prompts = [*prompts_alike(5, shared=20), *prompts_alike(3, shared=9)]
    params = SamplingParams(max_new_tokens=20, prompt_logprobs=2, ignore_eos=True)
    with make_engine(folder, reuse_prefixes=False) as roomy:
        fresh, memory = logprobs(roomy.generate(prompts, params)), cache_of(roomy, 5)
    with make_engine(folder, max_batch_tokens=13, cache_memory=memory, block_size=16) as tiny:
        for _ in range(2):
            assert logprobs(tiny.generate(prompts, params)) == pytest.approx(fresh, abs=1e-4)
        assert tiny.stats().num_cached_tokens


def test_an_aborted_prompt_leaves_the_scores_of_what_was_computed(folder: Path) -> None:
    [prompt] = prompts_alike(1)
    with make_engine(folder, max_batch_tokens=20, block_size=4) as engine:
        engine.abort(engine.add(prompt, SCORED))
        number = engine.add(prompt, SCORED)
        engine.step()
        engine.abort(number)
        [output] = engine.generate([prompt], SCORED)
    with make_engine(folder) as engine:
        [expected] = engine.generate([prompt], SCORED)
    assert output.num_cached_tokens == 19
    assert logprobs([output]) == pytest.approx(logprobs([expected]), abs=1e-4)


@pytest.mark.parametrize("num_top", range(2, 7))
def test_fewer_likely_tokens_are_the_first_of_more_whichever_are_equal(num_top: int) -> None:
    logits = torch.randint(0, 3, (20, 40), generator=torch.Generator().manual_seed(0)).float()
    _, _, ids, values = sampler.score(logits, [0] * 20, num_top)
    order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
    assert ids.equal(order)
    assert values.equal(logits.double().log_softmax(dim=-1).gather(1, order))


def test_a_rank_counts_the_tokens_that_are_at_least_as_likely() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 5.0]])
    for token_id, ranks in ((0, [1, 4]), (1, [4, 4]), (2, [3, 4]), (3, [3, 1])):
        assert sampler.score(logits, [token_id] * 2, 2)[1].tolist() == ranks


def test_forty_scored_prompts_of_five_shots_compute_little_more_than_what_differs(
    data: Callable[[str], Path],
) -> None:
    options = argparse.Namespace(
        tokenizer=data("falcon-tokenizer"), data=data("mmlu"), subject="astronomy", questions=40
    )
    prompts = list(read_prompts(options))
    assert len(prompts) == 40
    assert (
        num_distinct(prompts)
        <= num_computed(prompts, 16, reuse=True)
        <= 1.15 * num_distinct(prompts)
    )
    assert (
        num_computed(prompts, 16, reuse=False) == sum(map(len, prompts)) > 6 * num_distinct(prompts)
    )
