"""Quantised weights, 8 and 4 bits: quantise a matrix, dequantise it, take the part that a rank
owns.

Weights only, symmetric, without zero points: weight ≈ values × scales. Knows nothing of models,
files or kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gyrfalcon.device.lookup import device_of
from gyrfalcon.errors import CheckpointError, UsageError
from gyrfalcon.quant_words import (
    packed_bytes,
    packed_nibbles,
    packed_scales,
    unpacked_bytes,
    unpacked_nibbles,
    unpacked_scales,
)

# int4: the rows and columns that are packed together, in half as many bytes. They divide every head
# dimension of the family, so that a cut between heads is a cut between tiles.
TILE_ROWS, TILE_COLUMNS = 16, 64
COLUMN_WORD = 8  # weights of a column in an int32, where a library of others packs int4 that way
WORD = 4  # bytes of a row, and as many columns in the low halves, that lie together
GROUPS = {"int4": 64, "int4-32": 32, "int4-128": 128}  # weights of a row that share a scale

FP8_LARGEST = 448.0  # of float8_e4m3fn

# What the largest weight of a group becomes, the candidates of int4. The side of its own sign
# reaches −8, the other 7; beyond that it is clipped, which makes all other steps finer.
INT4_CANDIDATES = (-8.0, -8.8, 7.0, 7.7)


@dataclass(frozen=True, slots=True)
class Quantised:
    """A weight matrix [out, in] in `kind`.

    The kinds of int4 pack 64 columns of a row into 32 bytes: byte j holds column j in its
    low half and column j + 32 in its high half, each as value + 8, so that either half is a run of
    columns, which one scale suffices for in every kind. A tile of 16 rows has the first word of 4
    bytes of each row, then the second one of each: a processor's vectors are a word of several rows,
    and sums of rows need not be taken across them. Scales of these rows lie together, too. They are
    bfloat16, which has float32's range, and the values are computed against the bfloat16 scale: against
    float32 scales the error grows by less than 0.01 % of itself. `by_rows` has rows one by one, `as_words`
    words of 16 bits. Operators may prepack int4 as int32 [in, out / 8], in an order that only they know.

    Relative L2 error after `dequantise`, for normally distributed weights in rows of 4096
    and for nestling's matrices: int8 0.87 % and 0.84 %, fp8 2.6 % and 2.6 %, int4 9.1 % and 9.2 %,
    int4-32 8.2 % and 8.3 %, int4-128 9.8 % and 10.1 %.
    """

    kind: str  # int8, fp8, or one of GROUPS
    data: Tensor  # int8 [out, in] | float8_e4m3fn [out, in] | uint8 [out / 16, in / 64, 512]
    scales: Tensor  # float32 [out] | float32 [out] | bfloat16 [out / 16, in / group, 16]
    num_columns: int = 0  # of a matrix in words, which lie in whole units; else data says

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix that this stands for."""
        if self._in_tiles:
            tiles, blocks, _ = self.data.shape
            return tiles * TILE_ROWS, blocks * TILE_COLUMNS
        rows, width = self.data.shape
        if self.num_columns:
            return rows, self.num_columns
        if self.data.dtype == torch.int32:
            return width * COLUMN_WORD, rows
        return rows, width * 2 if self.group else width

    @property
    def group(self) -> int | None:
        """The weights of a row that share a scale; None where all of a row do."""
        return GROUPS.get(self.kind)

    @property
    def num_bytes(self) -> int:
        """Its size in memory."""
        return self.data.nbytes + self.scales.nbytes

    def to(self, device: torch.device | str) -> "Quantised":
        """The same on another device."""
        return replace(self, data=self.data.to(device), scales=self.scales.to(device))

    def by_rows(self) -> "Quantised":
        """int4 with its rows one after the other: data uint8 [out, in / 2], scales bfloat16 [in /
        group, out]. For kernels that read it that way.
        """
        if not self._in_tiles:
            return self
        rows, columns = self.shape
        words = self.data.view(len(self.data), -1, TILE_ROWS, WORD)
        data = words.transpose(1, 2).reshape(rows, columns // 2)
        return Quantised(self.kind, data, self.scales.transpose(0, 1).reshape(-1, rows))

    def as_words(self) -> "Quantised":
        """In words of 16 bits (`quant_words`): data int16 [out, units × 64 | 32], scales in its order
        as well. CheckpointError for fp8 with NaN, for which its words have no bits.
        """
        plain = self.by_rows()
        columns = self.shape[1]
        step = max(1, device_of(plain.data.device).weights_at_once // columns)
        data = plain.data.view(torch.uint8).split(step)
        words = torch.cat([self._words(part) for part in data])
        scales = plain.scales if self.group is None else packed_scales(plain.scales, self.group)
        return Quantised(self.kind, words, scales.contiguous(), columns)

    def _words(self, data: Tensor) -> Tensor:
        """Of some rows of by_rows()."""
        if self.group is not None:
            return packed_nibbles(_nibbles(data))
        if self.kind == "fp8" and (data & 127 == 127).any():
            raise CheckpointError("finite weights in fp8", "NaN", "get the file again")
        return packed_bytes(data, self.kind)

    @property
    def _in_tiles(self) -> bool:
        return self.data.ndim == 3

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The weights of some rows, int64 [n], as `dequantise` gives them: float32 [n, in]."""
        if self._in_tiles:
            return self.by_rows()[rows]
        data = self.data.view(torch.uint8)[rows].view(self.data.dtype)  # no fp8 is indexed by torch
        return dequantise(replace(self, data=data, scales=self.scales[..., rows]), torch.float32)

    def rows(self, ranges: Sequence[range]) -> "Quantised":
        """The matrix of these rows alone, range by range; UsageError where a range splits a tile of
        int4.
        """
        return self._part(0, ranges)

    def columns(self, ranges: Sequence[range]) -> "Quantised":
        """The matrix of these columns alone; UsageError where a range splits a tile or group of
        int4.
        """
        return self._part(1, ranges)

    def _part(self, dim: int, ranges: Sequence[range]) -> "Quantised":
        assert not self.num_columns
        assert self.group is None or self._in_tiles
        data, scales = (
            _gather(tensor, [shrunk(part, self.kind, dim, size) for part in ranges], dim)
            if size
            else tensor
            for tensor, size in zip((self.data, self.scales), sizes(self.kind, dim), strict=True)
        )
        return Quantised(self.kind, data, scales)


Weight = Tensor | Quantised  # a matrix [out, in] of a model
ShapeDtype = tuple[tuple[int, ...], torch.dtype]


def quantise(weight: Tensor, kind: str) -> Quantised:
    """Quantises a floating-point matrix [out, in] to `kind`, on its own device.

    int8 and fp8 scale each row by its largest weight: searching for a better scale gains int8 less
    than 0.1 % of its error, and fp8's steps grow with the weight. int4 takes for each group the
    best of a few scales, in squared error. UsageError for an unknown kind, or for int4 with a
    matrix that is not made of whole tiles and groups; CheckpointError for a weight that is not
    finite.
    """
    convert = _CONVERSIONS.get(kind)
    if convert is None:
        raise UsageError(
            f"one of {', '.join(_CONVERSIONS)} to quantise weights to", kind, "choose one"
        )
    return quantise_in_chunks(weight, kind, convert, device_of(weight.device).weights_at_once)


def quantise_in_chunks(
    weight: Tensor, kind: str, convert: Callable[[Tensor], tuple[Tensor, Tensor]], chunk: int
) -> Quantised:
    """A matrix [out, in] in `kind`. `convert` returns data and scales of some rows in float32:
    whole tiles, at most `chunk` weights unless a tile is larger. Errors as in `quantise`.
    """
    num_rows, columns = weight.shape
    (shape, dtype), (scales_shape, scales_dtype) = stored_forms(kind, num_rows, columns)
    data = torch.empty(shape, dtype=dtype, device=weight.device)
    scales = torch.empty(scales_shape, dtype=scales_dtype, device=weight.device)
    together = TILE_ROWS if kind in GROUPS else 1
    step = max(1, chunk // max(columns * together, 1))
    for start in range(0, len(data), step):
        part = weight[start * together : (start + step) * together].float()
        if not part.isfinite().all():
            wanted = "finite weights to quantise"
            raise CheckpointError(wanted, "infinite ones or NaN", "get the file again")
        data[start : start + step], scales[start : start + step] = convert(part)
    return Quantised(kind, data, scales)


def stored_forms(kind: str, rows: int, columns: int) -> tuple[ShapeDtype, ShapeDtype]:
    """Shape and dtype of the data and of the scales of a matrix in `kind`; UsageError for int4 with
    a matrix that is not made of whole tiles and groups.
    """
    if kind in GROUPS:
        _check_whole(kind, rows, columns)
        tiles, block_bytes = rows // TILE_ROWS, TILE_ROWS * TILE_COLUMNS // 2
        data = ((tiles, columns // TILE_COLUMNS, block_bytes), torch.uint8)
        return data, ((tiles, columns // GROUPS[kind], TILE_ROWS), torch.bfloat16)
    dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
    return ((rows, columns), dtype), ((rows,), torch.float32)


def stored_bytes(kind: str, rows: int, columns: int) -> int:
    """The bytes of a matrix in `kind`, scales included."""
    if kind in GROUPS:
        return rows * columns // 2 + 2 * rows * columns // GROUPS[kind]
    return rows * columns + 4 * rows


def span(kind: str) -> int:
    """The columns that must stay together: a tile of int4, or a group that spans several."""
    return max(TILE_COLUMNS, GROUPS[kind]) if kind in GROUPS else 1


def sizes(kind: str, dim: int) -> tuple[int, int]:
    """How many rows (`dim` 0) or columns (1) an index along that dimension of the data, and of the
    scales, stands for; 0 where they have no such dimension.
    """
    if kind in GROUPS:
        return (TILE_ROWS, TILE_ROWS) if dim == 0 else (TILE_COLUMNS, GROUPS[kind])
    return (1, 1) if dim == 0 else (1, 0)


def shrunk(part: range, kind: str, dim: int, size: int) -> range:
    """The indices that stand for a range of rows (`dim` 0) or columns (1), `size` of them each;
    UsageError where the range splits a tile or a span.
    """
    whole = span(kind) if dim or kind not in GROUPS else TILE_ROWS
    if part.start % whole or part.stop % whole:
        raise UsageError(
            f"{'columns' if dim else 'rows'} cut at multiples of {whole} for {kind}",
            f"{part.start} to {part.stop}",
            "use another number of ranks, int8 or fp8",
        )
    return range(part.start // size, part.stop // size)


def dequantise(weight: Quantised, dtype: torch.dtype) -> Tensor:
    """values × scales [out, in], computed in float32, rounded once to `dtype`."""
    if weight.group is None:
        data = weight.data
        if weight.num_columns:
            data = unpacked_bytes(data, weight.kind, weight.num_columns)
        return (data.float() * weight.scales[:, None]).to(dtype)
    rows, columns = weight.shape
    if weight.num_columns:
        nibbles = unpacked_nibbles(weight.data, columns)
        scales = unpacked_scales(weight.scales, columns // weight.group)
    else:
        plain = weight.by_rows()
        nibbles, scales = _nibbles(plain.data), plain.scales
    values = nibbles.reshape(rows, -1, weight.group).float() - 8
    return (values * scales.t().float()[:, :, None]).view(rows, columns).to(dtype)


def _nibbles(data: Tensor) -> Tensor:
    """uint8 [rows, in / 2] of by_rows() → uint8 [rows, in], each value + 8."""
    halves = data.view(len(data), -1, 1, TILE_COLUMNS // 2)
    return torch.cat((halves & 15, halves >> 4), dim=2).view(len(data), -1)


def equal(one: Weight, other: Weight) -> bool:
    """Whether two matrices are equal; quantised ones bit for bit."""
    if isinstance(one, Quantised) and isinstance(other, Quantised):
        data, others = (weight.data.view(torch.uint8) for weight in (one, other))
        return one.kind == other.kind and data.equal(others) and one.scales.equal(other.scales)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.equal(other)


def _check_whole(kind: str, rows: int, columns: int) -> None:
    if rows % TILE_ROWS or columns % span(kind):
        raise UsageError(
            f"a multiple of {TILE_ROWS} rows of a multiple of {span(kind)} weights for {kind}",
            f"{rows} of {columns}",
            "choose int8 or fp8 for this matrix",
        )


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = _safe(weight.abs().amax(dim=1) / 127)
    return (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def _fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = _safe(weight.abs().amax(dim=1) / FP8_LARGEST)
    scaled = (weight / scales[:, None]).clamp(-FP8_LARGEST, FP8_LARGEST)
    return scaled.to(torch.float8_e4m3fn), scales


def _int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    groups = weight.view(len(weight), -1, group)
    scales = int4_scales(groups)
    return pack_int4(int4_values(groups, scales).view_as(weight), scales.squeeze(-1))


def pack_int4(values: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Data and scales in the layout of Quantised, from whole numbers −8 … 7 [rows, in] and float32
    scales [rows, in / group]; whole tiles.
    """
    rows, columns = values.shape
    first, second = (values + 8).to(torch.uint8).view(rows, -1, TILE_COLUMNS).chunk(2, dim=-1)
    words = (first | (second << 4)).view(-1, TILE_ROWS, columns // (2 * WORD), WORD)
    packed = words.transpose(1, 2).reshape(
        -1, columns // TILE_COLUMNS, TILE_ROWS * TILE_COLUMNS // 2
    )
    return packed, scales.view(-1, TILE_ROWS, scales.shape[1]).transpose(1, 2).bfloat16()


def int4_scales(groups: Tensor, importance: Tensor | None = None) -> Tensor:
    """The scale of each group with the least squared error: [rows, groups, n] → [rows, groups, 1];
    `importance` [groups, n] weights that error.

    The scale that fits the values of the best candidate, by least squares, is one candidate more.
    """
    largest = _safe(groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True)))
    units = groups / largest  # no square of these is too large or small for float32
    best = _stored_ratio(1 / INT4_CANDIDATES[0], largest)
    error = _int4_error(units, best, importance)
    for divisor in (*INT4_CANDIDATES[1:], None):
        ratio = _fitted(units, best, importance) if divisor is None else 1 / divisor
        other = _stored_ratio(ratio, largest)
        other_error = _int4_error(units, other, importance)
        best = torch.where(other_error < error, other, best)
        error = torch.minimum(other_error, error)
    return (best * largest).bfloat16().float()


def _fitted(groups: Tensor, scales: Tensor, importance: Tensor | None) -> Tensor:
    """The scale that best fits, by least squares, the values that `scales` produce."""
    values = int4_values(groups, scales)
    fitted = _sum(groups * values, importance) / _sum(values.square(), importance)
    return fitted.nan_to_num()


def _int4_error(groups: Tensor, scales: Tensor, importance: Tensor | None) -> Tensor:
    return _sum((int4_values(groups, scales).mul_(scales) - groups).square_(), importance)


def _sum(terms: Tensor, importance: Tensor | None) -> Tensor:
    """Over the weights of each group."""
    return (terms if importance is None else terms * importance).sum(-1, keepdim=True)


def int4_values(groups: Tensor, scales: Tensor) -> Tensor:
    """The quantised weights: whole numbers −8 … 7, in float32."""
    return (groups / scales).round_().clamp_(-8, 7)


def _stored_ratio(ratio: Tensor | float, largest: Tensor) -> Tensor:
    """The scale ratio × largest as stored, in bfloat16, and as a ratio again."""
    return _safe((ratio * largest).bfloat16().float()) / largest


def _safe(scales: Tensor) -> Tensor:
    """1 in place of 0, for rows and groups of zeros."""
    return torch.where(scales == 0, 1.0, scales)


def _gather(tensor: Tensor, ranges: Sequence[range], dim: int) -> Tensor:
    parts = [tensor.narrow(dim, part.start, len(part)) for part in ranges]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim)


_CONVERSIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8": _int8,
    "fp8": _fp8,
    **{kind: partial(_int4, group=group) for kind, group in GROUPS.items()},
}
KINDS = tuple(_CONVERSIONS)
