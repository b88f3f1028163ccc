"""What doctor says of NVIDIA's and AMD's drivers and the torch that is to use them."""

from pathlib import Path

import pytest
from host_machines import Machine, shown

from gyrfalcon.device.cuda_setup import SETUP

MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Mar  5 2024\nGCC version: 12\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (u@h)\n"


def machine(root: Path, *, cuda: str = "", hip: str = "", driver: str = "") -> Machine:
    kinds = "".join(
        f"{name}: Optional[str] = {value!r}\n"
        for name, value in (("cuda", cuda or None), ("hip", hip or None))
    )
    found = Machine(root, torch_version=f"__version__ = '2.13.0'\ndebug = False\n{kinds}")
    if driver:
        found.write("/proc/driver/nvidia/version", driver).write("/dev/nvidia0").write(
            "/dev/nvidia1"
        )
        found.write("/dev/nvidiactl")
    return found


def findings(found: Machine) -> dict[str, str]:
    return shown([*SETUP.check(found.host)])


@pytest.mark.parametrize(
    ("cuda", "driver", "fault"),
    [
        ("13.0", MODULE.format("580.65.06"), False),
        ("13.0", OPEN.format("595.10"), False),
        ("13.0", MODULE.format("550.54.15"), True),
        ("12.8", MODULE.format("550.54.15"), False),
        ("12.8", OPEN.format("525.60.13"), False),
        ("12.1", MODULE.format("470.10"), True),
        ("11.8", MODULE.format("470.10"), False),
    ],
)
def test_a_driver_is_new_enough_for_torch_s_cuda_or_a_fault(
    tmp_path: Path, cuda: str, driver: str, fault: bool
) -> None:
    found = machine(tmp_path, cuda=cuda, driver=driver)
    assert findings(found)["NVIDIA driver"].startswith("FAULT") == fault
    assert SETUP.present(found.host)
    assert SETUP.num_cards(found.host) == 2


def test_the_cure_for_an_old_driver_names_a_torch_that_it_can_run(tmp_path: Path) -> None:
    found = machine(tmp_path, cuda="13.0", driver=MODULE.format("550.54.15"))
    said = findings(found)["NVIDIA driver"]
    assert "update the driver to 580" in said
    assert "a torch for CUDA 12" in said


def test_a_card_with_a_torch_for_the_cpu_is_a_fault(tmp_path: Path) -> None:
    said = findings(machine(tmp_path, driver=MODULE.format("580.65.06")))["NVIDIA driver"]
    assert said.startswith("FAULT 580.65.06, but torch is built for the CPU alone; ")


def test_a_torch_for_cuda_without_a_card_is_no_fault(tmp_path: Path) -> None:
    said = findings(machine(tmp_path, cuda="13.0"))["NVIDIA driver"]
    assert said.startswith("none: torch is built for CUDA 13.0")


def test_a_cuda_that_the_table_lacks_is_no_fault(tmp_path: Path) -> None:
    found = machine(tmp_path, cuda="14.1", driver=MODULE.format("650.1"))
    assert "not in the table" in findings(found)["NVIDIA driver"]


def test_a_card_on_the_bus_without_a_driver_is_noted(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert not SETUP.present(found.host)
    for number, (vendor, kind) in enumerate([("0x10de", "0x030200"), ("0x8086", "0x060000")]):
        found.write(f"/sys/bus/pci/devices/0000:0{number}:00.0/vendor", f"{vendor}\n")
        found.write(f"/sys/bus/pci/devices/0000:0{number}:00.0/class", f"{kind}\n")
    said = findings(found)["NVIDIA driver"]
    assert said.startswith("none, but 1 of its cards on the PCI bus; install NVIDIA's driver")
    assert SETUP.present(found.host)


def test_amd_s_card_wants_a_torch_for_rocm_and_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine(tmp_path, hip="6.4.43484")
    assert findings(found)["AMD driver"].startswith("FAULT none, but torch is built for ROCm 6.4")
    found.write("/dev/kfd").write("/sys/module/amdgpu/version", "6.12.12\n")
    assert findings(found) == {"AMD driver": "6.12.12, torch built for ROCm 6.4.43484; "}
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "group render" in findings(found)["AMD driver"]
    other = machine(tmp_path, cuda="13.0")
    assert "install a torch for ROCm" in findings(other)["AMD driver"]


def test_segments_expand_where_torch_is_built_for_cuda_alone(tmp_path: Path) -> None:
    names = [each.name for each in SETUP.variables(machine(tmp_path, cuda="13.0").host)]
    assert names == ["PYTORCH_CUDA_ALLOC_CONF"]
    assert not SETUP.variables(machine(tmp_path, hip="6.4").host)
    assert not SETUP.variables(machine(tmp_path).host)
