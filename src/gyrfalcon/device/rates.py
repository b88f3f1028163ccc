"""Times that a device's limits are measured by: the best of several rounds, on matrices of several sizes."""

import math
import time
from collections.abc import Callable

import torch

from gyrfalcon.device.protocol import Device

LEAST_ROUNDS = 5
COPY_BYTES = 8 << 30  # in one pass: starting it costs nothing beside it
ROUNDS_SECONDS = 0.3  # rounds go on for this long: on a shared machine the best of many counts
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

    multiply()
    return best_seconds(multiply, device.seconds_of)


def copy_rate(device: Device) -> float:
    """Bytes a second of a copy within a card's memory, in which those read and those written both count."""
    size = min(COPY_BYTES, device.memory()[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / best_seconds(lambda: target.copy_(source), device.seconds_of)


def read_rate(device: Device) -> float:
    """Bytes a second of reading a card's memory alone, as decoding does, by the sum of numbers: it may be
    more than a copy moves.
    """
    size = min(COPY_BYTES, device.memory()[0] // 4)
    source = torch.ones(size // 4, dtype=torch.float32, device=device.torch_device)
    source.sum()
    return source.nbytes / best_seconds(source.sum, device.seconds_of)


def best_seconds(
    work: Callable[[], object], seconds_of: Callable[[Callable[[], object]], float] | None = None
) -> float:
    """The shortest of several rounds of `work`, in seconds: by `seconds_of`, or until the call returns."""
    start = time.perf_counter()
    rounds, best = 0, math.inf
    while rounds < LEAST_ROUNDS or time.perf_counter() - start < ROUNDS_SECONDS:
        best = min(best, (seconds_of or _host_seconds)(work))
        rounds += 1
    return best


def _host_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
