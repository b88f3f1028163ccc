"""Which instruction sets the native kernels use: those whose flags the system tells of the processor."""

import os
import platform
from pathlib import Path

import pytest

from gyrfalcon.native.library import VARIABLE, available, library, why_not_native

if library() is None:
    pytest.skip(why_not_native(), allow_module_level=True)

CORE = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
FLAGS = {
    "portable": set[str](),
    "avx2": {"avx2", "fma"},
    "avx-vnni": {"avx2", "fma", "avx_vnni"},
    "avx512-core": CORE,
    "avx512": CORE | {"avx512_vnni"},
    "avx512-bf16": CORE | {"avx512_vnni", "avx512_bf16"},
    "amx": CORE | {"avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"},
}


def flags() -> set[str]:
    """Of the first processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(set(line.split()) for line in lines if line.startswith("flags"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one set")
def test_the_sets_are_those_that_were_built_and_the_processor_has() -> None:
    if os.environ.get(VARIABLE, "1") != "1":
        pytest.skip("a library for tests may run a set by the instructions of another")
    found = library()
    assert found is not None
    built = Path(found._name).read_bytes()  # an old compiler may not know all of them
    names = [name for name, wanted in FLAGS.items() if wanted <= flags()]
    assert set(available()) == {name for name in names if f"{name}\0".encode() in built}
