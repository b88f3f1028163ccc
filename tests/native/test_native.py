"""Native kernels equal their definitions in plain torch: each instruction set that this processor has, all
kinds of numbers, shapes that fit no vector.
"""

import os
import random
from collections.abc import Iterator
from itertools import accumulate, product
from pathlib import Path

import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.native.library import library, why_not_native
from gyrfalcon.ops import reference
from gyrfalcon.ops.reference import LinearCall
from gyrfalcon.quant import GROUPS, TILE_ROWS, Quantised, dequantise, quantise, span

if library() is None:
    pytest.skip(why_not_native(), allow_module_level=True)

from kernel_sets import VARIANTS, drawn, stored_as, use

from gyrfalcon.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("fp32", "bf16", "fp16", "int8", "int4", "int4-32", "int4-128")
# Of the largest number: what one rounding to the dtype may be off by, and sums in another order.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = (  # tokens, outputs, inputs: less than a tile, odd numbers of tiles, several blocks of the cache
    (1, 8, 64),
    (1, 333, 640),
    (2, 97, 128),
    (3, 64, 320),
    (5, 200, 192),
    (16, 7, 1088),
    (32, 65, 2176),
    (33, 300, 1152),
    (300, 80, 1152),
    (20, 48, 4096),
    (40, 2100, 64),
    (130, 49, 64),
    (511, 64, 128),
    (600, 33, 192),
)
INT8_TOLERANCE = 2e-2  # of activations quantised to 8 bits


@pytest.fixture(autouse=True, params=VARIANTS, ids=" ".join)
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """One instruction set after the other, on two threads."""
    with use(*request.param):
        yield


def tolerance(kind: str, dtype: torch.dtype) -> float:
    """What a product with weights of a kind may be off by."""
    bytes_ = kind.startswith("int4") or (kind == "int8" and native.activations() == "int8")
    return INT8_TOLERANCE if bytes_ and dtype != torch.float32 else TOLERANCES[dtype]


def assert_near(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    scale = float(exact.abs().max())
    torch.testing.assert_close(ours.float(), exact.float(), rtol=0, atol=tolerance * scale + 1e-30)


def check_product(
    kind: str, dtype: torch.dtype, shape: tuple[int, int, int], activation: str | None, bias: bool
) -> None:
    tokens, outputs, inputs = shape
    if kind in GROUPS:
        inputs = -(-inputs // span(kind)) * span(kind)
        outputs = -(-outputs // TILE_ROWS) * TILE_ROWS
    weight, exact_weight = stored_as(kind, drawn(outputs, inputs) / inputs**0.5)
    x = drawn(tokens, inputs, seed=1).to(dtype)
    added = drawn(outputs, seed=2).to(dtype) if bias else None
    exact = x.double() @ exact_weight.double().T
    exact = exact if added is None else exact + added.double()
    exact = exact if activation is None else reference.activate(exact, activation)
    ours = native.linear(x, weight, added, activation)
    assert ours.dtype == dtype
    assert_near(ours, exact, tolerance(kind, dtype))


@pytest.mark.parametrize(("shape", "kind", "dtype"), pairwise(SHAPES, KINDS, DTYPES))
def test_products_equal_those_of_exact_arithmetic(
    shape: tuple[int, int, int], kind: str, dtype: torch.dtype
) -> None:
    check_product(kind, dtype, shape, None, bias=False)


@pytest.mark.parametrize(
    ("dtype", "tokens", "activation"),
    pairwise(DTYPES, [1, 40], ["gelu", "gelu_tanh", "relu", "silu", None]),
)
def test_bias_and_activation_come_before_the_only_rounding(
    dtype: torch.dtype, tokens: int, activation: str | None
) -> None:
    check_product("fp32", dtype, (tokens, 70, 96), activation, bias=True)


@pytest.mark.parametrize("number", range(40))
def test_products_of_any_shape_equal_those_of_exact_arithmetic(number: int) -> None:
    draw = random.Random(number)
    kind = draw.choice(KINDS)
    sizes = (1, 2, 3, 7, 31, 64, 100, 257, 1000)
    shape = (draw.choice(sizes[:-1]), draw.choice(sizes), draw.choice(sizes[:7]) * span(kind))
    activation = draw.choice([None, "gelu"])
    check_product(kind, draw.choice(DTYPES), shape, activation, draw.random() < 0.5)


@pytest.mark.parametrize(
    ("loaded", "tokens", "columns"),
    pairwise(list(product(KINDS[:4], DTYPES)), [1, 3, 40], [513, 1001, 1545]),
)
def test_long_rows_may_end_within_a_vector(
    loaded: tuple[str, torch.dtype], tokens: int, columns: int
) -> None:
    """Each kind of weight and dtype of x, which are loaded together, with each end and number of tokens."""
    kind, dtype = loaded
    check_product(kind, dtype, (tokens, 50, columns), None, bias=True)


@pytest.mark.parametrize("tokens", [*range(1, 14), 16, 17, 25, 32, 33, 63, 64, 65])
def test_bf16_products_of_every_tile_equal_those_of_exact_arithmetic(tokens: int) -> None:
    """Whole tiles and what is left of rows, tokens and columns, in one block of columns and several."""
    for rows, columns in ((7, 31), (97, 1024), (50, 1025), (29, 2110)):
        check_product("bf16", torch.bfloat16, (tokens, rows, columns), None, bias=False)


@pytest.mark.parametrize(
    ("kind", "dtype", "tokens"), pairwise(["int8", "int4", "int4-32"], DTYPES, [1, 5, 40])
)
def test_quantised_tokens_hide_neither_infinity_nor_nan(
    kind: str, dtype: torch.dtype, tokens: int
) -> None:
    weight, _ = stored_as(kind, drawn(80, 640))
    for bad in (torch.nan, torch.inf):
        x = drawn(tokens, 640, seed=1).to(dtype)
        x[-1, 600] = bad
        finite = native.linear(x, weight).isfinite()
        assert not finite[-1].any()
        assert finite[:-1].all()


@pytest.mark.parametrize(("kind", "dtype", "tokens"), pairwise(KINDS, DTYPES, [2, 5, 33, 130]))
def test_a_token_of_nan_changes_no_bit_of_those_beside_and_after_it(
    kind: str, dtype: torch.dtype, tokens: int
) -> None:
    weight, _ = stored_as(kind, drawn(80, 640))
    x = drawn(tokens, 640, seed=1).to(dtype)
    expected, fewer = native.linear(x, weight), native.linear(x[:-1], weight)
    place = tokens // 2
    others = [row for row in range(tokens) if row != place]
    for bad in (torch.nan, torch.inf, -torch.inf):
        wrong = x.clone()
        wrong[place] = bad
        found = native.linear(wrong, weight)
        assert not found[place].isfinite().any()
        assert torch.equal(found[others], expected[others])
        assert torch.equal(native.linear(x[:-1], weight), fewer)


@pytest.mark.parametrize("tokens", [1, 40])
def test_int8_keeps_small_activations_beside_large_ones(tokens: int) -> None:
    """16 bits for a block: what bfloat16's own rounding of the large one is off by comes nowhere near.
    With 8 bits it costs those that it shares a scale with, 64 columns.
    """
    weight = quantise(drawn(64, 512) / 512**0.5, "int8")
    x = drawn(tokens, 512, seed=1).bfloat16()
    x[:, 7] = 100
    if native.activations() == "int8":
        weight.data[:, :64] = 0
        exact = x.float() @ dequantise(weight, torch.float32).T
        return assert_near(native.linear(x, weight), exact, INT8_TOLERANCE)
    exact = x.float() @ dequantise(weight, torch.float32).T
    assert_near(native.linear(x, weight), exact, TOLERANCES[torch.bfloat16])
    weight.data[:, 7] = 0  # the large one itself is not asked for
    exact = x.float() @ dequantise(weight, torch.float32).T
    assert_near(native.linear(x, weight), exact, TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize(
    ("weights", "columns", "tokens", "dtype"),
    pairwise(
        [(127,), (-128,), (127, -128), (127, 127, -128, -128)],
        [512, 1001],
        [1, 30, 70],
        DTYPES[1:],
    ),
)
def test_int8_multiplies_the_largest_numbers_that_there_are(
    dtype: torch.dtype, tokens: int, columns: int, weights: tuple[int, ...]
) -> None:
    """Sums of 16 and of 32 bits come as near to their ends as they can, and are still right."""
    row = torch.tensor(weights, dtype=torch.int8).repeat(columns)[:columns]
    weight = Quantised("int8", row.repeat(40, 1), torch.full((40,), 1 / 128))
    for signs in ((1,), (-1,), (1, -1), (1, 1, -1, -1)):
        x = 3 * torch.tensor(signs, dtype=dtype).repeat(columns)[:columns].repeat(tokens, 1)
        exact = x.double() @ dequantise(weight, torch.float64).T
        assert_near(native.linear(x, weight), exact, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("tokens", "kind", "dtype"), pairwise([1, 6, 70], ["fp32", "bf16", "int8", "int4"], DTYPES)
)
def test_products_computed_together_are_those_computed_alone(
    tokens: int, kind: str, dtype: torch.dtype
) -> None:
    """Of one input, of another with as many columns, and with other columns."""
    x, other, wide = (drawn(tokens, n, seed=n + 1).to(dtype) for n in (256, 256, 640))
    each = [
        LinearCall(
            one, stored_as(kind, drawn(outputs, one.shape[1], seed=i) / 20)[0], None, activation
        )
        for i, (one, outputs, activation) in enumerate(
            [(x, 112, "gelu"), (x, 16, None), (other, 80, None), (wide, 304, "relu")]
            if kind == "int4"
            else [(x, 100, "gelu"), (x, 7, None), (other, 65, None), (wide, 300, "relu")]
        )
    ]
    for together, alone in zip(native.linears(*each), each, strict=True):
        assert torch.equal(together, native.linear(*alone))


SUMMED = (
    ("fp32", "fp32"),
    ("bf16", "int8"),
    ("int4", "int4"),
    ("int8", "int4-32"),
    ("bf16", "int4-128"),
)


@pytest.mark.parametrize(("tokens", "kinds", "dtype"), pairwise([1, 6, 70], SUMMED, DTYPES))
def test_a_sum_of_products_is_rounded_once(
    tokens: int, kinds: tuple[str, str], dtype: torch.dtype
) -> None:
    rows = 112 if any(kind in GROUPS for kind in kinds) else 97
    each, exact = [], torch.zeros(tokens, rows, dtype=torch.float64)
    for kind, columns in zip(kinds, (128, 640), strict=True):
        weight, exact_weight = stored_as(kind, drawn(rows, columns, seed=columns) / columns**0.5)
        x = drawn(tokens, columns, seed=columns + 1).to(dtype)
        each.append((x, weight))
        exact += x.double() @ exact_weight.double().T
    allowed = max(tolerance(kind, dtype) for kind in kinds)
    assert_near(native.sum_of_linears(*each), exact, allowed)


@pytest.mark.parametrize("tokens", [3, 70])
def test_equal_calls_give_equal_bits_on_any_number_of_threads(tokens: int) -> None:
    x, weight = drawn(tokens, 512).bfloat16(), drawn(1000, 512, seed=1).bfloat16()
    native.use_threads(1)
    alone = native.linear(x, weight)
    for threads in (2, 3, 5):
        native.use_threads(threads)
        for _ in range(20):
            assert torch.equal(native.linear(x, weight), alone)


def places_of_threads() -> list[set[int]]:
    """The processors that each thread of this process may run on."""
    return [os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()]


def test_threads_keep_to_processors_of_their_own() -> None:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("needs two processors")
    before = places_of_threads().count({usable[1]})
    native.use_threads(2, usable[:2])
    assert places_of_threads().count({usable[1]}) == before + 1
    assert os.sched_getaffinity(0) == set(usable)  # the caller's own thread
    native.use_threads(3, usable[:2])  # more than there are processors for
    assert places_of_threads().count({usable[1]}) == before


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4", "int4-32"])
def test_a_token_gets_what_it_gets_alone(kind: str) -> None:
    """Within what sums in another order differ by."""
    weight, _ = stored_as(kind, drawn(144 if kind in GROUPS else 130, 640) / 25)
    x = drawn(100, 640, seed=1).bfloat16()
    alone = torch.cat([native.linear(x[i : i + 1], weight) for i in range(len(x))])
    for count in (2, 3, 4, 5, 9, 16, 17, 25, 32, 100):
        assert_near(native.linear(x[:count], weight), alone[:count], TOLERANCES[torch.bfloat16])


def test_a_bf16_token_gets_the_bits_it_gets_alone_from_products_of_pairs() -> None:
    if native.LIBRARY.gf_instruction_for(1, 1, 1) != b"vdpbf16ps":
        pytest.skip("multiplies few bf16 tokens as floats")
    x, weight = drawn(64, 2110, seed=1).bfloat16(), drawn(97, 2110).bfloat16()
    alone = torch.cat([native.linear(x[i : i + 1], weight) for i in range(len(x))])
    for count in (2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 33, 64):
        assert torch.equal(native.linear(x[:count], weight), alone[:count])


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4", "int4-32"])
def test_tiles_give_a_token_the_same_bits_in_any_company(kind: str) -> None:
    if native.LIBRARY.gf_instructions() != b"amx":
        pytest.skip("multiplies without tiles")
    weight, _ = stored_as(kind, drawn(144 if kind in GROUPS else 130, 1088) / 33)
    x = drawn(700, 1088, seed=1).bfloat16()
    together = native.linear(x, weight)
    for first, count in ((0, 5), (32, 16), (64, 32), (7, 33), (1, 64), (100, 300)):
        some = slice(first, first + count)
        assert torch.equal(native.linear(x[some].contiguous(), weight), together[some])


@pytest.mark.parametrize("kind", ["int8", "int4", "int4-32"])
def test_activations_are_rounded_alike_in_a_step_of_any_size(kind: str) -> None:
    """Beside one of 30,000, which is multiplied by zeros, those around 1 lose nearly all of their bits."""
    matrix = drawn(64, 512) / 512**0.5
    matrix[:, 0] = 0
    weight, _ = stored_as(kind, matrix)
    x = drawn(40, 512, seed=1)
    x[:, 0] = 3e4
    x = x.to(torch.bfloat16)
    alone = native.linear(x[:1], weight)
    exact = x[:1].float() @ stored_as(kind, matrix)[1].T
    assert float((alone - exact).abs().max()) > 0.02 * float(exact.abs().max())  # they are rounded
    for count in (2, 3, 16, 17, 32, 33, 40):
        assert_near(native.linear(x[:count], weight)[:1], alone, TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [0, 1, 3, 4])  # gf_kind
def test_what_linears_multiply_by_is_an_instruction_that_can_be_timed(
    kind: int, dtype: torch.dtype
) -> None:
    names = native.LIBRARY.gf_multiply_instructions().split()
    for tokens in (1, 2, 16, 40):
        name = native.LIBRARY.gf_instruction_for(kind, tokens, DTYPES.index(dtype))
        assert name in names
        once, twice = (native.LIBRARY.gf_multiply_add(name, rounds) for rounds in (1, 2))
        assert 0 < once < twice == 2 * once
    assert native.LIBRARY.gf_multiply_add(b"mul", 1) == 0


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_nan_stays_nan(tokens: int, activation: str | None) -> None:
    x, weight = drawn(tokens, 70), drawn(33, 70, seed=1)
    x[0, 69] = float("nan")
    ours = native.linear(x, weight, None, activation)
    assert ours[0].isnan().all()
    assert ours[1:].isfinite().all()


@pytest.mark.parametrize(
    ("tokens", "count", "hidden", "dtype"), pairwise([1, 19], [1, 2], [5, 64, 71, 2048], DTYPES)
)
def test_norms_equal_their_definition(
    tokens: int, count: int, hidden: int, dtype: torch.dtype
) -> None:
    x, part = (drawn(tokens, hidden, seed=seed).to(dtype) + 3 for seed in (0, 1))
    norms = [
        (drawn(hidden, seed=2 + i).to(dtype), drawn(hidden, seed=4 + i).to(dtype))
        for i in range(count)
    ]
    for added in (None, part):
        total, normed = native.add_layer_norms(x, added, norms, 1e-5)
        exact_total, exact = reference.add_layer_norms(x, added, norms, 1e-5)
        assert torch.equal(total, exact_total)
        for one, other in zip(normed, exact, strict=True):
            assert_near(one, other, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("rotated", "heads", "dtype"),
    pairwise([True, False], [(1, 71, 64), (8, 16, 64), (4, 1, 20), (2, 3, 8)], DTYPES),
)
def test_rotary_and_cache_equals_its_definition(
    rotated: bool, heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    kv_heads, group, dim = heads
    tokens = 11
    qkv = drawn(tokens, kv_heads * (group + 2) * dim).to(dtype)
    angle = drawn(tokens, dim // 2, seed=1)
    angles = (angle.cos(), angle.sin()) if rotated else None
    slots = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:tokens]
    caches = [
        LayerCache(*(torch.zeros(10, 4, kv_heads, dim, dtype=dtype) for _ in "kv")) for _ in "ab"
    ]
    ours = native.rotary_and_cache(qkv, angles, caches[0], slots)
    exact = reference.rotary_and_cache(qkv, angles, caches[1], slots)
    assert_near(ours, exact, TOLERANCES[dtype])
    assert_near(caches[0].k, caches[1].k, TOLERANCES[dtype])
    assert torch.equal(caches[0].v, caches[1].v)


def attending(
    lengths: list[int], contexts: list[int], heads: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, LayerCache, AttentionMetadata]:
    """Sequences of these new and whole lengths, their blocks mixed, numbers of others in between."""
    kv_heads, group, dim = heads
    block_size = 16
    sizes = [-(-context // block_size) for context in contexts]
    order = torch.randperm(sum(sizes) + 3, generator=torch.Generator().manual_seed(1))
    tables = torch.zeros(len(contexts), max(sizes), dtype=torch.int64)
    for row, (size, start) in enumerate(zip(sizes, accumulate([0, *sizes]), strict=False)):
        tables[row, :size] = order[start : start + size]
    k, v = (
        drawn(len(order), block_size, kv_heads, dim, seed=2 + i).to(dtype) * (2 - i) for i in (0, 1)
    )
    q = drawn(sum(lengths), kv_heads * group, dim, seed=4).to(dtype)
    batch = AttentionMetadata(
        query_lens=tuple(lengths),
        context_lens=tuple(contexts),
        block_tables=tables,
        starts=torch.tensor([0, *accumulate(lengths)]),
        contexts=torch.tensor(contexts),
    )
    return q, LayerCache(k, v), batch


HEADS = ((1, 71, 64), (2, 16, 64), (2, 29, 64), (4, 1, 64), (1, 3, 20), (2, 2, 128))
SEQUENCES = (  # new tokens and whole lengths
    ([1], [1]),
    ([1], [1000]),
    ([1, 1, 1], [16, 17, 300]),
    ([1] * 9, [70] * 9),
    ([40], [40]),
    ([7, 130, 1], [200, 130, 33]),
)


@pytest.mark.parametrize(
    ("sequences", "heads", "scores"),
    pairwise(SEQUENCES, HEADS, list(product([False, True], DTYPES))),
)
def test_attention_equals_its_definition(
    sequences: tuple[list[int], list[int]],
    heads: tuple[int, int, int],
    scores: tuple[bool, torch.dtype],
) -> None:
    """Each group of heads with each kind of batch, and both with each dtype, with and without ALiBi."""
    alibi, dtype = scores
    q, cache, batch = attending(*sequences, heads, dtype)
    slopes = drawn(heads[0] * heads[1], seed=5).abs() / 8 if alibi else None
    exact = reference.attention(
        q.float(), LayerCache(cache.k.float(), cache.v.float()), batch, slopes
    )
    ours = native.attention(q, cache, batch, slopes)
    assert ours.dtype == dtype
    assert_near(ours, exact, max(TOLERANCES[dtype], 1e-5))


def test_attention_reads_no_key_that_its_query_does_not_see() -> None:
    q, cache, batch = attending([5], [21], (2, 3, 64), torch.float32)
    seen = native.attention(q, cache, batch, None)
    last = int(batch.block_tables[0, 1])
    cache.k[last, 5:] = float("nan")  # beyond the context
    cache.v[last, 5:] = float("nan")
    assert torch.equal(native.attention(q, cache, batch, None), seen)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [4, 16, 71])
def test_attention_of_a_token_is_the_same_alone_and_among_others(
    group: int, dtype: torch.dtype
) -> None:
    """Bit for bit, whatever its place among the queries that are multiplied together."""
    q, cache, batch = attending([17, 1], [150, 70], (8, group, 64), dtype)
    together = native.attention(q, cache, batch, None)
    for token, (sequence, context) in enumerate([*((0, 134 + i) for i in range(17)), (1, 70)]):
        one = AttentionMetadata(
            query_lens=(1,),
            context_lens=(context,),
            block_tables=batch.block_tables[sequence : sequence + 1],
            starts=torch.tensor([0, 1]),
            contexts=torch.tensor([context]),
        )
        alone = native.attention(q[token : token + 1], cache, one, None)
        assert torch.equal(alone, together[token : token + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("context", [60, 130, 600])
def test_attention_propagates_nan(context: int, group: int, dtype: torch.dtype) -> None:
    q, cache, batch = attending([1], [context], (2, group, 64), dtype)
    cache.k[batch.block_tables[0, :4]] = float("nan")  # all keys that are looked at together
    assert native.attention(q, cache, batch, None).isnan().all()


def test_fp8_is_left_to_the_reference() -> None:
    x, weight = drawn(3, 64).bfloat16(), quantise(drawn(10, 64, seed=1), "fp8")
    assert torch.equal(native.linear(x, weight), reference.linear(x, weight))
