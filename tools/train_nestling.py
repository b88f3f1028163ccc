"""Trains nestling: tokenizer, model, and the folder that ships with the package.

    python tools/train_nestling.py WORK --minutes 50    # as often as needed: it goes on where it stopped
    python tools/train_nestling.py WORK --export src/gyrfalcon/nestling/model

WORK holds the tokenizer, the novels as ids, the checkpoint and log.jsonl.
"""

import argparse
import json
import math
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nestling_data import Rows, novel_ids, read_novels, train_tokenizer
from nestling_export import bf16_weights, export, write_card
from nestling_model import Nestling, Shape
from nestling_muon import Muon
from nestling_score import exam_score, perplexity
from nestling_seed import seed_reading
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from gyrfalcon.nestling.exam import NUM_ITEMS
from gyrfalcon.nestling.subjects import SUBJECTS

LAST_LENGTH = 1024
EMBEDDING_SCALE = 4.0  # the embedding's learning rate beside that of the norms


@dataclass(frozen=True, slots=True)
class Plan:
    """How the steps go: warm-up, constant, linear to 0; short rows first, long ones at the end."""

    steps: int
    warmup_steps: int
    decay_steps: int
    copying_steps: int  # until only a twentieth of the curriculum asks for copying
    batch_tokens: int
    lengths: tuple[tuple[int, float], ...]  # row length, up to which part of the steps
    muon_rate: float
    adam_rate: float
    half_depth_steps: int  # until then every second block is left out
    novel_share: float  # of the rows, reached linearly at half of the steps

    def rate(self, step: int) -> float:
        """The factor of the learning rates."""
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / self.decay_steps)

    def length(self, step: int) -> int:
        return next(length for length, part in self.lengths if step < part * self.steps)

    def novels(self, step: int) -> float:
        return self.novel_share * min(1.0, 2 * step / self.steps)

    def copying(self, step: int) -> float:
        return min(1.0, max(0.15, 1.5 * (1 - step / self.copying_steps)))


class Training:
    """Model, optimisers and position; saved and loaded as one."""

    def __init__(
        self, shape: Shape, plan: Plan, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        model = Nestling(shape)
        seed_reading(model, tokenizer)
        self.model = model.to(device)
        matrices = [
            p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n
        ]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        words = self.model.transformer["word_embeddings"].weight
        kinds = [{"params": [words], "scale": EMBEDDING_SCALE}, {"params": vectors}]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=plan.muon_rate, momentum=0.95, decay=0.1),
            torch.optim.AdamW(kinds, lr=plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.01),
        ]
        self.plan, self.device = plan, device
        self.step = 0
        self.seconds = 0.0
        self.tokens = 0
        self.half = device.type == "cuda" or torch.backends.cpu.get_cpu_capability() in (
            "AVX512_BF16",
            "AMX",
        )

    def learn(self, ids: Tensor, targets: Tensor, weights: Tensor) -> dict[str, float]:
        """One step; the head is computed only where there is something to learn."""
        chosen = (weights > 0).to(self.device)
        targets, weights = targets.to(self.device)[chosen], weights.to(self.device)[chosen]
        every = 2 if self.step < self.plan.half_depth_steps else 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.model.logits(self.model(ids.to(self.device), every)[chosen])
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        (losses * weights).sum().div(weights.sum()).backward()
        for optimiser, rate in zip(
            self.optimisers, (self.plan.muon_rate, self.plan.adam_rate), strict=True
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("scale", 1.0) * self.plan.rate(self.step)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.tokens += ids.numel()
        return {
            name: losses[weights == weight].mean().item()
            for name, weight in (("text", 1.0), ("answer", 2.0), ("letter", 4.0))
        }

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        partial = path.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "position": (self.step, self.tokens, self.seconds),
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["position"]


def prepare(work: Path, data: Path, vocab_size: int) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer and the novels as ids, made once."""
    tokenizer_file, ids_file = work / "tokenizer.json", work / "novels.npy"
    if not (tokenizer_file.is_file() and ids_file.is_file()):
        work.mkdir(parents=True, exist_ok=True)
        books = read_novels(data / "english_novels_pd.txt.xz")
        train_tokenizer(books, vocab_size).save(str(tokenizer_file))
        np.save(ids_file, novel_ids(Tokenizer.from_file(str(tokenizer_file)), books))
    return Tokenizer.from_file(str(tokenizer_file)), np.load(ids_file)


def train(training: Training, rows: Rows, args: argparse.Namespace, valid: str) -> None:
    """Steps until the plan or the minutes are at an end; logs, scores and saves on the way."""
    plan, began, saved = training.plan, time.monotonic(), time.monotonic()
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
    sums: dict[str, list[float]] = {}
    while training.step < plan.steps and not told_to_stop.is_set():
        if time.monotonic() - began > args.minutes * 60:
            break
        started, step = time.monotonic(), training.step
        length = plan.length(step)
        batch = rows.batch(
            step, max(1, plan.batch_tokens // length), length, plan.copying(step), plan.novels(step)
        )
        for name, loss in training.learn(*batch).items():
            if not math.isnan(loss):
                sums.setdefault(name, []).append(loss)
        training.seconds += time.monotonic() - started
        if training.step % args.log_every == 0:
            _log(training, args.work, {name: sum(of) / len(of) for name, of in sums.items()})
            sums = {}
        if training.step % args.score_every == 0:
            _log(training, args.work, score(training.model, rows.tokenizer, valid, "val", 8))
        if time.monotonic() - saved > 180:
            training.save(args.work / "checkpoint.pt")
            saved = time.monotonic()
    training.save(args.work / "checkpoint.pt")


def score(
    model: Nestling, tokenizer: Tokenizer, valid: str, split: str, limit: int | None
) -> dict[str, float]:
    """Exam accuracy by subject and in all, perplexity; quick when limited."""
    by_subject = exam_score(model, tokenizer, split, limit)
    per_token, per_byte = perplexity(model, tokenizer, valid, 1024, 20_000 if limit else None)
    mean = sum(by_subject.values()) / len(by_subject)
    return {"exam": mean, **by_subject, "perplexity": per_token, "bits_per_byte": per_byte}


def ship(training: Training, tokenizer: Tokenizer, args: argparse.Namespace, valid: str) -> None:
    """Writes the folder, scores what is in it, writes its card."""
    export(training.model, tokenizer, args.export)
    training.model.load_state_dict(
        {name: value.float() for name, value in bf16_weights(training.model).items()}
    )
    result = score(training.model, tokenizer, valid, "test", None)
    _log(training, args.work, result)
    lines = (args.work / "log.jsonl").read_text().splitlines()
    last = next(line for line in reversed([json.loads(line) for line in lines]) if "letter" in line)
    facts = {
        "steps": training.step,
        "tokens": training.tokens,
        "minutes": training.seconds / 60,
        "machine": args.machine,
        "first_length": args.first_length,
        "last_length": LAST_LENGTH,
        "losses": ", ".join(f"{name} {last[name]:.2f}" for name in ("text", "answer", "letter")),
        "num_questions": NUM_ITEMS["test"] * len(SUBJECTS),
    }
    write_card(args.export, training.model, result, facts)


def _log(training: Training, work: Path, figures: dict[str, float]) -> None:
    line: dict[str, float] = {
        "step": training.step,
        "tokens": training.tokens,
        "minutes": round(training.seconds / 60, 2),
        "tokens_per_second": round(training.tokens / training.seconds),
        **{name: round(value, 4) for name, value in figures.items()},
    }
    print(json.dumps(line), flush=True)
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/text"))
    parser.add_argument(
        "--export", type=Path, help="write the folder and its score; trains nothing"
    )
    parser.add_argument(
        "--machine", default="2 CPU cores", help="where it was trained, for the card"
    )
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument(
        "--decay", type=float, default=0.3, help="part of the steps in which the rate falls"
    )
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--first-length", type=int, default=256)
    parser.add_argument("--muon-rate", type=float, default=0.01)
    parser.add_argument("--adam-rate", type=float, default=0.003)
    parser.add_argument("--copying-steps", type=int, default=300)
    parser.add_argument("--novels", type=float, default=0.3)
    parser.add_argument("--half-depth-steps", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--score-every", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = Shape(hidden_size=args.hidden, num_layers=args.layers)
    tokenizer, novels = prepare(args.work, args.data, shape.vocab_size)
    valid = (args.data / "english_novels_pd.valid.txt").read_text("utf-8")
    plan = Plan(
        steps=args.steps,
        warmup_steps=args.warmup_steps,
        decay_steps=max(1, round(args.decay * args.steps)),
        copying_steps=args.copying_steps,
        batch_tokens=args.batch_tokens,
        lengths=((args.first_length, 0.9), (LAST_LENGTH, math.inf)),
        muon_rate=args.muon_rate,
        adam_rate=args.adam_rate,
        half_depth_steps=args.half_depth_steps,
        novel_share=args.novels,
    )
    training = Training(shape, plan, tokenizer, device)
    if (args.work / "checkpoint.pt").is_file():
        training.load(args.work / "checkpoint.pt")
    if args.export is None:
        train(training, Rows(tokenizer, novels), args, valid)
    else:
        ship(training, tokenizer, args, valid)


if __name__ == "__main__":
    main()
