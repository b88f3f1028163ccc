"""How attention is computed: as the installed CANN takes it. Which layouts it accepts for a head size is
written nowhere for all versions, so each is tried once, on a few tokens, and compared with the definition.
"""

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gyrfalcon.batch import AttentionMetadata
from gyrfalcon.device.protocol import CannotCapture
from gyrfalcon.errors import UsageError
from gyrfalcon.kv.pool import LayerCache
from gyrfalcon.ops import reference
from gyrfalcon.ops.npu.attention import Attend, Kernel, Step

log = logging.getLogger(__name__)

VARIABLE = "GYRFALCON_NPU_ATTENTION"
ALIBI_VARIABLE = "GYRFALCON_NPU_ALIBI"
PLAIN = "plain"
LARGEST_ERROR = 0.03  # of the largest output: many times what bfloat16 rounds


class Shape(NamedTuple):
    """What the answer depends on."""

    dtype: torch.dtype
    heads: int
    kv_heads: int
    dim: int
    block_size: int
    alibi: bool


class Choice:
    """Chooses an implementation for each shape of attention, the first that holds: one call for all
    sequences (`tnd`), calls by sequence (`bsh`), or the definition (`plain`); with ALiBi the operator's
    bias (`pse`) or `plain`. The environment variables GYRFALCON_NPU_ATTENTION and GYRFALCON_NPU_ALIBI
    name one, which is then not tried.
    """

    def __init__(self, kernel: Kernel | None, environment: Mapping[str, str] = os.environ) -> None:
        self._implementations: dict[str, Attend] = {}
        self._alibi_implementations: dict[str, Attend] = {}
        if kernel is not None:
            self._implementations = {"tnd": kernel.packed, "bsh": kernel.by_sequence}
            self._alibi_implementations = {"pse": kernel.by_sequence}
        self._forced = _named(environment, VARIABLE, self._implementations)
        self._forced_alibi = _named(environment, ALIBI_VARIABLE, self._alibi_implementations)
        self._chosen: dict[Shape, Attend] = {}

    def of(self, q: Tensor, cache: LayerCache, slopes: Tensor | None) -> Attend:
        """The implementation for these tensors."""
        block_size, kv_heads, dim = cache.k.shape[1:]
        shape = Shape(q.dtype, q.shape[1], kv_heads, dim, block_size, slopes is not None)
        if shape not in self._chosen:
            self._chosen[shape] = self._choose(shape, q.device)
        return self._chosen[shape]

    def _choose(self, shape: Shape, device: torch.device) -> Attend:
        implementations = self._alibi_implementations if shape.alibi else self._implementations
        name = self._forced_alibi if shape.alibi else self._forced
        why = "as the environment says"
        if name is None:
            failures = {
                one: _failure(attend, shape, device) for one, attend in implementations.items()
            }
            name = next((one for one, failure in failures.items() if failure is None), PLAIN)
            why = "; ".join(f"{one}: {failure}" for one, failure in failures.items() if failure)
        log.info(
            "attention of %d heads of %d over %d in %s%s: %s (%s)",
            shape.heads,
            shape.dim,
            shape.kv_heads,
            str(shape.dtype).removeprefix("torch."),
            " with ALiBi" if shape.alibi else "",
            name,
            why or "tried",
        )
        return plain if name == PLAIN else implementations[name]


def plain(q: Tensor, cache: LayerCache, step: Step, slopes: Tensor | None) -> Tensor:
    """By the definition."""
    if not step.batch.context_lens:
        raise CannotCapture("attention by its definition reads the lengths on the host")
    return reference.attention(q, cache, step.batch, slopes).view(q.shape)


def _named(
    environment: Mapping[str, str], variable: str, implementations: Mapping[str, Attend]
) -> str | None:
    name = environment.get(variable) or None
    if name not in (None, PLAIN, *implementations):
        wanted = f"{variable} {', '.join((*implementations, PLAIN))}"
        raise UsageError(wanted, repr(name), "correct or unset it")
    return name


def _failure(attend: Attend, shape: Shape, device: torch.device) -> str | None:
    """Why an implementation cannot be used: what was raised, or how far it is off; None where it can.

    Two sequences, three new tokens over two pages and one after four; places that no token owns are NaN.
    """
    try:
        q, cache, batch, slopes = _trial(shape, device)
        found = attend(q, cache, Step.of(batch), slopes).float().cpu()  # errors may come this late
    except (RuntimeError, OSError) as error:  # of CANN and of libraries that are opened now
        return " ".join(str(error).split())[:200]
    exact = LayerCache(cache.k.float(), cache.v.float())
    wanted = reference.attention(q.float(), exact, batch, slopes).view(q.shape).cpu()
    off = float((found - wanted).abs().max() / wanted.abs().max())
    return None if off <= LARGEST_ERROR else f"off by {off:.2g} of the largest output"


def _trial(
    shape: Shape, device: torch.device
) -> tuple[Tensor, LayerCache, AttentionMetadata, Tensor | None]:
    draw = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=draw).to(device, shape.dtype)

    size = shape.block_size
    contexts, lens = (size + 2, 5), (3, 1)
    tables = torch.tensor([[2, 0], [1, 0]])
    cache = LayerCache(*(random(3, size, shape.kv_heads, shape.dim) for _ in range(2)))
    for tensor in (cache.k, cache.v):
        tensor[0, contexts[0] - size :] = torch.nan
        tensor[1, contexts[1] :] = torch.nan
    batch = AttentionMetadata(
        query_lens=lens,
        context_lens=contexts,
        block_tables=tables,
        starts=torch.tensor([0, 3, 4]),
        contexts=torch.tensor(contexts),
    ).on(device)
    slopes = None
    if shape.alibi:
        slopes = torch.linspace(0.1, 1.0, shape.heads, device=device)
    return random(sum(lens), shape.heads, shape.dim), cache, batch, slopes
