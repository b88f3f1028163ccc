"""What the gate runs, on a card or small and on the CPU, and how long each step of it may take."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_sweep import LENGTHS, PRECISIONS

TESTS = Path(__file__).parent.parent / "tests"
DRY_SECONDS = 600.0  # of every step in the interpreter


@dataclass(frozen=True)
class Plan:
    """What is run."""

    device: torch.device
    dtype: torch.dtype
    shapes: tuple[str, ...]
    precisions: tuple[str, ...]
    timed: tuple[str, ...]  # precisions of the speed rows; none in the interpreter
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    lengths: tuple[int, ...]  # of the guide's sweep, in and out
    steps: int  # of each decode measurement
    rounds: int  # of which the median counts
    variants: tuple[str, ...]
    exam_questions: int  # of each subject of nestling's exam; none in the interpreter
    law_prompts: tuple[int, ...]  # lengths of the prompts that the laws are tried on
    law_tokens: int
    kernel_tests: tuple[str, ...]  # arguments of pytest
    test_processes: int  # where pytest-xdist is installed; 0 for this one alone
    tune_seconds: float  # for a matrix
    compile_seconds: float  # for a step's kernels, ahead of it
    deadlines: Mapping[str, float]  # seconds after which a step is ended, by its first words

    @classmethod
    def of(cls, dry_run: bool) -> "Plan":
        if dry_run:
            return cls(
                device=torch.device("cpu"),
                dtype=torch.float32,
                shapes=("tiny",),
                precisions=PRECISIONS,
                timed=(),
                batches=(1, 2),
                contexts=(16, 48),
                prompts=(16, 32),
                lengths=(16, 32),
                steps=1,
                rounds=1,
                variants=("40b", "rw-1b"),
                exam_questions=0,
                law_prompts=(3, 6),
                law_tokens=2,
                kernel_tests=(str(TESTS / "ops/test_triton_norm.py"),),
                test_processes=0,
                tune_seconds=0,
                compile_seconds=0,
                deadlines={},
            )
        return cls(
            device=torch.device("cuda", 0),
            dtype=torch.bfloat16,
            shapes=("40b", "7b"),
            precisions=PRECISIONS,
            timed=PRECISIONS,
            batches=(1, 8, 16, 64),
            contexts=(128, 1024, 2048),
            prompts=(32, 64, 128, 256, 512, 1024, 2048),
            lengths=LENGTHS,
            steps=32,
            rounds=5,
            variants=("rw-1b", "rw-7b", "7b", "40b", "180B", "11B"),
            exam_questions=30,
            law_prompts=(5, 33),
            law_tokens=16,
            kernel_tests=tuple(map(str, sorted(TESTS.glob("ops/test_triton_*.py")))),
            test_processes=12,
            tune_seconds=4,
            compile_seconds=30,
            deadlines={
                "compile": 50,  # torch and the card's context are loaded in the first
                "limits": 20,
                "layers": 45,
                "speed 40b": 50,
                "speed 7b": 30,
                "speed shard": 30,
                "laws": 90,
                "early": 60,
                "nestling": 60,
                "tests": 150,
                "peers": 75,
                "gemlite": 30,
                "tuner": 120,
                "full_sweep": 500,
            },
        )

    def deadline(self, step: str) -> float:
        """Seconds that a step may take."""
        if self.device.type == "cpu":
            return DRY_SECONDS
        return next(
            seconds
            for words, seconds in self.deadlines.items()
            if f"{step} ".startswith(f"{words} ")
        )
