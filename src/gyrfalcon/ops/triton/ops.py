"""The operations on GPUs by Triton kernels: those that ops/reference.py defines."""

import torch
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.device.lookup import device_of
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops.reference import Attend, LinearCall
from gyrfalcon.ops.reference import fuse_blocks as fuse_blocks
from gyrfalcon.ops.reference import own_threads as own_threads
from gyrfalcon.ops.triton import attention as triton_attention
from gyrfalcon.ops.triton.linear import linear as linear
from gyrfalcon.ops.triton.linear import sum_of_linears as sum_of_linears
from gyrfalcon.ops.triton.norm import add_layer_norms as add_layer_norms
from gyrfalcon.ops.triton.rotary import rotary_and_cache as rotary_and_cache
from gyrfalcon.quant import Quantised, Weight

CAPTURABLE = True


def prepack(weight: Quantised) -> Quantised:
    """In words of 16 bits, which are widened two at a time."""
    return weight.as_words()


def logits(x: Tensor, weight: Weight) -> Tensor:
    """Written in float32 by the kernel that sums it."""
    return linear(x, weight, out_dtype=torch.float32)


def branches(qkv: LinearCall, attend: Attend, up: LinearCall) -> tuple[Tensor, Tensor]:
    """`reference.branches`, side by side in a captured graph: attention has small kernels, `up` streams its
    weights meanwhile. Rotation sums the parts of qkv.
    """
    y = linear(*qkv, as_parts=qkv.bias is None)
    return device_of(y.device).side_by_side(lambda: attend(y), lambda: linear(*up))


def attention(
    q: Tensor, cache: LayerCache, batch: AttentionMetadata, slopes: Tensor | None
) -> Tensor:
    """By the decode kernel where every sequence has one new token, else by the prefill kernel."""
    tables, contexts = batch.block_tables, batch.contexts
    if len(q) > len(contexts):
        return triton_attention.prefill(q, cache, tables, batch.starts, contexts, slopes)
    longest = tables.shape[1] * cache.k.shape[1]  # of a graph: whatever may come
    _, kv_heads = cache.k.shape[1:3]
    splits = triton_attention.splits_for(len(q), kv_heads, q.shape[1] // kv_heads, longest)
    return triton_attention.decode(q, cache, tables, contexts, slopes, splits)
