"""Trains nestling: tokenizer, model, and the folder that ships with the package.

    python tools/train_nestling.py WORK --minutes 50    # as often as needed: it goes on where it stopped
    python tools/train_nestling.py WORK --export src/gyrfalcon/nestling/model

WORK holds the tokenizer, the novels as ids, the checkpoint and log.jsonl.
"""

import argparse
import json
import math
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch
from nestling_data import Rows, novel_ids, read_novels, train_tokenizer
from nestling_export import bf16_weights, export, write_card
from nestling_model import Nestling
from nestling_score import exam_score, perplexity
from nestling_training import LENGTH, LONG_LENGTH, Plan, Stage, Training
from tokenizers import Tokenizer

from gyrfalcon.nestling.exam import NUM_ITEMS
from gyrfalcon.nestling.subjects import SUBJECTS

VOCAB_SIZE = 4096
SECONDS_TO_SAVE = 180
QUICK_QUESTIONS, QUICK_TOKENS = 8, 20_000  # of each subject, of the held-out books


def prepare(work: Path, data: Path) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer and the novels as ids, made once."""
    tokenizer_file, ids_file = work / "tokenizer.json", work / "novels.npy"
    if not (tokenizer_file.is_file() and ids_file.is_file()):
        work.mkdir(parents=True, exist_ok=True)
        books = read_novels(data / "english_novels_pd.txt.xz")
        train_tokenizer(books, VOCAB_SIZE).save(str(tokenizer_file))
        np.save(ids_file, novel_ids(Tokenizer.from_file(str(tokenizer_file)), books))
    return Tokenizer.from_file(str(tokenizer_file)), np.load(ids_file)


def train(training: Training, rows: Rows, args: argparse.Namespace, valid: str) -> None:
    """Runs steps until the plan or the minutes end; logs, scores and saves on the way."""
    began = saved = time.monotonic()
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
    sums: dict[str, list[float]] = {}
    while training.step < training.plan.steps and not told_to_stop.is_set():
        started = time.monotonic()
        if started - began > args.minutes * 60:
            break
        for name, loss in training.learn(*_batch(training, rows)).items():
            sums.setdefault(name, []).append(loss)
        training.seconds += time.monotonic() - started
        if training.step % args.log_every == 0:
            _log(training, args.work, {name: sum(of) / len(of) for name, of in sums.items()})
            sums = {}
        if training.step % args.score_every == 0:
            result = score(training.model, rows.tokenizer, valid, "val", quick=True)
            _log(training, args.work, result)
        if time.monotonic() - saved > SECONDS_TO_SAVE:
            training.save(args.work / "checkpoint.pt")
            saved = time.monotonic()
    training.save(args.work / "checkpoint.pt")


def _batch(training: Training, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    plan, step = training.plan, training.step
    stage, length = plan.stage(step), plan.length(step)
    num_rows = max(1, plan.batch_tokens // length)
    return rows.batch(step, num_rows, length, stage.copying, stage.novels)


def score(
    model: Nestling, tokenizer: Tokenizer, valid: str, split: str, quick: bool
) -> dict[str, float]:
    """Exam accuracy by subject and in all, perplexity per token, bits per byte."""
    by_subject = exam_score(model, tokenizer, split, QUICK_QUESTIONS if quick else None)
    per_token, per_byte = perplexity(
        model, tokenizer, valid, LONG_LENGTH, QUICK_TOKENS if quick else None
    )
    mean = sum(by_subject.values()) / len(by_subject)  # all subjects have as many questions
    return {"exam": mean, **by_subject, "perplexity": per_token, "bits_per_byte": per_byte}


def ship(training: Training, tokenizer: Tokenizer, args: argparse.Namespace, valid: str) -> None:
    """Writes the folder, scores its content, writes its card."""
    export(training.model, tokenizer, args.export)
    training.model.load_state_dict(bf16_weights(training.model))  # in bf16, as in the folder
    result = score(training.model, tokenizer, valid, "test", quick=False)
    _log(training, args.work, result)
    logged = [json.loads(line) for line in (args.work / "log.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(logged) if {"text", "answer", "letter"} <= set(line))
    facts = {
        "steps": training.step,
        "tokens": training.tokens,
        "minutes": training.seconds / 60,
        "machine": args.machine,
        "first_length": LENGTH,
        "last_length": LONG_LENGTH,
        "losses": ", ".join(f"{name} {last[name]:.2f}" for name in ("text", "answer", "letter")),
        "num_questions": NUM_ITEMS["test"] * len(SUBJECTS),
    }
    write_card(args.export, training.model, result, facts)


def _log(training: Training, work: Path, figures: dict[str, float]) -> None:
    line: dict[str, float] = {
        "step": training.step,
        "tokens": training.tokens,
        "minutes": round(training.seconds / 60, 2),
        "tokens_per_second": round(training.tokens / max(training.seconds, 1e-9)),
        **{name: round(value, 4) for name, value in figures.items()},
    }
    print(json.dumps(line), flush=True)
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("work", type=Path)
    add("--data", type=Path, default=Path("../shared/data/text"), help="where the novels are")
    add("--minutes", type=float, default=math.inf, help="of this run")
    add("--steps", type=int, default=3280, help="of all runs together; may change between them")
    add("--bind-steps", type=int, default=250, help="in which only binding is taught")
    add("--fact-steps", type=int, default=500, help="after those, without novels")
    add("--batch-tokens", type=int, default=4096)
    add("--threads", type=int, default=2)
    add("--log-every", type=int, default=20)
    add("--score-every", type=int, default=400)
    add("--export", type=Path, help="write the folder and score it; trains nothing")
    add("--machine", default="2 CPU cores", help="where it was trained, for the card")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, novels = prepare(args.work, args.data)
    valid = (args.data / "english_novels_pd.valid.txt").read_text("utf-8")
    stages = Stage.all(args.bind_steps, args.fact_steps)
    training = Training(Plan(stages, args.steps, args.batch_tokens), tokenizer, device)
    if (args.work / "checkpoint.pt").is_file():
        training.load(args.work / "checkpoint.pt")
    if args.export is None:
        train(training, Rows(tokenizer, novels), args, valid)
    else:
        ship(training, tokenizer, args, valid)


if __name__ == "__main__":
    main()
