"""Programmatic dependent launch, of NVIDIA's cards from sm_90 on: a kernel begins while the one before it on
its stream ends. Until it has waited for that one it reads and writes nothing; weights, which do not depend
on it, it brings to the L2 cache. Every program waits, whatever it does then: by the end of a kernel all
those before it have ended, too.

No card has confirmed it: `Device.launches_early` says where it is tried.
"""

import torch
import triton
import triton.language as tl

from gyrfalcon.device.lookup import device_of

AHEAD = tl.constexpr(4)  # runs of 128 bytes of each row that are brought to the cache
# A compiler without it compiles the kernels all the same: none of it is in them.
CAN_COMPILE = hasattr(getattr(tl.extra, "cuda", None), "gdc_wait")
_PREFETCH = tl.constexpr("prefetch.global.L2 [$1]; mov.u32 $0, 0;")


def early_launch(device: torch.device) -> dict[str, object]:
    """What the kernels of a decoded layer are launched with."""
    if CAN_COMPILE and device_of(device).launches_early:
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@triton.jit
def wait_for_kernels(EARLY: tl.constexpr):
    """Waits until all that kernels before have written is there; the next kernel may begin."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch_and_wait(
    weight,
    second_weight,
    row,
    width,
    second_width,
    first,
    before,
    SIZE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Meanwhile the weights come that a program needs first: those of a step of SIZE elements of 2 bytes, and
    more, of rows of `width`; behind `before` steps of the second matrix.
    """
    if EARLY:
        if second_weight is None:
            _prefetch(weight + row * width, first * SIZE, width)
        else:
            if first < before:
                _prefetch(weight + row * width, first * SIZE, width)
            else:
                _prefetch(second_weight + row * second_width, (first - before) * SIZE, second_width)
    wait_for_kernels(EARLY)


@triton.jit
def _prefetch(rows, first, width):
    runs = tl.minimum(first + 64 * tl.arange(0, AHEAD), width - 1)
    addresses = (rows[:, None] + runs[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(_PREFETCH, "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1)
