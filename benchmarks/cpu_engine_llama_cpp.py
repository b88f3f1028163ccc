"""llama.cpp in benchmarks/cpu_peers.py, by the C interface of llama-cpp-python. Checkpoints are
written with llama.cpp's own package gguf and quantised by its own function.
"""

import ctypes
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from cpu_engine import Generate, Generation, Prompts, Setup
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from numpy.typing import NDArray
from safetensors import safe_open

ROUNDING = {
    "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
PAD = 256  # tokens of its cache that it takes at a time


def versions() -> dict[str, str]:
    """llama-cpp-python, and the instructions that its llama.cpp was built for."""
    features = llama_cpp.llama_print_system_info().decode()
    return {"llama-cpp-python": version("llama-cpp-python"), "built for": features}


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """A GGUF file: bf16, Q8_0, or Q4_0, where llama.cpp keeps the head finer."""
    whole = target if precision == "bf16" else target.with_suffix(".bf16")
    write_gguf(checkpoint, whole)
    if precision == "bf16":
        return
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ROUNDING[precision]
    names = (str(path).encode() for path in (whole, target))
    if llama_cpp.llama_model_quantize(*names, ctypes.byref(params)):
        raise RuntimeError(f"llama_model_quantize to {precision} failed")
    whole.unlink()


def load(setup: Setup) -> Generate:
    """The model mapped into memory."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        setup.path.encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise RuntimeError(f"llama.cpp does not take {setup.path}")
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def generate(prompts: Prompts, steps: int) -> Generation:
        context = llama_cpp.llama_init_from_model(model, context_params(setup, prompts))
        if not context:
            raise RuntimeError("llama.cpp has no memory for its cache")
        batch = llama_cpp.llama_batch_init(sum(map(len, prompts)), 0, 1)
        try:
            found, rows, past = Generation(), prompts, 0
            for _ in range(steps + 1):
                ends = fill(batch, rows, past)
                if llama_cpp.llama_decode(context, batch):
                    raise RuntimeError("llama_decode failed")
                logits = (llama_cpp.llama_get_logits_ith(context, end) for end in ends)
                ids = [int(np.ctypeslib.as_array(row, (vocab_size,)).argmax()) for row in logits]
                past += len(rows[0])
                rows = [[number] for number in ids]
                found.step_ended(ids)
            return found
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)

    return generate


def context_params(setup: Setup, prompts: Prompts) -> llama_cpp.llama_context_params:
    """Room for the prompts and what follows them; the rest is llama.cpp's own choice."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = len(prompts) * -(-setup.total_len // PAD) * PAD
    params.n_batch = sum(map(len, prompts))
    params.n_seq_max = params.n_outputs_max = len(prompts)
    params.n_threads = params.n_threads_batch = setup.threads
    return params


def fill(batch: llama_cpp.llama_batch, rows: Prompts, past: int) -> list[int]:
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


def write_gguf(checkpoint: Path, target: Path) -> None:
    """A Hugging Face folder with one .safetensors file as llama.cpp's converter writes it, in bf16,
    without a tokenizer.
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
    writer.add_file_type(llama_cpp.LLAMA_FTYPE_MOSTLY_BF16)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
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
