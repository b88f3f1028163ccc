"""Each operation on Ascend cards equals its definition: in the layouts and with the fall-backs of other
versions of torch_npu and CANN, and within the limits that their documents state.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import npu_kernels as kernels
import pytest
import torch
from npu_emulation import EmulatedNpu, admit_float32, fake_torch_npu
from npu_kernels import CALLS, Refused
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.device.npu_graphs import GraphTasks
from gyrfalcon.errors import UsageError
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference
from gyrfalcon.ops.npu import features
from gyrfalcon.ops.npu.attention import Kernel, Step
from gyrfalcon.ops.npu.choice import ALIBI_VARIABLE, VARIABLE, Choice, plain
from gyrfalcon.ops.npu.ops import NpuOps
from gyrfalcon.quant import Quantised, quantise

pytest_plugins = ["npu_fixtures"]

pytestmark = pytest.mark.usefixtures("emulated")

CPU = torch.device("cpu")
# Heads, KV heads and their size: those of 40b on one rank, of 7b on one and on four, more than 64 for two.
HEADS = [(16, 1, 64), (71, 1, 64), (18, 1, 64), (130, 2, 64), (6, 3, 128)]
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 2e-3}


def ops_of(**options: object) -> NpuOps:
    return NpuOps(fake_torch_npu(**options), EmulatedNpu.at(0))  # type: ignore[arg-type]


def step(
    heads: tuple[int, int, int],
    lens: Sequence[int],
    contexts: Sequence[int],
    dtype: torch.dtype = torch.bfloat16,
    block_size: int = 128,
) -> tuple[Tensor, LayerCache, AttentionMetadata]:
    """Random queries over pages that lie in any order; memory of no token is NaN."""
    num_heads, kv_heads, dim = heads
    draw = torch.Generator().manual_seed(sum(contexts))
    counts = [-(-context // block_size) for context in contexts]
    order = (torch.randperm(sum(counts), generator=draw) + 1).tolist()
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int64)
    pages = torch.full((sum(counts) + 1, block_size, kv_heads, dim), torch.nan, dtype=dtype)
    cache = LayerCache(pages, pages.clone())
    for row, (count, context) in enumerate(zip(counts, contexts, strict=True)):
        for place in range(count):
            tables[row, place] = page = order.pop()
            filled = min(block_size, context - place * block_size)
            for tensor in (cache.k, cache.v):
                tensor[page, :filled] = torch.randn(filled, kv_heads, dim, generator=draw)
    batch = AttentionMetadata(
        query_lens=tuple(lens),
        context_lens=tuple(contexts),
        block_tables=tables,
        starts=torch.tensor([0, *accumulate(lens)]),
        contexts=torch.tensor(contexts),
    )
    q = torch.randn(sum(lens), num_heads, dim, generator=draw).to(dtype)
    return q, cache, batch


def defined(
    q: Tensor, cache: LayerCache, batch: AttentionMetadata, slopes: Tensor | None = None
) -> Tensor:
    exact = LayerCache(cache.k.float(), cache.v.float())
    return reference.attention(q.float(), exact, batch, slopes).view(q.shape)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    error = (found.float() - wanted).abs().max() / wanted.abs().max()
    assert error <= TOLERANCES[found.dtype]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("layout", ["packed", "by_sequence"])
@pytest.mark.parametrize(
    ("lens", "contexts"), [((1, 1), (5, 300)), ((9, 1, 140, 1), (9, 129, 200, 256))]
)
def test_attention_equals_its_definition(
    heads: tuple[int, int, int], layout: str, lens: tuple[int, ...], contexts: tuple[int, ...]
) -> None:
    q, cache, batch = step(heads, lens, contexts)
    attend = getattr(Kernel(fake_torch_npu(), CPU, GraphTasks()), layout)
    assert_near(attend(q, cache, Step.of(batch), None), defined(q, cache, batch))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("heads", [(8, 8, 64), (71, 1, 64), (130, 2, 64)])
@pytest.mark.parametrize(("lens", "contexts"), [((9, 1), (200, 131)), ((1, 1), (300, 5))])
def test_alibi_as_a_bias_equals_its_definition(
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lens: tuple[int, int],
    contexts: tuple[int, int],
) -> None:
    kernels.MACHINE.bias_on_pages = True
    q, cache, batch = step(heads, lens, contexts, dtype)
    slopes = torch.linspace(0.05, 0.7, heads[0])
    found = Kernel(fake_torch_npu(), CPU, GraphTasks()).by_sequence(
        q, cache, Step.of(batch), slopes
    )
    assert_near(found, defined(q, cache, batch, slopes))


@pytest.mark.parametrize(
    ("packed_dims", "chosen"), [((64, 128, 192), "TND"), ((128, 192), "BSH"), ((), "BSH")]
)
def test_the_first_layout_that_the_cann_takes_is_chosen(
    packed_dims: tuple[int, ...], chosen: str
) -> None:
    kernels.MACHINE.packed_dims = packed_dims
    q, cache, batch = step((16, 1, 64), (1, 1), (5, 300))
    ops = ops_of()
    ops.attention(q, cache, batch, None)
    CALLS.clear()
    found = ops.attention(q, cache, batch, None)
    assert [f"npu_fused_infer_attention_score {chosen}"] == CALLS
    assert_near(found.view(q.shape), defined(q, cache, batch))


def test_an_operator_that_is_off_is_not_chosen() -> None:
    attend = fake_torch_npu().npu_fused_infer_attention_score
    module = SimpleNamespace(
        npu_fused_infer_attention_score=lambda *a, **named: attend(*a, **{**named, "scale": 1})
    )
    q, cache, _ = step((16, 1, 64), (1,), (5,))
    assert Choice(Kernel(module, CPU, GraphTasks()), {}).of(q, cache, None) is plain


class Late:
    """A tensor of a card whose kernel has failed: that is told when its values are fetched."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def float(self) -> "Late":
        return self

    def cpu(self) -> Tensor:
        raise self._error


@pytest.mark.parametrize("error", [RuntimeError("no tiling"), OSError("no libopapi.so")])
def test_an_operator_that_fails_on_the_card_is_not_chosen(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    kernel = Kernel(fake_torch_npu(), CPU, GraphTasks())
    monkeypatch.setattr(kernel, "packed", lambda *_: Late(error))
    q, cache, _ = step((16, 1, 64), (1,), (5,))
    assert Choice(kernel, {}).of(q, cache, None) == kernel.by_sequence
    assert f"bsh (tnd: {error})" in caplog.text


def test_what_no_layout_takes_goes_by_the_definition() -> None:
    q, cache, batch = step((16, 1, 64), (1, 3), (5, 131), torch.float32)
    ops = ops_of()
    ops.attention(q, cache, batch, None)
    CALLS.clear()
    assert ops.attention(q, cache, batch, None).view(q.shape).equal(defined(q, cache, batch))
    assert CALLS == []


@pytest.mark.parametrize("takes", [False, True])
def test_alibi_is_the_operator_s_bias_where_it_takes_one_beside_pages(takes: bool) -> None:
    kernels.MACHINE.bias_on_pages = takes
    q, cache, _ = step((8, 8, 64), (1,), (200,))
    attend = Choice(Kernel(fake_torch_npu(), CPU, GraphTasks()), {}).of(q, cache, torch.ones(8))
    assert (attend is plain) is not takes


@pytest.mark.parametrize("variable", [VARIABLE, ALIBI_VARIABLE])
def test_the_environment_overrides_the_choice(variable: str) -> None:
    kernels.MACHINE.bias_on_pages = True
    q, cache, _ = step((8, 8, 64), (1,), (200,))
    slopes = torch.ones(8) if variable == ALIBI_VARIABLE else None
    kernel = Kernel(fake_torch_npu(), CPU, GraphTasks())
    assert Choice(kernel, {variable: "plain"}).of(q, cache, slopes) is plain
    assert Choice(kernel, {}).of(q, cache, slopes) is not plain
    with pytest.raises(UsageError, match=f"wanted {variable} .*plain, got 'fast'"):
        Choice(kernel, {variable: "fast"})


def test_an_older_torch_npu_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its operators take fewer arguments; where one is missing that is needed, another stands in."""
    monkeypatch.setattr(features, "_takes_cache_mode", lambda: False)
    old, new = (ops_of(version=version) for version in ("2.7.1", "2.13.0"))
    CALLS.clear()
    for one, other in zip(
        placed(old, (6, 2, 64), torch.bfloat16),
        placed(new, (6, 2, 64), torch.bfloat16),
        strict=True,
    ):
        assert one.equal(other)
    assert "_npu_reshape_and_cache" in CALLS
    q, cache, batch = step((71, 1, 64), (9, 1), (200, 131))
    assert old.attention(q, cache, batch, None).equal(new.attention(q, cache, batch, None))
    x, weight = torch.randn(3, 128).half(), quantise(torch.randn(32, 128), "int4")
    packed = old.prepack(weight)
    assert old.linear(x, packed, None, "gelu").equal(new.linear(x, packed, None, "gelu"))


def placed(ops: NpuOps, heads: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Rotated queries and a cache, by `ops` and by the definition."""
    num_heads, kv_heads, dim = heads
    draw = torch.Generator().manual_seed(dim)
    qkv = torch.randn(5, (num_heads + 2 * kv_heads) * dim, generator=draw).to(dtype)
    turns = torch.rand(5, dim // 2, generator=draw)
    angles = turns.cos(), turns.sin()
    slots = torch.tensor([130, 7, 0, 255, 12])
    results = []
    for place in (ops.rotary_and_cache, reference.rotary_and_cache):
        pages = torch.zeros(2, 128, kv_heads, dim, dtype=dtype)
        cache = LayerCache(pages, pages.clone())
        results += [place(qkv, angles, cache, slots), cache.k, cache.v]
    return tuple(results)


FALL_BACKS = [
    (),
    ("npu_scatter_pa_kv_cache",),
    ("npu_scatter_pa_kv_cache", "_npu_reshape_and_cache"),
    ("npu_apply_rotary_pos_emb",),
    ("npu_apply_rotary_pos_emb", "npu_rotary_mul"),
]


@pytest.mark.parametrize("without", FALL_BACKS)
@pytest.mark.parametrize("dim", [64, 80])
def test_rotating_and_caching_equal_their_definition(without: tuple[str, ...], dim: int) -> None:
    CALLS.clear()
    *found, k, v = placed(ops_of(without=without), (6, 2, dim), torch.bfloat16)
    q, cached_k, cached_v, wanted_q = found[0], found[1], found[2], found[3]
    for one, other in ((q, wanted_q), (cached_k, k), (cached_v, v)):
        torch.testing.assert_close(one.float(), other.float(), atol=0.04, rtol=0)
    assert v.equal(cached_v)
    expected = {
        "npu_scatter_pa_kv_cache": "npu_scatter_pa_kv_cache" not in without,
        "_npu_reshape_and_cache": without == FALL_BACKS[1],
        "npu_apply_rotary_pos_emb": dim == 64 and "npu_apply_rotary_pos_emb" not in without,
    }
    assert {name: name in CALLS for name in expected} == expected


@pytest.mark.parametrize("error", [OSError, RuntimeError, UnboundLocalError])
def test_a_cache_s_write_that_lacks_its_library_is_told_and_replaced(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """torch_npu names the operator of ATB where NNAL is not installed, and opens it at the first call."""

    def lacks_its_library(*_: object) -> None:
        raise error("libatb.so: cannot open\nshared object file")

    module = fake_torch_npu(without=("npu_scatter_pa_kv_cache",))
    module._npu_reshape_and_cache = lacks_its_library  # type: ignore[attr-defined]
    ops = NpuOps(module, EmulatedNpu.at(0))
    _, k, v, _, wanted_k, wanted_v = placed(ops, (6, 2, 64), torch.bfloat16)
    torch.testing.assert_close(k.float(), wanted_k.float(), atol=0.04, rtol=0)
    assert v.equal(wanted_v)
    [said] = [each.getMessage() for each in caplog.records if "NNAL" in each.getMessage()]
    assert "(libatb.so: cannot open shared object file); install CANN's NNAL" in said


@pytest.mark.parametrize("without", [(), ("npu_gelu",)])
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu", "silu"])
def test_activations_equal_their_definition(name: str, without: tuple[str, ...]) -> None:
    x = torch.linspace(-6, 6, 257, dtype=torch.float64)
    exact = {
        "gelu": x * torch.special.ndtr(x),
        "gelu_tanh": torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": x.relu(),
        "silu": x * x.sigmoid(),
    }
    ops = ops_of(without=without)
    found = ops.linear(x.float()[:, None], torch.ones(1, 1), None, name)[:, 0]
    torch.testing.assert_close(found.double(), exact[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("without", [(), ("npu_add_layer_norm",)])
def test_added_layer_norms_equal_their_definition(without: tuple[str, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    x, part, *rest = torch.randn(6, 5, 192, generator=draw).unbind()
    norms = [(one[0], one[1]) for one in rest[:2]]
    ops = ops_of(without=without)
    for added in (part, None):
        found = ops.add_layer_norms(x, added, norms, 1e-5)
        wanted = reference.add_layer_norms(x, added, norms, 1e-5)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["int8", "int4", "int4-32", "int4-128"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quantised_linears_equal_their_definition(kind: str, dtype: torch.dtype) -> None:
    admit_float32()
    draw = torch.Generator().manual_seed(0)
    weight = quantise(torch.randn(48, 256, generator=draw), kind)
    x, bias = torch.randn(5, 256, generator=draw).to(dtype), torch.randn(48, generator=draw)
    ops = ops_of()
    packed = ops.prepack(weight)
    assert packed.shape == weight.shape
    assert packed.num_bytes == weight.num_bytes
    CALLS.clear()
    found = ops.linear(x, packed, bias.to(dtype), "relu")
    wanted = reference.linear(x.float(), weight, bias.to(dtype).float(), "relu")
    assert CALLS == ["npu_weight_quant_batchmatmul"]
    assert found.dtype == dtype
    error = (found.float() - wanted).norm() / wanted.norm()
    assert error <= {torch.float32: 1e-5}.get(dtype, 5e-3)


@pytest.mark.parametrize(
    ("kind", "columns", "without"),
    [
        ("int4", 64, ()),  # one group is a whole row: groups have to be smaller
        ("int4", 128, ("npu_convert_weight_to_int4pack",)),
        ("int4", 128, ("npu_weight_quant_batchmatmul",)),
        ("int8", 128, ("npu_weight_quant_batchmatmul",)),
    ],
)
def test_a_matrix_that_the_operator_does_not_take_is_dequantised(
    kind: str, columns: int, without: tuple[str, ...]
) -> None:
    weight = quantise(torch.randn(32, columns), kind)
    x, ops = torch.randn(3, columns), ops_of(without=without)
    found = ops.linear(x, ops.prepack(weight))
    torch.testing.assert_close(found, reference.linear(x, weight))


def test_quantised_scales_are_converted_once() -> None:
    weight, x, ops = quantise(torch.randn(16, 128), "int8"), torch.ones(1, 128).half(), ops_of()
    first = ops.linear(x, weight)
    weight.scales.zero_()
    assert ops.linear(x, weight).equal(first)
    other = Quantised(weight.kind, weight.data, weight.scales.clone())
    assert not ops.linear(x, other).any()


def test_a_step_s_numbers_are_not_kept_for_the_next() -> None:
    q, cache, batch = step((16, 1, 64), (1, 1), (5, 300))
    ops = ops_of()
    ops.attention(q, cache, batch, None)
    later = replace(batch, context_lens=(4, 299), contexts=batch.contexts - 1)
    assert_near(ops.attention(q, cache, later, None).view(q.shape), defined(q, cache, later))


LIMITS: dict[str, dict[str, object]] = {
    "at most 64 heads": dict(num_heads=72),
    "one dtype": dict(query=torch.zeros(2, 36, 64).half()),
    "layout TND, BSH or BNSD": dict(input_layout="XYZ"),
    "block_size 128": dict(
        key=torch.zeros(9, 16, 64).bfloat16(),
        value=torch.zeros(9, 16, 64).bfloat16(),
        block_size=16,
    ),
    "block_table in int32": dict(block_table=torch.zeros(2, 1, dtype=torch.int64)),
    "as a list on the host": dict(actual_seq_lengths_kv=torch.ones(2, dtype=torch.int64)),
    "ends that rise": dict(actual_seq_lengths=[1, 3]),
    "the mask": dict(atten_mask=torch.zeros(2, 2, dtype=torch.bool)),
    "1 above the diagonal": dict(atten_mask=torch.ones(2048, 2048, dtype=torch.bool).tril()),
    "no pse_shift with TND": dict(pse_shift=torch.zeros(1, 36, 1, 128).bfloat16()),
    "query must be contiguous": dict(query=torch.zeros(2, 64, 36).bfloat16().transpose(1, 2)),
    "lengths from 1 to 128": dict(actual_seq_lengths_kv=[1, 129]),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_the_emulated_attention_refuses_what_is_documented(limit: str) -> None:
    pages = torch.zeros(2, 128, 64).bfloat16()
    named: dict[str, object] = dict(
        query=torch.zeros(2, 36, 64).bfloat16(),
        key=pages,
        value=pages,
        num_heads=36,
        num_key_value_heads=1,
        input_layout="TND",
        block_size=128,
        block_table=torch.zeros(2, 1, dtype=torch.int32),
        actual_seq_lengths=[1, 2],
        actual_seq_lengths_kv=[1, 128],
        sparse_mode=3,
        atten_mask=torch.ones(2048, 2048, dtype=torch.bool).triu(1),
    )
    attend = fake_torch_npu().npu_fused_infer_attention_score
    attend(**named)
    if limit == "at most 64 heads":
        named["query"] = torch.zeros(2, 72, 64).bfloat16()
    with pytest.raises(Refused, match=limit):
        attend(**{**named, **LIMITS[limit]})


def test_the_emulated_cache_refuses_what_is_documented() -> None:
    write = fake_torch_npu().npu_scatter_pa_kv_cache
    pages, k = torch.zeros(2, 128, 1, 64).half(), torch.ones(2, 1, 64).half()
    write(k, k, pages, pages.clone(), torch.tensor([3, 200]), cache_mode="Norm")
    assert pages.sum() == 128
    for slots, mode, limit in (
        ([3, 200], "PA_NZ", "cache_mode Norm"),
        ([3, 3], "Norm", "slots that differ"),
        ([3, -1], "Norm", "slots from 0"),
    ):
        with pytest.raises(Refused, match=limit):
            write(k, k, pages, pages.clone(), torch.tensor(slots), cache_mode=mode)


def test_a_keyword_of_another_version_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected"):
        fake_torch_npu().npu_gelu(torch.zeros(1), approximation="none")
