"""Token masks: what is not allowed counts as -inf before everything else, on any number of ranks; all else
about a row stays, whether it is finite and what it tells of log-probabilities."""

import math
from collections.abc import Sequence as Seq
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from worlds import on_every_rank

from gyrfalcon import SamplingParams, StructuredOutput
from gyrfalcon.checkpoint.hub import NESTLING
from gyrfalcon.engine import sampler
from gyrfalcon.engine.token_masks import AllowedTokens, TokenMasks
from gyrfalcon.parallel.group import Group, Vocabulary, solo
from gyrfalcon.request import Chunk, ChunkResult, NoneAllowed, NonFinite, Request, Sequence, Token
from gyrfalcon.text.grammar import Grammars
from gyrfalcon.text.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="the extra serve is not installed")

WAYS = [
    SamplingParams(),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=2.0, top_k=5),
    SamplingParams(temperature=1.5, top_p=0.7, min_p=0.01),
    SamplingParams(repetition_penalty=0.5, frequency_penalty=-2.0),
    SamplingParams(temperature=1.0, presence_penalty=1.0, logit_bias={3: 5.0, 40: -math.inf}),
]


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    tokenizer = Tokenizer.load(NESTLING)
    return Grammars(tokenizer, tokenizer.vocab_size, tokenizer.end_ids)


@pytest.fixture(scope="module")
def num_tokens() -> int:
    return Tokenizer.load(NESTLING).vocab_size


def chunk(number: int, params: SamplingParams, output: tuple[int, ...] = ()) -> Chunk:
    request = Request(number, (1, 2), params, seed=number, end_ids=frozenset((11, 300)))
    sequence = Sequence(request, 0, [1, 2, *output], 64)
    return Chunk(sequence, 0, len(sequence.tokens))


def random_logits(rows: int, num_tokens: int) -> Tensor:
    return 3 * torch.randn(rows, num_tokens, generator=torch.Generator().manual_seed(rows))


def constrained(params: SamplingParams, pattern: str) -> SamplingParams:
    """The same under a regular expression."""
    return replace(params, logprobs=2, structured=StructuredOutput(regex=pattern))


def picked(
    logits: Tensor, chunks: Seq[Chunk], grammars: Grammars, group: Group
) -> tuple[list[ChunkResult], AllowedTokens | None]:
    """What one rank of a group picks."""
    vocabulary = Vocabulary.shared(logits.shape[1], group)
    token_masks = TokenMasks(vocabulary)
    for one in chunks:
        structured = one.request.params.structured
        if group.rank == 0 and structured is not None:
            token_masks.add(one.request.id, grammars.of(grammars.compiled(structured)))
    own = logits.split(list(vocabulary.widths), dim=1)[group.rank]
    allowed = token_masks.of(chunks)
    return sampler.pick(own, chunks, vocabulary, allowed), allowed


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_pick_what_one_picks_of_logits_without_the_others(
    grammars: Grammars, num_tokens: int, world_size: int
) -> None:
    chunks = [
        chunk(2 * number + place, one)
        for number, way in enumerate(WAYS)
        for place, one in enumerate((way, constrained(way, "[a-m]{2,5}|[0-9]*")))
    ]
    logits = random_logits(len(chunks), num_tokens)
    _, whole = picked(logits, chunks, grammars, solo())
    assert whole is not None
    assert whole.rows == list(range(1, len(chunks), 2))
    assert whole.mask[:, [11, 300]].all()  # the text may be empty, so it may end
    alone = logits.clone()
    alone[whole.rows] = alone[whole.rows].masked_fill(~whole.mask, -1e30)
    plain = sampler.pick(alone, chunks, Vocabulary.shared(num_tokens, solo()))
    for results, _ in on_every_rank(
        world_size, lambda group: picked(logits, chunks, grammars, group)
    ):
        assert [one.id for one in results if isinstance(one, Token)] == [
            one.id for one in plain if isinstance(one, Token)
        ]
        told = [one for one in results if isinstance(one, Token) and one.logprob is not None]
        logprobs = logits[whole.rows].double().log_softmax(-1)
        for token, row in zip(told, logprobs, strict=True):
            assert token.logprob == pytest.approx(float(row[token.id]))
            assert token.top[0][0] == int(row.argmax())


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_told_though_its_token_is_not_allowed(
    grammars: Grammars, num_tokens: int, world_size: int, wrong: float
) -> None:
    chunks = [chunk(0, constrained(way, "[0-9]+")) for way in WAYS[:3]]
    chunks = [chunk(number, one.request.params) for number, one in enumerate(chunks)]
    logits = random_logits(3, num_tokens)
    logits[1, num_tokens - 1] = wrong
    for results, _ in on_every_rank(
        world_size, lambda group: picked(logits, chunks, grammars, group)
    ):
        assert [type(one) for one in results] == [Token, NonFinite, Token]


@pytest.mark.parametrize("world_size", [1, 2])
def test_where_no_token_is_left_every_rank_knows(
    grammars: Grammars, num_tokens: int, world_size: int
) -> None:
    none = {token: -math.inf for token in range(num_tokens - 1)}
    ways = [SamplingParams(), SamplingParams(logit_bias=none)]
    chunks = [chunk(number, constrained(way, "[0-9]+")) for number, way in enumerate(ways)]
    logits = random_logits(2, num_tokens)
    for results, _ in on_every_rank(
        world_size, lambda group: picked(logits, chunks, grammars, group)
    ):
        assert [type(one) for one in results] == [Token, NoneAllowed]


def test_a_prompt_that_is_not_read_to_its_end_needs_no_mask(
    grammars: Grammars, num_tokens: int
) -> None:
    part = chunk(0, constrained(SamplingParams(), "[0-9]+"))
    part = Chunk(part.sequence, 0, 1)
    results, allowed = picked(random_logits(1, num_tokens), [part], grammars, solo())
    assert results == [None]
    assert allowed is None
