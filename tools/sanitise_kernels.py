"""Builds the native kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs their tests.

    python tools/sanitise_kernels.py        minutes; notes in tests/native/sanitised.txt what it checked

AVX-512 and AMX are emulated by AVX2; AVX-512 with BF16 and without VNNI is checked where the processor has
it, and there AVX-VNNI, too, by AVX-512's encoding of its instructions. A test compares the note with the
sources, so that no change goes unchecked.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gyrfalcon.native.library import SOURCES, VARIABLE, available

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "native"
NOTE = TESTS / "sanitised.txt"
RUN = (
    "test_native.py",
    "test_native_sampling.py",
    "test_activations.py",
    "test_shared_memory.py",
)
CALLERS = ("native/library.py", "ops/native.py", "parallel/shared_memory.py")  # pass the pointers
PRELOADED = ("libasan.so", "libubsan.so")  # have to come before the interpreter's own libraries
SETS = "amx avx512 avx2 portable"
VNNI = "avx512"  # has AVX-VNNI's instructions, too
ENCODED = ["-DGYRFALCON_AVX_VNNI_BY_AVX512=ON"]
NOT_EMULATED = ("avx512-bf16", "avx512-core", "avx-vnni")  # checked where the processor has them
LIST_SETS = "from gyrfalcon.native.library import available; print(*available())"


def digest() -> str:
    """SHA-256 of the kernels, of what calls them, and of the tests that run under the sanitisers."""
    parts = (f"{path.relative_to(ROOT)}\0{path.read_text('utf-8')}" for path in _files())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _files() -> Iterator[Path]:
    kinds = {".cpp", ".h", ".inl", ".txt"}
    yield from sorted(path for path in SOURCES.rglob("*") if path.suffix in kinds)
    yield from (SOURCES.parent / name for name in CALLERS)
    yield from (TESTS / name for name in (*RUN, "emulated_amx.h"))
    yield TESTS.parent / "kernel_sets.py"


def missing() -> str | None:
    """What this machine lacks for it."""
    compiler = shutil.which("c++")
    if compiler is None or shutil.which("cmake") is None:
        return "a C++ compiler and CMake on the path"
    if any(not Path(library).is_absolute() for library in _libraries(compiler)):
        return f"{' and '.join(PRELOADED)} of {compiler}"
    return None


def check(folder: Path) -> None:
    """Builds in `folder` and runs; RuntimeError with the end of the output where anything fails."""
    _check_build(folder / "emulated", [f"-DGYRFALCON_EMULATED_AMX={TESTS}"], SETS.split(), [])
    own, flags = set(available()), []
    if VNNI in own:
        own, flags = own | {"avx-vnni"}, ENCODED
    if wanted := [name for name in NOT_EMULATED if name in own]:
        _check_build(folder / "own", flags, wanted, ["-k", " or ".join([*wanted, "on_any_set"])])


def _check_build(folder: Path, flags: list[str], sets: Sequence[str], chosen: list[str]) -> None:
    """Builds a library that has to have these sets, and runs the chosen tests on it."""
    _run(["cmake", "-S", str(SOURCES), "-B", str(folder), "-DGYRFALCON_SANITISE=ON", *flags], {})
    _run(["cmake", "--build", str(folder), "--parallel", "2"], {})
    checked = {
        VARIABLE: str(folder / "libgyrfalcon.so"),
        "LD_PRELOAD": " ".join(_libraries(shutil.which("c++") or "c++")),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
    }
    found = _run([sys.executable, "-c", LIST_SETS], checked).split()
    if lacking := set(sets) - set(found):
        raise RuntimeError(f"wanted {', '.join(lacking)} in the library, got {', '.join(found)}")
    plain = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not processes", *chosen]
    tests = [str(TESTS / name) for name in RUN]
    _run([sys.executable, "-m", "pytest", *plain, *tests], checked)


def _libraries(compiler: str) -> list[str]:
    """The compiler's copies of what has to be preloaded; bare names where it has none."""
    ask = [[compiler, f"-print-file-name={name}"] for name in PRELOADED]
    return [subprocess.run(one, capture_output=True, text=True).stdout.strip() for one in ask]


def _run(words: list[str], environment: dict[str, str]) -> str:
    run = subprocess.run(
        words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError((run.stdout + run.stderr)[-4000:])
    return run.stdout


def main() -> int:
    """Checks and writes the note; 1 where something fails, 2 where this machine lacks something."""
    lacking = missing()
    if lacking is not None:
        print(f"sanitise_kernels: error: wanted {lacking}, got none; install it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(Path(folder))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    NOTE.write_text(f"{digest()}\n", "utf-8")
    print(f"no fault; noted in {NOTE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
