"""The host's processor: it computes what is asked of it at once, and all ranks share its cores and memory."""

import contextlib
import ctypes
import itertools
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gyrfalcon.device.protocol import Device, Replay
from gyrfalcon.device.rates import best_seconds, product_rate
from gyrfalcon.device.threads import torch_threads

READ_BYTES = 128 << 20  # what each core reads in one pass: many times its share of the caches

Bytes = NDArray[np.uint8]


class Cpu(Device):
    """The processors of one machine, whatever their number."""

    name = "cpu"
    on_host = True
    operator_sets = ("native", "reference")
    cache_share = 0.25
    weights_at_once = 1 << 18
    collectives = "gloo"

    @classmethod
    def count(cls) -> int:
        return 1

    @classmethod
    def at(cls, index: int) -> "Cpu":
        return cls(torch.device(cls.name))

    @classmethod
    def of_rank(cls, local_rank: int) -> "Cpu":
        return cls.at(0)

    @classmethod
    def has_collectives(cls) -> bool:
        return dist.is_gloo_available()

    @classmethod
    def add_collectives(
        cls, group: dist.ProcessGroup, store: dist.Store, rank: int, size: int
    ) -> None:
        pass

    @classmethod
    def toolkit(cls) -> None:
        return None

    @property
    def model(self) -> str:
        return ""

    def memory(self) -> tuple[int, int]:
        found = psutil.virtual_memory()
        return int(found.available), int(found.total)

    def forget_peak_memory(self, pids: Sequence[int]) -> None:
        """A system that does not allow it keeps the peak since the process began."""
        for pid in pids:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_memory(self, pids: Sequence[int]) -> list[int]:
        """Resident in each of the processes, pages of mapped files among them."""
        return [_resident_peak(pid) for pid in pids]

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor

    def fetch(self, tensor: Tensor, check: Callable[[], object]) -> Callable[[], Tensor]:
        copy = tensor.clone()  # of what a later step may write over
        return lambda: copy

    def capture(self, work: Callable[[], Tensor]) -> Replay:
        """There are no graphs here: `work` itself."""
        return lambda contexts=(): work()

    def synchronise(self) -> None:
        pass

    def measure_bandwidth(self) -> float:
        """All usable cores read blocks of their own, with libc's memcmp (two streams a core) and with
        numpy's max (one), and the faster counts. On two cores of an AMD EPYC (Zen 3) that was 22.9
        GB/s, 92 % of what eight prefetched AVX2 streams a core gave in C; torch.sum gave 82 %.
        """
        cores = len(os.sched_getaffinity(0))
        size = min(READ_BYTES, self.memory()[0] // (8 * cores))
        with ThreadPoolExecutor(cores) as pool:
            # Two blocks a core, written so that they are real pages; while one is read, the other
            # leaves the caches.
            blocks = list(pool.map(lambda _: np.ones((2, size), np.uint8), range(cores)))
            turns = itertools.count()

            def one_pass(read: Callable[[Bytes], None]) -> None:
                turn = next(turns) % 2
                list(pool.map(read, [block[turn] for block in blocks]))

            best = min(
                best_seconds(partial(one_pass, read)) for read in (_memcmp_reader(), _max_reader)
            )
        return cores * size / best

    def measure_matrix_peak(self, dtype: torch.dtype) -> float:
        """The best of `dtype` and float32, for a processor without bf16 units multiplies faster in
        float32, and a limit is what the machine can do, not what one routine does with it.
        """
        with torch_threads(len(os.sched_getaffinity(0))):
            return max(product_rate(self, each) for each in {dtype, torch.float32})

    def require_fp8(self) -> None:
        pass  # converted to float32, which any processor has

    def lacks_matrix_units(self, dtype: torch.dtype) -> bool:
        """Torch multiplies 16-bit matrices row by row on a processor without units for them: float32
        is several times as fast (AMD EPYC with AVX2, 512 tokens: six).
        """
        if dtype == torch.float32:
            return False
        supported = (
            torch.ops.mkldnn._is_mkldnn_bf16_supported
            if dtype == torch.bfloat16
            else torch.ops.mkldnn._is_mkldnn_fp16_supported
        )
        return not supported()


def _resident_peak(pid: int) -> int:
    """Linux's high-water mark of a process (proc(5): VmHWM, in kB of 1024 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    match = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else psutil.Process(pid).memory_info().rss


def _memcmp_reader() -> Callable[[Bytes], None]:
    memcmp = ctypes.CDLL(None).memcmp  # releases the interpreter while it runs
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def read(block: Bytes) -> None:
        half = len(block) // 2
        memcmp(block.ctypes.data, block.ctypes.data + half, half)

    return read


def _max_reader(block: Bytes) -> None:
    block.max()


KIND = Cpu
