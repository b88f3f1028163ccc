"""Peak memory bandwidth and matrix throughput of a device: as torch reaches them and, on a CPU, as
native kernels that do nothing else do. The larger counts: a limit is what the machine can do, not
what one routine does.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from gyrfalcon.device.protocol import Device
from gyrfalcon.device.rates import best_seconds
from gyrfalcon.native.library import library

ROUNDS = 1 << 18  # of multiply-adds: some milliseconds
READ_BYTES = 512 << 20  # many times the caches


def memory_bandwidth(device: Device) -> float:
    """Bytes per second read from the device's memory; on a GPU, copied within it."""
    found = library() if device.on_host else None
    if found is None:
        return device.measure_bandwidth()
    size = min(READ_BYTES, device.memory()[0] // 4)
    block = np.ones(size, np.uint8)  # written, so that it has pages of its own
    with _all_cores(found):
        seconds = best_seconds(partial(found.gf_read, block.ctypes.data, size))
    return max(size / seconds, device.measure_bandwidth())


def matrix_peak(device: Device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of matrix products.

    On a CPU at least the peak of multiply-adds in registers, with the instructions of the kernels
    in use.
    """
    found = library() if device.on_host else None
    if found is None:
        return device.measure_matrix_peak(dtype)
    with _all_cores(found):
        operations = int(found.gf_multiply_add(ROUNDS))
        in_registers = operations / best_seconds(partial(found.gf_multiply_add, ROUNDS))
    return max(in_registers, device.measure_matrix_peak(dtype))


@contextlib.contextmanager
def _all_cores(found: ctypes.CDLL) -> Iterator[None]:
    """Runs native kernels on every usable core, then restores the thread count."""
    found.gf_use_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        found.gf_use_threads(torch.get_num_threads())
