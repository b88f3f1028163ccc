"""Small sums over the cards of one machine by torch's symmetric memory: a kernel on each card reads the
summands of all (one-shot all-reduce). Where it cannot be had, or is not right, NCCL sums. No card has run it
yet.
"""

import logging
import os
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

log = logging.getLogger(__name__)

VARIABLE = "GYRFALCON_SYMMETRIC_SUMS"
MODULE = "torch.distributed._symmetric_memory"  # alpha: it may change
MOST_BYTES = 64 << 10  # of what is summed: more is faster in parts, as NCCL does it
ALIGNMENT = 16  # bytes, of beginning and length
DTYPES = (torch.bfloat16, torch.float32)
ROUNDS, NUMBERS = 8, 4096  # of the trial
TOLERANCE = 0.02  # of the largest sum

# Stays until the process ends: to free it waits for kernels, which may wait for a rank that is gone.
_kept: list[Tensor] = []


class SymmetricSums:
    """One rank's end."""

    def __init__(
        self,
        library: Any,
        operators: Any,
        store: dist.Store,
        rank: int,
        size: int,
        device: torch.device,
    ) -> None:
        """`library` is MODULE, `operators` are torch.ops.symm_mem. All ranks come here together."""
        if not rank:
            store.set("name", f"gyrfalcon-{os.urandom(8).hex()}")
        self._name = store.get("name").decode()
        library._SymmetricMemory.set_group_info(self._name, rank, size, store)
        self._buffer: Tensor = library.empty(MOST_BYTES, dtype=torch.uint8, device=device)
        _kept.append(self._buffer)
        library.rendezvous(self._buffer, self._name)
        self._sum = operators.one_shot_all_reduce_out
        self._rank, self._size = rank, size

    def takes(self, x: Tensor) -> bool:
        """Whether x can be summed so: by its dtype and size alone, which all ranks have in common. One that
        chose otherwise than the rest would keep them waiting, in a captured graph each time.
        """
        return x.dtype in DTYPES and 0 < x.nbytes <= MOST_BYTES and x.nbytes % ALIGNMENT == 0

    def add(self, x: Tensor) -> None:
        """`x` becomes the sum of all ranks' `x`."""
        own = self._buffer[: x.nbytes].view(x.dtype).view(x.shape)
        own.copy_(x)
        if x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0:
            self._sum(own, "sum", self._name, x)
            return
        total = torch.empty_like(own)
        self._sum(own, "sum", self._name, total)
        x.copy_(total)

    def hold(self, agree: Callable[[int], int]) -> bool:
        """Whether sums are right, and the same bits on all ranks, each of which picks tokens by them. `agree`
        is the smallest of the ranks' numbers.
        """
        held = True
        for turn in range(ROUNDS):
            dtype = DTYPES[turn % len(DTYPES)]
            each = [self._drawn(turn * self._size + rank, dtype) for rank in range(self._size)]
            x, wanted = (
                each[self._rank].to(self._buffer.device),
                torch.stack(each).float().sum(dim=0),
            )
            if not self._added(x, agree):
                return False
            found = x.cpu()
            bits = zlib.crc32(found.view(torch.uint8).numpy().tobytes())
            same = agree(bits) == -agree(-bits)
            error = (found.float() - wanted).abs().max() / wanted.abs().max()
            held = held and same and bool(error <= TOLERANCE)
        return bool(agree(int(held)))

    def _added(self, x: Tensor, agree: Callable[[int], int]) -> bool:
        """Whether the sum could be queued on all ranks: not so many, or this card, may have no kernel."""
        try:
            self.add(x)
        except RuntimeError as error:
            log.info("symmetric memory: %s", " ".join(str(error).split())[:200])
            return bool(agree(0))
        return bool(agree(1))

    @staticmethod
    def _drawn(seed: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(NUMBERS, generator=torch.Generator().manual_seed(seed)).to(dtype)


def open_sums(
    store: dist.Store,
    rank: int,
    size: int,
    device: torch.device,
    all_reached: bool,
    agree: Callable[[int], int],
) -> SymmetricSums | None:
    """Such sums, on all ranks or on none; `all_reached`: the device reads the memory of all others."""
    why_not = lacking(all_reached)
    if not agree(int(why_not is None)):
        _tell(why_not or "another rank cannot")
        return None
    sums = None
    try:
        library = import_module(MODULE)
        sums = SymmetricSums(library, torch.ops.symm_mem, store, rank, size, device)
    except (AttributeError, RuntimeError, TypeError) as error:  # another interface, or the driver's
        why_not = " ".join(str(error).split())[:200]
    if not agree(int(sums is not None)) or sums is None:
        _tell(why_not or "another rank could not")
        return None
    if not sums.hold(agree):
        _tell("its sums were wrong, or not the same on all ranks")
        return None
    return sums


def lacking(all_reached: bool) -> str | None:
    """Why there are none here; None where they can be tried."""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE} is 0"
    try:
        import_module(MODULE)
        torch.ops.symm_mem.one_shot_all_reduce_out  # noqa: B018 # looked up
    except (AttributeError, ImportError) as error:
        return f"this torch lacks it ({error})"
    return None if all_reached else "the cards do not reach each other's memory"


def _tell(why: str) -> None:
    log.info("sums over ranks go through NCCL alone: %s", why)
