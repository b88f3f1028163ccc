"""ModelConfig: the mathematics of one Falcon model, read once from any config.json, old names too.

Knows numbers and names only: no tensors, no files but config.json, no ranks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gyrfalcon.errors import ConfigError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.files.json_fields import Fields

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# Fields that leave logits alone: all that transformers 4 and 5 write of any model, settings of training and
# generation, token ids (the tokenizer decides those), and what known writers add. Anything else that is not
# read below is refused by name.
HARMLESS = frozenset(
    """
    architectures auto_map custom_pipelines transformers_version torch_dtype dtype use_cache loss_type
    initializer_range hidden_dropout attention_dropout embd_pdrop resid_pdrop attn_pdrop
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    tokenizer_class prefix world_size id2label label2id num_labels problem_type finetuning_task
    task_specific_params return_dict use_return_dict output_attentions output_hidden_states output_past
    torchscript tf_legacy_loss xla_device use_bfloat16 pruned_heads chunk_size_feed_forward
    gradient_checkpointing is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size
    tie_encoder_decoder attn_implementation experts_implementation keys_to_ignore_at_inference
    base_model_tp_plan base_model_pp_plan pretraining_tp pretraining_pp slow_but_exact padded_heads
    match_baseline_rotary unsloth_version unsloth_fixed model_max_length trust_remote_code
    use_flash_attention use_flash_attention_2 use_flash_attn

    max_length max_new_tokens min_length min_new_tokens max_time stop_strings do_sample early_stopping
    num_beams num_beam_groups diversity_penalty penalty_alpha dola_layers temperature top_h top_k top_p
    min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids force_words_ids
    renormalize_logits constraints forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens forced_decoder_ids
    sequence_bias token_healing guidance_scale low_memory watermarking_config num_return_sequences
    output_scores output_logits return_dict_in_generate cache_implementation cache_config
    max_cache_len return_legacy_cache compile_config disable_compile continuous_batching_config
    prefill_chunk_size is_assistant num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight prompt_lookup_num_tokens max_matching_ngram_size speculation_type use_mtp
    generation_config
    """.split()
)

# Fields of rope settings that a kind which does not read them leaves alone, as transformers does.
ROPE_LEFTOVERS = frozenset(
    """
    original_max_position_embeddings attention_factor beta_fast beta_slow truncate mscale mscale_all_dim
    low_freq_factor high_freq_factor short_factor long_factor finetuned
    """.split()
)

MODEL_TYPES = ("falcon", "RefinedWeb", "RefinedWebModel")
MOST_LAYERS = 10_000  # a damaged number would fill the memory with the names of tensors
ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding and its scaling; fields that `kind` does not use hold their neutral value."""

    theta: float
    kind: str  # one of ROPE_KINDS
    factor: float = 1.0
    original_max_positions: int = 0  # positions the model was trained on
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: correction range rounded to whole dimensions
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 1.0  # llama3


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One Falcon model. Shapes are whole-model shapes; nothing here depends on the number of ranks."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    vocab_size: int
    max_positions: int  # the longest sequence the positions are made for
    parallel: bool  # attention and MLP read the same input (all but rw)
    num_norms: int  # norms of one block: 2 for 40b, 180B and rw, 1 for 7b and 11B
    bias: bool  # of the linear layers; norms always have one
    tied: bool  # the head is the embedding, unless the checkpoint stores a different one
    activation: str  # one of ACTIVATIONS' values
    norm_eps: float
    rope: RopeConfig | None  # None: ALiBi

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused query_key_value weight: per KV head its queries, one k and one v."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @classmethod
    def from_file(cls, path: Path) -> "ModelConfig":
        """Reads a config.json; CheckpointError when it is not there or no JSON, ConfigError when refused."""
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, raw: Mapping[str, object], where: str = "config.json") -> "ModelConfig":
        """Translates a Hugging Face config to our words; ConfigError names the field that is refused."""
        fields = Fields(raw, where)
        model_type = _model_type(fields)
        heads = fields.positive("num_attention_heads", "n_head")
        hidden = fields.positive("hidden_size", "n_embed", "n_embd")
        new = _is_new_architecture(fields, model_type)
        parallel = _is_parallel(fields, model_type, new)
        max_positions, rope = _positions(fields)
        config = cls(
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
            activation=_activation(fields),
            norm_eps=_norm_eps(fields),
            rope=rope,
        )
        _check_shapes(config, fields)
        _refuse_quantised(fields)
        fields.refuse_unread(HARMLESS)
        return config


def _refuse(fields: Fields, wanted: str, got: str) -> ConfigError:
    return ConfigError(wanted, got, f"correct {fields.where}, or use a model of the Falcon family")


def _model_type(fields: Fields) -> str:
    model_type = fields.take(str, "model_type")
    if model_type is None and fields.raw.get("architectures") == ["FalconForCausalLM"]:
        return "falcon"
    if model_type not in MODEL_TYPES:
        raise _refuse(fields, f"model_type {', '.join(MODEL_TYPES)}", f"{model_type!r}")
    return model_type


def _is_new_architecture(fields: Fields, model_type: str) -> bool:
    """RefinedWeb (40b's first form) means the new architecture without saying so; n_head_kv is its word."""
    new = fields.take(bool, "new_decoder_architecture")
    if model_type == "RefinedWeb":
        if new is False:
            raise _refuse(fields, "new_decoder_architecture true for RefinedWeb", "false")
        return True
    if new is None:
        return fields.raw.get("n_head_kv") is not None and fields.raw.get("multi_query") is None
    return new


def _is_parallel(fields: Fields, model_type: str, new: bool) -> bool:
    parallel = fields.take(bool, "parallel_attn")
    if new:
        if parallel is False:
            raise _refuse(fields, "parallel_attn true with new_decoder_architecture", "false")
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
        raise _refuse(fields, wanted, str(stated))
    return heads


def _ffn_size(fields: Fields, hidden: int) -> int:
    stated = fields.take(int, "ffn_hidden_size")
    return 4 * hidden if stated is None else stated


def _num_norms(fields: Fields, new: bool, parallel: bool) -> int:
    stated = fields.take(int, "num_ln_in_parallel_attn")
    if stated not in (None, 1, 2):
        raise _refuse(fields, "num_ln_in_parallel_attn 1 or 2", str(stated))
    if not parallel:
        return 2
    if new:
        return stated or 2
    if stated == 2:
        raise _refuse(fields, "num_ln_in_parallel_attn 1 without new_decoder_architecture", "2")
    return 1


def _activation(fields: Fields) -> str:
    name = fields.take(str, "activation") or "gelu"
    if name not in ACTIVATIONS:
        raise _refuse(fields, f"activation {', '.join(ACTIVATIONS)}", repr(name))
    return ACTIVATIONS[name]


def _norm_eps(fields: Fields) -> float:
    eps = fields.take(float, "layer_norm_epsilon")
    if eps is not None and eps <= 0:
        raise _refuse(fields, "layer_norm_epsilon above 0", str(eps))
    return eps or 1e-5


def _check_shapes(config: ModelConfig, fields: Fields) -> None:
    if fields.take(bool, "apply_residual_connection_post_layernorm"):
        raise _refuse(fields, "apply_residual_connection_post_layernorm false", "true")
    for name, value in (
        ("num_kv_heads", config.num_kv_heads),
        ("ffn_hidden_size", config.ffn_size),
    ):
        if value < 1:
            raise _refuse(fields, f"{name} above 0", str(value))
    if config.num_layers > MOST_LAYERS:
        raise _refuse(fields, f"num_hidden_layers up to {MOST_LAYERS}", str(config.num_layers))
    if config.hidden_size % config.num_heads:
        raise _refuse(
            fields, f"hidden_size a multiple of {config.num_heads} heads", str(config.hidden_size)
        )
    if config.num_heads % config.num_kv_heads:
        wanted = f"num_attention_heads a multiple of {config.num_kv_heads} KV heads"
        raise _refuse(fields, wanted, str(config.num_heads))
    if fields.take(int, "head_dim") not in (None, config.head_dim):
        wanted = f"head_dim {config.head_dim} (hidden_size / heads)"
        raise _refuse(fields, wanted, repr(fields.raw["head_dim"]))
    if config.rope is not None and config.head_dim % 2:
        raise _refuse(fields, "an even head_dim for rotary positions", str(config.head_dim))
    if config.rope is not None and config.rope.kind == "dynamic" and config.head_dim == 2:
        raise _refuse(fields, "a head_dim above 2 for dynamic rope scaling", "2")


def _refuse_quantised(fields: Fields) -> None:
    fields.read.add("quantization_config")
    settings = fields.raw.get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise ConfigError(
            f"weights in bf16, fp16 or fp32, so no quantization_config in {fields.where}",
            f"weights quantised with {method}" if method else repr(settings)[:80],
            "take the checkpoint that they were made from, and `quant` to quantise it",
        )


def _positions(fields: Fields) -> tuple[int, RopeConfig | None]:
    """The longest sequence and the rotary settings, None for ALiBi."""
    alibi = fields.take(bool, "alibi") or False
    rotary = fields.take(bool, "rotary")
    if rotary is alibi:
        raise _refuse(
            fields, "either alibi or rotary", f"alibi = {alibi}, rotary = {rotary}".lower()
        )
    stated = fields.take(int, "max_position_embeddings")
    positions = 2048 if stated is None else stated
    if positions < 1:
        raise _refuse(fields, "max_position_embeddings above 0", str(positions))
    rope = _rope(fields, positions)
    if not alibi:
        return _longest(positions, rope), rope
    if rope.kind != "default":
        raise _refuse(fields, "no rope scaling with alibi", rope.kind)
    return positions, None


def _rope(fields: Fields, positions: int) -> RopeConfig:
    """`rope_scaling` is the older word for `rope_parameters`; `type` the older one for `rope_type`."""
    theta = fields.take(float, "rope_theta")
    forms = [form for name in ("rope_parameters", "rope_scaling") if (form := fields.nested(name))]
    if len(forms) == 2 and forms[0].raw != forms[1].raw:
        raise _refuse(
            fields, "rope_scaling and rope_parameters alike", f"{forms[1].raw} and {forms[0].raw}"
        )
    scaling = forms[0] if forms else Fields({}, fields.where)
    inner = scaling.take(float, "rope_theta")
    if None not in (inner, theta) and inner != theta:
        raise _refuse(fields, "one rope_theta", f"{theta} and {inner}")
    base = next((stated for stated in (inner, theta) if stated is not None), 10000.0)
    if base <= 1:
        raise _refuse(fields, "rope_theta above 1", str(base))
    kind = scaling.take(str, "rope_type", "type") or "default"
    if kind not in ROPE_KINDS:
        raise _refuse(fields, f"rope_type {', '.join(ROPE_KINDS)}", repr(kind))
    if scaling.take(float, "partial_rotary_factor") not in (None, 1.0):
        raise _refuse(fields, "partial_rotary_factor 1", str(scaling.raw["partial_rotary_factor"]))
    rope = (
        RopeConfig(base, kind)
        if kind == "default"
        else _scaled_rope(scaling, base, kind, positions)
    )
    if kind == "default" and scaling.take(float, "factor") not in (None, 1.0):
        raise _refuse(scaling, "a rope_type that a factor is for", kind)
    scaling.refuse_unread(ROPE_LEFTOVERS)
    return rope


def _scaled_rope(scaling: Fields, theta: float, kind: str, positions: int) -> RopeConfig:
    original = positions
    if (
        kind in ("yarn", "llama3")
        and scaling.raw.get("original_max_position_embeddings") is not None
    ):
        original = scaling.positive("original_max_position_embeddings")
    factor = scaling.take(float, "factor")
    if factor is None and kind == "yarn":
        factor = positions / original
    if factor is None or factor < 1.0:
        raise _refuse(scaling, f"a factor of 1 or more for {kind} scaling", str(factor))
    if kind == "yarn":
        fast, slow = (
            scaling.take(float, "beta_fast") or 32.0,
            scaling.take(float, "beta_slow") or 1.0,
        )
        if not 0 < slow <= fast:
            raise _refuse(scaling, "0 < beta_slow <= beta_fast", f"{slow} and {fast}")
        return RopeConfig(
            theta,
            kind,
            factor,
            original,
            attention_factor=_yarn_attention(scaling, factor),
            beta_fast=fast,
            beta_slow=slow,
            truncate=scaling.take(bool, "truncate") is not False,
        )
    if kind == "llama3":
        low, high = scaling.need(float, "low_freq_factor"), scaling.need(float, "high_freq_factor")
        if not 0 < low < high:
            raise _refuse(scaling, "0 < low_freq_factor < high_freq_factor", f"{low} and {high}")
        return RopeConfig(theta, kind, factor, original, low_freq_factor=low, high_freq_factor=high)
    return RopeConfig(theta, kind, factor, original)


def _yarn_attention(scaling: Fields, factor: float) -> float:
    """What the config says, else 0.1 ln(factor) + 1 (Peng et al. 2023, eq. 22)."""
    stated = scaling.take(float, "attention_factor")
    mscale, mscale_all = scaling.take(float, "mscale"), scaling.take(float, "mscale_all_dim")
    for name, value in (
        ("attention_factor", stated),
        ("mscale", mscale),
        ("mscale_all_dim", mscale_all),
    ):
        if value is not None and value < 0:
            raise _refuse(scaling, f"{name} of 0 or more", str(value))
    if stated is not None:
        return stated

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if mscale and mscale_all:
        return temperature(mscale) / temperature(mscale_all)
    return temperature(1.0)


def _longest(positions: int, rope: RopeConfig) -> int:
    """Scaling stretches the trained positions by its factor, unless the config states the result."""
    if rope.kind == "default":
        return positions
    return max(positions, math.floor(rope.original_max_positions * rope.factor))
