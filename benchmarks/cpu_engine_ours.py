"""gyrfalcon in benchmarks/cpu_peers.py: one process, whole prompts in one step."""

from pathlib import Path

import torch
from cpu_engine import Generate, Generation, Prompts, Setup

from gyrfalcon import Engine, EngineConfig, SamplingParams, __version__
from gyrfalcon.ops import chosen_name
from gyrfalcon.ops.native_library import SOURCES, digest, instructions
from gyrfalcon.weights.cut import cut


def versions() -> dict[str, str]:
    """The package, torch, which operators run and what the native ones are built from."""
    operators = chosen_name(torch.device("cpu"))
    kernels = f"{operators} {instructions()}" if operators == "native" else operators
    facts = {"gyrfalcon": __version__, "torch": torch.__version__, "operators": kernels}
    return {**facts, "sources": digest(SOURCES)[:12]} if operators == "native" else facts


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """Rounded weights, so that loading does not round them again and again."""
    cut(checkpoint, target, 1, quant=precision)


def load(setup: Setup) -> Generate:
    """An engine with room for all sequences at once."""
    engine = Engine(
        EngineConfig(
            model=setup.path,
            world_size=1,
            device="cpu",
            dtype="bf16",
            max_len=setup.total_len,
            max_sequences=setup.batch,
            max_batch_tokens=setup.batch * setup.total_len,
            reuse_prefixes=False,
            threads=setup.threads,
        )
    )

    def generate(prompts: Prompts, steps: int) -> Generation:
        params = SamplingParams(max_new_tokens=steps + 1, ignore_eos=True)
        found = Generation()
        for ids in prompts:
            engine.add(ids, params)
        while engine.has_work:
            pieces = engine.step()
            assert len(pieces) == len(prompts)  # no sequence waits for another
            found.step_ended([piece.token.id for piece in pieces if piece.token])
        return found

    return generate
