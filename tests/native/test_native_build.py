"""The native kernels built in other ways: with every access checked, and with vectors and tiles that this
processor lacks; each build runs the tests of the kernels.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gyrfalcon.native.library import SOURCES, VARIABLE

TESTS = Path(__file__).resolve().parents[1]
PRELOADED = ("libasan.so", "libubsan.so")  # have to come before the interpreter's own libraries

EMULATED = f"GYRFALCON_EMULATED_AMX={Path(__file__).resolve().parent}"
LIST_SETS = "from gyrfalcon.native.library import available; print(*available())"

# Emulated tiles, checked access by access: nine minutes beside other work on two cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def compiler() -> str:
    """The C++ compiler; skips where it, CMake or the sanitisers' libraries are missing."""
    if os.environ.get(VARIABLE) == "0":
        pytest.skip(f"{VARIABLE} is 0: no native kernels are wanted")
    found = shutil.which("c++")
    if found is None or shutil.which("cmake") is None:
        pytest.skip("needs a C++ compiler and CMake on the path")
    if any(not Path(library).is_absolute() for library in libraries(found)):
        pytest.skip(f"needs {' and '.join(PRELOADED)} of {found}")
    return found


def libraries(compiler: str) -> list[str]:
    """The compiler's copies of what has to be preloaded; bare names where it has none."""
    ask = [[compiler, f"-print-file-name={name}"] for name in PRELOADED]
    return [subprocess.run(one, capture_output=True, text=True).stdout.strip() for one in ask]


def built(folder: Path, *options: str) -> Path:
    """The library made with these options."""
    flags = [f"-D{option}" for option in options]
    subprocess.run(
        ["cmake", "-S", str(SOURCES), "-B", str(folder), *flags], check=True, capture_output=True
    )
    make = ["cmake", "--build", str(folder), "--parallel", "2"]
    run = subprocess.run(make, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return folder / "libgyrfalcon.so"


def test_no_kernel_touches_what_is_not_its_own(compiler: str, tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer end the process at the first fault."""
    library = built(tmp_path, "GYRFALCON_SANITISE=ON", EMULATED)
    listed = checked(compiler, library, "-c", LIST_SETS)
    assert listed.split() == ["amx", "avx512", "avx2", "portable"]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not processes"]
    files = [
        str(TESTS / name) for name in ("native/test_native.py", "native/test_shared_memory.py")
    ]
    assert " passed" in checked(compiler, library, "-m", "pytest", *options, *files)


def checked(compiler: str, library: Path, *arguments: str) -> str:
    """What Python prints when it runs with this library, which the sanitisers check."""
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env={
            **os.environ,
            VARIABLE: str(library),
            "LD_PRELOAD": " ".join(libraries(compiler)),
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    return run.stdout
