"""Peak memory bandwidth and matrix throughput of a device: as torch reaches them and, on a CPU, as
native kernels that do nothing else do.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Set
from functools import partial

import numpy as np
import torch

from gyrfalcon.device.protocol import Device
from gyrfalcon.device.rates import best_seconds
from gyrfalcon.measure.roofline import MachineLimits
from gyrfalcon.native.library import KINDS, library

ROUNDS = 1 << 18  # of multiply-adds: some milliseconds
READ_BYTES = 512 << 20  # many times the caches
MANY_TOKENS = 256  # of a prompt
QUANTISED_KINDS = {"int8": 3, "int4": 4}  # gf_kind


def machine_limits(device: Device, dtype: torch.dtype, quant: str = "none") -> MachineLimits:
    """All of them, for a model of this dtype whose matrices are quantised to `quant`."""
    bandwidth = memory_bandwidth(device)
    instruction = prompt_instruction(device, dtype, quant)
    if instruction is None:
        return MachineLimits(bandwidth, device.measure_matrix_peak(dtype))
    float32 = prompt_instruction(device, torch.float32)
    assert float32 is not None
    peaks = instruction_peaks(device, {instruction, float32})
    return MachineLimits(bandwidth, peaks[instruction], instruction, peaks[float32])


def memory_bandwidth(device: Device) -> float:
    """Bytes per second read from the device's memory; on a GPU, copied within it. Of two ways on a CPU
    the faster counts: a limit is what the machine can do, not what one routine does.
    """
    found = library() if device.on_host else None
    if found is None:
        return device.measure_bandwidth()
    size = min(READ_BYTES, device.memory()[0] // 4)
    block = np.ones(size, np.uint8)  # written, so that it has pages of its own
    with _all_cores(found):
        seconds = best_seconds(partial(found.gf_read, block.ctypes.data, size))
    return max(size / seconds, device.measure_bandwidth())


def prompt_instruction(device: Device, dtype: torch.dtype, quant: str = "none") -> str | None:
    """The instruction by which native kernels multiply a prompt's tokens with matrices of this kind;
    None where there are no such kernels.
    """
    found = library() if device.on_host else None
    family = quant.partition("-")[0]
    if found is None or dtype not in KINDS or (quant != "none" and family not in QUANTISED_KINDS):
        return None
    kind = QUANTISED_KINDS.get(family, KINDS[dtype])
    return str(found.gf_instruction_for(kind, MANY_TOKENS, KINDS[dtype]).decode())


def instruction_peaks(device: Device, wanted: Set[str] | None = None) -> dict[str, float]:
    """Operations per second of each instruction that native kernels may multiply by, or of those
    wanted, on all cores and from registers, the one for float32 first; a multiply-add is two. {}
    where there are none.
    """
    found = library() if device.on_host else None
    if found is None:
        return {}
    peaks = {}
    with _all_cores(found):
        for name in found.gf_multiply_instructions().split():
            if wanted is not None and name.decode() not in wanted:
                continue
            operations = int(found.gf_multiply_add(name, ROUNDS))
            seconds = best_seconds(partial(found.gf_multiply_add, name, ROUNDS))
            peaks[name.decode()] = operations / seconds
    return peaks


@contextlib.contextmanager
def _all_cores(found: ctypes.CDLL) -> Iterator[None]:
    """Runs native kernels on every usable core, then restores the thread count."""
    found.gf_use_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        found.gf_use_threads(torch.get_num_threads())
