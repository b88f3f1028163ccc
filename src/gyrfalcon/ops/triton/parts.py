"""Summands of a linear that whoever reads its result adds: float32 [parts, tokens, outputs], always in the
same order, rounded once. A result that is whole counts as its only part.
"""

import triton
import triton.language as tl
from torch import Tensor


def parts_of(y: Tensor) -> tuple[int, int, int]:
    """How many there are, and how far tokens and parts lie apart."""
    return (1, y.stride(0), 0) if y.dim() == 2 else (len(y), y.stride(1), y.stride(0))


@triton.jit
def load_sum(pointers, mask, stride, PARTS: tl.constexpr, dtype: tl.constexpr):
    """The sum at `pointers` of the first part, rounded to dtype and widened to float32."""
    total = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    for _ in tl.static_range(1, PARTS):
        pointers += stride
        total += tl.load(pointers, mask=mask, other=0.0)
    return total.to(dtype).to(tl.float32)
