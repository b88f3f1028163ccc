"""gyrfalcon doctor: what it reads from the machine and how it tells it."""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from gyrfalcon.cli.main import main
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.host import installed_version
from gyrfalcon.measure import machine as doctor

XEON = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse2 avx2 fma avx512f avx512_bf16 amx_tile amx_bf16
processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu
"""
KUNPENG = """\
processor\t: 0
Features\t: fp asimd aes asimddp sve i8mm bf16
CPU implementer\t: 0x48
CPU part\t: 0xd01
"""


def present(processor: doctor.Processor) -> set[str]:
    return {name for name, held in processor.features.items() if held}


def test_x86_features_are_read_whole_words_only() -> None:
    processor = doctor.processor(XEON, "x86_64")
    assert processor.name == "Intel(R) Xeon(R) Platinum 8480+"
    assert present(processor) == {"avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}
    assert processor.features["amx_int8"] is False


def test_an_arm_processor_is_named_by_its_numbers() -> None:
    processor = doctor.processor(KUNPENG, "aarch64")
    assert processor.name == "Arm implementer 0x48 part 0xd01"
    assert present(processor) == {"asimd", "asimddp", "sve", "i8mm", "bf16"}


def test_an_unknown_processor_has_no_features_and_still_a_name() -> None:
    processor = doctor.processor("", "riscv64")
    assert processor.name
    assert processor.features == {}


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert installed_version("no-such-package-anywhere") is None
    assert installed_version("torch") == version("torch")


def test_every_cuda_device_and_the_cpu_are_listed(tmp_path: Path) -> None:
    devices = [device.name for device in doctor.examine(tmp_path).devices]
    assert devices == ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def test_json_goes_to_a_file_beside_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "doctor.json"
    code = main(["doctor", "--quick", "--json", str(file)])
    report = json.loads(file.read_text())
    text = capsys.readouterr().out
    num_faults = sum(finding["is_fault"] for finding in report["findings"])
    assert code == (num_faults > 0)
    assert text.count("\n  FAULT ") == num_faults
    assert report["packages"]["torch"] == version("torch")
    assert f"torch            {version('torch')}\n" in text
    assert report["processor"]["name"] in text
    assert 0 < report["memory_available_bytes"] <= report["memory_total_bytes"]


def test_json_to_stdout_is_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick", "--json", "-"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["python"] == ".".join(map(str, sys.version_info[:3]))


def test_checks_and_the_ranks_environment_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main(["doctor", "--quick", "-w", "2"])
    text = capsys.readouterr().out
    assert "environment of 2 ranks on cpu\n  OMP_NUM_THREADS" in text
    assert "set by you: threads of a rank" in text
    for name in ("packages", "memory", "disk", "open files", "native kernels", "core binding"):
        assert re.search(rf"^  (ok|note|FAULT) +{name} ", text, re.M), name
    assert "bandwidth" not in text


def test_bandwidth_is_measured_unless_asked_to_be_quick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Cpu, "measure_bandwidth", lambda self: 12.34e9)
    main(["doctor"])
    assert re.search(r"^  ok +cpu bandwidth +12\.3 GB/s$", capsys.readouterr().out, re.M)
