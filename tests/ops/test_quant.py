"""Rounded weights: how good they are, what they refuse, and that a part of them is a part."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gyrfalcon
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.engine_config import QUANTS
from gyrfalcon.errors import CheckpointError, UsageError
from gyrfalcon.ops import reference
from gyrfalcon.quant import GROUPS, Quantised, dequantise, equal, quantise, span, stored_bytes

KINDS = [kind for kind in QUANTS if kind != "none"]
# relative L2
LARGEST_ERROR = {"int8": 0.010, "fp8": 0.027, "int4": 0.094, "int4-32": 0.085, "int4-128": 0.103}
NESTLING = Path(gyrfalcon.__file__).parent / "nestling" / "model" / "model.safetensors"


def relative(result: Tensor, wanted: Tensor) -> float:
    return ((result.double() - wanted.double()).norm() / wanted.double().norm()).item()


def a_matrix(rows: int = 48, columns: int = 256, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def simple_int4(weight: Tensor, kind: str = "int4") -> Tensor:
    """Each group scaled by its largest weight alone."""
    groups = weight.view(len(weight), -1, GROUPS[kind])
    scales = (groups.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-30)  # of zeros: any
    return ((groups / scales).round() * scales).view_as(weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rounded_matrix_is_close_to_the_matrix(kind: str, dtype: torch.dtype) -> None:
    weight = a_matrix().to(dtype)
    assert relative(dequantise(quantise(weight, kind), torch.float32), weight) < LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_nestlings_matrices_keep_their_weights(kind: str) -> None:
    matrices = [
        tensor.float()
        for name, tensor in load_file(NESTLING).items()
        if tensor.ndim == 2 and tensor.shape[1] % span(kind) == 0 and "embedding" not in name
    ]
    assert len(matrices) > 8
    errors = [relative(dequantise(quantise(m, kind), torch.float32), m) for m in matrices]
    assert sum(errors) / len(errors) < LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", GROUPS)
def test_no_matrix_of_nestling_is_rounded_worse_than_by_its_largest_weights(kind: str) -> None:
    """Also those of heads that look at one token, where a few weights are large."""
    for name, tensor in load_file(NESTLING).items():
        if tensor.ndim == 2 and "embedding" not in name:
            weight = tensor.float()
            searched = relative(dequantise(quantise(weight, kind), torch.float32), weight)
            assert searched < 0.9 * relative(simple_int4(weight, kind), weight), name


@pytest.mark.parametrize("kind", GROUPS)
def test_searching_int4_scales_beats_the_largest_weight(kind: str) -> None:
    weight = a_matrix()
    searched = dequantise(quantise(weight, kind), torch.float32)
    assert relative(searched, weight) < 0.86 * relative(simple_int4(weight, kind), weight)


def test_smaller_groups_are_closer() -> None:
    errors = [
        relative(dequantise(quantise(a_matrix(), kind), torch.float32), a_matrix())
        for kind in ("int4-32", "int4", "int4-128")
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.95 * errors[1] < 0.95**2 * errors[2]


@pytest.mark.parametrize("kind", ["int8", *GROUPS])
def test_no_weight_of_the_unclipped_range_is_off_by_more_than_half_a_step(kind: str) -> None:
    weight = a_matrix()
    rounded = quantise(weight, kind)
    steps = rounded.scales.float()[:, None] if kind == "int8" else spread(rounded)
    steps = steps.abs()
    error = (dequantise(rounded, torch.float32) - weight).abs()
    inside = weight.abs() <= 127 * steps if kind == "int8" else weight.abs() < 7 * steps
    assert (error[inside] <= (0.501 * steps).expand_as(error)[inside]).all()


def spread(weight: Quantised) -> Tensor:
    """int4's scale of each weight."""
    return weight.by_rows().scales.t().float().repeat_interleave(GROUPS[weight.kind], dim=1)


@pytest.mark.parametrize("kind", GROUPS)
def test_an_int4_byte_holds_columns_32_apart_and_a_word_is_beside_the_next_rows(kind: str) -> None:
    values = (torch.arange(2 * 64) + torch.arange(32)[:, None]) % 16 - 8
    rounded = quantise(values.float(), kind)
    assert (rounded.scales == 1).all()
    halves = torch.stack((rounded.data & 15, rounded.data >> 4)).long() - 8
    for row in (0, 9, 16, 31):
        for column in (0, 5, 31, 64, 95):
            word, byte = divmod(column % 64, 4)
            found = halves[:, row // 16, column // 64, 64 * word + 4 * (row % 16) + byte]
            assert found.tolist() == values[row, [column, column + 32]].tolist()


@pytest.mark.parametrize(("kind", "group"), [("int4-32", 32), ("int4", 64), ("int4-128", 128)])
def test_an_int4_scale_stands_for_the_columns_of_its_group(kind: str, group: int) -> None:
    """Powers of two from group to group come back as the scales, in the order of the columns."""
    wanted = 2.0 ** torch.arange(512 // group)
    values = (torch.arange(512) % 16 - 8).float() * wanted.repeat_interleave(group)
    rows = 3 * 2.0 ** torch.arange(16)
    rounded = quantise(torch.cat((values * rows[:, None], -2 * values * rows[:, None])), kind)
    assert rounded.group == group
    assert rounded.scales[0].t().equal(wanted * rows[:, None])
    assert rounded.scales[1].t().equal(-2 * wanted * rows[:, None])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_on_the_grid_come_back_exactly(kind: str) -> None:
    """Every value there is, times a power of two that differs from row to row."""
    grids = {
        "int8": torch.arange(-127, 128).float(),
        "fp8": torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float(),
    } | dict.fromkeys(GROUPS, torch.arange(-8, 8).float())
    grid = grids[kind][grids[kind].isfinite()]
    row = grid.repeat(-(-128 * 3 // len(grid)))[: 128 * 3]
    weight = row * torch.tensor([1.0, 0.25, -0.5, 2.0]).repeat(4)[:, None]
    torch.testing.assert_close(
        dequantise(quantise(weight, kind), torch.float32), weight, rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind: str) -> None:
    weight = a_matrix(16, 128)
    weight[1] = 0
    weight[2, :64] = 0
    rounded = dequantise(quantise(weight, kind), torch.float32)
    assert (rounded[weight == 0] == 0).all()
    assert rounded.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_weights_of_any_size_keep_their_accuracy(kind: str, size: float) -> None:
    weight = a_matrix() * size
    assert relative(dequantise(quantise(weight, kind), torch.float32), weight) < LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_quantising_in_chunks_is_quantising_in_one_go(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = a_matrix(48, 384)
    whole = quantise(weight, kind)
    monkeypatch.setattr(Cpu, "weights_at_once", 10_000)
    same(quantise(weight, kind), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_rows_is_the_part_rounded_alone(kind: str) -> None:
    weight = a_matrix(128)
    ranges = (range(3, 10), range(20, 21), range(40, 48))
    if kind in GROUPS:
        ranges = (range(16, 32), range(64, 96), range(112, 128))
    part = quantise(weight, kind).rows(ranges)
    same(part, quantise(torch.cat([weight[r.start : r.stop] for r in ranges]), kind))
    assert part.shape == (sum(map(len, ranges)), 256)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spans", [(range(1, 4),), (range(0, 1), range(2, 3))])
def test_a_part_of_the_columns_is_those_columns(kind: str, spans: tuple[range, ...]) -> None:
    size = max(64, span(kind))
    ranges = [range(part.start * size, part.stop * size) for part in spans]
    whole = quantise(a_matrix(columns=4 * size), kind)
    part = whole.columns(ranges)
    wanted = torch.cat([dequantise(whole, torch.float32)[:, r.start : r.stop] for r in ranges], 1)
    torch.testing.assert_close(dequantise(part, torch.float32), wanted, rtol=0, atol=0)
    assert part.shape == wanted.shape
    assert part.data.is_contiguous()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_8_bit_columns_may_be_cut_anywhere(kind: str) -> None:
    whole = quantise(a_matrix(5, 37), kind)
    wanted = dequantise(whole, torch.float32)[:, 5:36]
    assert dequantise(whole.columns((range(5, 36),)), torch.float32).equal(wanted)


@pytest.mark.parametrize(("kind", "multiple"), [("int4", 64), ("int4-32", 64), ("int4-128", 128)])
@pytest.mark.parametrize("part", [range(0, 100), range(32, 128)])
def test_a_cut_through_an_int4_group_is_refused(part: range, kind: str, multiple: int) -> None:
    """Also through a unit of two groups of 32, whose weights share bytes."""
    wanted = f"multiples of {multiple} for {kind}, got {part.start} to"
    with pytest.raises(UsageError, match=wanted):
        quantise(a_matrix(), kind).columns((part,))


def test_a_cut_through_a_group_of_128_is_refused_between_its_units_too() -> None:
    with pytest.raises(UsageError, match="multiples of 128 for int4-128, got 64 to 192"):
        quantise(a_matrix(), "int4-128").columns((range(64, 192),))


@pytest.mark.parametrize(
    ("kind", "multiple", "rows", "columns"),
    [
        ("int4", 64, 32, 100),
        ("int4-32", 64, 32, 96),
        ("int4-128", 128, 32, 192),
        ("int4", 64, 40, 128),
    ],
)
def test_matrices_of_no_whole_tiles_and_groups_are_refused_for_int4(
    kind: str, multiple: int, rows: int, columns: int
) -> None:
    wanted = f"multiple of 16 rows of a multiple of {multiple} weights for {kind}, got {rows} of"
    with pytest.raises(UsageError, match=f"{wanted} {columns}"):
        quantise(a_matrix(rows, columns), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_looked_up_are_those_of_the_matrix(kind: str) -> None:
    weight = quantise(a_matrix(), kind)
    rows = torch.tensor([47, 0, 3, 3])
    assert weight[rows].equal(dequantise(weight, torch.float32)[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_equal_down_to_the_last_bit(kind: str) -> None:
    weight = quantise(a_matrix(), kind)
    other = quantise(a_matrix(), kind)
    assert equal(weight, other)
    assert not equal(weight, a_matrix())
    other.scales[0] *= 2
    assert not equal(weight, other)
    other = quantise(a_matrix(), kind)
    other.data.view(torch.uint8)[2, 3] ^= 1
    assert not equal(weight, other)


def test_unknown_kinds_and_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="int8, fp8, int4"):
        quantise(a_matrix(), "int3")
    weight = a_matrix()
    weight[4, 4] = float("nan")
    with pytest.raises(CheckpointError, match="finite weights"):
        quantise(weight, "int8")


@pytest.mark.parametrize(
    ("kind", "bits", "scales"),
    [
        ("int8", 8, 4),
        ("fp8", 8, 4),
        ("int4", 4, 2 * 4),
        ("int4-32", 4, 2 * 8),
        ("int4-128", 4, 2 * 2),
    ],
)
def test_it_takes_the_memory_it_promises(kind: str, bits: int, scales: int) -> None:
    wanted = 48 * (256 * bits // 8 + scales)
    assert quantise(a_matrix(), kind).num_bytes == wanted
    assert stored_bytes(kind, 48, 256) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_product_is_the_product_with_the_dequantised_matrix(kind: str) -> None:
    weight, bias = quantise(a_matrix(), kind), torch.linspace(-1, 1, 48)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    product = x.double() @ dequantise(weight, torch.float32).double().t() + bias.double()
    wanted = torch.nn.functional.gelu(product).float()
    torch.testing.assert_close(reference.linear(x, weight, bias, "gelu"), wanted)
    rounded = reference.linear(x.bfloat16(), weight, bias.bfloat16(), "gelu")
    assert rounded.dtype == torch.bfloat16
    assert relative(rounded, wanted) < 0.01


@pytest.mark.parametrize("kind", GROUPS)
def test_a_cut_through_a_tile_of_int4s_rows_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match=f"rows cut at multiples of 16 for {kind}, got 0 to 40"):
        quantise(a_matrix(), kind).rows((range(40),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_by_rows_is_the_same_matrix(kind: str) -> None:
    weight = quantise(a_matrix(), kind)
    rows = weight.by_rows()
    assert rows.shape == weight.shape
    assert dequantise(rows, torch.float32).equal(dequantise(weight, torch.float32))
    same(rows.by_rows(), rows)
    if kind in GROUPS:
        values = torch.stack((rows.data & 15, rows.data >> 4)).long() - 8
        scaled = dequantise(weight, torch.float32) / spread(rows)
        assert values[:, 7, 33].tolist() == scaled[7, [65, 97]].round().tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [128, 320, 512])
def test_a_matrix_in_words_is_the_same_matrix(kind: str, columns: int) -> None:
    weight = quantise(a_matrix(columns=-(-columns // span(kind)) * span(kind)), kind)
    words = weight.as_words()
    assert words.data.dtype == torch.int16
    assert words.shape == weight.shape
    assert dequantise(words, torch.float32).equal(dequantise(weight, torch.float32))
    rows = torch.tensor([40, 0, 7, 7])
    assert words[rows].equal(weight[rows])


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rows_in_words_may_have_any_length(kind: str) -> None:
    weight = quantise(a_matrix(columns=37), kind)
    words = weight.as_words()
    assert dequantise(words, torch.float32).equal(dequantise(weight, torch.float32))


@pytest.mark.parametrize(("bits", "finite"), [(0x7E, True), (0x7F, False), (0xFF, False)])
def test_fp8_that_is_nan_is_refused_in_words_which_have_no_bits_for_it(
    bits: int, finite: bool
) -> None:
    data = torch.zeros(3, 64, dtype=torch.uint8)
    data[2, 5] = bits
    weight = Quantised("fp8", data.view(torch.float8_e4m3fn), torch.ones(3))
    if finite:
        assert dequantise(weight.as_words(), torch.float32).equal(dequantise(weight, torch.float32))
        return
    with pytest.raises(CheckpointError, match="finite weights in fp8"):
        weight.as_words()


def same(one: Quantised, other: Quantised) -> None:
    assert one.kind == other.kind
    assert one.data.view(torch.uint8).equal(other.data.view(torch.uint8))
    assert one.scales.equal(other.scales)
