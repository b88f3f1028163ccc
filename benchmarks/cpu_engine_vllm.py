"""vLLM on the CPU in benchmarks/cpu_peers.py, in one process, eager or compiled as VLLM_EAGER says; 8 and
4 bits as compressed-tensors, the format that vLLM reads natively: int8 with a scale for each output and
activations in 8 bits with a scale for each token, int4 with a scale for 64 weights.
"""

import os
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from cpu_compressed_tensors import write_compressed
from cpu_engine import Generate, Generation, Prompts, Setup

CACHE_GB = 2  # more than any case here needs
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CACHE_GB))
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault(  # by itself it leaves a core to other work
    "VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0))))
)

from vllm import LLM, SamplingParams, TokensPrompt  # noqa: E402  (it reads the environment)


def versions() -> dict[str, str]:
    """vLLM and torch, and whether it compiles the model."""
    return {
        "vllm": version("vllm-cpu"),
        "torch": torch.__version__,
        "mode": "eager" if eager() else "compiled",
    }


def eager() -> bool:
    """Without VLLM_EAGER=1 in the environment it compiles for minutes before the first token."""
    return os.environ.get("VLLM_EAGER") == "1"


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """bf16: the folder as it is; else its linear layers quantised, embedding and head in bf16."""
    if precision == "bf16":
        shutil.copytree(checkpoint, target)
    else:
        write_compressed(checkpoint, target, precision)


def load(setup: Setup) -> Generate:
    """An engine whose steps take all prompts at once."""
    llm = LLM(
        setup.path,
        dtype="bfloat16",
        max_model_len=setup.total_len,
        max_num_seqs=setup.batch,
        max_num_batched_tokens=setup.batch * setup.total_len,
        enable_prefix_caching=False,
        enforce_eager=eager(),
        async_scheduling=False,
    )
    engine = llm.llm_engine

    def generate(prompts: Prompts, steps: int) -> Generation:
        params = SamplingParams(
            temperature=0, max_tokens=steps + 1, ignore_eos=True, detokenize=False
        )
        found = Generation()
        for number, ids in enumerate(prompts):
            engine.add_request(str(number), TokensPrompt(prompt_token_ids=list(ids)), params)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            assert len(outputs) == len(prompts)  # no sequence waits for another
            found.step_ended([output.outputs[0].token_ids[-1] for output in outputs])
        return found

    return generate
