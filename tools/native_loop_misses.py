"""Loops of the native kernels that are slower than they have to be, and why: tools/native_loops.py prints
them, and a test holds that there are no others.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Miss:
    """Where a loop is slower than LIMIT, whether it accesses the stack, and why."""

    slow_on: tuple[str, ...]
    stack: bool
    reason: str


_HASWELL_ISSUE = "Haswell issues four uops a cycle, and each prefetch and indexed load is one"
_ZEN_3_PORTS = (
    "additions take ports that multiplications need, on Zen 4 too: vpmaddwd with vpaddd 0.64 cycles, where"
    " 0.50 would do"
)
_ADDRESSES = (
    "addresses of rows and the loop's end are in memory: scalars, which no vector waits for"
)
_SPILLED = "sums are spilled"
_SCALES = "conversions and scales of each 64 columns are not counted; addresses are in memory"
_TOTALS = "twelve totals leave and enter registers each 64 columns"
_PREFETCHES = "prefetches take turns that loads need"
_ALL_OF_AVX2 = ("haswell", "skylake", "alderlake", "znver3")

MISSES = {
    "AVX2 fp32, 8 × 1": Miss(("znver3", "alderlake"), False, _PREFETCHES),
    "AVX2 fp32, 3 × 4": Miss(
        ("haswell", "skylake", "znver3"),
        False,
        "weights are loaded again for each token, and loads become the limit",
    ),
    "AVX2 bf16, 8 × 1": Miss(
        ("haswell", "znver3"),
        False,
        f"weights are loaded twice, for even and for odd columns; {_HASWELL_ISSUE}",
    ),
    "AVX2 fp16, 8 × 1": Miss(("haswell",), False, _HASWELL_ISSUE),
    "AVX2 int8, 8 × 1": Miss(("haswell", "skylake", "znver3"), True, "widened weights are spilled"),
    "AVX2 int8, 3 × 4": Miss(("skylake", "znver3"), True, f"{_SPILLED}; {_ZEN_3_PORTS}"),
    "AVX2 int4, 16 × 1": Miss(_ALL_OF_AVX2, True, f"{_SCALES}; {_ZEN_3_PORTS}"),
    "AVX2 int4, 16 × 2": Miss(_ALL_OF_AVX2, True, f"{_SCALES}, and two totals; {_ZEN_3_PORTS}"),
    "AVX2 int8, packed, 16 × 4": Miss(("znver3",), False, _ZEN_3_PORTS),
    "AVX2 int4, packed, 16 × 6": Miss(("znver3",), False, _ZEN_3_PORTS),
    "AVX-512 bf16, 8 × 1": Miss(
        ("icelake-server",), False, "shifts of 512 bits have port 0 only, and do not always get it"
    ),
    "AVX-512 bf16, 6 × 4": Miss((), True, _SPILLED),
    "AVX-512 fp16, 8 × 1": Miss(
        ("znver4",), False, "LLVM takes 2 cycles for vcvtph2ps, 1.33 are measured"
    ),
    "AVX-512 fp16, 6 × 4": Miss((), True, _SPILLED),
    "AVX-512 int8 by int16, 8 × 1": Miss(
        ("znver4",),
        True,
        "widening and products share a port and do not always divide it well; the loop's end is in memory",
    ),
    "AVX-512 int8 by int16, 4 × 4": Miss(
        ("znver4",), False, "widening and products share a port and do not always divide it well"
    ),
    "AVX-512 floats, packed, 32 × 12": Miss((), True, _ADDRESSES),
    "AVX-512 int8, 8 × 1": Miss(
        ("icelake-server",),
        True,
        f"{_ADDRESSES}; a token's first number is moved between registers for each row",
    ),
    "AVX-512 int8, 4 × 4": Miss((), True, _ADDRESSES),
    "AVX-512 int4, 32 × 1": Miss(("znver4",), True, _SCALES),
    "AVX-512 int4, 32 × 4": Miss(
        ("znver4", "icelake-server"),
        True,
        _SCALES,
    ),
    "AVX-512 BF16 int8, 8 × 1": Miss((), True, _ADDRESSES),
    "AVX-512 BF16 int8, 4 × 4": Miss((), True, _ADDRESSES),
    "AVX-512 BF16 int4, 32 × 1": Miss(("znver4",), True, _SCALES),
    "AVX-512 BF16 int4, 32 × 4": Miss(("znver4",), True, _SCALES),
    "AVX-512 core bf16, 6 × 4": Miss((), True, _SPILLED),
    "AVX-512 core fp16, 8 × 1": Miss(
        ("znver4",), False, "LLVM takes 2 cycles for vcvtph2ps, 1.33 are measured"
    ),
    "AVX-512 core fp16, 6 × 4": Miss((), True, _SPILLED),
    "AVX-512 core floats, packed, 32 × 12": Miss((), True, _ADDRESSES),
    "AVX-512 core int8, 8 × 1": Miss((), True, _ADDRESSES),
    "AVX-512 core int8, 4 × 4": Miss(
        ("skylake-avx512",),
        False,
        "widening and products share a port and do not always divide it well",
    ),
    "AVX-512 core int4, 16 × 1": Miss(("skylake-avx512", "znver4"), True, _SCALES),
    "AVX-512 core int4, 16 × 4": Miss(("skylake-avx512", "znver4"), True, _SCALES),
    "AVX-VNNI fp32, 8 × 1": Miss(("alderlake",), False, _PREFETCHES),
    "AVX-VNNI int8 by int16, 8 × 1": Miss((), True, "widened weights are spilled"),
    "AVX-VNNI int8 by int16, 3 × 4": Miss(
        ("alderlake",), False, "twelve sums do not hide five cycles beside loads and widening"
    ),
    "AVX-VNNI int8, 8 × 1": Miss(("alderlake",), True, _ADDRESSES),
    "AVX-VNNI int8, 2 × 4": Miss(("alderlake",), True, f"two totals are spilled; {_ADDRESSES}"),
    "AVX-VNNI int4, 16 × 1": Miss(("alderlake",), False, _SCALES),
    "AVX-VNNI int4, 16 × 2": Miss(("alderlake",), True, f"{_SCALES}, and two totals"),
    "AVX-VNNI int8, packed, 16 × 6": Miss(("alderlake",), True, _TOTALS),
    "AVX-VNNI int4, packed, 16 × 6": Miss((), True, _TOTALS),
}
