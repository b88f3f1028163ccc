"""Names and shapes are those of the published checkpoints, and the ranks tile every tensor."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gyrfalcon.config import ModelConfig
from gyrfalcon.model.architectures import config_from_file, config_from_json, make_layout
from gyrfalcon.model.falcon_layout import QKV, layer_prefix
from gyrfalcon.model.layout import TensorSpec, local_shape
from gyrfalcon.parallel.shards import largest_world, share_of

Data = Callable[[str], Path]


def random_config(seed: int) -> ModelConfig:
    """Any architecture, with head counts, ffn and vocabulary that nothing divides."""
    pick = random.Random(seed)
    kv_heads, group = pick.randint(1, 9), pick.randint(1, 9)
    raw: dict[str, object] = dict(
        model_type="falcon",
        hidden_size=kv_heads * group * 2 * pick.randint(1, 4),
        num_attention_heads=kv_heads * group,
        num_hidden_layers=pick.randint(1, 3),
        vocab_size=pick.randint(kv_heads * group, 999),
        ffn_hidden_size=pick.randint(kv_heads * group, 999),
        bias=pick.random() < 0.5,
    )
    if pick.random() < 0.7:
        raw |= dict(
            new_decoder_architecture=True,
            num_kv_heads=kv_heads,
            num_ln_in_parallel_attn=pick.choice([1, 2]),
        )
    else:
        raw |= dict(multi_query=pick.random() < 0.5, parallel_attn=pick.random() < 0.5)
    return config_from_json(raw)


def indices(ranges: tuple[range, ...]) -> list[int]:
    return [index for part in ranges for index in part]


@pytest.mark.parametrize(
    ("config", "index", "count", "num_bytes"),
    [
        ("falcon-7b/config.rw-initial-2023-05.json", "falcon-7b", 196, 14_434_379_520),
        ("falcon-7b/config.rw-2023-07.json", "falcon-7b", 196, 14_434_379_520),
        ("falcon-7b-instruct/config.json", "falcon-7b-instruct", 196, 14_434_379_520),
        ("falcon-40b/config.rw-initial-2023-05.json", "falcon-40b", 484, 83_671_941_120),
    ],
)
def test_names_and_bytes_equal_the_published_index(
    config: str, index: str, count: int, num_bytes: int, data: Data
) -> None:
    published = json.loads(data(f"falcon-configs/{index}/pytorch_model.bin.index.json").read_text())
    specs = make_layout(config_from_file(data(f"falcon-configs/{config}")), has_head=True).tensors
    assert {spec.name for spec in specs} == published["weight_map"].keys()
    assert len(specs) == count
    assert (
        2 * sum(spec.elements for spec in specs) == published["metadata"]["total_size"] == num_bytes
    )


@pytest.mark.parametrize(
    ("name", "head", "parameters"),
    [
        ("falcon-180B", True, 179_522_565_120),
        ("falcon-11B", True, 11_102_822_400),
        ("falcon-rw-1b", False, 1_311_625_216),
    ],
)
def test_parameters_equal_the_published_number(
    name: str, head: bool, parameters: int, data: Data
) -> None:
    config = config_from_file(data(f"falcon-configs/derived/{name}/config.json"))
    assert sum(spec.elements for spec in make_layout(config, has_head=head).tensors) == parameters


@pytest.mark.parametrize("seed", range(40))
def test_ranks_tile_every_shared_tensor(seed: int) -> None:
    config = random_config(seed)
    layout = make_layout(config, has_head=True)
    most = largest_world(config)
    for ranks in {1, 2, 3, min(most, config.num_kv_heads + 1), most} & set(range(1, most + 1)):
        shares = [share_of(config, ranks, rank) for rank in range(ranks)]
        for spec in layout.tensors:
            held = [indices(layout.ranges(spec, share)) for share in shares]
            if spec.dim is None:
                assert held == [[]] * ranks
                continue
            whole = list(range(spec.shape[spec.dim]))
            if (
                spec.role == "qkv" and ranks > config.num_kv_heads
            ):  # ranks of one group share its k and v
                assert sorted(set().union(*held)) == whole
            else:
                assert [index for own in held for index in own] == whole


@pytest.mark.parametrize("seed", range(20))
def test_qkv_rows_are_the_queries_keys_and_values_of_the_ranks_heads(seed: int) -> None:
    config = random_config(seed)
    layout = make_layout(config, has_head=False)
    spec = layout.by_name[layer_prefix(0) + QKV + ".weight"]
    size, head_dim = config.queries_per_kv_head, config.head_dim
    rows = torch.arange(spec.shape[0]).view(config.num_kv_heads, size + 2, head_dim)
    queries = rows[:, :size].reshape(config.num_heads, head_dim)
    ranks = min(largest_world(config), config.num_kv_heads + seed % 3)
    for rank in range(ranks):
        share = share_of(config, ranks, rank)
        q = queries[share.query_heads.start : share.query_heads.stop]
        k, v = rows[share.kv_heads.start : share.kv_heads.stop, size:].unbind(1)
        own = set(torch.cat([q.flatten(), k.flatten(), v.flatten()]).tolist())
        assert indices(layout.ranges(spec, share)) == sorted(own)


def test_whole_groups_are_one_range() -> None:
    config = random_config(1)
    whole = share_of(config, 1, 0)
    layout = make_layout(config, has_head=True)
    for spec in layout.tensors:
        expected = () if spec.dim is None else (range(spec.shape[spec.dim]),)
        assert layout.ranges(spec, whole) == expected
        assert local_shape(spec.shape, spec.dim, expected) == spec.shape


def test_biases_follow_the_layers_that_are_shared() -> None:
    config = config_from_json(
        dict(
            model_type="falcon",
            hidden_size=64,
            num_attention_heads=4,
            num_hidden_layers=1,
            vocab_size=10,
            bias=True,
            parallel_attn=False,
            multi_query=False,
        )
    )
    specs = {
        spec.name.removeprefix(layer_prefix(0)): spec
        for spec in make_layout(config, has_head=False).tensors
    }
    dims = {name: spec.dim for name, spec in specs.items() if name.endswith("bias") and "." in name}
    assert dims["self_attention.query_key_value.bias"] == 0
    assert dims["mlp.dense_h_to_4h.bias"] == 0
    assert dims["self_attention.dense.bias"] is None  # added once, after the sum over the ranks
    assert dims["mlp.dense_4h_to_h.bias"] is None
    assert specs["post_attention_layernorm.bias"] == TensorSpec(
        layer_prefix(0) + "post_attention_layernorm.bias", (64,), "norm", None
    )
