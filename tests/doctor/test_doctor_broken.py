"""doctor on machines where torch, or an extension that loads itself with torch, is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gyrfalcon.cli.main import main

LIBHCCL = "libhccl.so: cannot open shared object file: No such file or directory"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with the packages in `folder` before others."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def broken_package(folder: Path, name: str, says: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"raise ImportError({says!r})\n")


def findings(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in document["findings"]}


def test_a_broken_torch_npu_is_a_fault_with_its_cure(tmp_path: Path) -> None:
    """It breaks `import torch` itself, as its wheel does on a machine without CANN."""
    broken_package(tmp_path, "torch_npu", LIBHCCL)
    metadata = tmp_path / "torch_npu-2.13.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.13.0\n")
    (metadata / "entry_points.txt").write_text(
        "[torch.backends]\ntorch_npu = torch_npu:_autoload\n"
    )
    assert (
        "Failed to load the backend extension: torch_npu"
        in run(tmp_path, "-c", "import torch").stderr
    )
    done = run(tmp_path, "-m", "gyrfalcon", "doctor", "--quick", "--json", "-")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    found = findings(document)
    assert found["torch extensions"]["found"].startswith("not loaded with torch here")
    assert found["torch_npu import"]["found"] == f"fails: ImportError: {LIBHCCL}"
    assert found["torch_npu import"]["is_fault"]
    assert "install CANN" in found["torch_npu import"]["cure"]
    assert "not in the compatibility table" in found["compatibility"]["found"]
    assert document["devices"][0]["name"] == "cpu"


def test_a_torch_that_does_not_import_is_a_fault_beside_what_can_be_told(tmp_path: Path) -> None:
    broken_package(tmp_path, "torch", "libtorch_cpu.so: undefined symbol: x\nmore")
    done = run(tmp_path, "-m", "gyrfalcon", "doctor", "--json", str(tmp_path / "doctor.json"))
    assert (done.returncode, done.stderr) == (1, "")
    found = findings(json.loads((tmp_path / "doctor.json").read_text()))
    assert found["torch"]["found"] == "cannot be imported: libtorch_cpu.so: undefined symbol: x"
    assert found["torch"]["is_fault"]
    assert "memory" in found
    assert "FAULT torch " in done.stdout
    assert "\n1 fault\n" in done.stdout


def test_doctor_leaves_the_environment_of_its_process_as_it_was() -> None:
    before = dict(os.environ)
    main(["doctor", "--quick"])
    assert dict(os.environ) == before
