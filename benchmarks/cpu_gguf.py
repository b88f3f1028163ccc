"""What llama.cpp and its forks share in benchmarks/cpu_peers.py: their C interface, and GGUF files,
written by llama.cpp's own package gguf.

    python benchmarks/cpu_gguf.py CHECKPOINT FILE.gguf

writes a file with the checkpoint's tokenizer in it, as a server needs; llama-quantize makes others of it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu_engine import Generate, Generation, Prompts, Setup
from gguf import (
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    TokenType,
    get_tensor_name_map,
)
from numpy.typing import NDArray
from safetensors import safe_open

PAD = 256  # tokens of the cache that they take at a time
ContextParams = Callable[[Setup, Prompts], Any]


def load_gguf(api: Any, setup: Setup, model_params: Any, context_params: ContextParams) -> Generate:
    """The model, by `api`: a module with the functions of llama.h, which has to be initialised."""
    model = api.llama_model_load_from_file(setup.path.encode(), model_params)
    if not model:
        raise RuntimeError(f"{api.__name__} does not take {setup.path}")
    vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def generate(prompts: Prompts, steps: int) -> Generation:
        context = api.llama_init_from_model(model, context_params(setup, prompts))
        if not context:
            raise RuntimeError(f"{api.__name__} has no memory for its cache")
        batch = api.llama_batch_init(sum(map(len, prompts)), 0, 1)
        try:
            found, rows, past = Generation(), prompts, 0
            for _ in range(steps + 1):
                ends = fill(batch, rows, past)
                if api.llama_decode(context, batch):
                    raise RuntimeError("llama_decode failed")
                logits = (api.llama_get_logits_ith(context, end) for end in ends)
                ids = [int(np.ctypeslib.as_array(row, (vocab_size,)).argmax()) for row in logits]
                past += len(rows[0])
                rows = [[number] for number in ids]
                found.step_ended(ids)
            return found
        finally:
            api.llama_batch_free(batch)
            api.llama_free(context)

    return generate


def fill(batch: Any, rows: Prompts, past: int) -> list[int]:
    """Puts new tokens of every sequence into the batch; returns where each sequence's last one is."""
    ends, place = [], 0
    for sequence, ids in enumerate(rows):
        for offset, number in enumerate(ids):
            batch.token[place] = number
            batch.pos[place] = past + offset
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = offset == len(ids) - 1
            place += 1
        ends.append(place - 1)
    batch.n_tokens = place
    return ends


def write_gguf(checkpoint: Path, target: Path, tokenizer: bool = False) -> None:
    """A Hugging Face folder with one .safetensors file as llama.cpp's converter writes it, in bf16, with or
    without its tokenizer.
    """
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config["num_kv_heads"]
    writer = GGUFWriter(target, "falcon")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_tensor_data_layout("jploski")  # queries, keys and values each in one piece
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(4 * config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    if tokenizer:
        _add_tokenizer(writer, checkpoint, config)
    else:
        writer.add_tokenizer_model("none")
    names = get_tensor_name_map(MODEL_ARCH.FALCON, layers)
    for name, tensor in tensors(checkpoint):
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if "query_key_value" in name:
            tensor = in_pieces(tensor, heads, kv_heads)
        if tensor.dim() == 1:
            writer.add_tensor(new, tensor.float().numpy())
        else:
            writer.add_tensor(new, as_bytes(tensor), raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: GGUFWriter, checkpoint: Path, config: dict[str, Any]) -> None:
    """Falcon's byte-level BPE, which llama.cpp knows."""
    read = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    texts = {number: text for text, number in read["model"]["vocab"].items()}
    added = {one["id"]: one["content"] for one in read["added_tokens"]}
    numbers = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("falcon")
    writer.add_token_list([added.get(one, texts.get(one, f"[PAD{one}]")) for one in numbers])
    kinds = (TokenType.CONTROL if one in added else TokenType.NORMAL for one in numbers)
    writer.add_token_types(
        [
            kind if one in texts or one in added else TokenType.UNUSED
            for one, kind in enumerate(kinds)
        ]
    )
    merges = read["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the folder's one file."""
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        yield from ((name, file.get_tensor(name)) for name in file.offset_keys())


def in_pieces(qkv: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
    """[queries, key, value] of each group of heads → all queries, all keys, all values."""
    group = heads // kv_heads
    grouped = qkv.view(kv_heads, group + 2, -1, qkv.shape[1])
    return torch.cat([part.flatten(0, 2) for part in grouped.split([group, 1, 1], dim=1)])


def as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """bfloat16 as numpy, which does not know it, can hold it: [rows, 2 × columns] bytes."""
    found: NDArray[np.uint8] = tensor.contiguous().view(torch.uint8).numpy()
    return found


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), tokenizer=True)
