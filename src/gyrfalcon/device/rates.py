"""Times that a device's limits are measured by: the best of several rounds, on matrices of several sizes."""

import math
import time
from collections.abc import Callable

import torch

from gyrfalcon.device.protocol import Device

LEAST_ROUNDS = 5
COPY_BYTES = 1 << 30  # in one pass
ROUNDS_SECONDS = 0.3  # rounds go on for so long: on a shared machine the best of many counts
PRODUCT_SIZES = (512, 1024, 2048, 4096, 8192)
PRODUCT_SECONDS = 0.1  # a product of this time is large enough


def product_rate(device: Device, dtype: torch.dtype) -> float:
    """Floating-point operations a second at the best size; larger ones are left out when one takes long."""
    best = 0.0
    for size in PRODUCT_SIZES:
        seconds = _product_seconds(device, dtype, size)
        best = max(best, 2 * size**3 / seconds)
        if seconds > PRODUCT_SECONDS:
            break
    return best


def _product_seconds(device: Device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size).to(device.torch_device, dtype) for _ in range(2))
    out = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)
        device.synchronise()

    multiply()
    return best_seconds(multiply)


def copy_rate(device: Device) -> float:
    """Bytes a second of a copy within a card's memory, in which those read and those written both count."""
    size = min(COPY_BYTES, device.memory()[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        device.synchronise()

    copy()
    return 2 * size / best_seconds(copy)


def best_seconds(work: Callable[[], object]) -> float:
    """The shortest of several rounds of `work`, in seconds."""
    start = before = time.perf_counter()
    rounds, best = 0, math.inf
    while rounds < LEAST_ROUNDS or before - start < ROUNDS_SECONDS:
        work()
        now = time.perf_counter()
        rounds, best, before = rounds + 1, min(best, now - before), now
    return best
