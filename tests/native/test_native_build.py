"""The native kernels with every access checked, and with vectors and tiles that this processor lacks."""

import os
from pathlib import Path

import pytest
import sanitise_kernels

from gyrfalcon.native.library import VARIABLE

AGAIN = "the kernels, their callers or tests have changed: run python tools/sanitise_kernels.py"


def test_the_kernels_have_run_under_the_sanitisers_as_they_are() -> None:
    assert sanitise_kernels.NOTE.read_text("utf-8").strip() == sanitise_kernels.digest(), AGAIN


@pytest.mark.parametrize(
    "name", ["native/isa/amx.cpp", "native/kernels.h", "native/CMakeLists.txt", "ops/native.py"]
)
def test_a_change_to_a_kernel_or_its_caller_asks_for_another_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = sanitise_kernels.digest(), Path.read_text

    def changed(path: Path, encoding: str) -> str:
        text = read(path, encoding)
        return text + " " if path.as_posix().endswith(f"gyrfalcon/{name}") else text

    monkeypatch.setattr(Path, "read_text", changed)
    assert sanitise_kernels.digest() != before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kernel_touches_what_is_not_its_own(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The sanitisers end the process at the first fault. Minutes, which find nothing new in sources that
    have run before.
    """
    if not request.config.getoption("--sanitise-kernels"):
        pytest.skip(
            "these sources have run under the sanitisers; --sanitise-kernels runs them again"
        )
    if os.environ.get(VARIABLE) == "0":
        pytest.skip(f"{VARIABLE} is 0: no native kernels are wanted")
    if (lacking := sanitise_kernels.missing()) is not None:
        pytest.skip(f"needs {lacking}")
    sanitise_kernels.check(tmp_path)
