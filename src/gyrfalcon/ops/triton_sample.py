"""The likeliest token of each row of logits, for GPUs: tiles of the vocabulary side by side, then one
program a row over their winners.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Config:
    """How the vocabulary is shared out."""

    tile: int  # logits of a program, a power of two
    warps: int


def config_for(vocabulary: int) -> Config:
    """Programs of 2048 logits: a single row of 65024 keeps 32 multiprocessors busy."""
    tile = min(max(triton.next_power_of_2(vocabulary), 16), 2048)
    return Config(tile, warps=4)


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit float32 [rows] of each row and its id int64 [rows]; `reference.greedy`.

    logits: [rows, vocabulary], rows may be strided. Of equal ones the smallest id wins. The value is
    NaN, and the id any, where a logit of the row is not finite.
    """
    rows, vocabulary = logits.shape
    assert logits.stride(-1) == 1
    config = config_for(vocabulary)
    tiles = triton.cdiv(vocabulary, config.tile)
    tile_values = logits.new_empty(rows, tiles, dtype=torch.float32)
    tile_ids = logits.new_empty(rows, tiles, dtype=torch.int32)
    values = logits.new_empty(rows, dtype=torch.float32)
    ids = logits.new_empty(rows, dtype=torch.int64)
    if rows:
        _best_of_tile[(rows, tiles)](
            logits,
            tile_values,
            tile_ids,
            logits.stride(0),
            VOCABULARY=vocabulary,
            TILE=config.tile,
            num_warps=config.warps,
        )
        width = triton.next_power_of_2(tiles)
        _best_of_row[(rows,)](
            tile_values, tile_ids, values, ids, TILES=tiles, WIDTH=width, num_warps=1
        )
    return values, ids


@triton.jit
def _best_of_tile(
    logits,  # [rows, VOCABULARY], rows row_stride apart
    values,  # float32 [rows, tiles]
    ids,  # int32 [rows, tiles]
    row_stride,
    VOCABULARY: tl.constexpr,
    TILE: tl.constexpr,
):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    places = tile * TILE + tl.arange(0, TILE)
    inside = places < VOCABULARY
    own = tl.load(logits + row * row_stride + places, mask=inside, other=0.0).to(tl.float32)
    wrong = tl.max(tl.where(tl.abs(own) < float("inf"), 0, 1), axis=0)
    best, place = tl.max(
        tl.where(inside, own, float("-inf")),
        axis=0,
        return_indices=True,
        return_indices_tie_break_left=True,
    )
    out = row * tl.num_programs(1) + tile
    tl.store(values + out, tl.where(wrong > 0, float("nan"), best))
    tl.store(ids + out, tile * TILE + place)


@triton.jit
def _best_of_row(
    tile_values,  # float32 [rows, TILES]
    tile_ids,  # int32 [rows, TILES]
    values,  # float32 [rows]
    ids,  # int64 [rows]
    TILES: tl.constexpr,
    WIDTH: tl.constexpr,  # TILES, rounded up to a power of two
):
    row = tl.program_id(0)
    tiles = tl.arange(0, WIDTH)
    own = tl.load(tile_values + row * TILES + tiles, mask=tiles < TILES, other=float("-inf"))
    wrong = tl.max(tl.where(own == own, 0, 1), axis=0)
    best, tile = tl.max(
        tl.where(own == own, own, float("-inf")),
        axis=0,
        return_indices=True,
        return_indices_tie_break_left=True,
    )
    tl.store(values + row, tl.where(wrong > 0, float("nan"), best))
    tl.store(ids + row, tl.load(tile_ids + row * TILES + tile).to(tl.int64))
