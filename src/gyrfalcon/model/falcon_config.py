"""A Falcon's config.json, old names too, as ModelConfig."""

from gyrfalcon.config import ModelConfig, RopeConfig
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.model.config_fields import (
    HARMLESS,
    MOST_LAYERS,
    activation_of,
    longest,
    refuse,
    refuse_quantised,
    rope_of,
)


def read_falcon_config(fields: Fields) -> ModelConfig:
    """Translates a Hugging Face config to our words; ConfigError names the field that is refused."""
    model_type = fields.take(str, "model_type") or "falcon"
    heads = fields.positive("num_attention_heads", "n_head")
    hidden = fields.positive("hidden_size", "n_embed", "n_embd")
    new = _is_new_architecture(fields, model_type)
    parallel = _is_parallel(fields, model_type, new)
    max_positions, rope = _positions(fields)
    config = ModelConfig(
        hidden_size=hidden,
        num_layers=fields.positive("num_hidden_layers", "n_layer"),
        num_heads=heads,
        num_kv_heads=_num_kv_heads(fields, model_type, new, heads),
        ffn_size=_ffn_size(fields, hidden),
        vocab_size=fields.positive("vocab_size"),
        max_positions=max_positions,
        parallel=parallel,
        num_norms=_num_norms(fields, new, parallel),
        bias=fields.take(bool, "bias") or False,
        tied=fields.take(bool, "tie_word_embeddings") is not False,
        activation=activation_of(fields, "activation", "gelu"),
        norm_eps=_norm_eps(fields),
        rope=rope,
    )
    _check_shapes(config, fields)
    refuse_quantised(fields)
    fields.refuse_unread(HARMLESS)
    return config


def _is_new_architecture(fields: Fields, model_type: str) -> bool:
    """RefinedWeb (40b's first form) means the new architecture without saying so; n_head_kv is its word."""
    new = fields.take(bool, "new_decoder_architecture")
    if model_type == "RefinedWeb":
        if new is False:
            raise refuse(fields, "new_decoder_architecture true for RefinedWeb", "false")
        return True
    if new is None:
        return fields.raw.get("n_head_kv") is not None and fields.raw.get("multi_query") is None
    return new


def _is_parallel(fields: Fields, model_type: str, new: bool) -> bool:
    parallel = fields.take(bool, "parallel_attn")
    if new:
        if parallel is False:
            raise refuse(fields, "parallel_attn true with new_decoder_architecture", "false")
        return True
    return model_type == "falcon" if parallel is None else parallel


def _num_kv_heads(fields: Fields, model_type: str, new: bool, heads: int) -> int:
    """In the old architecture multi_query wins: re-saves of 7b carry num_kv_heads 71 and mean 1."""
    stated = fields.take(int, "num_kv_heads", "n_head_kv")
    multi_query = fields.take(bool, "multi_query")
    if new:
        return heads if stated is None else stated
    if multi_query or (multi_query is None and model_type == "falcon"):
        return 1
    if stated not in (None, heads):
        wanted = f"num_kv_heads {heads} without multi_query and new_decoder_architecture"
        raise refuse(fields, wanted, str(stated))
    return heads


def _ffn_size(fields: Fields, hidden: int) -> int:
    stated = fields.take(int, "ffn_hidden_size")
    return 4 * hidden if stated is None else stated


def _num_norms(fields: Fields, new: bool, parallel: bool) -> int:
    stated = fields.take(int, "num_ln_in_parallel_attn")
    if stated not in (None, 1, 2):
        raise refuse(fields, "num_ln_in_parallel_attn 1 or 2", str(stated))
    if not parallel:
        return 2
    if new:
        return stated or 2
    if stated == 2:
        raise refuse(fields, "num_ln_in_parallel_attn 1 without new_decoder_architecture", "2")
    return 1


def _norm_eps(fields: Fields) -> float:
    eps = fields.take(float, "layer_norm_epsilon")
    if eps is not None and eps <= 0:
        raise refuse(fields, "layer_norm_epsilon above 0", str(eps))
    return eps or 1e-5


def _check_shapes(config: ModelConfig, fields: Fields) -> None:
    if fields.take(bool, "apply_residual_connection_post_layernorm"):
        raise refuse(fields, "apply_residual_connection_post_layernorm false", "true")
    for name, value in (
        ("num_kv_heads", config.num_kv_heads),
        ("ffn_hidden_size", config.ffn_size),
    ):
        if value < 1:
            raise refuse(fields, f"{name} above 0", str(value))
    if config.num_layers > MOST_LAYERS:
        raise refuse(fields, f"num_hidden_layers up to {MOST_LAYERS}", str(config.num_layers))
    if config.hidden_size % config.num_heads:
        raise refuse(
            fields, f"hidden_size a multiple of {config.num_heads} heads", str(config.hidden_size)
        )
    if config.num_heads % config.num_kv_heads:
        wanted = f"num_attention_heads a multiple of {config.num_kv_heads} KV heads"
        raise refuse(fields, wanted, str(config.num_heads))
    if fields.take(int, "head_dim") not in (None, config.head_dim):
        wanted = f"head_dim {config.head_dim} (hidden_size / heads)"
        raise refuse(fields, wanted, repr(fields.raw["head_dim"]))
    if config.rope is not None and config.head_dim % 2:
        raise refuse(fields, "an even head_dim for rotary positions", str(config.head_dim))
    if config.rope is not None and config.rope.kind == "dynamic" and config.head_dim == 2:
        raise refuse(fields, "a head_dim above 2 for dynamic rope scaling", "2")


def _positions(fields: Fields) -> tuple[int, RopeConfig | None]:
    """The longest sequence and the rotary settings, None for ALiBi."""
    alibi = fields.take(bool, "alibi") or False
    rotary = fields.take(bool, "rotary")
    if rotary is alibi:
        raise refuse(
            fields, "either alibi or rotary", f"alibi = {alibi}, rotary = {rotary}".lower()
        )
    stated = fields.take(int, "max_position_embeddings")
    positions = 2048 if stated is None else stated
    if positions < 1:
        raise refuse(fields, "max_position_embeddings above 0", str(positions))
    rope = rope_of(fields, positions)
    if not alibi:
        return longest(positions, rope), rope
    if rope.kind != "default":
        raise refuse(fields, "no rope scaling with alibi", rope.kind)
    return positions, None
