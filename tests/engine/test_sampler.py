"""Sampling: what may be drawn and how often equals transformers' processors; penalties equal their
definitions; seeds rule alone; log-probabilities are the model's."""

import math
import random
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from torch import Tensor
from transformers import (
    FalconForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from worlds import on_every_rank

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.engine import sampler
from gyrfalcon.errors import RequestError
from gyrfalcon.parallel.group import Group, Vocabulary, solo, stable_top_k
from gyrfalcon.request import (
    Chunk,
    ChunkResult,
    NonFinite,
    Request,
    SamplingMode,
    Sequence,
    Token,
)

VOCAB = 60
CHANCES = 1000  # draws at as many evenly spread chances show a distribution to 1 in so many
FORBIDDEN = -math.inf

FILTERS = [
    dict(),
    dict(temperature=0.3),
    dict(temperature=4.0),
    dict(top_k=1),
    dict(top_k=7),
    dict(top_k=VOCAB + 1),
    dict(top_p=0.05),
    dict(top_p=0.5),
    dict(top_p=0.95, temperature=2.0),
    dict(min_p=0.1),
    dict(min_p=1.0),
    dict(top_k=20, top_p=0.8, temperature=1.5),
    dict(top_k=20, top_p=0.9, min_p=0.2, temperature=3.0),
]


def random_logits(seed: int, rows: int = 1) -> Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def sequence(
    params: SamplingParams,
    seed: int = 0,
    prompt: tuple[int, ...] = (1, 2),
    output: tuple[int, ...] = (),
) -> Sequence:
    return Sequence(Request(0, prompt, params, seed), 0, [*prompt, *output], 64)


def whole(sequences: list[Sequence]) -> list[Chunk]:
    return [Chunk(one, 0, len(one.tokens)) for one in sequences]


def picks(logits: Tensor, chunks: Seq[Chunk]) -> list[ChunkResult]:
    """As one rank picks that holds the whole vocabulary."""
    return sampler.pick(logits, chunks, Vocabulary.shared(logits.shape[1], solo()))


def pick(logits: Tensor, sequences: list[Sequence]) -> list[Token]:
    """The tokens of rows of finite logits."""
    found = picks(logits, whole(sequences))
    return [result for result in found if isinstance(result, Token)]


def picked(logits: Tensor, params: SamplingParams, **settings: object) -> Token:
    return pick(logits, [sequence(params, **settings)])[0]  # type: ignore[arg-type]


def draw(logits: Tensor, params: SamplingParams, chances: list[float]) -> Tensor:
    """The token that each chance draws from the same row of logits [vocab]."""
    count = len(chances)
    if sequence(params).request.sampling_mode is SamplingMode.UNFILTERED:
        return sampler._draw_unordered(logits.expand(count, -1), [params] * count, chances)[:, 0]
    scores, ids = stable_top_k(logits[None], len(logits))
    return ids[0][sampler._draw(scores.expand(count, -1), [params] * count, chances)[:, 0]]


def frequencies(logits: Tensor, params: SamplingParams) -> Tensor:
    """How often each token is drawn when every chance from 0 to 1 comes once."""
    chances = [(number + 0.5) / CHANCES for number in range(CHANCES)]
    return torch.bincount(draw(logits, params, chances), minlength=len(logits)) / CHANCES


def expected_frequencies(logits: Tensor, params: SamplingParams) -> Tensor:
    """The probabilities that transformers would draw with."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    warpers.append(TopPLogitsWarper(params.top_p))
    warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(torch.zeros(1, 1, dtype=torch.int64), logits[None].double())[0].softmax(-1)


def off_by(logits: Tensor, params: SamplingParams) -> float:
    """The largest distance of a drawn frequency from transformers' probability; inf for a token outside."""
    ours, theirs = frequencies(logits, params), expected_frequencies(logits, params)
    if ours[theirs == 0].any():
        return math.inf
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_tokens_are_drawn_as_often_as_transformers_would(
    settings: dict[str, float], seed: int
) -> None:
    params = SamplingParams(**{"temperature": 1.0, **settings})  # type: ignore[arg-type]
    assert off_by(random_logits(seed)[0], params) <= 1 / CHANCES + 1e-6


def test_ignoring_top_p_turns_the_comparison_red(monkeypatch: pytest.MonkeyPatch) -> None:
    params, logits = SamplingParams(temperature=1.0, top_p=0.5), random_logits(0)[0]
    assert off_by(logits, params) <= 1 / CHANCES + 1e-6
    honest = sampler._draw
    monkeypatch.setattr(
        sampler,
        "_draw",
        lambda scores, own, chances: honest(
            scores, [replace(one, top_p=1.0) for one in own], chances
        ),
    )
    assert off_by(logits, params) == math.inf


def test_top_p_never_draws_a_token_outside_of_the_nucleus() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.2, 0.06, 0.04]]).log()
    params = SamplingParams(temperature=1.0, top_p=0.8)
    drawn = {picked(logits, params, seed=seed).id for seed in range(300)}
    assert drawn == {0, 1, 2}


def test_a_certain_token_and_the_ends_of_the_range_of_chances() -> None:
    last = math.nextafter(1.0, 0.0)
    for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_k=99)):
        certain = torch.tensor([FORBIDDEN, 0.0, 50.0, FORBIDDEN, -800.0, FORBIDDEN])
        least, middle, most = draw(certain, params, [0.0, 0.5, last]).tolist()
        assert middle == 2
        assert {least, most} <= {1, 2}
        assert draw(torch.zeros(4), params, [0.0, last]).tolist() == [0, 3]
        assert draw(torch.zeros(4), params, [0.25, 0.5, 0.75]).tolist() == [1, 2, 3]  # borders


def test_a_draw_depends_on_its_place_in_the_output_not_on_the_prompts_length() -> None:
    params = SamplingParams(temperature=1.0)
    for place in range(3):
        drawn = {
            picked(random_logits(5), params, seed=7, prompt=prompt, output=(3,) * place).id
            for prompt in ((1, 2), (1, 2, 3, 4, 5), tuple(range(40)))
        }
        assert len(drawn) == 1


def defined_draw(logits: Tensor, params: SamplingParams, chance: float) -> int:
    """Drawing from one row, written down step by step."""
    if params.temperature == 0:
        return int(logits.argmax())
    if not params.top_k and params.top_p == 1 and params.min_p == 0:
        mass = (logits.double() / params.temperature).softmax(dim=-1).cumsum(dim=-1)
        return int(torch.searchsorted(mass, chance * mass[-1], right=True))
    scores, ids = logits.double().sort(descending=True, stable=True)
    scores = (scores - scores[0]) / params.temperature
    if params.top_k:
        scores = scores[: params.top_k]
    probabilities = scores.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # the mass of the likelier tokens
    kept = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
    mass = probabilities.masked_fill(~kept, 0.0).cumsum(dim=-1)
    place = int(torch.searchsorted(mass, chance * mass[-1], right=True))
    return int(ids[min(place, int(kept.nonzero()[-1]))])


def mixed_rows(seed: int, count: int) -> tuple[Tensor, list[Chunk]]:
    """Rows of logits, half of them with many equal ones, and who wants a token from each and how."""
    logits = random_logits(seed, count)
    logits[::2] = logits[::2].round()
    own = random.Random(seed)
    settings = [
        SamplingParams(
            temperature=own.choice([0.0, 0.7, 1.0, 3.0]),
            top_k=own.choice([0, 1, 3, 20, VOCAB + 5, 1000]),
            top_p=own.choice([1.0, 0.9, 0.4]),
            min_p=own.choice([0.0, 0.05, 1.0]),
            logit_bias=own.choice([{}, {}, {3: 2.5, 4: FORBIDDEN}]),
        )
        for _ in range(count)
    ]
    return logits, whole([sequence(one, seed=row) for row, one in enumerate(settings)])


@pytest.mark.parametrize("seed", range(5))
def test_rows_drawn_all_at_once_equal_each_drawn_by_the_definition(seed: int) -> None:
    logits, chunks = mixed_rows(seed, 400)
    assert len({chunk.request.sampling_mode for chunk in chunks}) == len(SamplingMode)
    expected = []
    for row, chunk in zip(logits.clone(), chunks, strict=True):
        for token, bias in chunk.request.params.logit_bias.items():
            row[token] += bias
        expected.append(defined_draw(row, chunk.request.params, sampler.uniform_draw(chunk)))
    assert [result.id for result in picks(logits, chunks) if isinstance(result, Token)] == expected


@pytest.mark.parametrize("most_likely", [1, 8, 30])
def test_a_nucleus_is_found_among_a_few_tokens_or_among_all(
    most_likely: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, chunks = mixed_rows(3, 400)
    expected = picks(logits, chunks)
    sufficing = list[bool]()
    suffices = sampler._suffices

    def noted(*args: Tensor) -> Tensor:
        found = suffices(*args)  # type: ignore[arg-type]  # as it is called
        sufficing.extend(found.tolist())
        return found

    monkeypatch.setattr(sampler, "MOST_LIKELY", most_likely)
    monkeypatch.setattr(sampler, "_suffices", noted)
    assert picks(logits, chunks) == expected
    assert 0 < sum(sufficing) < len(sufficing)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_that_hold_parts_of_the_vocabulary_pick_what_one_picks(world_size: int) -> None:
    logits, chunks = mixed_rows(11, 60)
    expected = picks(logits, chunks)

    def on_rank(group: Group) -> list[ChunkResult]:
        vocabulary = Vocabulary.shared(VOCAB, group)
        own = logits.split(list(vocabulary.widths), dim=1)[group.rank]
        return sampler.pick(own, chunks, vocabulary)

    assert on_every_rank(world_size, on_rank) == [expected] * world_size


def test_of_equal_logits_the_lowest_id_is_likeliest_on_any_rank() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0, 2.0, 2.0, -0.0], [0.0, -0.0, 0.0, -0.0, 0.0, 0.0]])

    def on_rank(group: Group) -> list[list[list[int]]]:
        vocabulary = Vocabulary.shared(6, group)
        own = logits.split(list(vocabulary.widths), dim=1)[group.rank]
        return [vocabulary.top_k(own, num)[1].tolist() for num in (1, 4, 6)]

    expected = [
        [[1], [0]],
        [[1, 3, 4, 0], [0, 1, 2, 3]],
        [[1, 3, 4, 0, 2, 5], [0, 1, 2, 3, 4, 5]],
    ]
    for world_size in (1, 2, 3):
        assert on_every_rank(world_size, on_rank) == [expected] * world_size


@pytest.mark.parametrize("world_size", [1, 2])
def test_only_what_ranks_find_likeliest_travels(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    travelled: list[int] = []
    all_gather = Group.all_gather

    def counted(self: Group, x: Tensor, widths: Seq[int]) -> Tensor:
        travelled.append(x.shape[1])
        return all_gather(self, x, widths)

    monkeypatch.setattr(Group, "all_gather", counted)

    def most(params: SamplingParams) -> int:
        """Of the numbers that a rank gave away for a row."""
        travelled.clear()

        def on_rank(group: Group) -> None:
            vocabulary = Vocabulary.shared(VOCAB, group)
            own = random_logits(0).split(list(vocabulary.widths), dim=1)[group.rank]
            sampler.pick(own, whole([sequence(params)]), vocabulary)

        on_every_rank(world_size, on_rank)
        return max(travelled, default=0)

    few = [most(SamplingParams()), most(SamplingParams(temperature=1.0, top_k=5, top_p=0.5))]
    assert few == ([0, 0] if world_size == 1 else [2, 10])  # logits and ids
    for params in (SamplingParams(temperature=1.0), SamplingParams(logit_bias={3: 1.0})):
        assert most(params) == VOCAB // world_size


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=3),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(logit_bias={40: FORBIDDEN}),
        SamplingParams(temperature=1.0, logit_bias={40: FORBIDDEN}),
    ],
    ids=[
        "greedy",
        "drawn from all",
        "drawn from few",
        "drawn from a nucleus",
        "greedy, forbidden",
        "drawn, forbidden",
    ],
)
def test_a_logit_that_is_not_finite_fails_its_own_row_on_every_rank(
    params: SamplingParams, wrong: float, world_size: int
) -> None:
    """In every sampling mode, told or not told with log-probabilities; the other rows' tokens are the
    same bit for bit."""
    told = replace(params, logprobs=2)
    chunks = whole([sequence(told), sequence(params), sequence(told), sequence(params)])
    logits = random_logits(0, rows=4)
    expected = picks(logits, chunks)
    logits[1:3, 40] = wrong

    def on_rank(group: Group) -> None:
        vocabulary = Vocabulary.shared(VOCAB, group)
        own = logits.split(list(vocabulary.widths), dim=1)[group.rank]
        failed = NonFinite(position=1)
        assert sampler.pick(own, chunks, vocabulary) == [expected[0], failed, failed, expected[3]]

    on_every_rank(world_size, on_rank)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_chunk_that_samples_nothing_is_looked_at_all_the_same(wrong: float) -> None:
    params = SamplingParams(temperature=1.0, logit_bias={40: FORBIDDEN}, logprobs=2)
    one = sequence(params, prompt=(1, 2, 3, 4, 5))
    chunks = [Chunk(one, 1, 3), Chunk(one, 1, 3)]
    logits = random_logits(0, rows=2)
    logits[1, 40] = wrong
    assert picks(logits, chunks) == [None, NonFinite(position=2)]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_first_row_of_a_chunk_that_is_not_finite_is_named(wrong: float) -> None:
    logits = random_logits(0, rows=4)
    chunk = Chunk(sequence(SamplingParams(), prompt=tuple(range(9))), 3, 7)
    assert sampler.first_non_finite(logits, chunk) is None
    logits[1:3, 40] = wrong
    assert sampler.first_non_finite(logits, chunk) == NonFinite(position=4)


@pytest.mark.parametrize(
    "settings", [dict(), dict(top_k=5, temperature=2.0), dict(top_p=0.9)], ids=str
)
def test_draws_of_many_seeds_follow_the_probabilities(settings: dict[str, float]) -> None:
    params = SamplingParams(**{"temperature": 1.0, **settings})  # type: ignore[arg-type]
    logits, num_draws = random_logits(3)[:, :20] / 2, 3000
    tokens = pick(
        logits.expand(num_draws, -1), [sequence(params, seed=seed) for seed in range(num_draws)]
    )
    counts = torch.bincount(torch.tensor([token.id for token in tokens]), minlength=20)
    expected = num_draws * expected_frequencies(logits[0], params)
    assert not counts[expected == 0].any()
    likely = expected >= 5  # the rest in one cell: chi-square needs cells that are not nearly empty
    cells = [*zip(counts[likely], expected[likely], strict=True)]
    if expected[~likely].sum() > 0:
        cells.append((counts[~likely].sum(), expected[~likely].sum()))
    chi_square = sum(float((seen - mean) ** 2 / mean) for seen, mean in cells)
    freedom = len(cells) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_draws_at_successive_places_and_of_successive_samples_are_independent() -> None:
    logits, params = torch.zeros(1, 2), SamplingParams(temperature=1.0)
    request = Request(0, (1,), params, seed=0)
    bits = [
        [
            pick(logits, [Sequence(request, index, [1] * (1 + place), 64)])[0].id
            for place in range(40)
        ]
        for index in range(40)
    ]
    table = torch.tensor(bits).double() - 0.5  # ±½
    by_place = (table[:, 1:] * table[:, :-1]).mean() * 4
    by_sample = (table[1:] * table[:-1]).mean() * 4
    assert abs(table.mean() * 2) < 0.1
    assert abs(by_place) < 0.1
    assert abs(by_sample) < 0.1


def test_temperature_zero_takes_the_likeliest_and_tiny_temperatures_come_close() -> None:
    logits = random_logits(5)
    greedy = picked(logits, SamplingParams()).id
    assert greedy == int(logits.argmax())
    for temperature in (1e-3, 1e-12, 1e-320):
        assert picked(logits, SamplingParams(temperature=temperature)).id == greedy


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_the_repetition_penalty_equals_that_of_transformers(penalty: float) -> None:
    params = SamplingParams(repetition_penalty=penalty)
    processor = RepetitionPenaltyLogitsProcessor(penalty=penalty)
    for seed in range(20):
        logits = random_logits(seed)
        tokens = torch.randint(VOCAB, (30,), generator=torch.Generator().manual_seed(seed)).tolist()
        own = sequence(params, prompt=tuple(tokens[:20]), output=tuple(tokens[20:]))
        expected = processor(torch.tensor([tokens]), logits.clone())
        penalised = sampler._penalised(logits[0].clone(), Chunk(own, 29, 30))
        torch.testing.assert_close(penalised, expected[0])
        assert pick(logits, [own])[0].id == int(expected.argmax())


def test_presence_counts_an_output_token_once_and_frequency_every_time() -> None:
    output, prompt = (4, 4, 4, 7), (4, 9)
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=-0.25)
    expected = torch.zeros(VOCAB)
    expected[4], expected[7] = -0.5 + 3 * 0.25, -0.5 + 0.25
    own = sequence(params, prompt=prompt, output=output)
    penalised = sampler._penalised(torch.zeros(VOCAB), Chunk(own, 5, 6))
    torch.testing.assert_close(penalised, expected)
    behind_a_draft = sequence(params, prompt=prompt, output=output[:2])
    penalised = sampler._penalised(torch.zeros(VOCAB), Chunk(behind_a_draft, 5, 6, [*output[2:]]))
    torch.testing.assert_close(penalised, expected)


def test_presence_and_frequency_leave_the_prompt_alone() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 9] = 0.1
    params = SamplingParams(presence_penalty=2.0, frequency_penalty=2.0)
    assert picked(logits, params, prompt=(9, 9)).id == 9
    assert picked(logits, params, prompt=(9, 9), output=(9,)).id != 9


def test_logit_bias_is_added_and_minus_infinity_forbids() -> None:
    logits = random_logits(1)
    best, second = logits[0].topk(2).indices.tolist()
    assert picked(logits, SamplingParams(logit_bias={best: FORBIDDEN})).id == second
    assert picked(logits, SamplingParams(logit_bias={3: 100.0})).id == 3
    gap = float(logits[0, best] - logits[0, second])
    assert picked(logits, SamplingParams(logit_bias={second: gap - 0.01})).id == best
    assert picked(logits, SamplingParams(logit_bias={second: gap + 0.01})).id == second
    allowed = {5, 6}
    params = SamplingParams(
        temperature=50.0, logit_bias={i: FORBIDDEN for i in range(VOCAB) if i not in allowed}
    )
    drawn = Counter(picked(logits, params, seed=seed).id for seed in range(200))
    assert drawn.keys() == allowed
    assert min(drawn.values()) > 50


def test_picking_leaves_the_logits_as_they_were() -> None:
    logits = random_logits(2)
    before = logits.clone()
    params = SamplingParams(temperature=1.0, repetition_penalty=2.0, logit_bias={3: 5.0})
    picked(logits, params, output=(5,))
    assert logits.equal(before)


def test_penalties_do_not_change_the_log_probabilities_that_are_told() -> None:
    logits = random_logits(4)
    plain = picked(logits, SamplingParams(logprobs=3))
    biased = picked(logits, SamplingParams(logprobs=3, logit_bias={plain.id: FORBIDDEN}))
    assert biased.id != plain.id
    assert biased.top == plain.top
    assert biased.logprob == pytest.approx(float(logits[0].double().log_softmax(-1)[biased.id]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("model"),
        "40b",
        hidden_size=64,
        num_attention_heads=8,
        num_kv_heads=2,
    )


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(EngineConfig(model=str(folder), max_len=96))


@pytest.fixture(scope="module")
def reference_logprobs(folder: Path) -> Callable[[tuple[int, ...]], Tensor]:
    model = FalconForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()

    @torch.no_grad()
    def logprobs(token_ids: tuple[int, ...]) -> Tensor:
        logits: Tensor = model(torch.tensor([token_ids])).logits
        return logits[0].double().log_softmax(-1)

    return logprobs


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=1.0, seed=7, ignore_eos=True)
    others = SamplingParams(max_new_tokens=20, temperature=1.3, ignore_eos=True)
    alone = engine.generate([30, 31, 32], params)[0].output_ids
    prompts = [[40] * 9, [30, 31, 32], [50, 51]]
    assert engine.generate(prompts, [others, params, others])[1].output_ids == alone
    assert engine.generate(prompts[::-1], [others, params, others])[1].output_ids == alone
    assert engine.generate([30, 31, 32], replace(params, seed=8))[0].output_ids != alone


def test_samples_of_one_prompt_differ_and_the_first_is_the_one_of_n_1(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=1.0, seed=7, ignore_eos=True)
    output = engine.generate([30, 31, 32], replace(params, n=5))[0]
    assert [completion.index for completion in output.completions] == [0, 1, 2, 3, 4]
    assert len({completion.output_ids for completion in output.completions}) == 5
    assert output.output_ids == engine.generate([30, 31, 32], params)[0].output_ids


def test_without_a_seed_two_runs_differ_and_the_engine_seed_repeats_them(folder: Path) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=1.0, ignore_eos=True)

    def two_runs(seed: int | None) -> list[tuple[int, ...]]:
        with Engine(EngineConfig(model=str(folder), max_len=64, seed=seed)) as own:
            return [own.generate([30], params)[0].output_ids for _ in range(2)]

    first, second = two_runs(4)
    assert first != second
    assert two_runs(4) == [first, second]
    assert two_runs(None) != two_runs(None)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_logprobs_equal_the_log_softmax_of_transformers_logits(
    engine: Engine,
    reference_logprobs: Callable[[tuple[int, ...]], Tensor],
    temperature: float,
) -> None:
    params = SamplingParams(
        max_new_tokens=10, temperature=temperature, seed=1, logprobs=4, prompt_logprobs=2
    )
    output = engine.generate([30, 31, 32, 33], params)[0]
    expected = reference_logprobs(output.prompt_ids + output.output_ids)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    told = [*output.prompt_logprobs[1:], *(output.completions[0].logprobs or ())]
    assert [token.id for token in told if token] == [31, 32, 33, *output.output_ids]
    for place, token in enumerate(told):
        assert token is not None
        num_top = 2 if place < 3 else 4
        values, ids = expected[place].topk(num_top)
        assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-4)
        assert [token_id for token_id, _ in token.top] == ids.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("num_top", [1, 3])
def test_of_equally_likely_tokens_the_one_that_greedy_decoding_takes_is_told_first(
    num_top: int,
) -> None:
    logits = torch.zeros(1, 500)
    logits[0, [7, 140, 450]] = 3.0
    token = picked(logits, SamplingParams(logprobs=num_top))
    assert token.id == 7
    assert [token_id for token_id, _ in token.top] == [7, 140, 450][:num_top]


def test_logprobs_of_zero_tell_only_the_token_itself_and_more_than_the_vocabulary_all(
    engine: Engine,
) -> None:
    def first(num: int | None) -> Token | None:
        output = engine.generate([30], SamplingParams(max_new_tokens=1, logprobs=num))[0]
        told = output.completions[0].logprobs
        return None if told is None else told[0]

    assert first(None) is None
    none_else, everything = first(0), first(10**6)
    assert none_else is not None
    assert everything is not None
    assert none_else.top == ()
    assert none_else.logprob is not None
    assert len(everything.top) == 509
    assert sum(math.exp(logprob) for _, logprob in everything.top) == pytest.approx(1.0)


def test_scoring_a_prompt_alone_gives_no_new_token(engine: Engine) -> None:
    output = engine.generate([30, 31], SamplingParams(max_new_tokens=0, prompt_logprobs=0))[0]
    assert output.output_ids == ()
    assert [token and token.id for token in output.prompt_logprobs or ()] == [None, 31]


def test_top_p_keeps_no_token_beyond_the_one_that_reaches_it() -> None:
    """Of four equal tokens two have a probability of exactly 0.5 together."""
    params = SamplingParams(temperature=1.0, top_p=0.5)
    assert frequencies(torch.zeros(4), params).tolist() == [0.5, 0.5, 0.0, 0.0]


def test_min_p_keeps_a_token_that_is_just_as_likely_as_it_asks() -> None:
    params = SamplingParams(temperature=1.0, min_p=1.0)
    assert frequencies(torch.tensor([0.0, 0.0, -1.0]), params).tolist() == [0.5, 0.5, 0.0]


def ending(params: SamplingParams, ends: frozenset[int], seed: int, output_len: int) -> Sequence:
    """A sequence that these ids end, with so many tokens of output."""
    request = Request(0, (1, 2), params, seed, end_ids=ends)
    return Sequence(request, 0, [1, 2, *[7] * output_len], 64)


@pytest.mark.parametrize(
    "settings", [*FILTERS, dict(temperature=0.0), dict(logit_bias={3: 1.0})], ids=str
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_ends_a_sample_is_not_sampled_before_its_least_length(
    settings: dict[str, object], world_size: int
) -> None:
    ends = frozenset(range(0, VOCAB, 2))
    settings = {"temperature": 1.0, "min_tokens": 3} | settings
    bias = settings.get("logit_bias", {}) | dict.fromkeys(ends, FORBIDDEN)  # type: ignore[operator]
    forbidden = settings | {"min_tokens": 0, "logit_bias": bias}

    def chosen(group: Group) -> list[list[ChunkResult]]:
        vocabulary = Vocabulary.shared(VOCAB, group)
        own = random_logits(0, 6).split(list(vocabulary.widths), dim=1)[group.rank]
        found = []
        for params in (SamplingParams(**settings), SamplingParams(**forbidden)):  # type: ignore[arg-type]
            sequences = [ending(params, ends, seed, seed % 3) for seed in range(6)]
            found.append(sampler.pick(own.clone(), whole(sequences), vocabulary))
        return found

    for early, never in on_every_rank(world_size, chosen):
        assert early == never
        assert not any(isinstance(one, Token) and one.id in ends for one in early)


def test_what_ends_a_sample_is_sampled_from_its_least_length_on() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[:, 5] = 9.0
    params = SamplingParams(min_tokens=2)
    chunks = whole([ending(params, frozenset([5]), 0, length) for length in range(4)])
    assert [one.id for one in picks(logits, chunks) if isinstance(one, Token)] == [0, 0, 5, 5]
    logits[0, 5] = math.nan
    assert isinstance(picks(logits, chunks)[0], NonFinite)


def test_a_least_length_above_the_longest_is_refused() -> None:
    with pytest.raises(
        RequestError, match="min_tokens of at most 4, which is max_new_tokens, got 5"
    ):
        SamplingParams(max_new_tokens=4, min_tokens=5)
