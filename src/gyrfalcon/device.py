"""Where tensors live: choosing the device and its dtype, how much memory it has free, how many
threads it gets.
"""

import os

import psutil
import torch

from gyrfalcon.errors import UsageError

DTYPE_OF_WORD = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WORD_OF_DTYPE = {dtype: word for word, dtype in DTYPE_OF_WORD.items()}


def uses_cuda(word: str) -> bool:
    """Whether `auto`, `cpu` or `cuda` means CUDA here; UsageError when it is asked for in vain."""
    available = torch.cuda.is_available()
    if word == "cuda" and not available:
        do = "use --device cpu, or install a torch built for your card"
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
            "use fewer ranks or --device cpu",
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
