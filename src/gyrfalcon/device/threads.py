"""The host's cores: how many threads a rank gets, and which cores and NUMA nodes they keep to.

Nothing is bound where the user does it: with taskset or numactl only the processors left are shared out,
and GYRFALCON_BIND=0 or a variable of OpenMP's own turns it off.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence

import psutil
import torch

from gyrfalcon.device.protocol import Device
from gyrfalcon.device.topology import Core, usable_cores

log = logging.getLogger(__name__)

BIND = "GYRFALCON_BIND"
OPENMP = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")  # by which the user binds threads


def threads_of(ranks_here: int) -> int:
    """A rank's share of the physical cores, at least one: two threads on a core only wait for each other."""
    usable = len(os.sched_getaffinity(0))
    physical = len(usable_cores()) or psutil.cpu_count(logical=False) or usable
    return max(1, min(usable, physical) // ranks_here)


def use_threads(threads: int | None, ranks_here: int) -> None:
    """Gives this process its share of the cores, or the number asked for."""
    torch.set_num_threads(threads or threads_of(ranks_here))


def unbound(environment: Mapping[str, str] = os.environ) -> str:
    """The setting by which the user keeps gyrfalcon from binding threads; nothing without one."""
    if environment.get(BIND) == "0":
        return f"{BIND}=0"
    return next((f"{name}={environment[name]}" for name in OPENMP if name in environment), "")


def own_processors(
    local_rank: int, ranks_here: int, cores: Sequence[Core] | None = None
) -> list[int]:
    """Where this rank's threads keep to: a logical processor for each of them, on cores of their own.
    None where the threads of all ranks leave cores over, or are more than the cores: others may run
    here as well, and the system knows better.

    Ranks get cores node by node, so that few of them reach over two NUMA nodes. `cores`: those that
    this process may use, as usable_cores() finds them.
    """
    found = usable_cores() if cores is None else cores
    threads = torch.get_num_threads()
    if unbound() or len(found) != ranks_here * threads:
        return []
    own = found[local_rank * threads : (local_rank + 1) * threads]
    return [core.processors[0] for core in own]


def node_processors(
    local_rank: int, ranks_here: int, cores: Sequence[Core] | None = None
) -> list[int]:
    """All processors of the NUMA nodes that this rank computes on, for it to load its weights there, and
    for threads that have no core of their own. None where it may use them all: with a single node or
    rank, and where the ranks' threads do not fit into the nodes.
    """
    found = usable_cores() if cores is None else cores
    nodes = sorted({core.node for core in found})
    if unbound() or ranks_here < 2 or len(nodes) < 2:
        return []
    exact = set(own_processors(local_rank, ranks_here, found))
    own = {core.node for core in found if exact.intersection(core.processors)}
    if not own and _fits(nodes, ranks_here, found):
        own = set(_nodes_of(local_rank, ranks_here, nodes))
    return sorted(each for core in found if core.node in own for each in core.processors)


def _nodes_of(local_rank: int, ranks_here: int, nodes: Sequence[int]) -> Sequence[int]:
    """The nodes of one rank: several, or one that it may share with the next ranks."""
    count = len(nodes)
    if ranks_here >= count:
        first = count * local_rank // ranks_here
        return nodes[first : first + 1]
    return nodes[count * local_rank // ranks_here : count * (local_rank + 1) // ranks_here]


def _fits(nodes: Sequence[int], ranks_here: int, cores: Sequence[Core]) -> bool:
    """Whether no node gets more threads than it has cores."""
    threads = torch.get_num_threads()
    asked = dict.fromkeys(nodes, 0.0)
    for rank in range(ranks_here):
        own = _nodes_of(rank, ranks_here, nodes)
        for node in own:
            asked[node] += threads / len(own)
    return all(asked[node] <= sum(core.node == node for core in cores) for node in nodes)


def home_processors(device: Device, local_rank: int, ranks_here: int) -> list[int]:
    """The processors of the NUMA nodes that a rank belongs to: its card's, or its share of all."""
    if device.on_host:
        return node_processors(local_rank, ranks_here)
    cores = usable_cores()
    if unbound() or len({core.node for core in cores}) < 2:
        return []
    node = device.numa_node()
    return sorted(each for core in cores if core.node == node for each in core.processors)


def keep_to(processors: Sequence[int]) -> None:
    """Keeps this thread, and those it starts, on these processors; on any where there are none."""
    if not processors:
        return
    try:
        os.sched_setaffinity(0, processors)
    except OSError as error:  # taken away meanwhile, or a sandbox that forbids it
        log.warning("threads are not bound to processors %s: %s", processors, error.strerror)


@contextlib.contextmanager
def kept_to(processors: Sequence[int]) -> Iterator[None]:
    """Within it this thread, and afterwards those that it started, keep to these processors."""
    before = os.sched_getaffinity(0)
    keep_to(processors)
    try:
        yield
    finally:
        if processors:
            keep_to(sorted(before))


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within it torch computes on this many threads."""
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
