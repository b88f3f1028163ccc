"""What doctor says of Ascend's driver, CANN, torch_npu and torch, on machines that are folders."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host_machines import Machine, shown

from gyrfalcon.device import npu
from gyrfalcon.device.host import Answer
from gyrfalcon.device.npu import Npu
from gyrfalcon.device.npu_setup import SETUP, TORCH_IS_THERE, TRY_IMPORT, pci_address
from gyrfalcon.ops.npu.choice import ALIBI_VARIABLE, VARIABLE

CANN = "/usr/local/Ascend/ascend-toolkit"
ATB = "/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_0"
THERE = TORCH_IS_THERE + "\n"
LIBHCCL = "ImportError: libhccl.so: cannot open shared object file: No such file or directory"
WORKS = Answer(0, "")


def machine(
    root: Path, torch_npu: str | None = "2.7.1", cann: str | None = "8.3.RC1", torch: str = "2.7.1"
) -> Machine:
    """A machine with two cards where all is well."""
    found = Machine(root, {"torch": torch}, {"python": WORKS})
    for node in ("davinci0", "davinci1", "davinci_manager"):
        found.write(f"/dev/{node}")
    found.write("/usr/local/Ascend/driver/version.info", "Version=25.3.rc1\npackage_version=25.3\n")
    if cann is not None:
        info = f"package_name=Ascend-cann-toolkit\nversion={cann}\narch=aarch64\n"
        found.write(f"{CANN}/latest/aarch64-linux/ascend_toolkit_install.info", info)
        found.write(f"{CANN}/set_env.sh")
        found.environment["LD_LIBRARY_PATH"] = f"{CANN}/latest/lib64"
    found.write(f"{ATB}/lib/libatb.so").environment["ATB_HOME_PATH"] = ATB
    if torch_npu is not None:
        found.versions["torch_npu"] = torch_npu
    return found


def findings(found: Machine) -> dict[str, str]:
    assert SETUP.present(found.host)
    return shown([*SETUP.check(found.host)])


def test_a_machine_where_all_fits_has_no_fault(tmp_path: Path) -> None:
    assert findings(machine(tmp_path)) == {
        "Ascend driver": "version 25.3.rc1, 2 cards; ",
        "CANN": f"8.3.RC1 in {CANN}/latest; ",
        "driver for CANN": "25.3.rc1, no older than CANN 8.3.RC1 itself; ",
        "torch_npu": "2.7.1 with torch 2.7.1; ",
        "compatibility": "torch_npu 2.7.1 is made for CANN 8.3 to 9.1, here 8.3.RC1; ",
        "NNAL": f"{ATB}/lib/libatb.so; ",
        "torch_npu import": "works; ",
    }


def test_a_bundle_says_which_attention_was_asked_for() -> None:
    assert {VARIABLE, ALIBI_VARIABLE} <= set(SETUP.noted)


def test_a_machine_without_anything_of_ascend_is_not_examined(tmp_path: Path) -> None:
    assert not SETUP.present(Machine(tmp_path, {"torch": "2.13.0"}).host)


def test_the_cann_of_this_shell_comes_before_the_default_one(tmp_path: Path) -> None:
    found = machine(tmp_path)
    found.write("/opt/cann/x86_64-linux/ascend_toolkit_install.info", "version=9.0.0\n")
    found.environment |= {"ASCEND_HOME_PATH": "/opt/cann", "LD_LIBRARY_PATH": "/opt/cann/lib64"}
    assert findings(found)["CANN"] == "9.0.0 in /opt/cann; "


@pytest.mark.parametrize(
    ("torch_npu", "cann", "fault"),
    [
        ("2.1.0.post13", "8.0.RC2", False),
        ("2.1.0", "8.5.0", True),
        ("2.5.1.post1", "8.2.RC1", False),
        ("2.6.0", "8.1.RC1", True),
        ("2.7.1", "8.2.RC1", True),
        ("2.7.1", "9.1.0", False),
        ("2.8.0", "9.1.0", True),
        ("2.9.0", "8.5.0", False),
        ("2.12.0", "8.5.0", True),
        ("2.12.0", "9.1.0", False),
    ],
)
def test_torch_npu_is_held_against_the_table_of_cann(
    tmp_path: Path, torch_npu: str, cann: str, fault: bool
) -> None:
    said = findings(machine(tmp_path, torch_npu, cann, torch_npu.split(".post")[0]))
    assert said["compatibility"].startswith("FAULT") == fault
    assert cann in said["compatibility"]
    assert not said["torch_npu"].startswith("FAULT")


@pytest.mark.parametrize(
    ("driver", "cann", "said"),
    [
        ("25.5.0", "8.5.0", "25.5.0, no older than CANN 8.5.0 itself; "),
        (
            "25.0.rc1",
            "8.5.0",
            "25.0.rc1, older than 25.5, which CANN 8.5.0 was released with; if something fails, update ",
        ),
        ("24.1.0", "8.5.0", "FAULT 24.1.0, but CANN 8.5.0 wants 25.0 or newer; update the driver"),
        ("24.1.0", "8.3.RC1", "24.1.0, older than 25.3, which CANN 8.3.RC1 was released with; if "),
        ("25.5.0", "9.0.0", None),  # whose release nobody has put into the table
        ("24.1.0", "7.0.0", None),
    ],
)
def test_the_driver_is_held_against_the_one_released_with_cann(
    tmp_path: Path, driver: str, cann: str, said: str | None
) -> None:
    found = machine(tmp_path, cann=cann)
    found.write("/usr/local/Ascend/driver/version.info", f"Version={driver}\n")
    line = findings(found).get("driver for CANN")
    assert line is None if said is None else line is not None and line.startswith(said)


@pytest.mark.parametrize("torch_npu", ["2.13.0", "2.14.0", "3.0.0", "2.3.1"])
def test_a_torch_npu_that_the_table_lacks_is_said_not_to_be_in_it(
    tmp_path: Path, torch_npu: str
) -> None:
    said = findings(machine(tmp_path, torch_npu, "9.1.0", torch_npu))["compatibility"]
    assert said.startswith(f"torch_npu {torch_npu} is not in the compatibility table; ")


def test_a_shell_without_nnal_is_noted_where_the_cache_s_write_needs_it(tmp_path: Path) -> None:
    found = machine(tmp_path)
    del found.environment["ATB_HOME_PATH"]
    instead = "torch's own operators write the KV cache"
    assert findings(found)["NNAL"].startswith(f"none: {instead}; install Ascend-cann-nnal")
    found.write("/usr/local/Ascend/nnal/atb/set_env.sh")
    source = "source /usr/local/Ascend/nnal/atb/set_env.sh before gyrfalcon"
    assert findings(found)["NNAL"] == f"not set up in this shell: {instead}; {source}"
    found.environment["LD_LIBRARY_PATH"] += f":{ATB}/lib"
    assert findings(found)["NNAL"] == f"{ATB}/lib/libatb.so; "
    assert "NNAL" not in findings(machine(tmp_path, "2.13.0", "9.1.0", "2.13.0"))


def test_another_torch_than_torch_npu_s_is_a_fault(tmp_path: Path) -> None:
    said = findings(machine(tmp_path, torch="2.13.0+cpu"))["torch_npu"]
    assert said.startswith("FAULT 2.7.1 with torch 2.13.0+cpu, which do not fit; ")
    assert "pip install torch==2.7.1" in said


def test_a_local_version_of_torch_fits(tmp_path: Path) -> None:
    assert not findings(machine(tmp_path, torch="2.7.1+cpu"))["torch_npu"].startswith("FAULT")


def test_a_torch_npu_that_does_not_import_says_what_to_source(tmp_path: Path) -> None:
    found = machine(tmp_path)
    found.answers["python"] = Answer(
        1, f"{THERE}Traceback (most recent call last):\n  x\n{LIBHCCL}\n"
    )
    assert findings(found)["torch_npu import"] == (
        f"FAULT fails: {LIBHCCL}; source {CANN}/set_env.sh before gyrfalcon"
    )


def test_a_torch_npu_without_cann_says_what_to_install_or_remove(tmp_path: Path) -> None:
    found = Machine(tmp_path, {"torch": "2.13.0", "torch_npu": "2.13.0"})
    found.answers["python"] = Answer(1, THERE + LIBHCCL)
    said = findings(found)
    assert said["Ascend driver"] == "none, and no card; "
    assert said["CANN"] == "none; "
    assert "install CANN" in said["torch_npu import"]
    assert "pip uninstall torch_npu" in said["torch_npu import"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            Answer(1, THERE + "x\nAttributeError: undefined symbol: _Z3foo\n"),
            "torch_npu for this torch again",
        ),
        (
            Answer(1, THERE + "ImportError: libascend_hal.so: cannot open shared object file"),
            "mount ",
        ),
        (Answer(None, ""), "no end within 60 s"),
        (Answer(-11, THERE), "nothing said"),
    ],
)
def test_other_failures_of_its_import_are_told(tmp_path: Path, answer: Answer, said: str) -> None:
    found = machine(tmp_path)
    found.answers["python"] = answer
    line = findings(found)["torch_npu import"]
    assert line.startswith("FAULT fails: ")
    assert said in line


def test_cards_without_torch_npu_cann_or_driver_are_faults(tmp_path: Path) -> None:
    found = machine(tmp_path, torch_npu=None, cann=None)
    said = findings(found)
    assert "pip install torch_npu==2.7.1" in said["torch_npu"]
    assert said["torch_npu"].startswith("FAULT not installed")
    assert said["CANN"].startswith("FAULT none; install the CANN toolkit")
    assert not found.asked


def test_a_cann_that_this_shell_has_not_set_up_is_a_fault(tmp_path: Path) -> None:
    found = machine(tmp_path)
    found.environment.clear()
    assert findings(found)["CANN"].startswith("FAULT 8.3.RC1 in")
    assert f"source {CANN}/set_env.sh" in findings(found)["CANN"]


def test_a_driver_without_cards_is_a_fault(tmp_path: Path) -> None:
    found = machine(tmp_path)
    for node in (tmp_path / "dev").iterdir():
        node.unlink()
    assert findings(found)["Ascend driver"].startswith(
        "FAULT version 25.3.rc1, but no /dev/davinci*"
    )


def test_a_card_on_the_bus_without_a_driver_is_a_fault(tmp_path: Path) -> None:
    found = Machine(tmp_path, {"torch": "2.13.0"})
    found.write("/sys/bus/pci/devices/0000:c1:00.0/vendor", "0x19e5\n")
    found.write("/sys/bus/pci/devices/0000:c1:00.0/class", "0x120000\n")
    assert findings(found)["Ascend driver"].startswith("FAULT none; install Ascend's driver")


def test_cards_that_may_not_be_opened_are_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    said = findings(machine(tmp_path))["Ascend driver"]
    assert said.startswith("FAULT /dev/davinci0, /dev/davinci1, /dev/davinci_manager may not be")
    assert "HwHiAiUser" in said


def test_a_torch_that_does_not_import_is_not_torch_npu_s_fault(tmp_path: Path) -> None:
    found = machine(tmp_path)
    found.answers["python"] = Answer(1, "ValueError: libcublas.so not found\n")
    assert findings(found)["torch_npu import"].startswith("not tried: torch itself")
    compile(TRY_IMPORT, "", "exec")


def test_what_a_library_says_is_cut_short(tmp_path: Path) -> None:
    found = machine(tmp_path)
    found.answers["python"] = Answer(1, f"{THERE}ImportError: {'x' * 5000}")
    assert len(findings(found)["torch_npu import"]) < 500


BOARD = """\
        NPU ID                         : 5
        Product Name                   : IT21HMDC01-B2
        PCIe Bus Info                  : 0000:C1:00.0
        Slot ID                        : 5
"""


@pytest.mark.parametrize(
    ("visible", "index", "card"), [(None, 1, "1"), ("4,5,6", 1, "5"), ("", 0, "0"), ("7", 1, "1")]
)
def test_a_card_s_place_on_the_bus_is_asked_by_its_number_on_the_machine(
    tmp_path: Path, visible: str | None, index: int, card: str
) -> None:
    found = Machine(tmp_path, answers={"npu-smi": Answer(0, BOARD)})
    if visible is not None:
        found.environment["ASCEND_RT_VISIBLE_DEVICES"] = visible
    assert pci_address(found.host, index) == "0000:C1:00.0"
    assert found.asked == [("npu-smi", "info", "-t", "board", "-i", card, "-c", "0")]


@pytest.mark.parametrize("answer", [None, Answer(1, BOARD), Answer(None, ""), Answer(0, "none")])
def test_a_card_whose_place_is_not_told_has_none(tmp_path: Path, answer: Answer | None) -> None:
    found = Machine(tmp_path, answers={} if answer is None else {"npu-smi": answer})
    assert pci_address(found.host, 0) is None


def test_cards_say_whom_they_reach_where_torch_npu_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = (Npu(torch.device("cuda", index)) for index in (0, 3))  # any kind with an index
    told = SimpleNamespace(can_device_access_peer=lambda mine, other: (mine, other) == (0, 3))
    monkeypatch.setattr(npu, "_torch_npu", lambda: SimpleNamespace(npu=told))
    assert first.reaches(other) is True
    assert other.reaches(first) is False
    monkeypatch.setattr(npu, "_torch_npu", lambda: SimpleNamespace(npu=SimpleNamespace()))
    assert first.reaches(other) is None
