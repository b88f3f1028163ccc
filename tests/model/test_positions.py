"""Rotary angles and ALiBi biases are those of transformers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import FalconConfig
from transformers.models.falcon.modeling_falcon import FalconRotaryEmbedding, build_alibi_tensor

from gyrfalcon.config import RopeConfig
from gyrfalcon.model.architectures import config_from_json
from gyrfalcon.model.positions import MOST_ROWS, Rotary, alibi_slopes, rotary_frequencies
from gyrfalcon.ops.reference import alibi_bias

SCALINGS: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default", "rope_theta": 500042.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256},
    "yarn with its ramp unrounded": {"rope_type": "yarn", "factor": 4.0, "truncate": False},
    "yarn with other ends": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
    },
    "yarn with mscale": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.2},
    "yarn with a stated temperature": {
        "rope_type": "yarn",
        "factor": 3.0,
        "attention_factor": 1.25,
    },
    "yarn with a ramp of no width": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 1.0,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
}


def both(
    rope: dict[str, object], *, head_dim: int = 64, heads: int = 4
) -> tuple[Rotary, FalconRotaryEmbedding]:
    """Our rotary positions and those of transformers, from one config.json."""
    config = FalconConfig(
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        rope_parameters=dict({"rope_theta": 10000.0}, **rope),
    )
    ours = config_from_json(config.to_dict())
    assert ours.rope is not None
    return Rotary(ours.rope, ours.head_dim, 8192, "cpu"), FalconRotaryEmbedding(config)


def of(rotary: Rotary, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of each token."""
    cos, sin = rotary.angles(positions, lengths)
    return cos, sin


def their_angles(theirs: FalconRotaryEmbedding, positions: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = theirs(torch.zeros(1), positions[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


@pytest.mark.parametrize("head_dim", [2, 6, 64, 128])
@pytest.mark.parametrize("name", SCALINGS)
def test_angles_equal_those_of_transformers(name: str, head_dim: int) -> None:
    ours, theirs = both(SCALINGS[name], head_dim=head_dim)
    positions = torch.tensor([0, 1, 2, 63, 511, 512, 2047, 5000])
    assert_close(ours.frequencies, theirs.inv_freq, rtol=1e-6, atol=0)
    assert_close(
        of(ours, positions, positions + 1), their_angles(theirs, positions), rtol=0, atol=1e-3
    )
    near = positions[:4]
    assert_close(of(ours, near, near + 1), their_angles(theirs, near), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 100, 2047, 2048, 2049, 3000, 8192])
@pytest.mark.parametrize("factor", [1.0, 1.3, 4.0])
def test_dynamic_angles_follow_the_length_of_the_sequence(length: int, factor: float) -> None:
    ours, theirs = both({"rope_type": "dynamic", "factor": factor})
    positions = torch.arange(length)
    wanted = their_angles(theirs, positions)
    assert_close(of(ours, positions, torch.full_like(positions, length)), wanted, rtol=0, atol=2e-3)


def test_dynamic_lengths_may_differ_between_the_tokens_of_one_step() -> None:
    ours, _ = both({"rope_type": "dynamic", "factor": 2.0})
    positions, lengths = torch.tensor([7, 7, 3999]), torch.tensor([10, 4000, 4000])
    together = of(ours, positions, lengths)
    for token in range(3):
        alone = of(ours, positions[token : token + 1], lengths[token : token + 1])
        assert_close(alone, tuple(part[token : token + 1] for part in together), rtol=0, atol=0)
    assert not torch.equal(together[0][0], together[0][1])


def test_dynamic_scaling_leaves_short_sequences_alone() -> None:
    rope = RopeConfig(10000.0, "dynamic", 2.0, 2048)
    positions = torch.tensor([0, 5, 2047])
    default, dynamic = (
        of(Rotary(one, 64, 2048, "cpu"), positions, positions + 1)
        for one in (replace(rope, kind="default"), rope)
    )
    assert_close(dynamic, default, rtol=0, atol=0)


@pytest.mark.parametrize("name", SCALINGS)
def test_a_table_has_what_is_computed_where_positions_are_too_many_for_one(name: str) -> None:
    ours, _ = both(SCALINGS[name])
    positions = torch.tensor([0, 1, 2047, 8191, 3])
    far = Rotary(ours.rope, ours.head_dim, MOST_ROWS + 1, "cpu")
    assert ours.table is not None
    assert far.table is None
    computed, read = (of(one, positions, positions + 1) for one in (far, ours))
    assert_close(computed, read, rtol=0, atol=2e-7)


def test_rotary_frequencies_fall_from_one() -> None:
    frequencies = rotary_frequencies(RopeConfig(10000.0, "default"), 64)
    assert frequencies[0] == 1.0
    assert (frequencies.diff() < 0).all()


@pytest.mark.parametrize(
    "heads", [1, 2, 3, 5, 8, 12, 16, 31, 32, 33, 58, 64, 71, 100, 127, 128, 232]
)
def test_alibi_bias_equals_that_of_transformers_bit_for_bit(heads: int) -> None:
    mask = torch.ones(1, 4097, dtype=torch.long)
    wanted = build_alibi_tensor(mask, heads, torch.float32)[:, 0]
    assert torch.equal(alibi_bias(alibi_slopes(heads), torch.arange(4097)), wanted)


def test_alibi_counts_positions_from_the_first_real_token() -> None:
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    wanted = build_alibi_tensor(mask, 12, torch.float32)[:, 0, 3:]
    assert torch.equal(alibi_bias(alibi_slopes(12), torch.arange(4)), wanted)


def test_alibi_slopes_follow_the_published_rule() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(12).tolist() == pytest.approx(
        [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    )


def test_a_rank_takes_its_own_rows_of_all_slopes() -> None:
    positions = torch.arange(300)
    whole = alibi_bias(alibi_slopes(71), positions)
    assert torch.equal(alibi_bias(alibi_slopes(71)[35:], positions), whole[35:])
