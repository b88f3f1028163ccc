"""Quantised weights packed into words of 16 bits, from which an accelerator widens two at a time.

A row is cut into units of 128 columns. With 8 bits, word e of a unit holds its columns e and e + 64; with
4 bits its columns e, e + 32, e + 64 and e + 96, from the lowest bits on. Columns that end within a unit
are followed by zeros. int4 and int8 are stored as value + 8 and value + 128. fp8 has the bits of its
first column where bfloat16 has sign, exponent and fraction, and those of the second in the places left,
so that two shifts bring them there:

    bit      15  14 13 12  11  10 9 8 7 6 5 4  3 2 1 0
    first     s                e e e e m m m
    second        e  e  e   s                  e m m m

int4's scales lie in words of 32 bits where a unit has several groups: in the lower half that of a
group, in the upper half that of the one behind it.
"""

import torch
from torch import Tensor

UNIT = 128  # columns
ZEROS = {"int8": 128, "fp8": 0}  # the byte that stands for zero


def packed_bytes(data: Tensor, kind: str) -> Tensor:
    """int8 or float8_e4m3fn [rows, in] → int16 [rows, units × 64]."""
    plain = data.view(torch.uint8)
    plain = plain ^ 128 if kind == "int8" else plain
    first, second = _in_units(plain, ZEROS[kind]).view(len(data), -1, 2, UNIT // 2).int().unbind(2)
    if kind == "int8":
        words = first | second << 8
    else:
        words = (first & 0x80) << 8 | (first & 0x7F) << 4
        words |= (second & 0x80) << 4 | (second & 0x70) << 8 | second & 0x0F
    return words.to(torch.int16).view(len(data), -1)


def unpacked_bytes(words: Tensor, kind: str, columns: int) -> Tensor:
    """The reverse, for a matrix of this many columns."""
    wide = words.view(len(words), -1, UNIT // 2).int()
    if kind == "int8":
        first, second = wide & 0xFF, wide >> 8 & 0xFF
    else:
        first = wide >> 8 & 0x80 | wide >> 4 & 0x7F
        second = wide >> 4 & 0x80 | wide >> 8 & 0x70 | wide & 0x0F
    plain = torch.stack((first, second), dim=2).to(torch.uint8).view(len(words), -1)[:, :columns]
    if kind == "int8":
        return (plain ^ 128).view(torch.int8)
    return plain.contiguous().view(torch.float8_e4m3fn)


def packed_nibbles(nibbles: Tensor) -> Tensor:
    """uint8 [rows, in], each value + 8, → int16 [rows, units × 32]."""
    each = _in_units(nibbles, 8).view(len(nibbles), -1, 4, UNIT // 4).int().unbind(2)
    words = each[0] | each[1] << 4 | each[2] << 8 | each[3] << 12
    return words.to(torch.int16).view(len(nibbles), -1)


def unpacked_nibbles(words: Tensor, columns: int) -> Tensor:
    """The reverse, for a matrix of this many columns."""
    wide = words.view(len(words), -1, UNIT // 4).int()
    each = [wide >> 4 * place & 15 for place in range(4)]
    return torch.stack(each, dim=2).to(torch.uint8).view(len(words), -1)[:, :columns]


def packed_scales(scales: Tensor, group: int) -> Tensor:
    """bfloat16 [in / group, out], zero behind the last group of a row → int32 [units × 64 / group, out];
    one of 128 stays as it is.
    """
    if group == UNIT:
        return scales.contiguous()
    padded = torch.nn.functional.pad(scales, (0, 0, 0, -len(scales) % (UNIT // group)))
    pairs = padded.view(-1, 2, scales.shape[1]).transpose(1, 2).contiguous()
    return pairs.view(torch.int32).squeeze(-1)


def unpacked_scales(words: Tensor, num_groups: int) -> Tensor:
    """The reverse, for rows of this many groups."""
    if words.dtype != torch.int32:
        return words
    pairs = words.contiguous().view(torch.bfloat16).view(*words.shape, 2)
    return pairs.transpose(1, 2).reshape(-1, words.shape[1])[:num_groups]


def _in_units(plain: Tensor, zero: int) -> Tensor:
    return torch.nn.functional.pad(plain, (0, -plain.shape[1] % UNIT), value=zero)
