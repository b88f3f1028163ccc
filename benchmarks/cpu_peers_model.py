"""The models of benchmarks/cpu_peers.py: their shapes, and checkpoints of random weights with a fixed
seed in Hugging Face's format.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gyrfalcon.checkpoint.manifest import Content
from gyrfalcon.cut.hashed_file import Lanes
from gyrfalcon.cut.safetensors_writer import SafetensorsWriter
from gyrfalcon.errors import UsageError
from gyrfalcon.measure.result import num_parameters
from gyrfalcon.model.architectures import config_from_json, make_layout

HEAD_DIM = 64
POSITIONS = 2048  # tokens of a sequence that Falcon was trained on
BLOCK = 1 << 24  # elements drawn at a time
SPREAD = 0.02  # the deviation of fresh Falcon weights (FalconConfig.initializer_range)
END = "<|endoftext|>"
END_ID = 11
NUM_WORDS = END_ID + 1 + 256  # of the tokenizer: with the bytes any text can be encoded


@dataclass(frozen=True, slots=True)
class Shape:
    """What tells one model from another."""

    hidden_size: int
    num_layers: int
    num_kv_heads: int
    grouped: bool  # as 40b: groups of heads, two norms; else as 7b
    alone: bool = False  # too large for the others' forms: gyrfalcon's rows only

    def config(self, vocab_size: int, positions: int = POSITIONS) -> dict[str, object]:
        """config.json. multi_query is false for a grouped model, in which it means nothing, because
        CTranslate2 reads it all the same.
        """
        return {
            "model_type": "falcon",
            "architectures": ["FalconForCausalLM"],
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.hidden_size // HEAD_DIM,
            "num_kv_heads": self.num_kv_heads,
            "new_decoder_architecture": self.grouped,
            "multi_query": not self.grouped,
            "parallel_attn": True,
            "bias": False,
            "alibi": False,
            "vocab_size": vocab_size,
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": positions,
            "rope_theta": 10000.0,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "initializer_range": SPREAD,
            "tie_word_embeddings": True,
            "bos_token_id": END_ID,
            "eos_token_id": END_ID,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "A": Shape(hidden_size=2048, num_layers=24, num_kv_heads=4, grouped=True),
    "B": Shape(hidden_size=4544, num_layers=8, num_kv_heads=1, grouped=False),
    "C": Shape(hidden_size=4544, num_layers=32, num_kv_heads=1, grouped=False, alone=True),
}
VOCAB_SIZE = 65024


def check_shape(shape: Shape) -> None:
    """UsageError for a hidden size that does not divide into groups of heads."""
    unit = HEAD_DIM * shape.num_kv_heads
    if shape.hidden_size < 1 or shape.hidden_size % unit:
        raise UsageError(f"a multiple of {unit} for --hidden", str(shape.hidden_size), "change it")
    if shape.num_layers < 1:
        raise UsageError("at least one layer", str(shape.num_layers), "raise --layers")


def parameters(config: dict[str, object]) -> int:
    """How many weights a model has."""
    return num_parameters(config_from_json(config))


def make_checkpoint(folder: Path, config: dict[str, object]) -> None:
    """Writes config.json, model.safetensors and a tokenizer of bytes. Norms are around 1, all
    other weights around 0.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    _write_tokenizer(folder)
    specs = make_layout(config_from_json(config), has_head=False).tensors
    contents = {spec.name: Content(spec.shape, torch.bfloat16) for spec in specs}
    generator = torch.Generator().manual_seed(0)
    with Lanes() as lanes:
        writer = SafetensorsWriter(folder / "model.safetensors", contents, lanes)
        for spec in specs:
            centre = float(spec.role == "norm" and spec.name.endswith("weight"))
            for start in range(0, spec.elements, BLOCK):
                drawn = torch.randn(min(BLOCK, spec.elements - start), generator=generator)
                writer.write(drawn.mul_(SPREAD).add_(centre).bfloat16())
        writer.finish()


def _write_tokenizer(folder: Path) -> None:
    """Converters ask for one; prompts are ids."""
    words = [*(f"word{number}" for number in range(END_ID)), END]
    words += sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(words) == NUM_WORDS
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
