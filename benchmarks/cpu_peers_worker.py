"""The process of one engine, started by benchmarks/cpu_peers.py: python cpu_peers_worker.py ENGINE

Every line of standard input is a JSON object with `do` and its arguments; every line of standard
output the answer to it: what was asked for, or {"error": why}. What engines print goes to standard
error.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cpu_engine import EngineModule, Generate, Prompts, Setup

MODULES = {
    "gyrfalcon": "cpu_engine_ours",
    "transformers": "cpu_engine_transformers",
    "llama.cpp": "cpu_engine_llama_cpp",
    "openvino": "cpu_engine_openvino",
    "ctranslate2": "cpu_engine_ctranslate2",
    "vllm": "cpu_engine_vllm",
    "ik_llama.cpp": "cpu_engine_ik_llama",
}
FIRST_ID = 20  # those below may have a meaning of their own


def main() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


class Worker:
    """One engine, and the model that it has loaded."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._generate: Generate | None = None
        self._does: dict[str, Callable[..., dict[str, Any]]] = {
            "versions": self._versions,
            "prepare": self._prepare,
            "load": self._load,
            "generate": self._time,
        }

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; a failure of the engine is an answer, too."""
        do = self._does[asked.pop("do")]
        try:
            return do(**asked)
        except Exception as error:  # whatever an engine raises
            return {"error": f"{type(error).__name__}: {error}"}

    def _module(self) -> EngineModule:
        module: Any = import_module(MODULES[self._engine])
        return module

    def _versions(self) -> dict[str, Any]:
        module = self._module()
        return {"versions": module.versions(), "lacks": getattr(module, "lacks", dict)()}

    def _prepare(self, checkpoint: str, target: str, precision: str) -> dict[str, Any]:
        self._module().prepare(Path(checkpoint), Path(target), precision)
        return {}

    def _load(self, **setup: Any) -> dict[str, Any]:
        self._generate = self._module().load(Setup(**setup))
        return {}

    def _time(
        self, batch: int, prompt_len: int, steps: int, vocab_size: int, seed: int
    ) -> dict[str, Any]:
        assert self._generate is not None
        prompts = random_prompts(batch, prompt_len, vocab_size, seed)
        found = self._generate(prompts, steps)
        if len(found.ends) != steps + 1:
            raise RuntimeError(f"{len(found.ends)} steps came, {steps + 1} were asked for")
        return {"ends": found.ends, "first_ids": found.first_ids}


def random_prompts(batch: int, prompt_len: int, vocab_size: int, seed: int) -> Prompts:
    """The same ids for every engine."""
    draw = random.Random(seed)
    return [[draw.randrange(FIRST_ID, vocab_size) for _ in range(prompt_len)] for _ in range(batch)]


if __name__ == "__main__":
    main()
