"""The laws that hold for every Falcon variant: equal to transformers, sharded equals whole, cached
equals uncached, chunked equals one go, batched equals alone, padded equals unpadded, one mask form
equals the other."""

import random
from pathlib import Path

import pytest
import torch
from checkpoints import VARIANTS, make_checkpoint
from torch import Tensor
from transformers import FalconForCausalLM
from worlds import on_engines

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.model.architectures import config_from_file
from gyrfalcon.parallel.shards import largest_world

TOLERANCE = 1e-4  # of logits, float32
WORLDS = (2, 3, 4, 8)


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(20, 509, (batch, length), generator=torch.Generator().manual_seed(seed))


def reference(folder: Path) -> FalconForCausalLM:
    return FalconForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


@torch.no_grad()
def reference_logits(folder: Path, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
    return reference(folder)(input_ids, attention_mask=mask, position_ids=positions).logits


def engine(folder: Path, **settings: object) -> Engine:
    return Engine(EngineConfig(model=str(folder), **settings))  # type: ignore[arg-type]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("length", [20, 400])
def test_logits_equal_those_of_transformers(checkpoint: Path, length: int) -> None:
    input_ids = tokens(1, length)
    with engine(checkpoint) as ours:
        assert_same(ours.logits(input_ids), reference_logits(checkpoint, input_ids))


def test_greedy_tokens_equal_those_of_transformers(checkpoint: Path) -> None:
    input_ids = tokens(1, 30)
    expected = reference(checkpoint).generate(input_ids, max_new_tokens=24, do_sample=False)
    with engine(checkpoint) as ours:
        generated = ours.generate_ids(input_ids, max_new_tokens=24)
    assert generated[:, : expected.shape[1]].equal(expected)


def logits_and_texts(ours: Engine) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Of two prompts at once, the last tokens one by one; and of greedy and random sampling."""
    prompts = [tokens(1, length)[0].tolist() for length in (3, 17, 30)]
    sampling = [
        SamplingParams(max_new_tokens=6),
        SamplingParams(max_new_tokens=6, temperature=1.0, seed=5),
        SamplingParams(max_new_tokens=6, temperature=0.8, top_p=0.9, n=2),
    ]
    logits = ours.logits(tokens(2, 40), single_steps=2)
    outputs = ours.generate(prompts, sampling)
    return logits, [one.output_ids for output in outputs for one in output.completions]


@pytest.fixture(scope="module")
def of_one_rank(checkpoint: Path) -> tuple[Tensor, list[tuple[int, ...]]]:
    return on_engines(1, checkpoint, logits_and_texts)


def test_one_rank_gives_the_logits_of_transformers_in_a_batch_and_in_single_steps(
    checkpoint: Path, of_one_rank: tuple[Tensor, list[tuple[int, ...]]]
) -> None:
    assert_same(of_one_rank[0], reference_logits(checkpoint, tokens(2, 40)))


@pytest.mark.parametrize("world_size", WORLDS)
def test_any_number_of_ranks_gives_the_logits_and_texts_of_one(
    checkpoint: Path, world_size: int, of_one_rank: tuple[Tensor, list[tuple[int, ...]]]
) -> None:
    logits, texts = on_engines(world_size, checkpoint, logits_and_texts)
    assert texts == of_one_rank[1]
    assert_same(logits, of_one_rank[0])


def test_decoded_step_by_step_equals_computed_at_once(checkpoint: Path) -> None:
    input_ids = tokens(1, 60)
    with engine(checkpoint) as ours:
        assert_same(ours.logits(input_ids, single_steps=40), ours.logits(input_ids))


@pytest.mark.parametrize("chunk", [1, 7, 16, 33])
def test_a_prompt_in_chunks_equals_one_go(checkpoint: Path, chunk: int) -> None:
    input_ids = tokens(1, 50)
    with engine(checkpoint, max_batch_tokens=chunk) as chunked, engine(checkpoint) as whole:
        assert_same(chunked.logits(input_ids), whole.logits(input_ids))


def test_a_batch_equals_each_prompt_alone(checkpoint: Path) -> None:
    rows = [tokens(1, length, seed=length) for length in (1, 5, 16, 17, 64)]
    params = SamplingParams(max_new_tokens=12, logprobs=0)
    with engine(checkpoint, max_batch_tokens=48, max_sequences=3) as ours:
        together = ours.generate([row[0].tolist() for row in rows], params)
        for row, output in zip(rows, together, strict=True):
            alone = ours.generate(row[0].tolist(), params)[0]
            assert output.output_ids == alone.output_ids
            pairs = zip(
                output.completions[0].logprobs or (),
                alone.completions[0].logprobs or (),
                strict=True,
            )
            assert all(
                one.logprob == pytest.approx(other.logprob, abs=TOLERANCE) for one, other in pairs
            )


@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_the_size_of_cache_blocks_never_shows(checkpoint: Path, block_size: int) -> None:
    input_ids = tokens(2, 37)
    with engine(checkpoint, block_size=block_size) as other, engine(checkpoint) as usual:
        assert_same(other.logits(input_ids, single_steps=5), usual.logits(input_ids))


def test_a_shared_beginning_equals_one_computed_afresh(checkpoint: Path) -> None:
    prefix = tokens(1, 70)[0].tolist()
    prompts = [[*prefix, *tokens(1, length, seed=length)[0].tolist()] for length in (1, 9, 40)]
    params = SamplingParams(max_new_tokens=8, logprobs=0)
    with engine(checkpoint) as sharing, engine(checkpoint, reuse_prefixes=False) as fresh:
        sharing.generate(prefix, SamplingParams(max_new_tokens=0))
        for one, other in zip(
            sharing.generate(prompts, params), fresh.generate(prompts, params), strict=True
        ):
            assert one.output_ids == other.output_ids
            pairs = zip(
                one.completions[0].logprobs or (), other.completions[0].logprobs or (), strict=True
            )
            assert all(a.logprob == pytest.approx(b.logprob, abs=TOLERANCE) for a, b in pairs)


def padded(side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Three prompts of different lengths in one batch: ids, 2-D mask, and each prompt alone."""
    prompts = [tokens(1, length, seed=length) for length in (4, 11, 20)]
    mask = torch.zeros(3, 20, dtype=torch.int64)
    input_ids = torch.full((3, 20), 11)
    for row, prompt in enumerate(prompts):
        place = slice(20 - prompt.shape[1], None) if side == "left" else slice(prompt.shape[1])
        mask[row, place], input_ids[row, place] = 1, prompt[0]
    return input_ids, mask, prompts


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded(checkpoint: Path, side: str) -> None:
    input_ids, mask, prompts = padded(side)
    with engine(checkpoint) as ours:
        logits = ours.logits(input_ids, mask)
        new = ours.generate_ids(input_ids, mask, max_new_tokens=6)[:, 20:]
        for row, prompt in enumerate(prompts):
            assert_same(logits[row][mask[row] == 1], ours.logits(prompt)[0])
            assert new[row].equal(ours.generate_ids(prompt, max_new_tokens=6)[0, prompt.shape[1] :])


def test_left_padding_equals_that_of_transformers(checkpoint: Path) -> None:
    input_ids, mask, _ = padded("left")
    expected = reference_logits(checkpoint, input_ids, mask)
    with engine(checkpoint) as ours:
        assert_same(ours.logits(input_ids, mask)[mask == 1], expected[mask == 1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_4d_additive_mask_equals_the_2d_one(checkpoint: Path, side: str) -> None:
    input_ids, mask, _ = padded(side)
    allowed = torch.ones(20, 20, dtype=torch.bool).tril() & (mask == 1)[:, None]
    additive = torch.zeros(3, 1, 20, 20).masked_fill(
        ~allowed[:, None], torch.finfo(torch.float32).min
    )
    with engine(checkpoint) as ours:
        assert ours.logits(input_ids, additive).equal(ours.logits(input_ids, mask))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_stays_near_float32(checkpoint: Path, dtype: str) -> None:
    input_ids = tokens(1, 40)
    with engine(checkpoint, dtype=dtype) as half, engine(checkpoint) as full:
        exact = full.logits(input_ids)
        error = (half.logits(input_ids, single_steps=3) - exact).norm() / exact.norm()
    assert error < (0.03 if dtype == "bf16" else 0.005)


def random_settings(seed: int) -> dict[str, object]:
    """A Falcon that no one has released: any mixture of traits that the config allows."""
    draw = random.Random(seed)
    kv_heads, group = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 3, 7])
    new = draw.random() < 0.6
    parallel = new or draw.random() < 0.5
    multi_query = not new and draw.random() < 0.5
    heads = kv_heads * group
    alibi = draw.random() < 0.4
    return dict(
        hidden_size=heads * draw.choice([8, 16, 32]),
        num_attention_heads=heads,
        num_kv_heads=kv_heads if new else None,
        new_decoder_architecture=new,
        parallel_attn=parallel,
        multi_query=multi_query,
        num_ln_in_parallel_attn=draw.choice([None, 1, 2]) if new else None,
        alibi=alibi,
        bias=draw.random() < 0.5,
        tie_word_embeddings=draw.random() < 0.5,
        ffn_hidden_size=draw.choice([96, 130, 512]),
        vocab_size=draw.choice([509, 600]),
        num_hidden_layers=draw.choice([1, 3]),
        activation=draw.choice(["gelu", "gelu_pytorch_tanh", "relu"]),
        rope_parameters=None
        if alibi
        else draw.choice(
            [
                {"rope_type": "default", "rope_theta": 5000.0},
                {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
                {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
                {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
                {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            ]
        ),
        max_position_embeddings=48,
    )


@pytest.mark.parametrize("seed", range(20))
def test_random_architectures_equal_transformers_on_any_world(seed: int, tmp_path: Path) -> None:
    settings = random_settings(seed)
    folder = make_checkpoint(tmp_path / "model", "7b", seed=seed, **settings)  # type: ignore[arg-type]
    config = config_from_file(folder / "config.json")
    input_ids = tokens(2, min(64, config.max_positions), seed)
    expected = reference_logits(folder, input_ids)
    for world_size in {1, min(1 + seed % 8, largest_world(config))}:
        assert_same(on_engines(world_size, folder, lambda ours: ours.logits(input_ids)), expected)
