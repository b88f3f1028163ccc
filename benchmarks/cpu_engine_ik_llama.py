"""ik_llama.cpp in benchmarks/cpu_peers.py, by the C interface of ik-llama-cpp-python and the quantiser
in its wheel. Weights are repacked for its own kernels as they are loaded.
"""

import ctypes
from importlib.metadata import version
from pathlib import Path

from cpu_engine import Generate, Prompts, Setup
from cpu_gguf import PAD, load_gguf, write_gguf
from ik_llama_cpp import _ctypes_api as ik
from ik_llama_cpp.quantize import quantize

KINDS = {"int8": "Q8_0", "int4": "Q4_0"}


def versions() -> dict[str, str]:
    """ik-llama-cpp-python, and the instructions that its library was built for."""
    print_system_info = ik._lib.llama_print_system_info
    print_system_info.restype = ctypes.c_char_p
    return {
        "ik-llama-cpp-python": version("ik-llama-cpp-python"),
        "built for": print_system_info().decode().strip(),
    }


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """A GGUF file: bf16, Q8_0 or Q4_0."""
    if precision == "bf16":
        write_gguf(checkpoint, target)
        return
    whole = target.with_suffix(".bf16")
    write_gguf(checkpoint, whole)
    quantize(whole, target, KINDS[precision])
    whole.unlink()


def load(setup: Setup) -> Generate:
    """The model read into memory and repacked."""
    ik.llama_backend_init()
    params = ik.llama_model_default_params()
    params.use_mmap, params.repack_tensors = False, True
    return load_gguf(ik, setup, params, context_params)


def context_params(setup: Setup, prompts: Prompts) -> ik.llama_context_params:
    """Room for the prompts and what follows them. Its fused attention is faster, but ends the process where
    a batch has several sequences: GGML_ASSERT(S > 0) in iqk_fa_templates.h.
    """
    params = ik.llama_context_default_params()
    params.n_ctx = len(prompts) * -(-setup.total_len // PAD) * PAD
    params.n_batch = sum(map(len, prompts))
    params.n_seq_max = len(prompts)
    params.n_threads = params.n_threads_batch = setup.threads
    params.flash_attn = len(prompts) == 1
    return params
