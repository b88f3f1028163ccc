"""HCCL, through which Ascend cards sum over ranks, as torch_npu's process group of it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from gyrfalcon.errors import UsageError

BUFFER, EXEC_TIMEOUT = "HCCL_BUFFSIZE", "HCCL_EXEC_TIMEOUT"
LATER = timedelta(seconds=60)  # CANN says first, and better, which rank it waited for


def hccl_group(
    c10d: Any, store: dist.Store, rank: int, size: int, environment: Mapping[str, str]
) -> Any:
    """The group of ranks that meet at `store`. The variables of HCCL hold for it: what its buffers take, in
    MB, and the seconds after which it gives up a collective. UsageError for one that is not a number.
    """
    options = c10d.ProcessGroupHCCL.Options()
    seconds = _number(environment, EXEC_TIMEOUT)
    if seconds:
        options._timeout = timedelta(seconds=seconds) + LATER
    megabytes = _number(environment, BUFFER)
    if megabytes and hasattr(options, "hccl_config"):  # of a group; the variable is of the process
        options.hccl_config = {"hccl_buffer_size": megabytes}
    return c10d.ProcessGroupHCCL(dist.PrefixStore("hccl", store), rank, size, options)


def _number(environment: Mapping[str, str], name: str) -> int:
    """A variable's whole number; 0 where it is not set."""
    said = environment.get(name) or "0"
    if not said.isdecimal():
        raise UsageError(f"a whole number for {name}", repr(said), "correct or unset it")
    return int(said)
