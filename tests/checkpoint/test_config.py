"""Every Falcon config.json is read to the right numbers, or refused by the name of the wrong field."""

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import VARIANTS
from transformers import FalconConfig, GenerationConfig, PretrainedConfig
from transformers.models.falcon.modeling_falcon import FalconRotaryEmbedding

from gyrfalcon.config import ModelConfig, RopeConfig
from gyrfalcon.errors import CheckpointError, ConfigError
from gyrfalcon.model.architectures import config_from_file, config_from_json

Json = dict[str, Any]  # a config.json of any content
Data = Callable[[str], Path]

PLAIN = RopeConfig(10000.0, "default")


def wanted(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, norms: int, **other: Any
) -> ModelConfig:
    """A row of the family's table; what all but a few share has a default here."""
    settings: Json = dict(
        vocab_size=65024, max_positions=2048, parallel=True, bias=False, tied=True
    )
    settings |= {"rope": PLAIN, **other}
    return ModelConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        ffn_size=ffn,
        num_norms=norms,
        activation="gelu",
        norm_eps=1e-5,
        **settings,
    )


FALCON_7B = wanted(4544, 32, 71, 1, 18176, 1)
FALCON_40B = wanted(8192, 60, 128, 8, 32768, 2)
RW = dict(bias=True, parallel=False, rope=None)
FAMILY = {
    "falcon-7b/config.rw-initial-2023-05.json": FALCON_7B,
    "falcon-7b/config.rw-2023-07.json": FALCON_7B,
    "falcon-7b-instruct/config.rw-initial-2023-04.json": FALCON_7B,
    "falcon-7b-instruct/config.rw-2023-07.json": FALCON_7B,
    "falcon-7b-instruct/config.json": FALCON_7B,
    "falcon-40b/config.rw-initial-2023-05.json": FALCON_40B,
    "derived/falcon-40b-instruct/config.json": FALCON_40B,
    "derived/falcon-180B/config.json": wanted(14848, 80, 232, 8, 59392, 2),
    "derived/falcon-11B/config.json": wanted(
        4096,
        60,
        32,
        8,
        16384,
        1,
        tied=False,
        max_positions=8192,
        rope=RopeConfig(500042.0, "default"),
    ),
    "derived/falcon-rw-1b/config.json": wanted(2048, 24, 32, 32, 8192, 2, vocab_size=50304, **RW),
    "derived/falcon-rw-7b/config.json": wanted(4096, 36, 64, 64, 16384, 2, **RW),
}
QKV_ROWS = {"7b": 4672, "40b": 9216, "180B": 15872, "11B": 6144, "rw-1b": 6144, "rw-7b": 12288}

# The smallest config that says everything: each test changes one thing.
OLD: Json = dict(
    model_type="falcon",
    hidden_size=96,
    num_attention_heads=6,
    num_hidden_layers=2,
    vocab_size=50,
    alibi=False,
)
NEW: Json = OLD | dict(new_decoder_architecture=True, num_kv_heads=2)


def parse(base: Json, **changes: Any) -> ModelConfig:
    return config_from_json(base | changes)


def rope_of(base: Json, **changes: Any) -> RopeConfig:
    rope = parse(base, **changes).rope
    assert rope is not None
    return rope


@pytest.mark.parametrize("name", FAMILY)
def test_published_configs_are_read_to_the_familys_table(name: str, data: Data) -> None:
    assert config_from_file(data("falcon-configs") / name) == FAMILY[name]


def test_no_config_of_the_data_folder_is_left_out(data: Data) -> None:
    folder = data("falcon-configs")
    assert {str(path.relative_to(folder)) for path in folder.rglob("config*.json")} == set(FAMILY)


@pytest.mark.parametrize("variant", QKV_ROWS)
def test_the_fused_rows_are_those_of_the_table(variant: str) -> None:
    config = next(config for name, config in FAMILY.items() if f"falcon-{variant}/" in name)
    assert config.qkv_rows == QKV_ROWS[variant]
    assert config.head_dim == (128 if variant == "11B" else 64)
    assert config.queries_per_kv_head * config.num_kv_heads == config.num_heads


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_transformers_saves_is_read_back(variant: str, tmp_path: Path) -> None:
    theirs = FalconConfig(num_hidden_layers=3, vocab_size=509, **VARIANTS[variant])
    theirs.save_pretrained(tmp_path)
    ours = config_from_file(tmp_path / "config.json")
    assert (ours.hidden_size, ours.num_layers, ours.vocab_size) == (theirs.hidden_size, 3, 509)
    assert (ours.num_heads, ours.ffn_size) == (theirs.num_attention_heads, theirs.ffn_hidden_size)
    assert (ours.max_positions, ours.tied) == (
        theirs.max_position_embeddings,
        theirs.tie_word_embeddings,
    )
    one_kv_head = theirs.multi_query and not theirs.new_decoder_architecture
    assert ours.num_kv_heads == (1 if one_kv_head else theirs.num_kv_heads)
    assert (ours.rope is None) == theirs.alibi
    if ours.rope is not None:
        assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


def test_a_cut_part_says_its_world_size_and_means_the_same() -> None:
    assert parse(NEW, world_size=4) == parse(NEW)


# What transformers 4 wrote beside what transformers 5 writes, and what other writers add.
OLDER_FIELDS: Json = dict(
    tf_legacy_loss=False,
    torchscript=False,
    use_bfloat16=False,
    xla_device=None,
    output_past=True,
    pruned_heads={},
    tie_encoder_decoder=False,
    is_decoder=True,
    add_cross_attention=False,
    cross_attention_hidden_size=None,
    finetuning_task="chat",
    task_specific_params={"text-generation": {"max_length": 50}},
    id2label={"0": "LABEL_0"},
    tokenizer_class="PreTrainedTokenizerFast",
    torch_dtype="bfloat16",
    num_beam_groups=1,
    early_stopping=False,
    do_sample=True,
    max_length=20,
    unsloth_version="2024.9",
    pretraining_tp=1,
    slow_but_exact=False,
    padded_heads=1,
    unk_token_id=0,
    quantization_config=None,
    rope_scaling=False,
    _attn_implementation="flash_attention_2",
    _attn_implementation_autoset=True,
    _name_or_path="tiiuae/falcon-7b",
    auto_map={"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"},
    architectures=["FalconForSequenceClassification"],
)


def test_what_writers_add_to_a_config_changes_nothing() -> None:
    written = PretrainedConfig().to_dict() | GenerationConfig().to_dict()
    for name in written.keys() - {"model_type"}:
        assert parse(OLD, **{name: 7 if written[name] is None else written[name]}) == parse(OLD)
    for name, value in OLDER_FIELDS.items():
        assert parse(OLD, **{name: value}) == parse(OLD), name


LEFTOVERS: Json = dict(
    original_max_position_embeddings=512,
    attention_factor=3.0,
    beta_fast=3,
    beta_slow=2,
    low_freq_factor=2.0,
    high_freq_factor=5.0,
    mscale=2.0,
    mscale_all_dim=1.0,
    truncate=True,
    finetuned=True,
)


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic"])
def test_rope_settings_of_other_kinds_change_nothing_as_in_transformers(kind: str) -> None:
    own: Json = dict(rope_type=kind) if kind == "default" else dict(rope_type=kind, factor=2.0)
    both = own, own | LEFTOVERS
    assert len({parse(OLD, rope_scaling=settings) for settings in both}) == 1
    seen = torch.arange(3000)[None]
    theirs = [
        FalconRotaryEmbedding(FalconConfig(rope_parameters=dict(settings)))(torch.ones(1), seen)
        for settings in both
    ]
    torch.testing.assert_close(theirs[0], theirs[1], atol=0, rtol=0)


def test_old_and_new_names_may_be_mixed() -> None:
    mixed = dict(model_type="falcon", n_embed=96, n_head=6, num_hidden_layers=2, vocab_size=50)
    assert parse(mixed, n_head_kv=2, new_decoder_architecture=True) == parse(NEW)
    assert parse(mixed, num_attention_heads=6, hidden_size=96) == parse(OLD)


def test_names_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads = 6, n_head = 8"):
        parse(OLD, n_head=8)
    with pytest.raises(ConfigError, match="num_kv_heads = 2, n_head_kv = 3"):
        parse(NEW, n_head_kv=3)


def test_a_resaved_7b_with_71_kv_heads_still_has_one(data: Data) -> None:
    raw = json.loads((data("falcon-configs") / "falcon-7b-instruct/config.json").read_text())
    assert config_from_json(raw | dict(num_kv_heads=71)) == FALCON_7B


@pytest.mark.parametrize(
    ("changes", "kv_heads"),
    [
        (dict(), 1),
        (dict(multi_query=True, num_kv_heads=6), 1),
        (dict(multi_query=False), 6),
        (dict(multi_query=False, num_kv_heads=6), 6),
        (dict(new_decoder_architecture=True), 6),
        (dict(new_decoder_architecture=True, num_kv_heads=3, multi_query=True), 3),
        (dict(n_head_kv=3), 3),
        (dict(model_type="RefinedWeb", n_head_kv=2), 2),
        (dict(model_type="RefinedWebModel"), 6),
        (dict(model_type="RefinedWebModel", multi_query=True, parallel_attn=True), 1),
    ],
)
def test_the_number_of_kv_heads_follows_the_architecture(changes: Json, kv_heads: int) -> None:
    assert parse(OLD, **changes).num_kv_heads == kv_heads


@pytest.mark.parametrize(
    ("changes", "parallel", "norms"),
    [
        (dict(), True, 1),
        (dict(num_ln_in_parallel_attn=None), True, 1),
        (dict(num_ln_in_parallel_attn=1), True, 1),
        (dict(new_decoder_architecture=True), True, 2),
        (dict(new_decoder_architecture=True, num_ln_in_parallel_attn=None), True, 2),
        (dict(new_decoder_architecture=True, num_ln_in_parallel_attn=1), True, 1),
        (dict(new_decoder_architecture=True, num_ln_in_parallel_attn=2), True, 2),
        (dict(parallel_attn=False), False, 2),
        (dict(parallel_attn=False, num_ln_in_parallel_attn=1), False, 2),
        (dict(model_type="RefinedWebModel"), False, 2),
        (dict(model_type="RefinedWeb"), True, 2),
    ],
)
def test_the_norms_of_a_block_follow_the_architecture(
    changes: Json, parallel: bool, norms: int
) -> None:
    config = parse(OLD, **changes)
    assert (config.parallel, config.num_norms) == (parallel, norms)


def test_a_missing_word_on_tying_means_tied() -> None:
    assert parse(OLD).tied
    assert parse(OLD, tie_word_embeddings=None).tied
    assert not parse(OLD, tie_word_embeddings=False).tied


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (None, "gelu"),
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("relu", "relu"),
        ("swish", "silu"),
    ],
)
def test_activations_are_translated(name: str | None, ours: str) -> None:
    assert parse(OLD, activation=name).activation == ours


ROPES: list[tuple[Json, RopeConfig]] = [
    (dict(), PLAIN),
    (dict(rope_theta=5), RopeConfig(5.0, "default")),
    (
        dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)),
        RopeConfig(500.0, "default"),
    ),
    (dict(rope_scaling=dict(type="linear", factor=2)), RopeConfig(10000.0, "linear", 2.0, 2048)),
    (
        dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)),
        RopeConfig(10000.0, "dynamic", 2.0, 2048),
    ),
    (
        dict(rope_theta=7.0, rope_scaling=dict(type="linear", rope_type="linear", factor=2.0)),
        RopeConfig(7.0, "linear", 2.0, 2048),
    ),
    (
        dict(rope_parameters=dict(rope_type="yarn", factor=4.0), max_position_embeddings=512),
        RopeConfig(10000.0, "yarn", 4.0, 512, attention_factor=0.1 * math.log(4) + 1),
    ),
    (
        dict(
            rope_scaling=dict(
                type="yarn",
                original_max_position_embeddings=256,
                beta_fast=20,
                beta_slow=2,
                attention_factor=0.5,
                truncate=False,
            )
        ),
        RopeConfig(10000.0, "yarn", 8.0, 256, 0.5, beta_fast=20.0, beta_slow=2.0, truncate=False),
    ),
    (
        dict(
            rope_parameters=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=1024,
            )
        ),
        RopeConfig(10000.0, "llama3", 8.0, 1024, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
]


@pytest.mark.parametrize(("changes", "rope"), ROPES)
def test_every_form_of_rope_settings_is_read(changes: Json, rope: RopeConfig) -> None:
    assert rope_of(OLD, **changes) == rope


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        (dict(), 2048),
        (dict(max_position_embeddings=8192), 8192),
        (dict(rope_scaling=dict(type="linear", factor=4.0)), 8192),
        (dict(rope_scaling=dict(type="dynamic", factor=1.5)), 3072),
        (
            dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=1024)),
            4096,
        ),
        (
            dict(rope_scaling=dict(type="yarn", factor=2.0, original_max_position_embeddings=1024)),
            2048,
        ),
    ],
)
def test_scaling_stretches_the_longest_sequence(changes: Json, longest: int) -> None:
    assert parse(OLD, **changes).max_positions == longest


REFUSED: list[tuple[Json, str]] = [
    (dict(activation="quick_gelu"), "activation"),
    (
        dict(apply_residual_connection_post_layernorm=True),
        "apply_residual_connection_post_layernorm",
    ),
    (dict(quantization_config={"bits": 4}), "quantization_config"),
    (dict(quantization_config={"quant_method": "gptq"}), "quantization_config.*gptq"),
    (dict(quantization_config={"quant_method": "bitsandbytes"}), "bitsandbytes"),
    (dict(quantization_config={"quant_method": "awq"}), "awq"),
    (dict(some_new_option=False), "some_new_option"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
    (dict(model_type="llama"), "model_type"),
    (dict(model_type=None), "model_type"),
    (dict(model_type="RefinedWeb", new_decoder_architecture=False), "new_decoder_architecture"),
    (dict(new_decoder_architecture=True, parallel_attn=False), "parallel_attn"),
    (dict(multi_query=False, num_kv_heads=3), "num_kv_heads"),
    (dict(num_ln_in_parallel_attn=2), "num_ln_in_parallel_attn"),
    (dict(num_ln_in_parallel_attn=0), "num_ln_in_parallel_attn"),
    (dict(new_decoder_architecture=True, num_ln_in_parallel_attn=3), "num_ln_in_parallel_attn"),
    (dict(alibi=True, rotary=True), "alibi"),
    (dict(alibi=False, rotary=False), "rotary"),
    (dict(alibi="no"), "alibi"),
    (dict(bias=1), "bias"),
    (dict(multi_query="true"), "multi_query"),
    (dict(hidden_size=True), "hidden_size"),
    (dict(hidden_size="96"), "hidden_size"),
    (dict(hidden_size=96.0), "hidden_size"),
    (dict(hidden_size=None), "hidden_size"),
    (dict(hidden_size=97), "hidden_size"),
    (dict(hidden_size=10**400), "hidden_size"),
    (dict(hidden_size=90), "head_dim"),
    (dict(head_dim=32), "head_dim"),
    (dict(num_attention_heads=0), "num_attention_heads"),
    (dict(num_hidden_layers=-1), "num_hidden_layers"),
    (dict(vocab_size=0), "vocab_size"),
    (dict(ffn_hidden_size=0), "ffn_hidden_size"),
    (dict(ffn_hidden_size=-64), "ffn_hidden_size"),
    (dict(new_decoder_architecture=True, num_kv_heads=4), "num_attention_heads"),
    (dict(new_decoder_architecture=True, num_kv_heads=0), "num_kv_heads"),
    (dict(max_position_embeddings=0), "max_position_embeddings"),
    (dict(layer_norm_epsilon=0), "layer_norm_epsilon"),
    (dict(layer_norm_epsilon=math.nan), "layer_norm_epsilon"),
    (dict(layer_norm_epsilon=math.inf), "layer_norm_epsilon"),
    (dict(rope_theta=True), "rope_theta"),
    (dict(rope_theta=0), "rope_theta"),
    (dict(rope_theta=-1.0), "rope_theta"),
    (dict(rope_theta=10.0, rope_parameters=dict(rope_theta=20.0)), "rope_theta"),
    (dict(rope_scaling="linear"), "rope_scaling"),
    (dict(rope_scaling=dict(type="longrope", factor=2.0)), "longrope"),
    (dict(rope_scaling=dict(type="linear", rope_type="dynamic", factor=2.0)), "rope_type"),
    (dict(rope_scaling=dict(type="linear")), "factor"),
    (dict(rope_scaling=dict(type="linear", factor=0.5)), "factor"),
    (dict(rope_scaling=dict(type="linear", factor=math.nan)), "factor"),
    (dict(rope_scaling=dict(type="linear", factor=2.0, some_new_option=3)), "some_new_option"),
    (dict(rope_scaling=dict(factor=2.0)), "factor"),
    (dict(rope_scaling=dict(type="default", factor=2.0)), "factor"),
    (dict(rope_scaling=True), "rope_scaling"),
    (dict(rope_scaling=dict(type="yarn", factor=2.0, beta_slow=40.0)), "beta_slow"),
    (dict(rope_scaling=dict(type="yarn", factor=2.0, mscale=-1.0)), "mscale"),
    (
        dict(rope_scaling=dict(type="yarn", factor=2.0, original_max_position_embeddings=0)),
        "original_max_position_embeddings",
    ),
    (dict(rope_scaling=dict(type="yarn", original_max_position_embeddings=4096)), "factor"),
    (dict(rope_scaling=dict(type="llama3", factor=2.0)), "low_freq_factor"),
    (
        dict(
            rope_scaling=dict(type="llama3", factor=2.0, low_freq_factor=4.0, high_freq_factor=1.0)
        ),
        "low_freq_factor",
    ),
    (dict(rope_scaling=dict(partial_rotary_factor=0.5)), "partial_rotary_factor"),
    (dict(alibi=True, rope_scaling=dict(type="linear", factor=2.0)), "alibi"),
    (
        dict(
            rope_scaling=dict(type="linear", factor=2.0), rope_parameters=dict(rope_type="default")
        ),
        "rope_parameters",
    ),
    (dict(hidden_size=12, rope_scaling=dict(type="dynamic", factor=2.0)), "head_dim"),
    (dict(num_hidden_layers=10**9), "num_hidden_layers"),
]


@pytest.mark.parametrize(("changes", "name"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(changes: Json, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        parse(OLD, **changes)


@pytest.mark.parametrize(
    "name", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"]
)
def test_a_missing_size_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*none"):
        config_from_json({key: value for key, value in OLD.items() if key != name})


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1', "[1]", "null", "[" * 100_000, '{"a": "\udce9"}']
)
def test_a_file_that_holds_no_json_object_is_a_damaged_checkpoint(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        config_from_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json.*No such file"):
        config_from_file(tmp_path / "config.json")


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    64,
    71,
    10**30,
    1.5,
    -0.0,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
]
VALUES += ["", "gelu", "falcon", "RefinedWeb", "yarn", [], [1], {}, {"a": 1}]
SCALING_VALUES: dict[str, list[Any]] = {
    "rope_type": ["default", "linear", "dynamic", "yarn", "llama3", "none"],
    "type": ["linear", "dynamic", "yarn", "llama3"],
    "factor": [1, 2.0, 1e12, 0, -1],
    "original_max_position_embeddings": [1, 512, 10**14, 0],
    "rope_theta": [2.0, 1e6, 1.0],
    "attention_factor": [0, 1.0],
    "mscale": [0, 0.5, -9.0],
    "mscale_all_dim": [0, 0.5, -9.0],
    "low_freq_factor": [1.0, 0],
    "high_freq_factor": [4.0, 1.0],
    "beta_fast": [32, 0],
    "beta_slow": [1, 64],
    "truncate": [True, False],
}


def mutate(raw: Json, chance: random.Random) -> Json:
    """A config with one to three fields gone, replaced, added or scaled."""
    raw = copy.deepcopy(raw)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(
            [*raw, "rope_scaling", "n_head", "num_kv_heads", "max_position_embeddings"]
        )
        action = chance.randrange(4)
        if action == 0:
            raw.pop(name, None)
        elif action == 1:
            raw[name] = chance.choice(VALUES)
        elif action == 2:
            raw[name] = raw.get(chance.choice(list(raw)))
        else:
            chosen = chance.sample(list(SCALING_VALUES), chance.randint(1, 6))
            raw["rope_scaling"] = {
                key: chance.choice(SCALING_VALUES[key] + VALUES[:4]) for key in chosen
            }
    return raw


def test_no_mutation_of_a_real_config_ends_in_another_error(data: Data) -> None:
    folder, chance, read = data("falcon-configs"), random.Random(11), 0
    originals = [json.loads((folder / name).read_text()) for name in FAMILY]
    for _ in range(6000):
        raw = mutate(chance.choice(originals), chance)
        try:
            config = config_from_json(raw)
        except ConfigError:
            continue
        read += 1
        assert config.hidden_size == config.head_dim * config.num_heads
        assert config.num_heads == config.queries_per_kv_head * config.num_kv_heads
        assert min(config.num_layers, config.vocab_size, config.ffn_size, config.max_positions) >= 1
    assert 600 < read < 5400
