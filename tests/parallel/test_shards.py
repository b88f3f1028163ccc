"""What ranks own tiles the model for every variant and world size, and no rank is left without work."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gyrfalcon.config import ModelConfig
from gyrfalcon.errors import WorldSizeError
from gyrfalcon.model.architectures import config_from_json
from gyrfalcon.parallel.shards import MLP_UNIT, Share, largest_world, owned, share_of


def model(
    hidden: int, heads: int, kv_heads: int, *, vocab: int = 65024, ffn: int = 0
) -> ModelConfig:
    return config_from_json(
        dict(
            model_type="falcon",
            hidden_size=hidden,
            num_attention_heads=heads,
            num_kv_heads=kv_heads,
            new_decoder_architecture=True,
            num_hidden_layers=2,
            vocab_size=vocab,
            ffn_hidden_size=ffn or 4 * hidden,
        )
    )


FAMILY = {
    "rw-1b": model(2048, 32, 32, vocab=50304),
    "rw-7b": model(4096, 64, 64),
    "7b": model(4544, 71, 1),
    "40b": model(8192, 128, 8),
    "180B": model(14848, 232, 8),
    "11B": model(4096, 32, 8, ffn=16384),
    "odd groups": model(60, 15, 5, vocab=31, ffn=50),
}


def shares(config: ModelConfig, ranks: int) -> list[Share]:
    return [share_of(config, ranks, rank) for rank in range(ranks)]


def joined(ranges: Sequence[range]) -> list[int]:
    return [index for part in ranges for index in part]


@pytest.mark.parametrize("name", FAMILY)
def test_ranges_tile_the_model_at_every_world_size(name: str) -> None:
    config = FAMILY[name]
    for ranks in range(1, largest_world(config) + 1):
        parts = shares(config, ranks)
        assert joined([part.query_heads for part in parts]) == list(range(config.num_heads))
        for count, ranges in (
            (config.ffn_size, [part.ffn for part in parts]),
            (config.vocab_size, [part.vocab for part in parts]),
        ):
            assert [part.stop for part in ranges] == [part.start for part in ranges[1:]] + [count]
            assert ranges[0].start == 0


@pytest.mark.parametrize("name", FAMILY)
def test_every_rank_owns_something_of_everything(name: str) -> None:
    config = FAMILY[name]
    for ranks in range(1, largest_world(config) + 1):
        for part in shares(config, ranks):
            assert min(map(len, (part.query_heads, part.kv_heads, part.ffn, part.vocab))) >= 1


@pytest.mark.parametrize("name", FAMILY)
def test_a_rank_holds_exactly_the_kv_heads_of_its_queries(name: str) -> None:
    config = FAMILY[name]
    for ranks in range(1, largest_world(config) + 1):
        for part in shares(config, ranks):
            used = [head // config.queries_per_kv_head for head in part.query_heads]
            assert list(part.kv_heads) == sorted(set(used))
            each = part.queries_per_kv_head
            assert used == [kv_head for kv_head in part.kv_heads for _ in range(each)]


@pytest.mark.parametrize("name", FAMILY)
def test_work_is_shared_as_evenly_as_groups_and_units_allow(name: str) -> None:
    config = FAMILY[name]
    for ranks in range(1, largest_world(config) + 1):
        parts = shares(config, ranks)
        heads = [len(part.query_heads) for part in parts]
        if ranks <= config.num_kv_heads:
            assert max(heads) - min(heads) in (0, config.queries_per_kv_head)
        columns = [len(part.ffn) for part in parts]
        assert max(columns) - min(columns) <= 2 * MLP_UNIT
        if config.ffn_size >= MLP_UNIT * ranks:
            assert all(part.ffn.start % MLP_UNIT == 0 for part in parts)
        rows = [len(part.vocab) for part in parts]
        assert max(rows) - min(rows) <= 1


@pytest.mark.parametrize(
    ("ranks", "heads"),
    [(2, [35, 36]), (3, [23, 24, 24]), (4, [17, 18, 18, 18]), (8, [8, 9, 9, 9, 9, 9, 9, 9])],
)
def test_71_heads_are_shared_unevenly_and_their_kv_head_is_everywhere(
    ranks: int, heads: list[int]
) -> None:
    parts = shares(FAMILY["7b"], ranks)
    assert [len(part.query_heads) for part in parts] == heads
    assert {part.kv_heads for part in parts} == {range(1)}


def test_40b_on_four_ranks_has_two_whole_groups_each() -> None:
    parts = shares(FAMILY["40b"], 4)
    assert [part.kv_heads for part in parts] == [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]
    assert [part.query_heads for part in parts] == [range(32 * r, 32 * r + 32) for r in range(4)]
    assert {len(part.ffn) for part in parts} == {8192}


def test_40b_on_sixteen_ranks_shares_each_kv_head_by_two() -> None:
    parts = shares(FAMILY["40b"], 16)
    assert [part.kv_heads for part in parts] == [range(r // 2, r // 2 + 1) for r in range(16)]
    assert [part.query_heads for part in parts] == [range(8 * r, 8 * r + 8) for r in range(16)]


def test_groups_are_cut_inside_only_where_ranks_outnumber_them() -> None:
    assert [part.kv_heads for part in shares(FAMILY["odd groups"], 3)] == [
        range(1),
        range(1, 3),
        range(3, 5),
    ]
    sizes = [len(part.query_heads) for part in shares(FAMILY["odd groups"], 7)]
    assert sorted(sizes) == [1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("name", "most"), [("7b", 71), ("40b", 128), ("180B", 232), ("rw-1b", 32), ("odd groups", 15)]
)
def test_a_world_that_is_too_large_is_refused_with_the_largest_possible(
    name: str, most: int
) -> None:
    config = FAMILY[name]
    assert len(shares(config, most)) == most
    with pytest.raises(
        WorldSizeError, match=rf"from 1 to {most}, .*got {most + 1}; use world_size={most} or less"
    ):
        share_of(config, most + 1, 0)


def test_mlp_columns_and_tokens_limit_the_world_as_well() -> None:
    assert largest_world(replace(FAMILY["40b"], ffn_size=5)) == 5
    assert largest_world(replace(FAMILY["40b"], vocab_size=3)) == 3


@pytest.mark.parametrize("ranks", [0, -1])
def test_a_world_without_ranks_is_refused(ranks: int) -> None:
    with pytest.raises(WorldSizeError, match="use world_size=1 or more"):
        share_of(FAMILY["7b"], ranks, 0)


def test_owned_shares_differ_by_one_at_most() -> None:
    for count in (0, 1, 7, 64, 71):
        for ranks in range(1, 12):
            parts = [owned(count, ranks, rank) for rank in range(ranks)]
            assert joined(parts) == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
