"""Triton's products with weights against their definition: every kind, dtype, odd sizes, parts."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from pairwise import pairwise
from torch import Tensor
from triton_interpreter import DEVICE

from gyrfalcon import ops
from gyrfalcon.device.lookup import device_of
from gyrfalcon.engine_config import QUANTS
from gyrfalcon.ops import reference
from gyrfalcon.quant import GROUPS, TILE_ROWS, Quantised, dequantise, quantise, span

pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")

import triton
import triton.language as tl

from gyrfalcon.ops.triton import dequantised_linear
from gyrfalcon.ops.triton import linear as triton_linear
from gyrfalcon.ops.triton.words import widen

interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="kernels run on the GPU itself")
KINDS = list(QUANTS)
ROUNDED = [kind for kind in KINDS if kind != "none"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def operands(
    kind: str, dtype: torch.dtype, tokens: int, outputs: int = 130, inputs: int = 192
) -> tuple[Tensor, Tensor | Quantised, Tensor]:
    """x, a weight and a bias, drawn from one seed; `inputs` or what more makes whole groups of int4."""
    inputs = -(-inputs // span(kind)) * span(kind)
    generator = torch.Generator().manual_seed(tokens + outputs + inputs)
    x = torch.randn(tokens, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
    bias = torch.randn(outputs, generator=generator).to(DEVICE, dtype)
    whole = weight.to(DEVICE, dtype)
    return x.to(DEVICE, dtype), whole if kind == "none" else in_words(whole, kind), bias


def in_words(weight: Tensor, kind: str) -> Quantised:
    """Quantised as the kernels read it, with any number of rows."""
    rows = len(weight)
    whole = quantise(torch.nn.functional.pad(weight, (0, 0, 0, -rows % TILE_ROWS)), kind).as_words()
    return replace(whole, data=whole.data[:rows], scales=whole.scales[..., :rows].contiguous())


def defined(
    x: Tensor, weight: Tensor | Quantised, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """The definition, of the same operands in float64."""
    whole = weight if isinstance(weight, Tensor) else dequantise(weight, torch.float32)
    return reference.linear(
        x.double(), whole.double(), None if bias is None else bias.double(), activation
    )


def assert_near(
    result: Tensor, wanted: Tensor, dtype: torch.dtype, most: float | None = None
) -> None:
    assert result.dtype == dtype
    assert result.shape == wanted.shape
    error = (result.double() - wanted).abs().max() / wanted.abs().max()
    assert error <= (most or TOLERANCE[dtype]), error


@pytest.mark.parametrize(
    ("tokens", "kind", "dtype"), pairwise([1, 2, 5, 16, 17, 70], KINDS, DTYPES)
)
def test_the_product_is_the_definitions(tokens: int, kind: str, dtype: torch.dtype) -> None:
    x, weight, bias = operands(kind, dtype, tokens)
    assert_near(triton_linear.linear(x, weight), defined(x, weight), dtype)
    result = triton_linear.linear(x, weight, bias, "gelu")
    assert_near(result, defined(x, weight, bias, "gelu"), dtype)


@pytest.mark.parametrize(
    ("tokens", "shape", "kind"),
    pairwise([3, 40], [(1, 64), (63, 64), (64, 128), (65, 320), (200, 448)], KINDS),
)
def test_matrices_of_every_size_are_right(tokens: int, shape: tuple[int, int], kind: str) -> None:
    outputs, inputs = shape
    x, weight, bias = operands(kind, torch.bfloat16, tokens, outputs, inputs)
    result = triton_linear.linear(x, weight, bias)
    assert_near(result, defined(x, weight, bias), torch.bfloat16)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in GROUPS])
@pytest.mark.parametrize("inputs", [1, 37, 200])
def test_rows_may_be_of_any_length(inputs: int, kind: str) -> None:
    x, weight, bias = operands(kind, torch.float32, 3, 20, inputs)
    assert_near(triton_linear.linear(x, weight, bias), defined(x, weight, bias), torch.float32)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the sigmoid is then 0
@pytest.mark.parametrize(
    ("tokens", "activation", "kind"), pairwise([4, 20], [*reference.ACTIVATIONS, None], KINDS)
)
def test_activations_are_the_definitions(tokens: int, activation: str | None, kind: str) -> None:
    """Up to |x| of about 60, where exponentials overflow."""
    x, weight, bias = operands(kind, torch.float32, tokens, 40, 64)
    x *= 20
    result = triton_linear.linear(x, weight, bias, activation)
    assert_near(result, defined(x, weight, bias, activation), torch.float32)
    small = triton_linear.linear(x / 20, weight, None, activation)
    assert_near(small, defined(x / 20, weight, None, activation), torch.float32)


@pytest.mark.parametrize(("tokens", "num_sms", "kind"), pairwise([1, 9, 33], [1, 4, 64], KINDS))
def test_rows_summed_in_parts_give_the_product(tokens: int, num_sms: int, kind: str) -> None:
    x, weight, bias = operands(kind, torch.bfloat16, tokens, 70, 64 * 33)
    result = triton_linear.linear(x, weight, bias, "gelu", num_sms=num_sms)
    assert_near(result, defined(x, weight, bias, "gelu"), torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_summed_in_the_same_order_every_time(kind: str) -> None:
    x, weight, bias = operands(kind, torch.float32, 3, 40, 64 * 33)
    first, second = (triton_linear.linear(x, weight, bias, "gelu", num_sms=64) for _ in range(2))
    assert first.equal(second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_alone_is_a_token_in_a_batch(dtype: torch.dtype, kind: str) -> None:
    """Bit for bit, up to 16 tokens, whatever the others are."""
    x, weight, bias = operands(kind, dtype, 16, 40, 64 * 9)
    together = triton_linear.linear(x, weight, bias, "gelu")
    x[5] = float("nan")
    few = triton_linear.linear(x[4:7], weight, bias, "gelu")
    assert triton_linear.linear(x[4:5], weight, bias, "gelu").equal(together[4:5])
    assert few[0].equal(together[4])
    assert few[2].equal(together[6])
    assert few[1].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [3, 18])
def test_rows_of_x_may_lie_apart(tokens: int, kind: str) -> None:
    x, weight, _ = operands(kind, torch.bfloat16, tokens, inputs=192)
    end = 50 + x.shape[1]
    wider = torch.full((tokens, end + 58), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    wider[:, 50:end] = x
    apart = triton_linear.linear(wider[:, 50:end], weight)
    assert apart.equal(triton_linear.linear(x, weight))


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("tokens", [3, 18])
def test_a_ranks_parts_give_the_whole(tokens: int, kind: str) -> None:
    """Rows lie side by side, columns add up."""
    size = max(64, span(kind))
    ends = (0, 32, 48, 112) if kind in GROUPS else (0, 33, 34, 100)
    x, whole, _ = operands("none", torch.float32, tokens, ends[-1], 5 * size)
    assert isinstance(whole, Tensor)
    weight = quantise(whole, kind)
    wanted = defined(x, weight)
    rows = [weight.rows((range(first, last),)) for first, last in itertools.pairwise(ends)]
    beside = torch.cat([triton_linear.linear(x, part.as_words()) for part in rows], dim=-1)
    assert_near(beside, wanted, torch.float32)
    cuts = list(itertools.pairwise((0, size, 3 * size, 5 * size)))
    columns = [(x[:, a:b], weight.columns((range(a, b),))) for a, b in cuts]
    added = [triton_linear.linear(some, part.as_words()) for some, part in columns]
    assert_near(torch.stack(added).sum(0), wanted, torch.float32)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("tokens", [16, 128])
def test_every_int4_weight_meets_its_own_column_and_scale(tokens: int, kind: str) -> None:
    """x picks single columns: a weight or a scale, low half or high, in the wrong place would show."""
    values = torch.randint(-8, 8, (20, 256), generator=torch.Generator().manual_seed(0)).float()
    values[:, ::32] = -8.0
    values *= 2.0 ** (torch.arange(256) // GROUPS[kind])
    weight = in_words(values.to(DEVICE), kind)
    for columns in torch.arange(256).split(tokens):
        x = torch.nn.functional.one_hot(columns, 256).to(DEVICE, torch.float32)
        assert triton_linear.linear(x, weight).equal(values[:, columns].t().to(DEVICE))


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_value_of_a_kind_is_widened_exactly(dtype: torch.dtype, kind: str) -> None:
    grids = {
        "int8": torch.arange(-127, 128).float(),
        "fp8": torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float(),
    } | dict.fromkeys(GROUPS, torch.arange(-8, 8).float())
    values = grids[kind][grids[kind].isfinite()]
    weight = torch.zeros(256, max(64, span(kind)))
    weight[:, 1] = values.abs().max() * values.sign()[values.abs().argmax()]  # the scale is 1
    weight[: len(values), 0] = values
    x = torch.zeros(1, weight.shape[1], dtype=dtype, device=DEVICE)
    x[0, 0] = 1
    result = triton_linear.linear(x, in_words(weight.to(DEVICE), kind))
    assert result[0].equal(weight[:, 0].to(DEVICE, dtype))


@pytest.fixture
def with_assembly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels as an NVIDIA card runs them; elsewhere their assembly is interpreted."""
    monkeypatch.setattr(type(device_of(torch.device(DEVICE))), "runs_ptx", True)


@pytest.fixture
def without_assembly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(device_of(torch.device(DEVICE))), "runs_ptx", False)


@pytest.mark.usefixtures("with_assembly")
@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_assembly_widens_every_value_exactly(dtype: torch.dtype, kind: str) -> None:
    test_every_value_of_a_kind_is_widened_exactly(dtype, kind)


@pytest.mark.usefixtures("without_assembly")
@pytest.mark.parametrize(
    ("tokens", "shape", "kind", "dtype"),
    pairwise([1, 17, 70], [(1, 64), (65, 320), (130, 448)], ROUNDED, DTYPES[1:]),
)
def test_assembly_gives_what_its_twin_gives(
    tokens: int, shape: tuple[int, int], kind: str, dtype: torch.dtype
) -> None:
    """Bit for bit."""
    x, weight, bias = operands(kind, dtype, tokens, *shape)
    plain = triton_linear.linear(x, weight, bias, "gelu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(device_of(x.device)), "runs_ptx", True)
        assert triton_linear.linear(x, weight, bias, "gelu").equal(plain)


@interpreted
@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_assembly_widens_every_word_as_its_twin(dtype: torch.dtype, kind: str) -> None:
    """All 65,536, beside any neighbour."""
    neighbours = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(1))
    each = torch.stack((neighbours, torch.arange(1 << 16)), dim=1).flatten().to(torch.int16)
    for place in range(4 if kind == "int4" else 2):
        found = [torch.empty(len(each), dtype=dtype) for _ in range(2)]
        for out, assembled in zip(found, (True, False), strict=True):
            _widen[(1,)](each, out, len(each), place, kind, assembled)
        assert found[0].view(torch.int16).equal(found[1].view(torch.int16))


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _widen(  # type: ignore[no-untyped-def]  # as above
    words, out, SIZE: tl.constexpr, J: tl.constexpr, KIND: tl.constexpr, PTX: tl.constexpr
):
    places = tl.arange(0, SIZE)
    tl.store(out + places, widen(tl.load(words + places), J, KIND, out.dtype.element_ty, PTX))


@pytest.mark.parametrize(
    ("tokens", "num_sms", "kind", "dtype"), pairwise([1, 3, 16, 17, 70], [1, 64], KINDS, DTYPES)
)
def test_a_sum_of_linears_is_the_definitions(
    tokens: int, num_sms: int, kind: str, dtype: torch.dtype
) -> None:
    """Of two matrices of different widths, in one part each or in several."""
    pairs = [operands(kind, dtype, tokens, 70, inputs)[:2] for inputs in (192, 64 * 33)]
    result = triton_linear.sum_of_linears(*pairs, num_sms=num_sms)
    assert_near(result, defined(*pairs[0]) + defined(*pairs[1]), dtype)


@pytest.mark.parametrize(
    ("num_sms", "widths", "kind"),
    pairwise([1, 5, 64], [(64, 64), (64, 640), (640, 192), (37, 650), (200, 1)], KINDS),
)
def test_a_sum_s_parts_may_begin_anywhere_in_either_matrix(
    num_sms: int, widths: tuple[int, int], kind: str
) -> None:
    pairs = [operands(kind, torch.float32, 3, 40, inputs)[:2] for inputs in widths]
    result = triton_linear.sum_of_linears(*pairs, num_sms=num_sms)
    assert_near(result, defined(*pairs[0]) + defined(*pairs[1]), torch.float32)


@pytest.mark.parametrize(
    ("tokens", "num_sms", "kind", "dtype"), pairwise([1, 16, 17], [1, 64], KINDS, DTYPES)
)
def test_parts_that_others_sum_are_those_of_the_whole_result(
    tokens: int, num_sms: int, kind: str, dtype: torch.dtype
) -> None:
    """Bit for bit, summed in their order and rounded once."""
    pairs = [operands(kind, dtype, tokens, 70, inputs)[:2] for inputs in (192, 64 * 33)]
    for whole, parts in (
        [
            triton_linear.sum_of_linears(*pairs, num_sms=num_sms, as_parts=it)
            for it in (False, True)
        ],
        [triton_linear.linear(*pairs[1], num_sms=num_sms, as_parts=it) for it in (False, True)],
    ):
        few = kind != "none" or tokens <= triton_linear.FEW_TOKENS
        assert (parts.dim() == 3) <= few
        assert (parts.dim() == 3) == few or num_sms == 1
        summed = functools.reduce(torch.add, parts) if parts.dim() == 3 else parts
        assert summed.to(dtype).equal(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_of_linears_is_rounded_once(kind: str) -> None:
    """What cancels in it was not rounded before."""
    x, weight, _ = operands(kind, torch.bfloat16, 3, 70, 64 * 33)
    small = operands("none", torch.bfloat16, 3, 70, 64)[1]
    assert isinstance(small, Tensor)
    few = torch.randn(3, 64, generator=torch.Generator().manual_seed(5)).to(x) / 1000
    result = triton_linear.sum_of_linears((x, weight), (few, small), (-x, weight))
    assert_near(result, defined(few, small), torch.bfloat16, 1e-2)


@pytest.mark.parametrize("rows", [range(70), range(3, 36), range(69, 70)], ids=str)
@pytest.mark.parametrize(("kind", "dtype", "inputs"), pairwise(ROUNDED, DTYPES, [64, 128, 448]))
def test_a_dequantised_matrix_is_the_definitions(
    kind: str, dtype: torch.dtype, inputs: int, rows: range
) -> None:
    """Bit for bit, whichever of its rows."""
    _, weight, _ = operands(kind, dtype, 1, 70, inputs)
    assert isinstance(weight, Quantised)
    wanted = dequantise(weight, dtype)[rows.start : rows.stop]
    assert dequantised_linear.dequantised(weight, rows, dtype).equal(wanted)


@pytest.mark.usefixtures("with_assembly")
@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_assembly_dequantises_a_matrix_as_its_definition(dtype: torch.dtype, kind: str) -> None:
    test_a_dequantised_matrix_is_the_definitions(kind, dtype, 448, range(3, 36))


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("scratch", [1, 200 * 33, 1 << 28])
def test_many_tokens_meet_a_matrix_dequantised_some_rows_at_a_time(
    kind: str, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequantised_linear, "SCRATCH_WEIGHTS", scratch)
    monkeypatch.setattr(dequantised_linear, "ROWS", 16)
    x, weight, bias = operands(kind, torch.bfloat16, triton_linear.MANY_TOKENS, 35, 192)
    wide = torch.cat((x, x), dim=1)[:, : x.shape[1]]  # rows that lie apart
    result = triton_linear.linear(wide, weight, bias, "gelu")
    assert_near(result, defined(x, weight, bias, "gelu"), torch.bfloat16)
    assert isinstance(weight, Quantised)
    full = dequantise(weight, torch.bfloat16)
    assert_near(result, reference.linear(x, full, bias, "gelu").double(), torch.bfloat16, most=1e-2)


def test_the_memory_for_dequantised_rows_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40b's widest matrix: 537 MB for captured prompts, and as much for others."""
    card, largest = device_of(torch.device("cuda")), 32768 * 8192
    assert ops.scratch_bytes(card, largest, torch.bfloat16) == 2 * 536_870_912
    assert ops.scratch_bytes(card, 4 * largest, torch.bfloat16) == 2 * 536_870_912
    assert ops.scratch_bytes(card, 1000, torch.float32) == 8000
    monkeypatch.setenv("GYRFALCON_OPS", "reference")
    assert ops.scratch_bytes(card, largest, torch.bfloat16) == 0


@pytest.mark.parametrize(("tokens", "num_sms", "kind"), pairwise([1, 16, 20], [1, 64], KINDS))
def test_logits_are_not_rounded_to_16_bits(tokens: int, num_sms: int, kind: str) -> None:
    """But for those of many tokens with full weights, which the vendor's GEMM computes."""
    x, weight, _ = operands(kind, torch.bfloat16, tokens, 70, 64 * 33)
    result = triton_linear.linear(x, weight, num_sms=num_sms, out_dtype=torch.float32)
    rounded = kind == "none" and tokens > triton_linear.FEW_TOKENS
    assert_near(
        result, defined(x, weight), torch.float32, TOLERANCE[DTYPES[2]] if rounded else 1e-5
    )


def test_rows_are_split_only_where_multiprocessors_would_be_idle() -> None:
    split = triton_linear.split_for
    assert split(tiles=264, steps=64, programs=264).count == 1
    assert split(tiles=144, steps=64, programs=264).count == 1  # 288 programs would not all fit
    assert split(tiles=128, steps=64, programs=264).count == 2
    assert split(tiles=1, steps=64, programs=264).count == 16  # of four steps each
    assert split(tiles=1, steps=3, programs=264).count == 1
    for steps in range(1, 80):
        for tiles in (1, 7, 73):
            cut = split(tiles=tiles, steps=steps, programs=264)
            assert (cut.count - 1) * cut.steps < steps <= cut.count * cut.steps


@pytest.mark.parametrize("kind", QUANTS)
def test_every_card_has_weights_of_every_kind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An A100, too, which multiplies no 8-bit floating point: fp8 is widened by its bits."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    ops.choose(device_of(torch.device("cuda")), kind)
