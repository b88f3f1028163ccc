"""gyrfalcon in benchmarks/cpu_peers.py: one process, whole prompts in one step."""

import hashlib
from pathlib import Path

import torch
from cpu_engine import Generate, Generation, Prompts, Setup

from gyrfalcon import Engine, EngineConfig, SamplingParams, __version__
from gyrfalcon.cut.cut import cut
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.native.library import SOURCES, digest, instructions
from gyrfalcon.ops import chosen_name
from gyrfalcon.request import check_finite


def versions() -> dict[str, str]:
    """The package and all its sources, torch, which operators run."""
    operators = chosen_name(Cpu.at(0))
    kernels = f"{operators} {instructions()}" if operators == "native" else operators
    return {
        "gyrfalcon": __version__,
        "sources": _sources(),
        "torch": torch.__version__,
        "operators": kernels,
    }


def _sources() -> str:
    """The same where all code is: of Python by its files, of native kernels as they are built from theirs."""
    package = SOURCES.parent
    found = hashlib.sha256(digest(SOURCES).encode())
    for path in sorted(package.rglob("*.py")):
        found.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return found.hexdigest()[:12]


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """Quantised weights, so that loading does not quantise them again and again."""
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
            deltas = engine.step()
            check_finite(*deltas)
            assert len(deltas) == len(prompts)  # no sequence waits for another
            found.step_ended([delta.token.id for delta in deltas if delta.token])
        return found

    return generate
