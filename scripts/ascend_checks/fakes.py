"""Shape functions of ours for operators whose wheel brings none."""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

PER_WORD = 8  # values of 4 bits in an int32


def register() -> list[str]:
    """Gives torch those that it lacks; the names of the operators."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("c10d::allreduce_", "Meta"):
        import_module("torch.distributed._tools.fake_collectives")  # registers those of collectives
    lacking = [name for name in FAKES if not _has_shapes(name)]
    for name in lacking:
        torch.library.register_fake(f"npu::{name}", FAKES[name])
    return lacking


def _has_shapes(name: str) -> bool:
    keys = ("Meta", "CompositeImplicitAutograd", "CompositeExplicitAutograd")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(f"npu::{name}", key) for key in keys)


def _int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    """int32 [rows, columns] of values of 4 bits become int32 [rows, columns / 8]."""
    torch._check(weight.dtype == torch.int32, lambda: f"wanted int32, got {weight.dtype}")
    torch._check(weight.ndim == 2, lambda: f"wanted a matrix, got {tuple(weight.shape)}")
    rows, columns = weight.shape
    torch._check(
        columns % PER_WORD == 0, lambda: f"wanted columns in eights, got {tuple(weight.shape)}"
    )
    return weight.new_empty(rows, columns // PER_WORD)


def _add_layer_norm(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float = 1e-5,
    additional_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norm of x1 + x2 [..., hidden]; the means and deviations [..., 1]; and that sum where asked for."""
    torch._check(x1.shape == x2.shape, lambda: f"wanted equal shapes, got {x1.shape}, {x2.shape}")
    sizes = (gamma.shape, beta.shape)
    torch._check(sizes == (x1.shape[-1:],) * 2, lambda: f"wanted {x1.shape[-1:]}, got {sizes}")
    figures = x1.new_empty(*x1.shape[:-1], 1, dtype=torch.float32)
    total = torch.empty_like(x1) if additional_output else x1.new_empty(0)
    return torch.empty_like(x1), figures, torch.empty_like(figures), total


FAKES: dict[str, Callable[..., object]] = {
    "npu_convert_weight_to_int4pack": _int4pack,
    "npu_add_layer_norm": _add_layer_norm,
}
