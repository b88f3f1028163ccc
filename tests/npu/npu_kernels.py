"""CPU kernels under the names of torch_npu's operators, with their schemas and with the limits that its
documents state, so that everything that calls them runs, and is checked, without a card.

They know nothing of gyrfalcon. Where a document and a card disagree, the card is right: these only say that
what we call is what is documented.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SCHEMAS = Path(__file__).parent / "schemas"
NEWEST = "2.13.0"
HALVES = (torch.float16, torch.bfloat16)
MASK = 2048
PACKED_WORD = 8  # int4 in an int32


class Refused(RuntimeError):
    """What a card would not take, as CANN raises it."""


@dataclass
class Machine:
    """What the emulated CANN takes; tests set it."""

    dtypes: tuple[torch.dtype, ...] = HALVES
    packed_dims: tuple[int, ...] = (64, 128, 192)  # of a head, in layout TND; before CANN 8.3 no 64
    bias_on_pages: bool = False  # pse_shift beside a block table


MACHINE = Machine()
CALLS: list[str] = []  # names of the operators called, for tests


def schemas(version: str = NEWEST) -> dict[str, str]:
    """Name → schema of the operators in one version of torch_npu, without their namespace."""
    lines = (SCHEMAS / f"{version}.txt").read_text("utf-8").splitlines()
    return {line.partition("(")[0].partition("::")[2]: line for line in lines}


@cache
def install() -> list[torch.library.Library]:
    """Defines the operators and registers the kernels, once for the process."""
    libraries = {name: torch.library.Library(name, "FRAGMENT") for name in ("npu", "atb")}
    for name, schema in schemas().items():
        library = libraries[schema.partition("::")[0]]
        library.define(schema.partition("::")[2])
        library.impl(name, KERNELS[name], "CPU")
    return list(libraries.values())


def require(holds: bool, limit: str, found: object = "") -> None:
    """Refused with the limit that does not hold."""
    if not holds:
        raise Refused(f"{limit}, got {found}" if found != "" else limit)


def _require_plain(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        require(tensor is None or tensor.is_contiguous(), f"{name} must be contiguous")


def fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    pse_shift: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    block_size: int = 0,
    **others: object,
) -> tuple[Tensor, Tensor]:
    """Attention over pages, in the layouts TND, BSH and BNSD."""
    CALLS.append(f"npu_fused_infer_attention_score {input_layout}")
    require(not any(others.values()), "no other options are emulated", others)
    kv_heads = num_key_value_heads or num_heads
    _require_plain(query=query, key=key, value=value, atten_mask=atten_mask, pse_shift=pse_shift)
    require(query.dtype in MACHINE.dtypes, "query in float16 or bfloat16", query.dtype)
    require(key.dtype == value.dtype == query.dtype, "one dtype of query, key and value", key.dtype)
    require(key.shape == value.shape, "one shape of key and value", value.shape)
    require(num_heads % kv_heads == 0, "whole groups of heads", (num_heads, kv_heads))
    require(num_heads // kv_heads <= 64, "at most 64 heads a KV head", num_heads / kv_heads)
    require(max(num_heads, kv_heads) <= 256, "at most 256 heads", num_heads)
    require(block_table is not None, "pages: others are not emulated")
    assert block_table is not None
    require(key.dim() == 3, "pages [blocks, block_size, kv_heads × dim]", key.shape)
    require(key.shape[1] == block_size, "pages of block_size tokens", (key.shape, block_size))
    require(key.shape[2] <= 65535 and key.numel() < 2**31, "a smaller cache", key.shape)
    dim = key.shape[2] // kv_heads
    require(dim * kv_heads == key.shape[2], "whole heads in a page", key.shape)
    require(dim * query.element_size() % 16 == 0 and dim <= 512, "dim of 16 bytes each", dim)
    queries, lens = _queries(query, input_layout, actual_seq_lengths, num_heads, dim)
    _check_pages(block_table, block_size, len(lens), max(lens), input_layout)
    contexts = _contexts(actual_seq_lengths_kv, len(lens), block_table.shape[1] * block_size)
    causal = _is_causal(sparse_mode, atten_mask, max(lens), input_layout)
    _check_bias(pse_shift, query, input_layout, block_table, block_size, dim)
    outputs, start = [], 0
    for number, (length, context) in enumerate(zip(lens, contexts, strict=True)):
        pages = block_table[number].long()
        k, v = (
            one.view(len(one), block_size, kv_heads, dim)[pages].flatten(0, 1)[:context]
            for one in (key, value)
        )
        bias = None
        if pse_shift is not None:
            bias = pse_shift[number % len(pse_shift), :, :length, :context].float()
        outputs.append(_attend(queries[start : start + length], k, v, scale, causal, bias))
        start += length
    out = torch.cat(outputs).to(query.dtype)
    if input_layout == "BNSD":
        out = out.view(len(lens), -1, num_heads, dim).transpose(1, 2).contiguous()
    return out.view(query.shape), torch.zeros(1)


def fused_infer_attention_score_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    workspace: Tensor | None = None,
    out: Sequence[Tensor],
    **named: object,
) -> tuple[Tensor, Tensor]:
    """The same into tensors that are there."""
    require(workspace is not None, "a workspace, which a graph may not allocate")
    assert workspace is not None
    attention, lse = fused_infer_attention_score(query, key, value, **named)  # type: ignore[arg-type]
    needed = workspace_size(query, named["actual_seq_lengths_kv"])  # type: ignore[arg-type]
    require(len(workspace) >= needed, "a workspace for these lengths", (len(workspace), needed))
    require(out[0].shape == attention.shape and out[0].dtype == attention.dtype, "query's shape")
    out[0].copy_(attention)
    out[1].copy_(lse)
    return out[0], out[1]


def max_workspace(query: Tensor, key: Tensor, value: Tensor, **named: object) -> Tensor:
    """The memory that the attention works in, with these lengths."""
    CALLS.append("_npu_fused_infer_attention_score_get_max_workspace")
    return torch.empty(workspace_size(query, named["actual_seq_lengths_kv"]), dtype=torch.uint8)  # type: ignore[arg-type]


def workspace_size(query: Tensor, lengths: Sequence[int]) -> int:
    """Of this emulation: it grows with the tokens, as a card's may."""
    return query.numel() + sum(lengths)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> Tensor:
    """One sequence's heads [queries, heads, dim], in float32."""
    group = q.shape[1] // k.shape[1]
    k, v = (one.float().repeat_interleave(group, dim=1) for one in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        later = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)
        scores = scores.masked_fill(later, -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def _queries(
    query: Tensor, layout: str, ends: Sequence[int] | None, num_heads: int, dim: int
) -> tuple[Tensor, list[int]]:
    """[tokens, heads, dim] of all sequences, and how many each has."""
    if layout == "TND":
        require(query.shape[1:] == (num_heads, dim), "query [tokens, heads, dim]", query.shape)
        require(dim in MACHINE.packed_dims, f"TND with dim {MACHINE.packed_dims}", dim)
        require(ends is not None, "actual_seq_lengths with TND")
        assert ends is not None
        require(len(ends) <= 4096, "at most 4096 sequences in TND", len(ends))
        lens = [end - start for start, end in zip((0, *ends), ends, strict=False)]
        require(min(lens) >= 1 and ends[-1] == len(query), "ends that rise to the last token", ends)
        return query, lens
    if layout == "BSH":
        require(query.dim() == 3, "query [sequences, queries, heads × dim]", query.shape)
        require(query.shape[2] == num_heads * dim, "heads × dim in query", query.shape)
        return query.view(-1, num_heads, dim), [query.shape[1]] * len(query)
    require(layout == "BNSD", "layout TND, BSH or BNSD", layout)
    require(query.dim() == 4, "query [sequences, heads, queries, dim]", query.shape)
    require(query.shape[1] == num_heads, "query's heads", query.shape)
    return query.transpose(1, 2).flatten(0, 1), [query.shape[2]] * len(query)


def _check_pages(table: Tensor, size: int, sequences: int, longest: int, layout: str) -> None:
    require(table.dtype == torch.int32, "block_table in int32", table.dtype)
    require(table.dim() == 2 and len(table) == sequences, "a table a sequence", table.shape)
    _require_plain(block_table=table)
    if longest > 1 or layout == "TND":
        require(size in (128, 256, 384, 512), "block_size 128, 256, 384 or 512", size)
    require(size % 16 == 0 and 0 < size <= 512, "block_size a multiple of 16 up to 512", size)


def _contexts(contexts: Sequence[int] | None, sequences: int, most: int) -> list[int]:
    require(contexts is not None, "actual_seq_lengths_kv with pages")
    assert contexts is not None
    require(len(contexts) == sequences, "a length a sequence", len(contexts))
    require(all(1 <= n <= most for n in contexts), f"lengths from 1 to {most}", contexts)
    return list(contexts)


def _is_causal(mode: int, mask: Tensor | None, longest: int, layout: str) -> bool:
    if longest == 1 and layout != "TND":
        return False  # sparse_mode is ignored; all keys are before the query
    require(mode in (0, 3), "sparse_mode 0 or 3: others are not emulated", mode)
    if mode == 0:
        require(mask is None, "no mask with sparse_mode 0: others are not emulated")
        return False
    require(mask is not None and mask.shape[-2:] == (MASK, MASK), "the mask [2048, 2048]")
    assert mask is not None
    require(mask.dtype in (torch.bool, torch.int8, torch.uint8), "a mask of 1 byte", mask.dtype)
    corner = mask.view(MASK, MASK)[-8:, -8:].bool()
    require(corner.equal(torch.ones(8, 8, dtype=torch.bool).triu(1)), "1 above the diagonal alone")
    return True


def _check_bias(
    bias: Tensor | None, query: Tensor, layout: str, table: Tensor, size: int, dim: int
) -> None:
    if bias is None:
        return
    require(layout != "TND", "no pse_shift with TND")
    require(MACHINE.bias_on_pages, "no pse_shift with a block table")
    require(bias.dtype == query.dtype, "pse_shift in query's dtype", bias.dtype)
    require(dim % 16 == 0, "a dim of 16 each with pse_shift", dim)
    require(bias.shape[-1] >= table.shape[1] * size, "pse_shift for all pages", bias.shape)


def scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    cache_mode: str = "PA_NZ",
    **others: object,
) -> None:
    """Keys and values [tokens, kv_heads, dim] to their slots."""
    CALLS.append("npu_scatter_pa_kv_cache")
    require(not any(one is not None for one in others.values()), "no compression", others)
    require(cache_mode == "Norm", "cache_mode Norm for pages [.., kv_heads, dim]", cache_mode)
    require(slot_mapping.dtype in (torch.int32, torch.int64), "slots in int32 or int64")
    _write(key, value, key_cache, value_cache, slot_mapping)


def reshape_and_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor
) -> None:
    """The same by ATB."""
    CALLS.append("_npu_reshape_and_cache")
    require(slot_indices.dtype == torch.int32, "slots in int32", slot_indices.dtype)
    require(key.dtype in HALVES, "float16 or bfloat16", key.dtype)
    _write(key, value, key_cache, value_cache, slot_indices)


def _write(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    _require_plain(key=key, value=value, key_cache=keys, value_cache=values, slots=slots)
    require(keys.dim() == 4, "pages [blocks, block_size, kv_heads, dim]", keys.shape)
    require(key.shape[1:] == keys.shape[2:], "heads of the pages", (key.shape, keys.shape))
    require(len({one.dtype for one in (key, value, keys, values)}) == 1, "one dtype", key.dtype)
    places = slots.long()
    require(len(places.unique()) == len(places), "slots that differ", slots.tolist())
    last = keys.shape[0] * keys.shape[1] - 1
    require(bool(((places >= 0) & (places <= last)).all()), f"slots from 0 to {last}", slots)
    keys.view(-1, *key.shape[1:])[places] = key
    values.view(-1, *value.shape[1:])[places] = value


def apply_rotary_pos_emb(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str = "BSND",
    rotary_mode: str = "half",
) -> tuple[Tensor, Tensor]:
    """Rotates both, in place."""
    CALLS.append("npu_apply_rotary_pos_emb")
    require(layout in ("BSND", "TND"), "layout BSND or TND", layout)
    require(rotary_mode == "half", "rotary_mode half", rotary_mode)
    require(query.dim() == key.dim() == (4 if layout == "BSND" else 3), layout, query.shape)
    require(query.shape[-1] in (64, 128), "dim 64 or 128", query.shape)
    _require_plain(query=query, key=key, cos=cos, sin=sin)
    for one in (query, key):
        require(cos.dtype == sin.dtype == one.dtype, "one dtype of x, cos and sin", cos.dtype)
        wanted = (*one.shape[:-2], 1, one.shape[-1])
        require(cos.shape == sin.shape == wanted, f"cos and sin {wanted}", cos.shape)
        one.copy_(_rotated(one, cos, sin))
    return query, key


def rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    """x × cos + rotated x × sin."""
    CALLS.append("npu_rotary_mul")
    require(rotary_mode == "half" and rotate is None, "rotary_mode half", rotary_mode)
    require(input.dim() == 4, "[1, tokens, heads, dim]", input.shape)
    batch, tokens, heads, dim = input.shape
    require(batch < 1000 and heads < 1000, "fewer than 1000 sequences and heads", input.shape)
    require(dim < 896 and dim % 2 == 0, "an even dim below 896", dim)
    require(
        r1.shape == r2.shape == (1, tokens, 1, dim), "cos and sin [1, tokens, 1, dim]", r1.shape
    )
    require(r1.dtype == r2.dtype == input.dtype, "one dtype of x, cos and sin", r1.dtype)
    return _rotated(input, r1, r2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x.float() * cos.float() + turned * sin.float()).to(x.dtype)


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """By erf, or by tanh."""
    CALLS.append("npu_gelu")
    require(approximate in ("none", "tanh"), "approximate none or tanh", approximate)
    require(input.dtype in (*HALVES, torch.float32), "floating point", input.dtype)
    return torch.nn.functional.gelu(input.float(), approximate=approximate).to(input.dtype)


def fast_gelu(input: Tensor) -> Tensor:
    """x × sigmoid(1.702 x)."""
    CALLS.append("npu_fast_gelu")
    return input * torch.sigmoid(1.702 * input)


def add_layer_norm(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float = 1e-5,
    additional_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The normalised sum, its mean and 1 / deviation, and the sum where it is asked for."""
    CALLS.append("npu_add_layer_norm")
    require(x1.shape == x2.shape, "one shape", x2.shape)
    require(x1.dtype == x2.dtype == gamma.dtype == beta.dtype, "one dtype", x2.dtype)
    require(gamma.shape == beta.shape == x1.shape[-1:], "weights of the last axis", gamma.shape)
    total = x1.float() + x2.float()
    mean = total.mean(-1, keepdim=True)
    deviation = (total.var(-1, keepdim=True, correction=0) + epsilon).rsqrt()
    y = ((total - mean) * deviation * gamma.float() + beta.float()).to(x1.dtype)
    kept = total.to(x1.dtype) if additional_output else torch.full_like(x1, math.nan)
    return y, mean, deviation, kept


def weight_quant_batchmatmul(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,
) -> Tensor:
    """x × (weight × scale) + bias, with weight [in, out] in int8, or int4 as convert_weight_to_int4pack
    packs it.
    """
    CALLS.append("npu_weight_quant_batchmatmul")
    require(
        all(one is None for one in (antiquant_offset, quant_scale, quant_offset, weight_dtype))
        and inner_precise == 0,
        "symmetric weights, an output that is not quantised, and high precision",
    )
    require(x.dtype in MACHINE.dtypes and x.dim() == 2, "x [tokens, in] in a half", x.dtype)
    require(x.numel() > 0, "a token or more")
    require(antiquant_scale.dtype == x.dtype, "scales in x's dtype", antiquant_scale.dtype)
    require(weight.dtype in (torch.int8, torch.int32), "weights int8 or int32", weight.dtype)
    if weight.dtype == torch.int32:
        _require_plain(weight=weight)
        weight = unpacked(weight)
    inputs, outputs = weight.shape
    require(x.shape[1] == inputs, "x's width", (x.shape, weight.shape))
    require(max(inputs, outputs) <= 65535, "sides up to 65535", weight.shape)
    scales = antiquant_scale
    if antiquant_group_size:
        size = antiquant_group_size
        require(size % 32 == 0 and 32 <= size <= inputs - 1, "groups of 32 to in − 1", size)
        require(scales.shape == (-(-inputs // size), outputs), "scales [groups, out]", scales.shape)
        scales = scales.repeat_interleave(size, dim=0)[:inputs]
    else:
        require(scales.shape in ((outputs,), (1, outputs)), "a scale a column", scales.shape)
    wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    require(bias is None or bias.dtype == wide, f"a bias in {wide}", bias is None or bias.dtype)
    product = x.float() @ (weight.float() * scales.float()).to(x.dtype).float()
    return (product if bias is None else product + bias.float()).to(x.dtype)


def convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """Eight whole numbers −8 … 7 of a row in an int32. A card's own order is another, and nobody else's."""
    CALLS.append("npu_convert_weight_to_int4pack")
    require(weight.dtype == torch.int32 and weight.dim() == 2, "int32 [in, out]", weight.dtype)
    require(weight.shape[1] % PACKED_WORD == 0, "a multiple of 8 columns", weight.shape)
    require(bool(((weight >= -8) & (weight <= 7)).all()), "numbers from −8 to 7")
    _require_plain(weight=weight)
    nibbles = (weight & 15).view(len(weight), -1, PACKED_WORD).long()
    shifts = torch.arange(PACKED_WORD) * 4
    words = (nibbles << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpacked(words: Tensor) -> Tensor:
    """What convert_weight_to_int4pack packed."""
    nibbles = (words.long()[..., None] >> (torch.arange(PACKED_WORD) * 4)) & 15
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(1)


KERNELS: dict[str, Callable[..., object]] = {
    "npu_fused_infer_attention_score": fused_infer_attention_score,
    "npu_fused_infer_attention_score.out": fused_infer_attention_score_out,
    "_npu_fused_infer_attention_score_get_max_workspace": max_workspace,
    "npu_scatter_pa_kv_cache": scatter_pa_kv_cache,
    "npu_apply_rotary_pos_emb": apply_rotary_pos_emb,
    "npu_rotary_mul": rotary_mul,
    "npu_gelu": gelu,
    "npu_fast_gelu": fast_gelu,
    "npu_add_layer_norm": add_layer_norm,
    "npu_weight_quant_batchmatmul": weight_quant_batchmatmul,
    "npu_convert_weight_to_int4pack": convert_weight_to_int4pack,
    "_npu_reshape_and_cache": reshape_and_cache,
}
