"""Where a token stands: rotary angles with their scalings, and ALiBi slopes. Knows no ranks and no
cache.
"""

import math
from typing import final

import torch
from torch import Tensor

from gyrfalcon.config import RopeConfig
from gyrfalcon.ops import AngleRows

MOST_ROWS = 1 << 17  # of a table: 64 MiB with heads of 128


@final
class Rotary:
    """The cos and sin that turn queries and keys: from a table with a row for each position, or computed
    for each step where a token's depend on its sequence's length, or positions are too many.
    """

    def __init__(
        self, rope: RopeConfig, head_dim: int, num_positions: int, device: torch.device | str
    ) -> None:
        self.rope = rope
        self.head_dim = head_dim
        self.frequencies = rotary_frequencies(rope, head_dim).to(device)  # [head_dim / 2]
        self.table: tuple[Tensor, Tensor] | None = None
        if rope.kind != "dynamic" and num_positions <= MOST_ROWS:
            positions = torch.arange(num_positions, device=device)
            self.table = self._computed(positions, positions)

    def angles(self, positions: Tensor, lengths: Tensor) -> AngleRows:
        """Of tokens at `positions`, int64 [tokens], the attention factor included. lengths: int64 [tokens],
        how long a token's sequence was when the token was computed, which only dynamic scaling looks at.
        """
        if self.table is not None:
            return AngleRows(*self.table, positions)
        tokens = torch.arange(len(positions), device=positions.device)
        return AngleRows(*self._computed(positions, lengths), tokens)

    def _computed(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 [tokens, head_dim / 2]."""
        frequencies = self.frequencies
        if self.rope.kind == "dynamic":
            base = _dynamic_base(self.rope, self.head_dim, lengths)
            frequencies = _powers(base[:, None], self.head_dim)
        angles = positions[:, None].float() * frequencies
        return angles.cos() * self.rope.attention_factor, angles.sin() * self.rope.attention_factor


def rotary_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position, float32 [head_dim / 2]; with dynamic scaling, before it starts."""
    plain = _powers(torch.tensor(rope.theta), head_dim)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "yarn":
        return _yarn(plain, rope, head_dim)
    if rope.kind == "llama3":
        return _llama3(plain, rope)
    return plain


def _powers(base: Tensor, head_dim: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=base.device) / head_dim
    return 1.0 / base**exponents


def _dynamic_base(rope: RopeConfig, head_dim: int, lengths: Tensor) -> Tensor:
    """Dynamic NTK scaling (Peng et al. 2023): theta grows with the length past the trained one."""
    excess = lengths.clamp(min=rope.original_max_positions) / rope.original_max_positions - 1
    return rope.theta * (1 + rope.factor * excess) ** (head_dim / (head_dim - 2))


def _yarn(plain: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Fast dimensions stay, slow ones are divided by the factor, others blend (Peng et al. 2023)."""

    def dimension(rotations: float) -> float:
        """The dimension that turns this many times within the trained positions."""
        wavelength = rope.original_max_positions / rotations
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    slow = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return plain / rope.factor * slow + plain * (1 - slow)


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """As yarn, but the blend is linear in the number of turns within the trained positions (Llama
    3.1).
    """
    turns = rope.original_max_positions * plain / (2 * math.pi)
    fast = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    fast = fast.clamp(0, 1)
    return plain / rope.factor * (1 - fast) + plain * fast


def alibi_slopes(num_heads: int) -> Tensor:
    """One slope for each head, float32 [num_heads] (Press et al. 2021).

    2^(-8 i / n) for the first n heads, n a power of two; the rest take every other slope of 2n
    heads.
    """
    whole = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * i / whole) for i in range(1, whole + 1)]
    rest = [2.0 ** (-4 * i / whole) for i in range(1, 2 * whole, 2)]
    return torch.tensor((slopes + rest)[:num_heads], dtype=torch.float32)
