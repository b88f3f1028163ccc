"""Checks that ask the host alone: packages, memory, containers' limits, disk, files, programs."""

import resource
import sys
import time
from pathlib import Path

import pytest
from host_machines import Machine, shown

from gyrfalcon.device.host import Host, numbers, package_file, run_program
from gyrfalcon.doctor import host_checks

GB = 1 << 30


def test_versions_are_compared_by_their_numbers() -> None:
    assert numbers("2.13.0+cu130") == (2, 13, 0)
    assert numbers("2.7.1.post2") == (2, 7, 1)
    assert numbers("8.3.RC1") == (8, 3)
    assert numbers("2.0rc1") == (2, 0)
    assert numbers("v25.3") == (25, 3)
    assert numbers("unknown") == ()
    assert numbers("2.9") < numbers("2.11")


def test_a_package_that_is_missing_or_too_old_is_a_fault(tmp_path: Path) -> None:
    host = Machine(tmp_path, {"torch": "2.9.1", "numpy": "2.4.6"}).host
    required = ["torch>=2.11", "numpy>=1.26", "psutil>=5.9", "matplotlib>=3; extra == 'report'"]
    found = [*host_checks.check_packages(host, required[:3], "")]
    assert [each.is_fault for each in found] == [True, True]
    assert found[0].found == "torch 2.9.1, 2.11 or newer is needed"
    assert found[0].cure.endswith("pip install 'torch>=2.11'")
    assert found[1].found.startswith("psutil not installed")


def test_packages_other_than_tested_are_named(tmp_path: Path) -> None:
    host = Machine(tmp_path, {"torch": "2.14.0+cu130", "numpy": "2.4.6"}).host
    constraints = "# tested\nnumpy==2.4.6\ntorch==2.13.0\n"
    [found] = host_checks.check_packages(host, ["torch>=2.11", "numpy>=1.26"], constraints)
    assert found.found == "other than tested (in brackets): torch 2.14.0+cu130 (2.13.0)"
    assert not found.is_fault


def test_the_package_s_own_requirements_are_what_is_checked() -> None:
    required = host_checks.base_requirements()
    assert any(each.startswith("torch>=") for each in required)
    assert not any("transformers" in each for each in required)


@pytest.mark.parametrize(
    ("available", "files", "said"),
    [
        (8 * GB, {}, "8.6 GB of 17.2 GB free; "),
        (GB - 1, {}, "FAULT 1.1 GB of 17.2 GB free; "),
        (8 * GB, {"memory.max": "max\n"}, "8.6 GB of 17.2 GB free; "),
        (
            8 * GB,
            {"memory.max": f"{4 * GB}\n", "memory.current": f"{GB}\n"},
            "3.2 GB of 4.3 GB of this container free; ",
        ),
        (
            8 * GB,
            {
                "memory/memory.limit_in_bytes": f"{2 * GB}",
                "memory/memory.usage_in_bytes": f"{2 * GB}",
            },
            "FAULT 0 B of 2.1 GB of this container free; ",
        ),
        (8 * GB, {"memory/memory.limit_in_bytes": "9223372036854771712"}, "8.6 GB of 17.2 GB free"),
    ],
)
def test_memory_is_what_the_container_leaves(
    tmp_path: Path, available: int, files: dict[str, str], said: str
) -> None:
    found = Machine(tmp_path)
    for name, text in files.items():
        found.write(f"/sys/fs/cgroup/{name}", text)
    findings = [*host_checks.check_memory(found.host, available, 16 * GB)]
    assert shown(findings)["memory"].startswith(said)


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({}, False),
        ({"cpu.max": "max 100000\n"}, False),
        ({"cpu.max": "800000 100000\n"}, False),
        ({"cpu.max": "250000 100000\n"}, True),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, False),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, True),
    ],
)
def test_a_share_of_the_processors_smaller_than_shown_is_a_fault(
    tmp_path: Path, files: dict[str, str], fault: bool
) -> None:
    found = Machine(tmp_path)
    for name, text in files.items():
        found.write(f"/sys/fs/cgroup/{name}", text)
    findings = [*host_checks.check_processors(found.host, 8)]
    assert [each.is_fault for each in findings] == [True] * fault
    if "cpu.max" in files and fault:
        assert findings[0].found.startswith("this container may use 2.5 of the 8 processors")
        assert "OMP_NUM_THREADS=2" in findings[0].cure


def test_a_full_disk_is_a_fault(tmp_path: Path) -> None:
    assert host_checks.check_disk(tmp_path, "disk", 10 * GB).is_fault is False
    assert host_checks.check_disk(tmp_path, "disk", GB // 2).is_fault


@pytest.mark.parametrize(
    ("ranks", "cards", "free", "fault"),
    [
        (2, 2, 64 << 20, True),
        (4, 2, 255 << 20, True),
        (2, 2, GB, False),
        (1, 2, 64 << 20, False),
        (8, 0, 64 << 20, False),
        (2, 2, None, False),
    ],
)
def test_shared_memory_is_what_ranks_on_several_cards_need(
    ranks: int, cards: int, free: int | None, fault: bool
) -> None:
    assert host_checks.check_shared_memory(ranks, cards, free).is_fault is fault


def test_too_few_open_files_are_a_fault_and_few_are_noted() -> None:
    assert host_checks.check_files(50, 40, 1 << 20).is_fault
    few = host_checks.check_files(50, 1024, 1 << 20)
    assert (few.is_fault, few.cure) == (False, "ulimit -n 4096")
    assert "hard limit of 2048" in host_checks.check_files(50, 1024, 2048).cure
    assert not host_checks.check_files(50, 65536, 65536).cure
    assert not host_checks.check_files(50, resource.RLIM_INFINITY, resource.RLIM_INFINITY).cure


def test_extensions_are_told_with_how_they_are_kept_out(tmp_path: Path) -> None:
    found = Machine(tmp_path)
    assert not [*host_checks.check_extensions(found.host, [])]
    [loaded] = host_checks.check_extensions(found.host, ["torch_x"])
    found.environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    [kept_out] = host_checks.check_extensions(found.host, ["torch_x"])
    assert loaded.found == "loaded with torch: torch_x"
    assert kept_out.found.startswith("not loaded with torch here, by TORCH_DEVICE_BACKEND_AUTOLOAD")


def test_a_program_answers_is_missing_or_takes_too_long() -> None:
    answer = run_program((sys.executable, "-Sc", "import sys; print('x'); sys.exit(3)"), 60)
    assert answer is not None
    assert (answer.code, answer.text) == (3, "x\n")
    assert run_program(("no-such-program-anywhere",), 1) is None
    start = time.monotonic()
    slow = run_program(("sh", "-c", "echo y; sleep 60 & sleep 60"), 0.2)
    assert slow is not None
    assert (slow.code, slow.text) == (None, "y\n")
    assert time.monotonic() - start < 30


def test_files_are_read_and_found_below_the_root(tmp_path: Path) -> None:
    host = Machine(tmp_path).write("/dev/b1").write("/dev/b0", "text").host
    assert host.find("/dev/b[0-9]", "/etc/*") == ["/dev/b0", "/dev/b1"]
    assert (host.read("/dev/b0"), host.read("/dev/none")) == ("text", "")
    assert host.may_use("/dev/b0")
    assert not host.may_use("/dev/none")


def test_a_package_s_file_is_read_without_importing_it() -> None:
    assert "__version__" in package_file("torch", "version.py")
    assert package_file("torch", "no_such_file") == ""
    assert package_file("no_such_package_anywhere", "x") == ""
    assert Host().version("no-such-package-anywhere") is None
