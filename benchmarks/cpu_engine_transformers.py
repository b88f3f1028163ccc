"""transformers in benchmarks/cpu_peers.py: eager, its own cache, attention by torch's fused kernel."""

import time
from pathlib import Path

import torch
import transformers
from cpu_engine import Generate, Generation, Prompts, Setup


def versions() -> dict[str, str]:
    """transformers, torch, and the dtype that is faster here."""
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "dtype": str(faster_dtype()).removeprefix("torch."),
    }


def faster_dtype() -> torch.dtype:
    """bfloat16 where the processor has units for it, else float32, as a user would choose there."""
    return min((torch.bfloat16, torch.float32), key=_seconds_of_products)


def _seconds_of_products(dtype: torch.dtype) -> float:
    """The least of several, for a matrix product of 1 GFLOP or less."""
    matrix = torch.ones(512, 512, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """It reads the folder as it is."""


def load(setup: Setup) -> Generate:
    """The model in the faster dtype."""
    torch.set_num_threads(setup.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        setup.path, dtype=faster_dtype(), attn_implementation="sdpa"
    ).eval()

    @torch.inference_mode()
    def generate(prompts: Prompts, steps: int) -> Generation:
        cache = transformers.DynamicCache(config=model.config)
        found = Generation()
        ids = torch.tensor(prompts)
        for _ in range(steps + 1):
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            found.step_ended(ids.flatten().tolist())
        return found

    return generate
