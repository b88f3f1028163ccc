"""HCCL's process group as it is asked for, on one that only notes what it is given: no card has run it."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gyrfalcon.device import npu, npu_collectives
from gyrfalcon.device.environment import settings_of
from gyrfalcon.device.npu import Npu
from gyrfalcon.device.npu_collectives import LATER
from gyrfalcon.device.setup import setup_of
from gyrfalcon.errors import UsageError

OURS = {"HCCL_BUFFSIZE": "200", "HCCL_EXEC_TIMEOUT": "600"}


class Options:
    """As torch_npu's: what it has of these alone may be set."""

    __slots__ = ("_timeout", "hccl_config", "op_timeout")

    def __init__(self) -> None:
        self._timeout = timedelta(minutes=30)
        self.hccl_config: dict[str, int] = {}


class OlderOptions:
    __slots__ = ("_timeout",)


class ProcessGroup:
    """Notes what it was made with."""

    Options: type[object] = Options

    def __init__(self, store: dist.Store, rank: int, size: int, options: Any) -> None:
        store.set(f"rank {rank}", "here")
        self.options, self.places = options, (rank, size)

    def abort(self) -> None:
        """Ends what it has under way."""


def torch_npu(kind: type[ProcessGroup] = ProcessGroup) -> SimpleNamespace:
    c10d = SimpleNamespace(ProcessGroupHCCL=kind)
    return SimpleNamespace(_C=SimpleNamespace(_distributed_c10d=c10d))


def made(environment: dict[str, str], kind: type[ProcessGroup] = ProcessGroup) -> ProcessGroup:
    found = npu_collectives.hccl_group(
        torch_npu(kind)._C._distributed_c10d, dist.HashStore(), 2, 4, environment
    )
    assert isinstance(found, ProcessGroup)
    return found


def test_the_group_has_the_buffers_and_the_patience_of_the_ranks_environment() -> None:
    ours = {each.name: each.value for each in settings_of(setup_of("npu"), 4, 8, {})}
    for environment in (ours, OURS):
        group = made(environment)
        assert group.places == (2, 4)
        assert group.options.hccl_config == {"hccl_buffer_size": 200}
        assert group.options._timeout == timedelta(seconds=600) + LATER


def test_what_is_not_set_is_left_to_torch_npu() -> None:
    options = made({}).options
    assert (options.hccl_config, options._timeout) == ({}, timedelta(minutes=30))


def test_a_torch_npu_without_buffers_of_a_group_has_those_of_the_process() -> None:
    older = type("Older", (ProcessGroup,), {"Options": OlderOptions})
    assert made(OURS, older).options._timeout == timedelta(seconds=600) + LATER


@pytest.mark.parametrize("said", ["200MB", "-1", "1.5"])
def test_a_variable_that_is_no_number_is_refused(said: str) -> None:
    with pytest.raises(UsageError, match=f"a whole number for HCCL_BUFFSIZE, got '{said}'"):
        made({"HCCL_BUFFSIZE": said})


def test_a_device_registers_it_for_its_tensors_at_a_place_of_its_own_in_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(npu, "find_torch_npu", lambda: (torch_npu(), ""))
    monkeypatch.setattr(Npu, "name", "meta")  # this torch knows no npu
    registered: list[tuple[object, ...]] = []
    group = SimpleNamespace(_register_backend=lambda *words: registered.append(words))
    store = dist.HashStore()
    abort = Npu.add_collectives(group, store, 1, 2)  # type: ignore[arg-type]
    [(device, kind, found)] = registered
    assert (device, kind) == (torch.device("meta"), dist.ProcessGroup.BackendType.CUSTOM)
    assert isinstance(found, ProcessGroup)
    assert abort == found.abort
    assert store.check(["hccl/rank 1"])
