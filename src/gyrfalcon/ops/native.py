"""The operations on CPUs by native kernels: those that ops/reference.py defines. What the kernels do not
support falls back to the reference.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER

import numpy as np
import torch
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata, Batch
from gyrfalcon.errors import UsageError
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.native.library import (
    KINDS,
    Block,
    Cache,
    Draw,
    Matrix,
    Norm,
    Output,
    Queries,
    RankGone,
    Rows,
    Term,
    library,
)
from gyrfalcon.ops import reference
from gyrfalcon.ops.reference import Angles, Attend, BlockWeights, LinearCall, RunBlocks
from gyrfalcon.ops.reference import prepack as prepack
from gyrfalcon.parallel.heartbeat import Heartbeat
from gyrfalcon.parallel.shared_memory import SharedMemory
from gyrfalcon.quant import GROUPS, Quantised, Weight
from gyrfalcon.request import RowDraw

CAPTURABLE = False
QUANTISED = ("int8", *GROUPS)  # kinds that have kernels; others are left to the reference

INT8, INT4 = 3, 4
RANK_GONE = -2  # of gf_run_blocks
ACTIVATIONS_VARIABLE = "GYRFALCON_ACTIVATIONS"
ACTIVATION_BITS = {"auto": 0, "int8": 8, "int16": 16}
ROW_DRAWS = np.dtype(Draw)
ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "silu": 4}  # gf_activation

_found = library()
if _found is None:
    raise ImportError("the native kernels are not built")
LIBRARY: ctypes.CDLL = _found


def use_threads(threads: int, processors: Sequence[int] = ()) -> None:
    """How many threads each operation uses, the caller's included; the others are pinned to
    `processors`, where there are as many of these as threads.
    """
    LIBRARY.gf_use_processors((ctypes.c_int * len(processors))(*processors), len(processors))
    LIBRARY.gf_use_threads(threads)


def use_activations(kind: str) -> None:
    """What activations are quantised to for int8 weights, in all of this process: int8; int16, whose error
    is smaller; or auto, int8 where that is faster here. UsageError for another word, or for int8 on a
    processor that does not multiply bytes.
    """
    wanted = f"{ACTIVATIONS_VARIABLE} {', '.join(ACTIVATION_BITS)}"
    if kind not in ACTIVATION_BITS:
        raise UsageError(wanted, repr(kind), "correct or unset it")
    if LIBRARY.gf_use_activations(ACTIVATION_BITS[kind]):
        got = f"{kind} on a processor without VNNI"
        raise UsageError(f"{ACTIVATIONS_VARIABLE} auto or int16 here", got, "unset it")


def activations() -> str:
    """What activations are quantised to for int8 weights: int8 or int16."""
    return f"int{LIBRARY.gf_activations()}"


def own_threads(quant: str) -> bool:
    """The library's threads compute, but where there are no kernels."""
    return quant in ("none", *QUANTISED)


def linear(
    x: Tensor, weight: Weight, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """`reference.linear` with sums, bias and activation in float32 and one rounding at the end.

    x is quantised unless it is float32: for int4 to int8, with a scale for each 64 columns; for int8
    likewise, or to int16 with a scale for each 512 (`use_activations`).
    """
    return linears(LinearCall(x, weight, bias, activation))[0]


def logits(x: Tensor, weight: Weight) -> Tensor:
    """`reference.logits`."""
    return linear(x, weight).float()


def linears(*each: LinearCall) -> list[Tensor]:
    """Several of the same tokens in one call, so that threads start once."""
    if not _known(*(one.weight for one in each)):
        return [reference.linear(*one) for one in each]
    tokens = each[0].x.shape[0]
    results = [one.x.new_empty(tokens, one.weight.shape[0]) for one in each]
    outputs = (Output * len(each))(
        *(
            Output(y.data_ptr(), _pointer(bias), _terms((x, weight)), 1, ACTIVATIONS[activation])
            for y, (x, weight, bias, activation) in zip(results, each, strict=True)
        )
    )
    _check(LIBRARY.gf_linears(outputs, len(each), tokens, KINDS[results[0].dtype]))
    return results


def branches(qkv: LinearCall, attend: Attend, up: LinearCall) -> tuple[Tensor, Tensor]:
    """`reference.branches`, both linears in one call."""
    first, second = linears(qkv, up)
    return attend(first), second


def sum_of_linears(*each: tuple[Tensor, Weight], as_parts: bool = False) -> Tensor:
    """`reference.sum_of_linears` of one or two linears in one call, rounded once."""
    if not _known(*(weight for _, weight in each)):
        return reference.sum_of_linears(*each)
    x, weight = each[0]
    y = x.new_empty(x.shape[0], weight.shape[0])
    output = Output(y.data_ptr(), None, _terms(*each), len(each), ACTIVATIONS[None])
    _check(LIBRARY.gf_linears(output, 1, x.shape[0], KINDS[x.dtype]))
    return y


class NativeBlocks:
    """All blocks of a step in one call of gf_run_blocks, which also sums over ranks, in `memory`, and raises
    the `heartbeat` after each.
    """

    def __init__(
        self, weights: Sequence[BlockWeights], memory: SharedMemory | None, heartbeat: Heartbeat
    ) -> None:
        self._weights = weights  # keeps alive what `_blocks` points to
        self._blocks = (Block * len(weights))(*map(_block, weights))
        self._memory = memory
        self._heartbeat = heartbeat
        self._layers: Sequence[LayerCache] = ()  # that `_caches` describes
        self._caches = (Cache * len(weights))()

    def __call__(
        self, x: Tensor, angles: Angles | None, batch: Batch, caches: Sequence[LayerCache]
    ) -> tuple[Tensor, Tensor]:
        assert x.is_contiguous()
        assert len(caches) == len(self._blocks)
        if caches is not self._layers:
            self._layers, self._caches = caches, (Cache * len(caches))(*map(_cache, caches))
        tokens, kind = len(x), KINDS[x.dtype]
        x, y = x.clone(), torch.empty_like(x)
        block_bytes = LIBRARY.gf_block_bytes(self._blocks, kind)
        memory = torch.empty(tokens * block_bytes, dtype=torch.uint8)
        cosines, sines = (None, None) if angles is None else (each.contiguous() for each in angles)
        rows = None if batch.of_rows is None else _rows(batch.rows, batch.of_rows)
        status = LIBRARY.gf_run_blocks(
            self._blocks,
            self._caches,
            len(self._blocks),
            x.data_ptr(),
            y.data_ptr(),
            _pointer(cosines),
            _pointer(sines),
            batch.slots.data_ptr(),
            _queries(batch),
            rows,
            memory.data_ptr(),
            tokens,
            kind,
            None if self._memory is None else self._memory.handle,
            self._heartbeat.counter,
        )
        if status == RANK_GONE:
            raise RankGone
        _check(status)
        return (x, y) if rows is None else (x[: len(batch.rows)], y[: len(batch.rows)])


def fuse_blocks(
    loop: RunBlocks,
    weights: Sequence[BlockWeights],
    memory: SharedMemory | None,
    heartbeat: Heartbeat,
) -> RunBlocks:
    """`reference.fuse_blocks` as one native call; the loop where a weight has no native kernel."""
    matrices = (m for w in weights for m in (w.qkv, w.up, w.dense, w.down))
    return NativeBlocks(weights, memory, heartbeat) if _known(*matrices) else loop


def add_layer_norms(
    x: Tensor, part: Tensor | None, norms: Sequence[tuple[Tensor, Tensor]], eps: float
) -> tuple[Tensor, list[Tensor]]:
    """`reference.add_layer_norms`."""
    x = x.contiguous()
    part = None if part is None else part.contiguous()
    total = x if part is None else torch.empty_like(x)
    outputs = [torch.empty_like(x) for _ in norms]
    each = [
        Norm(weight.data_ptr(), bias.data_ptr(), y.data_ptr())
        for (weight, bias), y in zip(norms, outputs, strict=True)
    ]
    _check(
        LIBRARY.gf_add_layer_norms(
            x.data_ptr(),
            _pointer(part),
            total.data_ptr(),
            (Norm * len(each))(*each),
            len(each),
            *x.shape,
            eps,
            KINDS[x.dtype],
        )
    )
    return total, outputs


def rotary_and_cache(
    qkv: Tensor, angles: Angles | None, cache: LayerCache, slots: Tensor
) -> Tensor:
    """`reference.rotary_and_cache`."""
    kv_heads, dim = cache.k.shape[2:]
    group = qkv.shape[1] // (kv_heads * dim) - 2
    qkv = qkv.contiguous()
    q = qkv.new_empty(qkv.shape[0], kv_heads * group, dim)
    cosines, sines = (None, None) if angles is None else (each.contiguous() for each in angles)
    _check(
        LIBRARY.gf_rotary_and_cache(
            qkv.data_ptr(),
            _pointer(cosines),
            _pointer(sines),
            _cache(cache),
            slots.data_ptr(),
            q.data_ptr(),
            qkv.shape[0],
            group,
            KINDS[qkv.dtype],
        )
    )
    return q


def attention(
    q: Tensor, cache: LayerCache, batch: AttentionMetadata, slopes: Tensor | None
) -> Tensor:
    """`reference.attention`."""
    tokens, heads, dim = q.shape
    out = q.new_empty(tokens, heads * dim)
    queries = _queries(batch)
    queries.q, queries.out, queries.heads = q.data_ptr(), out.data_ptr(), heads
    queries.slopes = _pointer(slopes)
    _check(LIBRARY.gf_attention(queries, _cache(cache), KINDS[q.dtype]))
    return out


def draw_tokens(logits: Tensor, draws: Sequence[RowDraw], forbids: bool) -> Tensor:
    """Draws a token from each row of logits, float32 [rows, tokens]: int64 [2, rows], the tokens, and which
    rows failed how, as `engine/sampler.py` defines both. `forbids`: logits of -inf stand for tokens that
    may not be drawn.
    """
    logits = logits.contiguous()
    rows, columns = logits.shape
    found = torch.empty(2, rows, dtype=torch.int64)
    each = np.array(draws, ROW_DRAWS)
    status = LIBRARY.gf_draw_tokens(
        logits.data_ptr(),
        rows,
        columns,
        each.ctypes.data_as(POINTER(Draw)),
        forbids,
        found[0].data_ptr(),
        found[1].data_ptr(),
    )
    _check(status)
    return found


def _known(*weights: Weight) -> bool:
    """Whether there are kernels for all the weights."""
    return all(
        weight.kind in QUANTISED if isinstance(weight, Quantised) else weight.dtype in KINDS
        for weight in weights
    )


def _terms(*each: tuple[Tensor, Weight]) -> ctypes.Array[Term]:
    assert all(x.is_contiguous() for x, _ in each)
    return (Term * 2)(*(Term(_matrix(weight), x.data_ptr()) for x, weight in each))


def _matrix(weight: Weight) -> Matrix:
    if isinstance(weight, Tensor):
        return Matrix(weight.data_ptr(), None, *weight.shape, KINDS[weight.dtype], 0)
    kind = INT8 if weight.group is None else INT4
    assert kind == INT8 or weight.data.ndim == 3, "the kernels read int4 in tiles"
    data, scales = weight.data.data_ptr(), weight.scales.data_ptr()
    return Matrix(data, scales, *weight.shape, kind, weight.group or 0)


def _block(parts: BlockWeights) -> Block:
    norms = [Norm(weight.data_ptr(), bias.data_ptr(), None) for weight, bias in parts.norms]
    return Block(
        (Norm * 2)(*norms),
        *map(_matrix, (parts.qkv, parts.up, parts.dense, parts.down)),
        _pointer(parts.slopes),
        len(norms),
        ACTIVATIONS[parts.activation],
        parts.eps,
    )


def _queries(batch: AttentionMetadata) -> Queries:
    """A batch's sequences; q, out, heads and slopes are filled in by the caller."""
    tables = batch.block_tables
    return Queries(
        None,
        tables.data_ptr(),
        batch.starts.data_ptr(),
        batch.contexts.data_ptr(),
        None,
        None,
        len(batch.contexts),
        0,
        tables.stride(0),
    )


def _rows(rows: Tensor, queries: AttentionMetadata) -> Rows:
    return Rows(rows.data_ptr(), len(rows), _queries(queries))


def _cache(cache: LayerCache) -> Cache:
    return Cache(cache.k.data_ptr(), cache.v.data_ptr(), *cache.k.shape[1:])


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(status: int) -> None:
    if status:
        raise MemoryError("the native kernels got no memory for their intermediate results")
