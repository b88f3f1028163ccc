"""Training data: the tokenizer, the novels as ids, packed rows of curriculum and novels."""

import lzma
import re
from pathlib import Path
from random import Random

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from gyrfalcon.nestling.curriculum import Span, document

END = "<|endoftext|>"
# Falcon's own marks in Falcon's own order, which puts the end of text at 11.
MARKS = [f">>{word}<<" for word in "TITLE ABSTRACT INTRODUCTION SUMMARY COMMENT ANSWER".split()]
MARKS += [f">>{word}<<" for word in "QUESTION DOMAIN PREFIX SUFFIX MIDDLE".split()] + [END]
# What may become one token: a label at the start of a line ("\nA.", "\nAnswer:"), line breaks, a word
# with the space before it, a number of two digits, marks, spaces.
PIECES = (
    r"\n\p{L}+[.:]|\n+|'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+"
    r"|[^\S\n]+(?!\S)|[^\S\n]+"
)


def read_novels(path: Path) -> list[str]:
    """The books, without hard line breaks inside paragraphs."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        whole = file.read()
    return [re.sub(r"(?<!\n)\n(?!\n)", " ", book).strip() for book in whole.split(END)]


def train_tokenizer(books: list[str], vocab_size: int, num_lessons: int = 12_000) -> Tokenizer:
    """A byte-level BPE from a sample of the novels and the curriculum."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = Random(0)
    lessons = ["".join(text for text, _ in document(rng, 0.1)) for _ in range(num_lessons)]
    tokenizer.train_from_iterator([book[:60_000] for book in books] + lessons, trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    assert tokenizer.token_to_id(END) == 11
    for letter in "ABCD":
        assert len(tokenizer.encode(f" {letter}").ids) == 1
    return tokenizer


def novel_ids(tokenizer: Tokenizer, books: list[str]) -> np.ndarray:
    """All books, one after the other, each with an end-of-text."""
    parts: list[int] = []
    for book in books:
        parts += [*tokenizer.encode(book).ids, 11]
    return np.array(parts, dtype=np.uint16)


class Rows:
    """Training rows by step: the same step always gives the same rows."""

    def __init__(self, tokenizer: Tokenizer, novels: np.ndarray) -> None:
        self.tokenizer = tokenizer
        self.novels = novels

    def batch(
        self, step: int, rows: int, length: int, copying: float, novel_share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and loss weights, each [rows, length]."""
        rng = Random(f"nestling {step}")
        num_novel = int(rows * novel_share + rng.random())
        ids, weights = [], []
        for row in range(rows):
            made = (
                self._novel(rng, length) if row < num_novel else self._lessons(rng, length, copying)
            )
            ids.append(made[0])
            weights.append(made[1])
        tokens = torch.tensor(np.stack(ids).astype(np.int64))
        return tokens[:, :-1], tokens[:, 1:], torch.tensor(np.stack(weights)[:, 1:])

    def _novel(self, rng: Random, length: int) -> tuple[np.ndarray, np.ndarray]:
        start = rng.randrange(len(self.novels) - length - 1)
        return self.novels[start : start + length + 1], np.ones(length + 1, dtype=np.float32)

    def _lessons(self, rng: Random, length: int, copying: float) -> tuple[np.ndarray, np.ndarray]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) <= length:
            made = encode(self.tokenizer, document(rng, copying))
            ids += [*made[0], 11]
            weights += [*made[1], 0.1]
        return np.array(ids[: length + 1]), np.array(weights[: length + 1], dtype=np.float32)


def encode(tokenizer: Tokenizer, spans: list[Span]) -> tuple[list[int], list[float]]:
    """The ids of a whole text, each with the weight of the span in which it ends."""
    encoding = tokenizer.encode("".join(text for text, _ in spans))
    ends = np.cumsum([len(text) for text, _ in spans])
    places = np.searchsorted(ends, [end - 1 for _, end in encoding.offsets], side="right")
    return encoding.ids, [spans[place][1] for place in places]
