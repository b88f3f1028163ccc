"""Where tensors live: choosing the device and its dtype, how much memory it has free, how many
threads it gets; and what it can do at most: bytes and flops a second, measured.
"""

import contextlib
import ctypes
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from gyrfalcon.errors import UsageError

DTYPE_OF_WORD = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WORD_OF_DTYPE = {dtype: word for word, dtype in DTYPE_OF_WORD.items()}

READ_BYTES = 128 << 20  # what each core reads in one pass: many times its share of the caches
COPY_BYTES = 1 << 30  # what a card copies in one pass
LEAST_ROUNDS = 5
ROUNDS_SECONDS = 0.3  # rounds go on for so long: on a shared machine the best of many counts
PRODUCT_SIZES = (512, 1024, 2048, 4096, 8192)
PRODUCT_SECONDS = 0.1  # a product of this time is large enough

Bytes = NDArray[np.uint8]


def uses_cuda(word: str) -> bool:
    """Whether `auto`, `cpu` or `cuda` means CUDA here; UsageError when it is asked for in vain."""
    available = torch.cuda.is_available()
    if word == "cuda" and not available:
        do = "use `device=cpu`, or install a torch built for your card"
        raise UsageError("a CUDA device", "none", do)
    return word != "cpu" and available


def choose_device(word: str, local_rank: int) -> torch.device:
    """The device of one rank: the CPU, or a card of its own."""
    if not uses_cuda(word):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            "a CUDA device for every rank on this machine",
            f"{torch.cuda.device_count()} of them",
            "use fewer ranks or `device=cpu`",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def free_memory(device: torch.device) -> int:
    """Bytes that could still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def use_threads(threads: int | None, ranks_here: int) -> None:
    """Gives this process its share of the cores, or the number asked for."""
    cores = len(os.sched_getaffinity(0))  # two threads on one core only wait for each other:
    physical = min(cores, psutil.cpu_count(logical=False) or cores)
    torch.set_num_threads(threads or max(1, physical // ranks_here))


def own_processors(local_rank: int, ranks_here: int) -> list[int]:
    """Where this rank's threads keep to: a logical processor for each of them, on cores of their own.
    None where the threads of all ranks leave cores over, or are more than the cores: others may run
    here as well, and the system knows better.
    """
    processors = _one_of_each_core()
    threads = torch.get_num_threads()
    if len(processors) != ranks_here * threads:
        return []
    return processors[local_rank * threads : (local_rank + 1) * threads]


def keep_to(processors: Sequence[int]) -> None:
    """Keeps this thread, and those it starts, on these processors; on any where there are none."""
    if processors:
        os.sched_setaffinity(0, processors)


def _one_of_each_core() -> list[int]:
    """The first of each physical core's logical processors, among those this process may use; none
    where the system does not tell.
    """
    cores: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for processor in sorted(os.sched_getaffinity(0)):
            topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology")
            cores.setdefault((topology / "thread_siblings_list").read_text(), processor)
        return list(cores.values())
    return []


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within it torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_torch_thread() -> contextlib.AbstractContextManager[None]:
    """Within it torch computes on the caller's thread alone: after an operation its other threads spin
    for milliseconds, and take the processor from threads that are not torch's.
    """
    return torch_threads(1)


def lacks_products(x: Tensor) -> bool:
    """Whether torch multiplies matrices of x's dtype row by row: 16-bit ones on a processor without
    units for them, where float32 is several times as fast (AMD EPYC with AVX2, 512 tokens: six).
    """
    if x.device.type != "cpu" or x.dtype == torch.float32:
        return False
    supported = (
        torch.ops.mkldnn._is_mkldnn_bf16_supported
        if x.dtype == torch.bfloat16
        else torch.ops.mkldnn._is_mkldnn_fp16_supported
    )
    return not supported()


def capability(device: torch.device) -> tuple[int, int] | None:
    """A card's compute capability, as CUDA counts; None for the CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


@cache
def card_name(device: torch.device) -> str:
    """What the maker calls the card, as `NVIDIA H200`; nothing for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in host memory that an accelerator can copy from while the host goes on."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, if it is not there already; the host does not wait for the copy."""
    if tensor.device == device:
        return tensor
    return pinned(tensor, device).to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Callable[[], Tensor]:
    """Has the tensor copied to the host once it is computed; what is returned waits until it is
    there.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    on_host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return on_host

    return wait


def capture(work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """What launches all of `work` at once, again and again on the same tensors.

    CUDA: a graph, captured after a first run that compiles and allocates (torch.cuda.graphs). The
    CPU has no such thing: `work` itself.
    """
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def synchronise(device: torch.device) -> None:
    """Waits until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_bandwidth(device: torch.device) -> float:
    """Bytes a second that the device can read from its memory: the best of several passes.

    CPU: all usable cores read blocks of their own, with libc's memcmp (two streams a core) and
    with numpy's max (one), and the faster counts. On two cores of an AMD EPYC (Zen 3) that was
    22.9 GB/s, 92 % of what eight prefetched AVX2 streams a core gave in C; torch.sum gave 82 %.
    CUDA: a copy within the card's memory, in which the read and the written bytes both count.
    """
    return _card_bandwidth(device) if device.type == "cuda" else _cpu_bandwidth()


def measure_matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of large square matrix products in torch, 2n³ for n × n
    (a multiplication and an addition each): the best of several sizes and rounds.

    CPU: the best of `dtype` and float32, for a processor without bf16 units multiplies faster in
    float32, and a limit is what the machine can do, not what one routine does with it.
    """
    dtypes = {dtype, torch.float32} if device.type == "cpu" else {dtype}
    with _all_cores():
        return max(_product_rate(device, each) for each in dtypes)


def forget_peak_memory(device: torch.device, pids: Sequence[int]) -> None:
    """Lets peak_memory() start from now. (A system that does not allow it keeps the peak since the
    process began.)
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory(device: torch.device, pids: Sequence[int]) -> list[int]:
    """The most bytes held so far. CPU: resident in each of the processes, pages of mapped files
    among them. CUDA: allocated by torch in this process, one figure.
    """
    if device.type == "cuda":
        return [int(torch.cuda.max_memory_allocated(device))]
    return [_resident_peak(pid) for pid in pids]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of this process or told by another rank, says that memory ran out."""
    told = ("out of memory", "can't allocate memory", "MemoryError")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in told
    )


def _resident_peak(pid: int) -> int:
    """Linux's high-water mark of a process (proc(5): VmHWM, in kB of 1024 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    match = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else psutil.Process(pid).memory_info().rss


def _cpu_bandwidth() -> float:
    cores = len(os.sched_getaffinity(0))
    size = min(READ_BYTES, free_memory(torch.device("cpu")) // (8 * cores))
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


def _memcmp_reader() -> Callable[[Bytes], None]:
    memcmp = ctypes.CDLL(None).memcmp  # releases the interpreter while it runs
    memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def read(block: Bytes) -> None:
        half = len(block) // 2
        memcmp(block.ctypes.data, block.ctypes.data + half, half)

    return read


def _max_reader(block: Bytes) -> None:
    block.max()


def _card_bandwidth(device: torch.device) -> float:
    size = min(COPY_BYTES, free_memory(device) // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        synchronise(device)

    copy()
    return 2 * size / best_seconds(copy)


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Of the best size; larger ones are left out when one takes long."""
    best = 0.0
    for size in PRODUCT_SIZES:
        seconds = _product_seconds(device, dtype, size)
        best = max(best, 2 * size**3 / seconds)
        if seconds > PRODUCT_SECONDS:
            break
    return best


def _product_seconds(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    out = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)
        synchronise(device)

    multiply()
    return best_seconds(multiply)


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """Every usable core for torch, and then as many threads as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def best_seconds(work: Callable[[], object]) -> float:
    """The shortest of several rounds of `work`, in seconds."""
    start = before = time.perf_counter()
    rounds, best = 0, math.inf
    while rounds < LEAST_ROUNDS or before - start < ROUNDS_SECONDS:
        work()
        now = time.perf_counter()
        rounds, best, before = rounds + 1, min(best, now - before), now
    return best
