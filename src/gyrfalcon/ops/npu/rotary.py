"""Rotary positions and the KV cache's write on Ascend cards."""

import logging
from typing import Any

import torch
from torch import Tensor

from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference
from gyrfalcon.ops.npu.features import ROTARY_DIMS, Features
from gyrfalcon.ops.reference import Angles

log = logging.getLogger(__name__)

MOST_OF_A_HEAD = 895  # numbers, an even number of them, that npu_rotary_mul rotates
MOST_ROTATED_HEADS = 999
LACKING_NNAL = (
    "the KV cache is written by torch's own operators: _npu_reshape_and_cache does not run (%s); "
    "install CANN's NNAL package and source /usr/local/Ascend/nnal/atb/set_env.sh before gyrfalcon"
)


class RotaryAndCache:
    """The operators of these two, by what this torch_npu has."""

    def __init__(self, torch_npu: Any, features: Features, device: torch.device) -> None:
        self._torch_npu = torch_npu
        self._features = features
        tried = features.reshape_and_cache and not features.scatter_kv
        self._reshape_and_cache = tried and _atb_runs(torch_npu, device)
        self._angles: Angles | None = None  # whose cos and sin these are
        self._factors: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, qkv: Tensor, angles: Angles | None, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        """`reference.rotary_and_cache`, with cos and sin in qkv's dtype where an operator rotates."""
        # In memory of their own: npu_apply_rotary_pos_emb may rotate in place.
        each = reference.split_qkv(qkv, *cache.k.shape[2:])
        q, k, v = (one.contiguous() for one in each)
        if angles is not None:
            q, k = self._rotated(q, k, angles)
        self._write(k, v, cache, slots)
        return q

    def _rotated(self, q: Tensor, k: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        dim, heads = q.shape[-1], max(q.shape[1], k.shape[1])
        both = self._features.rotate_both and dim in ROTARY_DIMS
        each = dim <= MOST_OF_A_HEAD and heads <= MOST_ROTATED_HEADS and self._features.rotate
        if not (both or each):
            return reference.rotate(q, *angles), reference.rotate(k, *angles)
        cos, sin = self._cos_and_sin(angles, q.dtype)
        if both:
            q, k = self._torch_npu.npu_apply_rotary_pos_emb(
                q[None], k[None], cos, sin, "BSND", "half"
            )
            return q[0], k[0]
        q, k = (self._torch_npu.npu_rotary_mul(x[None], cos, sin)[0] for x in (q, k))
        return q, k

    def _cos_and_sin(self, angles: Angles, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[1, tokens, 1, head_dim] each, made once for all layers of a step."""
        if self._factors is None or self._angles is not angles:
            self._angles = angles
            cos, sin = (torch.cat((x, x), dim=-1)[None, :, None].to(dtype) for x in angles)
            self._factors = cos, sin
        return self._factors

    def _write(self, k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
        """`reference.write_kv`."""
        if self._features.scatter_kv:
            self._torch_npu.npu_scatter_pa_kv_cache(
                k, v, cache.k, cache.v, slots, cache_mode="Norm"
            )
        elif self._reshape_and_cache and k.dtype != torch.float32:
            self._torch_npu._npu_reshape_and_cache(k, v, cache.k, cache.v, slots.int())
        else:
            reference.write_kv(k, v, cache, slots)


def _atb_runs(torch_npu: Any, device: torch.device) -> bool:
    """Whether _npu_reshape_and_cache works: it is there without the libraries of NNAL as well, which its
    first call opens.
    """
    pages = torch.zeros(1, 128, 1, 64, dtype=torch.float16, device=device)
    token = torch.ones(1, 1, 64, dtype=torch.float16, device=device)
    slots = torch.zeros(1, dtype=torch.int32, device=device)
    try:
        torch_npu._npu_reshape_and_cache(token, token, pages, pages.clone(), slots)
        pages.cpu()  # waits for the card
    except (OSError, RuntimeError, UnboundLocalError) as error:
        log.warning(LACKING_NNAL, " ".join(str(error).split())[:200])
        return False
    return True
