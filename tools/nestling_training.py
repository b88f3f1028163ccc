"""Training: its stages, its optimisers, one step, and saving it."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nestling_model import Nestling, Shape
from nestling_muon import Muon
from nestling_seed import seed_reading
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from gyrfalcon.nestling.curriculum import ANSWER_WEIGHT, LETTER_WEIGHT

MUON_RATE, ADAM_RATE = 0.004, 0.003
EMBEDDING_SCALE = 4.0  # the embedding's learning rate beside that of the norms
WARMUP_STEPS = 80
DECAY_SHARE = 0.3  # of all steps, in which the rates fall to 0 in a line
LONG_SHARE = 0.25  # of all steps, the last ones, with the long rows
LENGTH, LONG_LENGTH = 256, 1024


@dataclass(frozen=True, slots=True)
class Stage:
    """What is taught until step `end`: binding letters, then facts, then everything."""

    end: float
    copying: float  # share of the curriculum that only asks to find a word again
    novels: float  # share of the rows
    every: int  # 2: only every second block takes part

    @staticmethod
    def all(bind_steps: int, fact_steps: int) -> tuple["Stage", ...]:
        """One skill after the other: together, none of them is learned for a long time."""
        return (
            Stage(bind_steps, copying=1.0, novels=0.0, every=2),
            Stage(bind_steps + fact_steps, copying=0.15, novels=0.0, every=2),
            Stage(math.inf, copying=0.1, novels=0.7, every=1),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages, over this many steps of this many tokens."""

    stages: tuple[Stage, ...]
    steps: int
    batch_tokens: int

    def stage(self, step: int) -> Stage:
        return next(stage for stage in self.stages if step < stage.end)

    def rate(self, step: int) -> float:
        """The factor of the learning rates."""
        falling = (self.steps - step) / (DECAY_SHARE * self.steps)
        return min(1.0, (step + 1) / WARMUP_STEPS, falling)

    def length(self, step: int) -> int:
        return LONG_LENGTH if step >= (1 - LONG_SHARE) * self.steps else LENGTH


class Training:
    """Model, optimisers and position; saved and loaded as one."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, device: torch.device) -> None:
        torch.manual_seed(0)
        model = Nestling(Shape(vocab_size=tokenizer.get_vocab_size()))
        seed_reading(model, tokenizer)
        self.model = model.to(device)
        self.plan, self.device = plan, device
        self.optimisers = _optimisers(self.model)
        self.half = device.type == "cuda" or _has_bf16_processor()
        self.step = self.tokens = 0
        self.seconds = 0.0

    def learn(self, ids: Tensor, targets: Tensor, weights: Tensor) -> dict[str, float]:
        """One step; the head is computed only where there is something to learn."""
        ids, targets, weights = (part.to(self.device) for part in (ids, targets, weights))
        chosen = weights > 0
        every = self.plan.stage(self.step).every
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.model.logits(self.model(ids, every)[chosen])
        targets, weights = targets[chosen], weights[chosen]
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        (losses * weights).sum().div(weights.sum()).backward()
        self._update()
        self.step += 1
        self.tokens += ids.numel()
        kinds = {"text": 1.0, "answer": ANSWER_WEIGHT, "letter": LETTER_WEIGHT}
        of_kinds = {name: losses[weights == weight] for name, weight in kinds.items()}
        return {name: of.mean().item() for name, of in of_kinds.items() if len(of)}

    def _update(self) -> None:
        for optimiser, rate in zip(self.optimisers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("scale", 1.0) * self.plan.rate(self.step)
            optimiser.step()
            optimiser.zero_grad()

    def save(self, path: Path) -> None:
        """Saves atomically."""
        partial = path.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "position": (self.step, self.tokens, self.seconds),
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Resumes a saved training."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["position"]


def _optimisers(model: Nestling) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not model.words]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    kinds: list[dict[str, Any]] = [
        {"params": [model.words], "scale": EMBEDDING_SCALE},
        {"params": vectors},
    ]
    return [
        Muon(matrices, lr=MUON_RATE, momentum=0.95, decay=0.1),
        torch.optim.AdamW(kinds, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _has_bf16_processor() -> bool:
    return torch.backends.cpu.get_cpu_capability() in ("AVX512_BF16", "AMX")
