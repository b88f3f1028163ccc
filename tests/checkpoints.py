"""Tiny random checkpoints of every Falcon variant, written by transformers in the real format."""

import shutil
from pathlib import Path

import torch
from transformers import FalconConfig, FalconForCausalLM

# The shape traits of each variant, scaled down: odd head counts, group sizes, norms, positions.
VARIANTS: dict[str, dict[str, object]] = {
    "rw-1b": dict(
        hidden_size=128,
        num_attention_heads=8,
        alibi=True,
        bias=True,
        parallel_attn=False,
        multi_query=False,
    ),
    "rw-7b": dict(  # a head count that is no power of two takes the second branch of the ALiBi slopes
        hidden_size=192,
        num_attention_heads=12,
        alibi=True,
        bias=True,
        parallel_attn=False,
        multi_query=False,
    ),
    "7b": dict(hidden_size=568, num_attention_heads=71, multi_query=True),
    "40b": dict(
        hidden_size=256, num_attention_heads=32, num_kv_heads=8, new_decoder_architecture=True
    ),
    "180B": dict(
        hidden_size=464, num_attention_heads=58, num_kv_heads=2, new_decoder_architecture=True
    ),
    "11B": dict(
        hidden_size=256,
        num_attention_heads=16,
        num_kv_heads=4,
        new_decoder_architecture=True,
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=768,
        rope_theta=500042.0,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    ),
}


def make_model(variant: str, *, seed: int = 0, **overrides: object) -> FalconForCausalLM:
    """A float32 transformers model whose every parameter, norms and biases too, is random and matters."""
    settings: dict[str, object] = dict(num_hidden_layers=2, vocab_size=509, **VARIANTS[variant])
    settings.update(overrides)
    torch.manual_seed(seed)
    model = FalconForCausalLM._from_config(
        FalconConfig(**settings), attn_implementation="sdpa"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif ".ln_" in name or "layernorm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
    return model


def make_checkpoint(
    folder: Path,
    variant: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **overrides: object,
) -> Path:
    """Writes make_model()'s model with save_pretrained in `dtype`; returns the folder."""
    make_model(variant, seed=seed, **overrides).to(dtype).save_pretrained(folder)
    return folder


def make_exam_taker(folder: Path, tokenizer: Path) -> Path:
    """A tiny random model with the tokenizer in a folder, which has to be Falcon's own; returns `folder`."""
    make_checkpoint(
        folder, "40b", hidden_size=64, num_attention_heads=8, num_kv_heads=2, vocab_size=65024
    )
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    return folder
