"""The quality of a nestling: its exam score and its perplexity on held-out books."""

import math
from collections.abc import Sequence

import torch
from nestling_model import Nestling
from tokenizers import Tokenizer
from torch.nn import functional

from gyrfalcon.nestling.exam import LETTERS, prompt, questions
from gyrfalcon.nestling.subjects import SUBJECTS

NUM_SHOTS = 5


@torch.no_grad()
def exam_score(
    model: Nestling, tokenizer: Tokenizer, split: str, limit: int | None = None
) -> dict[str, float]:
    """The share of right answers of each subject: the most likely of " A".." D" after 5 shots."""
    letters = [tokenizer.encode(f" {letter}").ids[0] for letter in LETTERS]
    score = {}
    for subject in SUBJECTS:
        shots = questions(subject, "dev")[:NUM_SHOTS]
        asked = questions(subject, split)[:limit]
        ids = [tokenizer.encode(prompt(subject, shots, one)).ids for one in asked]
        picked = [
            i
            for start in range(0, len(ids), 32)
            for i in _pick(model, ids[start : start + 32], letters)
        ]
        right = sum(LETTERS[i] == one.letter for i, one in zip(picked, asked, strict=True))
        score[subject.name] = right / len(asked)
    return score


def _pick(model: Nestling, ids: Sequence[Sequence[int]], letters: Sequence[int]) -> list[int]:
    device = model.words.device
    width = max(map(len, ids))
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
    last = torch.tensor([len(row) - 1 for row in ids], device=device)
    hidden = model(padded)[torch.arange(len(ids), device=device), last]
    return model.logits(hidden)[:, letters].argmax(dim=-1).tolist()


@torch.no_grad()
def perplexity(
    model: Nestling, tokenizer: Tokenizer, text: str, length: int, limit: int | None = None
) -> tuple[float, float]:
    """Perplexity per token and bits per byte over adjacent windows of `length` tokens."""
    device = model.words.device
    ids = torch.tensor(tokenizer.encode(text).ids[:limit], device=device)
    windows = [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
    total = sum(
        functional.cross_entropy(
            model.logits(model(window[None, :-1])[0]), window[1:], reduction="sum"
        ).item()
        for window in windows
    )
    num_bytes = len(tokenizer.decode(ids[1:].tolist()).encode())
    return math.exp(total / (len(ids) - 1)), total / math.log(2) / num_bytes
