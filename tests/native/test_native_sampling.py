"""Native sampling draws what the sampler's definitions draw: each instruction set that this processor has, in
every sampling mode, from rows that fit no vector, on one rank and on several.
"""

import math
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from worlds import on_every_rank

from gyrfalcon import SamplingParams
from gyrfalcon.engine import sampler
from gyrfalcon.native.library import library, why_not_native
from gyrfalcon.parallel.group import Group, Vocabulary, solo
from gyrfalcon.request import (
    Chunk,
    ChunkResult,
    NonFinite,
    Request,
    RowDraw,
    SamplingMode,
    Sequence,
)

if library() is None:
    pytest.skip(why_not_native(), allow_module_level=True)

from kernel_sets import SETS, use

from gyrfalcon.engine import native_sampler
from gyrfalcon.ops import native

FORBIDDEN = -math.inf
LAST = math.nextafter(1.0, 0.0)  # of the chances


@pytest.fixture(autouse=True, params=SETS)
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """One instruction set after the other, on two threads."""
    with use(request.param):
        yield


def rows_of(kind: str, seed: int, count: int, columns: int) -> Tensor:
    """Logits of a distribution; half of the rows have many equal ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, columns, generator=generator)
    scale = {"flat": 0.02, "usual": 3.0, "peaked": 12.0, "far": 400.0}[kind]
    logits = scale * logits + torch.arange(count)[:, None] % 7 * 10
    logits[::2] = logits[::2].round()
    return logits


def chunks_of(seed: int, count: int, columns: int) -> list[Chunk]:
    """Who wants a token from each row, and how."""
    own = random.Random(seed)
    chunks = []
    for row in range(count):
        most = own.choice([4, 4, 4, 0])
        params = SamplingParams(
            temperature=own.choice([0.0, 0.7, 1.0, 1.0, 3.0, 1e-3, 1000.0]),
            top_k=own.choice([0, 0, 0, 1, 3, 20, 40, 256, columns + 300]),
            top_p=own.choice([1.0, 0.999, 0.95, 0.9, 0.4, 1e-3]),
            min_p=own.choice([0.0, 0.0, 0.0, 1e-9, 0.05, 1.0]),
            logit_bias=own.choice([{}, {}, {}, {0: 2.5, columns - 1: FORBIDDEN}]),
            max_new_tokens=most,
            min_tokens=min(most, own.choice([0, 0, 0, 2])),
        )
        request = Request(0, (0, 0), params, row, end_ids=frozenset([columns // 2]))
        chunks.append(Chunk(Sequence(request, 0, [0, 0], 64), 0, 2))
    return chunks


def picks(own: Tensor, chunks: list[Chunk], vocabulary: Vocabulary) -> list[ChunkResult]:
    return sampler.pick(own, chunks, vocabulary, None, native_sampler.choose)


@pytest.mark.parametrize("kind", ["flat", "usual", "peaked", "far"])
@pytest.mark.parametrize("columns", [1, 2, 64, 129, 1000, 4096, 9001])
def test_native_draws_equal_those_of_the_definitions(kind: str, columns: int) -> None:
    count = 40 if columns > 5000 else 150
    logits, chunks = rows_of(kind, columns, count, columns), chunks_of(columns, count, columns)
    assert columns > 5000 or {one.request.sampling_mode for one in chunks} == {*SamplingMode}
    vocabulary = Vocabulary.shared(columns, solo())
    before = logits.clone()
    found = picks(logits, chunks, vocabulary)
    assert logits.equal(before)
    assert found == sampler.pick(logits, chunks, vocabulary)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_draw_natively_what_one_draws(world_size: int) -> None:
    columns, count = 1003, 120
    logits, chunks = rows_of("usual", 5, count, columns), chunks_of(5, count, columns)
    expected = picks(logits, chunks, Vocabulary.shared(columns, solo()))

    def on_rank(group: Group) -> list[ChunkResult]:
        vocabulary = Vocabulary.shared(columns, group)
        own = logits.split(list(vocabulary.widths), dim=1)[group.rank]
        return picks(own, chunks, vocabulary)

    assert on_every_rank(world_size, on_rank) == [expected] * world_size


def test_a_row_s_token_does_not_depend_on_its_neighbours() -> None:
    logits, chunks = rows_of("usual", 6, 80, 4096), chunks_of(6, 80, 4096)
    vocabulary = Vocabulary.shared(4096, solo())
    together = picks(logits, chunks, vocabulary)
    alone = [
        picks(logits[row : row + 1], chunks[row : row + 1], vocabulary)[0] for row in range(80)
    ]
    assert together == alone


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 64, 130, 999])
@pytest.mark.parametrize("changed", [False, True])
def test_a_logit_that_is_not_finite_fails_its_own_row(
    wrong: float, place: int, changed: bool
) -> None:
    chunks = chunks_of(7, 40, 1000)
    chunks = [one for one in chunks if changed or not native_sampler._changes_logits(one)]
    logits = rows_of("usual", 7, len(chunks), 1000)
    vocabulary = Vocabulary.shared(1000, solo())
    expected = picks(logits, chunks, vocabulary)
    for row in range(0, len(chunks), 3):
        logits[row, place] = wrong
        expected[row] = NonFinite(1)
    assert picks(logits, chunks, vocabulary) == expected


@pytest.mark.parametrize(
    "settings", [(0.0, 1.0, 0.0, 0), (1.0, 1.0, 0.0, 0), (1.0, 0.9, 0.0, 0), (1.0, 0.9, 0.0, 5)]
)
def test_a_row_of_forbidden_tokens_gives_none(settings: tuple[float, float, float, int]) -> None:
    temperature, top_p, min_p, top_k = settings
    logits = torch.full((3, 200), FORBIDDEN)
    logits[1, 150] = 3.0
    logits[2, 7] = math.inf
    draw = RowDraw(temperature, top_p, min_p, 0.5, top_k)
    tokens, states = native.draw_tokens(logits, [draw] * 3, True).tolist()
    assert states == [sampler.NONE_ALLOWED, 0, sampler.NON_FINITE]
    assert tokens[1] == 150


def drawn(logits: Tensor, draws: list[RowDraw]) -> list[int]:
    tokens, states = native.draw_tokens(logits.expand(len(draws), -1), draws, True).tolist()
    assert not any(states)
    return list(tokens)


@pytest.mark.parametrize("top_k", [0, 300])
def test_the_ends_of_the_range_of_chances_and_borders_between_equal_tokens(top_k: int) -> None:
    chances = [0.0, 0.25, 0.5, math.nextafter(0.5, 0), 0.75, LAST]
    draws = [RowDraw(1.0, 1.0, 0.0, chance, top_k) for chance in chances]
    equal = torch.zeros(1, 256)
    assert drawn(equal, draws) == [0, 64, 128, 127, 192, 255]
    equal[0, [0, 255]] = FORBIDDEN
    assert drawn(equal, draws[:1] + draws[-1:]) == [1, 254]
    certain = torch.full((1, 256), -800.0)
    certain[0, 131] = 50.0
    assert drawn(certain, draws) == [131] * 6


def test_top_p_keeps_no_token_beyond_the_one_that_reaches_it() -> None:
    draws = [RowDraw(1.0, 0.5, 0.0, chance, 0) for chance in (0.0, 0.49, 0.5, LAST)]
    assert drawn(torch.zeros(1, 4), draws) == [0, 0, 1, 1]
    assert drawn(torch.tensor([[-1.0, 0.0, 0.0, -50.0]]), [RowDraw(1.0, 1.0, 1.0, LAST, 0)]) == [2]


def test_tiny_temperatures_take_the_likeliest() -> None:
    logits = rows_of("usual", 8, 1, 500)
    logits[0, 77] = 60.0
    for temperature in (1e-3, 1e-12, 1e-320):
        for top_p, top_k in ((1.0, 0), (0.9, 0), (1.0, 9)):
            assert drawn(logits, [RowDraw(temperature, top_p, 0.0, 0.5, top_k)]) == [77]


def test_weights_are_exponentials_to_the_last_bit_but_one() -> None:
    """The chance at which the second of two tokens begins is 1 / (1 + its weight)."""
    for distance in (0.0, 1e-9, 0.3, 0.34657, 0.34658, 1.0, 17.3, 100.0):
        logits = torch.tensor([[0.0, -distance]])
        border = 1 / (1 + math.exp(float(logits[0, 1])))
        chances = [min(border * (1 + off), LAST) for off in (-4e-16, 4e-16)]
        draws = [RowDraw(1.0, 1.0, 0.0, chance, 0) for chance in chances]
        expected = [0, 1] if distance < 30 else [0, 0]
        assert drawn(logits, draws) == expected
