"""Sums and gathered tensors of ranks that are processes of one machine, through memory that all of
them have mapped (`native/all_reduce.cpp`): microseconds, where gloo
takes a hundred times as long.
"""

import contextlib
import ctypes
import os
import weakref

import torch
from torch import Tensor

from gyrfalcon.native.library import KINDS, RankGone, library
from gyrfalcon.parallel.backend import Backend

NO_FILE = -1


class SharedMemory:
    """One rank's end. What waits raises RankGone soon after another rank's death, within a second."""

    def __init__(self, native: ctypes.CDLL, end: int, size: int) -> None:
        self._native = native
        self._end = end
        self._size = size
        self._leave = weakref.finalize(self, native.gf_leave, end)

    @property
    def handle(self) -> int:
        """What native functions call it; RankGone once it is closed."""
        if not self._leave.alive:
            raise RankGone
        return self._end

    def close(self) -> None:
        """Unmaps it; the other ranks wait for this one no longer."""
        self._leave()

    def add(self, x: Tensor) -> None:
        """`x`, contiguous float32, bfloat16 or float16, becomes the sum of all ranks' `x`: added in
        float32 in the order of the ranks and rounded once, so all ranks get the same bits.
        """
        assert x.is_contiguous()
        if self._native.gf_sum(self.handle, x.data_ptr(), x.numel(), KINDS[x.dtype]):
            raise RankGone

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's `x`; they are contiguous, of one shape and dtype."""
        assert x.is_contiguous()
        parts = x.new_empty(self._size, *x.shape)
        if self._native.gf_gather(self.handle, x.data_ptr(), x.nbytes, parts.data_ptr()):
            raise RankGone
        return list(parts)

    def broadcast(self, x: Tensor) -> None:
        """`x`, contiguous and small, becomes rank 0's."""
        x.copy_(self.gather(x)[0])


def share_memory(backend: Backend, rank: int, size: int) -> SharedMemory | None:
    """Memory for the ranks of one machine, which agree on it through `backend`. None on every rank
    where one of them cannot have it or lacks the native library.
    """
    native = library()
    file = NO_FILE
    if rank == 0 and native is not None:
        file = _new_file(native.gf_shared_bytes(size))
    place = torch.tensor([os.getpid(), file])
    backend.broadcast(place)
    if rank > 0:
        file = _opened(*place.tolist())
    end = None if native is None else native.gf_join(file, rank, size)
    memory = None if native is None or end is None else SharedMemory(native, end, size)
    all_have_it = backend.all_reduce_min(int(memory is not None))
    if file != NO_FILE:
        os.close(file)
    return memory if all_have_it else None


def _new_file(num_bytes: int) -> int:
    """A file of zeros in memory, without a name: it goes with the last process that has it mapped."""
    with contextlib.suppress(AttributeError, OSError):  # not Linux; no memory
        file = os.memfd_create("gyrfalcon")
        try:
            os.posix_fallocate(file, 0, num_bytes)
            return file
        except OSError:
            os.close(file)
    return NO_FILE


def _opened(process: int, file: int) -> int:
    """A file that another process has open."""
    try:
        return os.open(f"/proc/{process}/fd/{file}", os.O_RDWR)
    except OSError:
        return NO_FILE
