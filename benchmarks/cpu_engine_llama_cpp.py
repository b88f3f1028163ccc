"""llama.cpp in benchmarks/cpu_peers.py, by the C interface of llama-cpp-python. Checkpoints are
written with llama.cpp's own package gguf and quantised by its own function.
"""

import ctypes
from importlib.metadata import version
from pathlib import Path

import llama_cpp
from cpu_engine import Generate, Prompts, Setup
from cpu_gguf import PAD, load_gguf, write_gguf

ROUNDING = {
    "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


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
    params = llama_cpp.llama_model_default_params()
    return load_gguf(llama_cpp, setup, params, context_params)


def context_params(setup: Setup, prompts: Prompts) -> llama_cpp.llama_context_params:
    """Room for the prompts and what follows them; the rest is llama.cpp's own choice."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = len(prompts) * -(-setup.total_len // PAD) * PAD
    params.n_batch = sum(map(len, prompts))
    params.n_seq_max = params.n_outputs_max = len(prompts)
    params.n_threads = params.n_threads_batch = setup.threads
    return params
