"""Checks that ask torch: kernels, cards, peer access, bandwidth, threads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from host_machines import Machine, shown

from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.protocol import Device
from gyrfalcon.device.topology import Core
from gyrfalcon.doctor import device_checks
from gyrfalcon.native import library

GB = 1 << 30


class Card(Cpu):
    """A card that is not there, on an island with others of its number's parity."""

    name = "cuda"
    on_host = False
    operator_sets = ("triton", "reference")

    def __init__(
        self, index: int, free: int = 70 * GB, rate: float = 4e12, name: str = "H200"
    ) -> None:
        super().__init__(torch.device("cuda", index))
        self._index, self._free, self._rate, self._name = index, free, rate, name

    @property
    def model(self) -> str:
        return f"NVIDIA {self._name}"

    def memory(self) -> tuple[int, int]:
        return self._free, 80 * GB

    def measure_bandwidth(self) -> float:
        return self._rate

    def reaches(self, other: Device) -> bool | None:
        assert isinstance(other, Card)
        return self._index % 2 == other._index % 2


class Silent(Card):
    """One that does not tell whom it reaches."""

    def reaches(self, other: Device) -> bool | None:
        return None


def test_memory_that_others_hold_is_noted() -> None:
    said = shown([*device_checks.check_card_memory([Cpu.at(0), Card(0), Card(1, free=10 * GB)])])
    assert said["cuda:0 memory"] == "75.2 GB of 85.9 GB free; "
    assert said["cuda:1 memory"].startswith("10.7 GB of 85.9 GB free; end the programs")
    assert len(said) == 2


def test_cards_that_do_not_reach_each_other_are_named() -> None:
    assert not [*device_checks.check_peers([Cpu.at(0), Card(0)])]
    [all_reach] = device_checks.check_peers([Card(0), Card(2), Card(4)])
    assert (all_reach.found, all_reach.cure) == ("between all 3 cards", "")
    [apart] = device_checks.check_peers([Cpu.at(0), *map(Card, range(4))])
    assert (
        apart.found
        == "none between cuda:0 and cuda:1, cuda:0 and cuda:3, cuda:1 and cuda:2 and 1 more"
    )
    assert apart.cure
    assert not [*device_checks.check_peers([Silent(0), Silent(1)])]


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (Card(0, rate=4.1e12), "4,100.0 GB/s; "),
        (Card(0, rate=2.0e12), "FAULT 2,000.0 GB/s, 4,800 by its maker; look for"),
        (Card(0, rate=0.1e12, name="Unknown"), "100.0 GB/s; "),
        (Card(0, free=GB), "not measured: too little memory is free; "),
    ],
)
def test_bandwidth_far_below_the_maker_s_is_a_fault(card: Card, said: str) -> None:
    [found] = device_checks.check_bandwidth([card])
    assert shown([found])["cuda:0 bandwidth"].startswith(said)


def test_a_slow_card_of_ascend_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Card, "name", "npu")
    slow, well = (Card(0, rate=rate, name="Ascend910B3") for rate in (0.9e12, 1.2e12))
    assert [each.is_fault for each in device_checks.check_bandwidth([slow, well])] == [True, False]


@pytest.mark.parametrize(
    ("found", "visible", "fault"),
    [(2, None, None), (0, None, True), (1, None, True), (1, "0", False)],
)
def test_cards_that_torch_does_not_find_are_a_fault_unless_the_user_hides_them(
    tmp_path: Path, found: int, visible: str | None, fault: bool | None
) -> None:
    machine = Machine(tmp_path).write("/dev/nvidia0").write("/dev/nvidia1").write("/dev/nvidiactl")
    machine.write("/proc/driver/nvidia/version", "NVRM version: x Kernel Module  580.1  y")
    if visible is not None:
        machine.environment["CUDA_VISIBLE_DEVICES"] = visible
    counts = {"cpu": 1, "cuda": found, "npu": 0}
    findings = [*device_checks.check_cards(machine.host, counts)]
    assert [each.is_fault for each in findings] == ([] if fault is None else [fault])


def test_kernels_are_built_or_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GYRFALCON_NATIVE", raising=False)
    [found] = device_checks.check_kernels({})
    assert found.is_fault == (library.library() is None)
    monkeypatch.setenv("GYRFALCON_NATIVE", "0")
    [unused] = device_checks.check_kernels({"GYRFALCON_NATIVE": "0"})
    assert (unused.is_fault, unused.found) == (False, "not used: GYRFALCON_NATIVE is 0")
    monkeypatch.setenv("GYRFALCON_NATIVE", str(tmp_path / "none.so"))
    [missing] = device_checks.check_kernels({})
    assert missing.is_fault
    assert missing.cure == "build it, or unset it"
    monkeypatch.delenv("GYRFALCON_NATIVE")
    monkeypatch.setattr(device_checks, "library", lambda: None)
    [unbuilt] = device_checks.check_kernels({})
    assert unbuilt.is_fault
    assert unbuilt.cure.startswith("install the package again")


def test_operators_that_no_device_can_run_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYRFALCON_OPS", "nonsense")
    [found] = device_checks.check_operators([Cpu.at(0)], {"GYRFALCON_OPS": "nonsense"})
    assert shown([found])["operators"] == (
        "FAULT GYRFALCON_OPS=nonsense: 'nonsense'; correct or unset it"
    )
    monkeypatch.delenv("GYRFALCON_OPS")
    assert not [*device_checks.check_operators([Cpu.at(0)], {})]


def test_a_card_without_triton_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_checks, "find_spec", lambda name: None)
    monkeypatch.setattr("gyrfalcon.ops.find_spec", lambda name: None)
    [found] = device_checks.check_operators([Cpu.at(0), Card(0)], {})
    assert shown([found])["operators"].startswith("FAULT no Triton for NVIDIA H200; pip install")


def cores(count: int, nodes: int) -> list[Core]:
    return [Core(each * nodes // count, (each,)) for each in range(count)]


@pytest.mark.parametrize(
    ("ranks", "threads", "environment", "found", "said"),
    [
        (
            2,
            2,
            {},
            cores(4, 2),
            "a core for each thread, rank 0 on 0-1, rank 1 on 2-3; 2 NUMA nodes; ",
        ),
        (2, 3, {}, cores(8, 2), "by NUMA node, rank 0 on 0-3, rank 1 on 4-7; "),
        (2, 1, {}, cores(8, 1), "none: the ranks' threads do not fill the 8 cores; 1 NUMA node; "),
        (2, 1, {}, [], "none: the system does not tell its cores; "),
        (
            2,
            2,
            {"GYRFALCON_BIND": "0"},
            cores(4, 2),
            "left to you: GYRFALCON_BIND=0; 2 NUMA nodes; ",
        ),
    ],
)
def test_threads_and_their_cores_are_told(
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    threads: int,
    environment: Mapping[str, str],
    found: Sequence[Core],
    said: str,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device_checks, "threads_of", lambda ranks: threads)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {*range(len(found) or 4)})
    before = torch.get_num_threads()
    findings = shown([*device_checks.check_threads(ranks, found, environment)])
    assert findings["core binding"] == said
    assert findings["threads"].startswith(f"{threads} for each of {ranks} ranks, ")
    assert torch.get_num_threads() == before


def test_more_threads_than_processors_by_the_user_s_setting_are_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    found = shown([*device_checks.check_threads(1, cores(2, 1), {"OMP_NUM_THREADS": "16"})])
    assert found["threads"].startswith("FAULT 16 for each of 1 rank, 2 processors usable")
    assert "unset OMP_NUM_THREADS" in found["threads"]
    assert not device_checks.check_files(2).is_fault
