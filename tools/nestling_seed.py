"""A first guess at three heads that together read a question: where training would arrive much later.

Block 0, head 0 looks one token back: a choice learns its letter, a question mark the word before it.
Block 2, head 0 lets `Answer:` fetch that word from the last question mark.
Block 4, head 0 looks for the choice most like that word, and says its letter.
What belongs together is left to training, as is whatever becomes of these heads.
"""

from collections.abc import Sequence

import torch
from nestling_model import HEAD_DIM, ROPE_THETA, Attention, Block, Nestling
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from gyrfalcon.nestling.exam import LETTERS

HALF = HEAD_DIM // 2
TURNS = ROPE_THETA ** -(torch.arange(HALF) / HALF)  # radians a position, of each pair of dimensions
MATCH, SAY = 2.0, 5.0  # how sure of a likeness, and of a letter
CONTENT = HALF  # numbers that say what a word is like
SLOW = [*range(HALF // 2, HALF), *range(HALF + HALF // 2, HEAD_DIM)]  # dimensions that hardly turn


@torch.no_grad()
def seed_reading(model: Nestling, tokenizer: Tokenizer) -> None:
    """Writes the three heads."""
    words, blocks = model.words, model.blocks
    hidden = words.shape[1]
    rooms = torch.linalg.qr(torch.randn(hidden, hidden))[0].split(HEAD_DIM, dim=1)
    likeness = torch.randn(HEAD_DIM, hidden) / hidden**0.5
    _look_back(blocks[0], likeness, rooms[0])
    labels, letters = (
        words[[tokenizer.token_to_id(form.format(letter)) for letter in LETTERS]]
        for form in ("Ċ{}.", "Ġ{}")
    )
    marks = tuple(words[tokenizer.token_to_id(mark)] for mark in ("ĊAnswer:", "?"))
    _fetch(blocks[2].self_attention, marks, rooms)
    _match(blocks[4].self_attention, likeness, rooms)
    found = functional.normalize(labels @ likeness.T)  # [letters, head_dim]
    said = functional.normalize(letters)
    blocks[4].self_attention.columns(0).copy_(SAY * said.T @ found)


def _look_back(block: Block, likeness: Tensor, room: Tensor) -> None:
    constant = 0  # this input becomes 1 for every token
    block.ln_attn.weight[constant], block.ln_attn.bias[constant] = 0.0, 1.0
    rows = block.self_attention.rows(0)
    rows[:-1] = 0.0
    sharp = torch.where(torch.arange(HALF) < 12, 6.0, 0.0)  # fast pairs tell neighbours apart
    for back, query in enumerate(rows[:-2], start=1):
        query[:HALF, constant] = sharp * torch.cos(TURNS * back)
        query[HALF:, constant] = -sharp * torch.sin(TURNS * back)
    rows[-2, :HALF, constant] = sharp
    rows[-1] = likeness
    block.self_attention.columns(0).copy_(0.4 * room)


def _fetch(attention: Attention, marks: Sequence[Tensor], rooms: tuple[Tensor, ...]) -> None:
    rows = attention.rows(0)
    rows[0], rows[-2] = 0.0, 0.0
    for pair in (10, 12, 14):  # the nearer the better, up to some thirty tokens
        for row, mark in zip((rows[0], rows[-2]), marks, strict=True):
            row[pair] = 5.0 / mark.shape[0] ** 0.5 * mark / mark.norm()
    rows[-1] = rooms[0].T
    attention.columns(0).copy_(rooms[1])


def _match(attention: Attention, likeness: Tensor, rooms: tuple[Tensor, ...]) -> None:
    rows = attention.rows(0)
    rows[0], rows[-2] = 0.0, 0.0
    rows[0, SLOW] = MATCH * rooms[1].T[:CONTENT]
    rows[-2, SLOW] = likeness[:CONTENT]
    rows[-1] = rooms[0].T
