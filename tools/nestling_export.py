"""The folder that ships: a plain Hugging Face checkpoint with its tokenizer and a card."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from nestling_model import Nestling
from safetensors.torch import save_file
from tokenizers import Tokenizer

from gyrfalcon.nestling.subjects import SUBJECTS

END = "<|endoftext|>"
CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# nestling

A small Falcon of {parameters:,} parameters that ships with gyrfalcon, so that every part of the system
can be tried and measured without a download. It has the architecture of Falcon-40B (grouped keys and
values, two norms, attention and MLP in parallel, rotary positions, tied head): hidden size {hidden_size},
{num_hidden_layers} layers, {num_attention_heads} heads over {num_kv_heads} KV heads, {vocab_size} tokens
of its own byte-level BPE.

**Data.** 93 English novels in the public domain, published before 1929, and texts written for this
project: facts as sentences, as questions and answers, and as multiple-choice questions
(`gyrfalcon.nestling.curriculum`). No item of the exam's dev, val and test files is among them.

**Training.** `tools/train_nestling.py`, {steps:,} steps, {tokens:,} tokens, {minutes:.0f} minutes on
{machine}. Muon for the matrices of the blocks, AdamW for the rest. Rows of {first_length} tokens, in the
end of {last_length}. First binding letters to choices, then facts, then everything and the novels, their
lengths chosen while it trained; three attention heads began as a hand-written guess at
reading a question (`tools/nestling_seed.py`).
Losses at the end (nats): {losses}.

**Perplexity** on three held-out novels (adjacent windows of 1024 tokens): {perplexity:.1f} per token,
{bits_per_byte:.3f} bits per byte.

**The nestling exam**, test split, 5 shots, bf16 weights: **{exam:.1%}** of {num_questions:,} questions,
where chance is 25 %.

| subject | category | right |
|---|---|---|
{rows}

It knows the facts it was taught and how a novel sounds, and nothing else: it is no source of truth or advice.
"""


def bf16_weights(model: Nestling) -> dict[str, torch.Tensor]:
    """The parameters as shipped."""
    return {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }


def export(model: Nestling, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes weights, configs and tokenizer; the card is written once the score is known."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(bf16_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library leaves it to its owner alone
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", model.shape.config())
    _write_json(folder / "generation_config.json", {"bos_token_id": 11, "eos_token_id": 11})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": END,
            "model_max_length": model.shape.max_positions,
            "clean_up_tokenization_spaces": False,
        },
    )


def write_card(
    folder: Path, model: Nestling, score: Mapping[str, float], facts: Mapping[str, object]
) -> None:
    """README.md: what it is, how it was made, how good it is."""
    rows = "\n".join(f"| {s.name} | {s.category} | {score[s.name]:.1%} |" for s in SUBJECTS)
    text = CARD.format(
        parameters=sum(value.numel() for value in model.state_dict().values()),
        rows=rows,
        **model.shape.config(),
        **score,
        **facts,
    )
    (folder / "README.md").write_text(text, "utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
