"""What other systems get wrong with Falcon models, each as a test; and the proof that the comparison with
transformers, on which all of this rests, would see such faults: each sabotage turns it red."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import make_checkpoint
from sabotages import OF_THE_MODEL, add_the_row_bias_on_every_rank
from torch import Tensor
from transformers import FalconForCausalLM
from worlds import on_every_rank

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.config import ModelConfig
from gyrfalcon.kv.pool import CacheShape, KVPool
from gyrfalcon.model.architectures import config_from_file
from gyrfalcon.model.positions import Rotary
from gyrfalcon.ops import reference
from gyrfalcon.parallel.group import Group
from gyrfalcon.parallel.ranks import RankInfo, Ranks
from gyrfalcon.parallel.shards import Share, share_of

TOLERANCE = 1e-4  # of logits, float32: the law
SEEN = 1e-3  # a fault must stand out from it clearly
PROMPT_LEN, SINGLE_STEPS = 40, 6

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant's tiny checkpoint, made once."""
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            made[variant] = make_checkpoint(tmp_path_factory.mktemp(variant), variant)
        return made[variant]

    return get


@pytest.fixture(scope="module")
def expected(checkpoint: Callable[[str], Path]) -> Callable[[str], Tensor]:
    """The logits of transformers, computed once."""
    computed: dict[str, Tensor] = {}

    @torch.no_grad()
    def get(variant: str) -> Tensor:
        if variant not in computed:
            folder = checkpoint(variant)
            model = FalconForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
            computed[variant] = model(input_ids()).logits
        return computed[variant]

    return get


def input_ids() -> Tensor:
    return torch.randint(20, 509, (2, PROMPT_LEN), generator=torch.Generator().manual_seed(0))


def logits_on(world_size: int, folder: Path) -> Tensor:
    """The first rank's logits of two prompts, in chunks of 16, their last tokens one at a time."""

    def program(group: Group) -> Tensor:
        config = EngineConfig(model=str(folder), max_batch_tokens=16, max_len=64)
        with Engine(config, Ranks(RankInfo(group, 0, 1))) as engine:
            return engine.logits(input_ids(), single_steps=SINGLE_STEPS)

    return on_every_rank(world_size, program)[0]


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; NaN is infinitely far."""
    return float((ours - theirs).abs().nan_to_num(torch.inf).max())


Distance = Callable[[str, int], float]


@pytest.fixture
def distance_of(checkpoint: Callable[[str], Path], expected: Callable[[str], Tensor]) -> Distance:
    def get(variant: str, world_size: int) -> float:
        return distance(logits_on(world_size, checkpoint(variant)), expected(variant))

    return get


@pytest.mark.parametrize("variant", ["rw-1b", "7b", "40b", "180B", "11B"])
def test_the_fused_qkv_is_cut_by_groups_of_heads(variant: str, distance_of: Distance) -> None:
    assert distance_of(variant, 2) <= TOLERANCE


def test_a_row_bias_is_added_once_on_any_number_of_ranks(distance_of: Distance) -> None:
    for world_size in (1, 2, 4):
        assert distance_of("rw-1b", world_size) <= TOLERANCE


def test_7b_with_its_prime_number_of_heads_runs_on_several_ranks(distance_of: Distance) -> None:
    for world_size in (2, 3):
        assert distance_of("7b", world_size) <= TOLERANCE


def test_40b_runs_on_more_ranks_than_it_has_kv_heads(distance_of: Distance) -> None:
    assert distance_of("180B", 4) <= TOLERANCE  # two KV heads, as the tiny 180B has


def test_40b_loads_without_a_word_about_its_number_of_norms(
    checkpoint: Callable[[str], Path], expected: Callable[[str], Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in checkpoint("40b").iterdir():
        (folder / file.name).symlink_to(file)
    raw = json.loads((folder / "config.json").read_text())
    del raw["num_ln_in_parallel_attn"]
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(raw))
    assert distance(logits_on(1, folder), expected("40b")) <= TOLERANCE


def test_11b_with_one_norm_and_a_head_of_its_own_runs(distance_of: Distance) -> None:
    for world_size in (1, 2):
        assert distance_of("11B", world_size) <= TOLERANCE


def test_the_gelu_is_the_exact_one() -> None:
    x = torch.linspace(-4, 4, 101)
    exact = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    torch.testing.assert_close(reference.activate(x, "gelu"), exact, atol=1e-6, rtol=0)
    assert distance(F.gelu(x, approximate="tanh"), exact) > 1e-4


def test_prompts_of_different_lengths_stay_apart_on_several_ranks(
    checkpoint: Callable[[str], Path],
) -> None:
    prompts = [input_ids()[0, :length].tolist() for length in (3, 17, 40)]
    params = SamplingParams(max_new_tokens=6, logprobs=0, ignore_eos=True)

    def program(group: Group) -> list[tuple[int, ...]]:
        config = EngineConfig(model=str(checkpoint("40b")), max_len=64)
        with Engine(config, Ranks(RankInfo(group, 0, 1))) as engine:
            together = [one.output_ids for one in engine.generate(prompts, params)]
            assert together == [engine.generate(p, params)[0].output_ids for p in prompts]
            return together

    assert on_every_rank(1, program) * 2 == on_every_rank(2, program)


@pytest.mark.parametrize(
    ("config", "bytes_per_token"),
    [
        ("derived/falcon-rw-1b", 196_608),
        ("derived/falcon-rw-7b", 589_824),
        ("falcon-7b", 8_192),
        ("falcon-40b", 122_880),
        ("derived/falcon-180B", 163_840),
        ("derived/falcon-11B", 245_760),
    ],
)
def test_the_cache_holds_kv_heads_only_and_never_all_heads(
    config: str, bytes_per_token: int, data: Callable[[str], Path]
) -> None:
    [path, *_] = sorted(data(f"falcon-configs/{config}").glob("config*.json"))
    model = config_from_file(path)
    for world_size in (1, 2):
        total = sum(
            cache_bytes(model, share_of(model, world_size, rank)) for rank in range(world_size)
        )
        shared = world_size if model.num_kv_heads == 1 else 1  # 7b's one KV head is on every rank
        assert total == bytes_per_token * shared


def cache_bytes(model: ModelConfig, share: Share) -> int:
    """Bytes a token takes in the cache tensors of one rank, which are made without memory."""
    shape = CacheShape(model.num_layers, len(share.kv_heads), model.head_dim, 16, torch.bfloat16)
    pool = KVPool(shape, 10, torch.device("meta"))
    num_bytes = sum(layer.k.nbytes + layer.v.nbytes for layer in pool.layers)
    assert num_bytes == 10 * shape.block_bytes
    return num_bytes // (10 * 16)


@pytest.mark.parametrize(("variant", "sums"), [("40b", 1), ("7b", 1), ("11B", 1), ("rw-1b", 2)])
def test_a_parallel_block_sums_over_the_ranks_once_and_a_sequential_one_twice(
    variant: str, sums: int, checkpoint: Callable[[str], Path], monkeypatch: Patch
) -> None:
    calls = []
    all_reduce = Group.all_reduce

    def counted(group: Group, x: Tensor) -> Tensor:
        calls.append(group.rank)
        return all_reduce(group, x)

    def program(group: Group) -> list[int]:
        config = EngineConfig(model=str(checkpoint(variant)), max_len=64)
        with Engine(config, Ranks(RankInfo(group, 0, 1))) as engine:
            engine.add([30, 31])
            engine.step()
            return []

    monkeypatch.setattr(Group, "all_reduce", counted)
    on_every_rank(2, program)
    num_layers = 2
    assert sorted(calls) == [0] * (1 + sums * num_layers) + [1] * (1 + sums * num_layers)


# Sabotage: each fault, on the variant and world size where it matters, is seen by the comparison above.


@pytest.mark.parametrize(
    ("sabotage", "variant", "world_size"),
    OF_THE_MODEL,
    ids=[row[0].__name__ for row in OF_THE_MODEL],
)
def test_the_comparison_with_transformers_sees_the_fault(
    sabotage: Callable[[Patch], None],
    variant: str,
    world_size: int,
    distance_of: Distance,
    monkeypatch: Patch,
) -> None:
    assert distance_of(variant, world_size) <= TOLERANCE
    sabotage(monkeypatch)
    assert distance_of(variant, world_size) > SEEN


def test_the_row_bias_on_every_rank_cannot_be_seen_on_one_rank(
    distance_of: Distance, monkeypatch: Patch
) -> None:
    add_the_row_bias_on_every_rank(monkeypatch)
    assert distance_of("rw-1b", 1) <= TOLERANCE


def test_rotating_every_token_by_one_more_is_no_fault(
    distance_of: Distance, monkeypatch: Patch
) -> None:
    angles = Rotary.angles
    monkeypatch.setattr(Rotary, "angles", lambda own, at, lengths: angles(own, at + 1, lengths))
    assert distance_of("40b", 1) <= TOLERANCE


def test_ranks_that_sample_with_different_seeds_are_seen(
    checkpoint: Callable[[str], Path], monkeypatch: Patch
) -> None:
    params = SamplingParams(max_new_tokens=6, temperature=1.0, ignore_eos=True)

    def program(group: Group) -> list[tuple[int, ...]]:
        config = EngineConfig(model=str(checkpoint("40b")), max_len=64)
        with Engine(config, Ranks(RankInfo(group, 0, 1))) as engine:
            return [one.output_ids for one in engine.generate([[30], [31, 32]], params)]

    one, other = on_every_rank(2, program)
    assert one == other
    monkeypatch.setattr(Ranks, "agree", lambda ranks, message: message)
    one, other = on_every_rank(2, program)
    assert one != other
