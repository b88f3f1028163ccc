"""What the config.json of any architecture has: harmless fields, rotary settings, activations."""

import math

from gyrfalcon.config import ROPE_KINDS, RopeConfig
from gyrfalcon.errors import ConfigError
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

MOST_LAYERS = 10_000  # a damaged number would fill the memory with the names of tensors


def refuse(fields: Fields, wanted: str, got: str) -> ConfigError:
    """The error for a field that a model cannot be computed with."""
    return ConfigError(wanted, got, f"correct {fields.where}, or use a model of the Falcon family")


def activation_of(fields: Fields, field: str, default: str) -> str:
    """Our name of the activation that a field names."""
    name = fields.take(str, field) or default
    if name not in ACTIVATIONS:
        raise refuse(fields, f"{field} {', '.join(ACTIVATIONS)}", repr(name))
    return ACTIVATIONS[name]


def refuse_quantised(fields: Fields) -> None:
    """ConfigError for a checkpoint in another program's quantised format."""
    fields.read.add("quantization_config")
    settings = fields.raw.get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise ConfigError(
            f"weights in bf16, fp16 or fp32, so no quantization_config in {fields.where}",
            f"weights quantised with {method}" if method else repr(settings)[:80],
            "take the checkpoint that they were made from, and `quant` to quantise it",
        )


def rope_of(fields: Fields, positions: int) -> RopeConfig:
    """`rope_scaling` is the older word for `rope_parameters`; `type` the older one for `rope_type`."""
    theta = fields.take(float, "rope_theta")
    forms = [form for name in ("rope_parameters", "rope_scaling") if (form := fields.nested(name))]
    if len(forms) == 2 and forms[0].raw != forms[1].raw:
        raise refuse(
            fields, "rope_scaling and rope_parameters alike", f"{forms[1].raw} and {forms[0].raw}"
        )
    scaling = forms[0] if forms else Fields({}, fields.where)
    inner = scaling.take(float, "rope_theta")
    if None not in (inner, theta) and inner != theta:
        raise refuse(fields, "one rope_theta", f"{theta} and {inner}")
    base = next((stated for stated in (inner, theta) if stated is not None), 10000.0)
    if base <= 1:
        raise refuse(fields, "rope_theta above 1", str(base))
    kind = scaling.take(str, "rope_type", "type") or "default"
    if kind not in ROPE_KINDS:
        raise refuse(fields, f"rope_type {', '.join(ROPE_KINDS)}", repr(kind))
    if scaling.take(float, "partial_rotary_factor") not in (None, 1.0):
        raise refuse(fields, "partial_rotary_factor 1", str(scaling.raw["partial_rotary_factor"]))
    rope = (
        RopeConfig(base, kind)
        if kind == "default"
        else _scaled_rope(scaling, base, kind, positions)
    )
    if kind == "default" and scaling.take(float, "factor") not in (None, 1.0):
        raise refuse(scaling, "a rope_type that a factor is for", kind)
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
        raise refuse(scaling, f"a factor of 1 or more for {kind} scaling", str(factor))
    if kind == "yarn":
        fast, slow = (
            scaling.take(float, "beta_fast") or 32.0,
            scaling.take(float, "beta_slow") or 1.0,
        )
        if not 0 < slow <= fast:
            raise refuse(scaling, "0 < beta_slow <= beta_fast", f"{slow} and {fast}")
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
            raise refuse(scaling, "0 < low_freq_factor < high_freq_factor", f"{low} and {high}")
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
            raise refuse(scaling, f"{name} of 0 or more", str(value))
    if stated is not None:
        return stated

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if mscale and mscale_all:
        return temperature(mscale) / temperature(mscale_all)
    return temperature(1.0)


def longest(positions: int, rope: RopeConfig) -> int:
    """The longest sequence: scaling multiplies the trained one, unless the config states the result."""
    if rope.kind == "default":
        return positions
    return max(positions, math.floor(rope.original_max_positions * rope.factor))
