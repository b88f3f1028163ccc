"""transformers in benchmarks/cpu_peers.py: eager, its own cache, attention by torch's fused kernel."""

from pathlib import Path

import torch
import transformers
from cpu_engine import Generate, Generation, Prompts, Setup


def versions() -> dict[str, str]:
    """transformers and torch."""
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """It reads the folder as it is."""


def load(setup: Setup) -> Generate:
    """The model in bfloat16."""
    torch.set_num_threads(setup.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        setup.path, dtype=torch.bfloat16, attn_implementation="sdpa"
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
