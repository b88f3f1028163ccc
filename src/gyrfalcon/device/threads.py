"""The host's cores: how many threads a rank gets, and which cores they keep to."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch


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
