"""What the linear kernels do with a tile of sums: bias, activation, one rounding, and the store."""

import triton
import triton.language as tl


@triton.jit
def epilogue(total, bias, out, token, row, tokens, outputs, ACTIVATION: tl.constexpr):
    """Adds the bias, applies the activation and stores [outputs, tokens] as out [tokens, outputs]."""
    if bias is not None:
        total += tl.load(bias + row, mask=row < outputs, other=0.0).to(tl.float32)[:, None]
    total = activate(total, ACTIVATION)
    place = (tl.program_id(2) * tokens + token).to(tl.int64) * outputs
    known = (token < tokens)[None, :] & (row < outputs)[:, None]
    tl.store(out + place[None, :] + row[:, None], total.to(out.dtype.element_ty), mask=known)


@triton.jit
def activate(x, NAME: tl.constexpr):
    """The activations of `reference.ACTIVATIONS`, in float32."""
    if NAME == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        # 0.5 x (1 + tanh(u)) = x σ(2u), with u = √(2/π) (x + 0.044715 x³)
        return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif NAME == "silu":
        return x / (1.0 + tl.exp(-x))
    elif NAME == "relu":
        return tl.maximum(x, 0.0)
    else:
        return x
