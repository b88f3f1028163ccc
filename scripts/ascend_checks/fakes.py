"""Shape functions of ours for operators whose wheel brings none."""

from collections.abc import Callable, Sequence
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


def _max_workspace(query: Tensor, key: Tensor, value: Tensor, **named: object) -> Tensor:
    """Bytes that the attention works in: how many only a card says."""
    return query.new_empty(1 << 20, dtype=torch.uint8)


def _attention_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    workspace: Tensor | None = None,
    out: Sequence[Tensor],
    **named: object,
) -> tuple[Tensor, Tensor]:
    """Checked by the wheel's own shape function of the same operator, which gives new tensors."""
    new, _ = torch.ops.npu.npu_fused_infer_attention_score(query, key, value, **named)
    sizes = (out[0].shape, out[0].dtype)
    torch._check(
        sizes == (new.shape, new.dtype), lambda: f"wanted {new.shape}, {new.dtype}, got {sizes}"
    )
    return out[0], out[1]


class _Nothing:
    """A stream, an event or a graph that does nothing, and a context of such."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def nothing(self, *_: object) -> None:
        pass

    wait = reset = record = synchronize = wait_stream = replay = pool = nothing
    __enter__ = __exit__ = nothing


def graph_functions() -> dict[str, Callable[..., object]]:
    """What torch_npu.npu has for graphs, which only a card can run: what is captured runs at once, and so
    does what a replay is given.
    """
    names = ("Stream", "stream", "Event", "ExternalEvent", "NPUGraph", "graph", "current_stream")
    tasks = ("group_begin", "group_end", "update_begin", "update_end")
    return dict.fromkeys((*names, *(f"graph_task_{name}" for name in tasks)), _Nothing)


FAKES: dict[str, Callable[..., object]] = {
    "npu_convert_weight_to_int4pack": _int4pack,
    "npu_add_layer_norm": _add_layer_norm,
    "npu_fused_infer_attention_score.out": _attention_out,
    "_npu_fused_infer_attention_score_get_max_workspace": _max_workspace,
}
