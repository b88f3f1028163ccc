"""Which loops tools/native_loops.py looks at, what a pass of each cannot do without, and what the execution
ports of a processor take for it.

A kernel's `work` counts what the algorithm asks for, not what the compiler made of it: a vector of weights is
loaded and widened once for all tokens of a tile, a vector of tokens, or a broadcast number, once for all
rows. A loop that loads or moves more is slower than its limit, and shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations

FILES = {
    "AVX2": "avx2",
    "AVX-VNNI": "avx_vnni",
    "AVX-512 core": "avx512_core",
    "AVX-512": "avx512",
    "AVX-512 BF16": "avx512_bf16",
}
MULTIPLICATIONS = {  # how an instruction is written, and the multiply-adds of one of 256 bits
    "vfmadd": (r"vfn?madd\d+ps", 8),
    "vpmaddwd": (r"vpmaddwd", 16),
    "winograd": (r"vpmaddwd", 32),  # of sums: two products each
    "vpmaddubsw": (r"vpmaddubsw", 32),
    "vpdpwssd": (r"vpdpwssd", 16),
    "vpdpbusd": (r"vpdpbusd", 32),
    "vdpbf16ps": (r"vdpbf16ps", 16),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loop of an instruction set's file, in one of the functions that match."""

    instructions: str  # of FILES
    tile: str  # what it multiplies, rows × tokens
    function: str
    work: str  # of a pass, first what multiplies: counts and names of Processor.ports
    inner: int = 0  # products of a loop in it that is repeated

    @property
    def name(self) -> str:
        return f"{self.instructions} {self.tile}"

    @property
    def needs(self) -> dict[str, int]:
        parts = (part.split() for part in self.work.split(", "))
        return {name: int(count) for count, name in parts}

    @property
    def products(self) -> int:
        return next(iter(self.needs.values()))

    @property
    def multiply(self) -> str:
        return MULTIPLICATIONS[next(iter(self.needs))][0]

    @property
    def multiply_adds(self) -> int:
        vectors = 2 if self.instructions.startswith("AVX-512") else 1
        return self.products * MULTIPLICATIONS[next(iter(self.needs))][1] * vectors


@dataclass(frozen=True, slots=True)
class Processor:
    """What runs some of the sets. Ports: for each name the uops of one, "ports" or "times*ports" joined by +;
    each letter is a port.
    """

    label: str
    instructions: tuple[str, ...]
    ports: dict[str, str]
    corrections: dict[str, str] = field(default_factory=dict)

    def least_cycles(self, needs: dict[str, int]) -> float:
        """Some ports have to take all uops that no other port can: the most of any such group."""
        uops: dict[frozenset[str], float] = {}
        for name, count in needs.items():
            for part in self.ports[name].split("+"):
                times, _, ports = part.rpartition("*")
                uops[frozenset(ports)] = uops.get(frozenset(ports), 0) + count * int(times or 1)
        return max(
            sum(count for ports, count in uops.items() if ports <= group) / len(group)
            for size in range(len(uops))
            for group in (frozenset().union(*some) for some in combinations(uops, size + 1))
        )


# Intel's: the ports that uops.info has measured. Zen 3: the pipes of AMD's software optimization
# guide 56665, and LLVM's times of vcvtph2ps and vpmovsxbw. Zen 4: measured (one thread of an idle EPYC,
# 2026-12-01, 24 of an instruction in a row, over a chain of additions of a cycle each): vfmadd, vpdpwssd,
# vpdpbusd, vdpbf16ps, vpmovsxbw, vcvtdq2ps, vmulps and shifts of 512 bits 0.99 to 1.00 cycles, vpandd 0.50,
# vcvtph2ps 1.33, a load 1.07, a broadcast 0.62 to 0.99; beside as many vpdpbusd 1.06 to 1.08, but
# vpmovsxbw 1.33.
_HASWELL = {
    "vfmadd": "01",
    "vpmaddwd": "0",
    "winograd": "0",
    "vpmaddubsw": "0",
    "vpadd": "15",
    "vpand": "015",
    "shift": "0",
    "vcvtph2ps": "1",
    "vpmovsxbw": "5",
    "load": "23",
    "broadcast": "23",
    "prefetch": "23",
}
_SKYLAKE = _HASWELL | {
    "vpmaddwd": "01",
    "winograd": "01",
    "vpmaddubsw": "01",
    "vpadd": "015",
    "shift": "01",
    "vcvtph2ps": "01",
}
_SKYLAKE_SP = {  # of 512 bits, for which port 1 is closed
    "vfmadd": "05",
    "vpmaddwd": "05",
    "vpmaddubsw": "05",
    "vpadd": "05",
    "vpand": "05",
    "shift": "0",
    "vcvtph2ps": "05",
    "vpmovsxbw": "5",
    "load": "23",
    "broadcast": "23",
    "prefetch": "23",
}
_ALDER_LAKE = _SKYLAKE | {
    "vpdpwssd": "01",
    "vpdpbusd": "01",
    "vcvtdq2ps": "01",
    "vmulps": "01",
    "load": "23b",
    "broadcast": "23b",
    "prefetch": "23b",
}
_ZEN_3 = {
    "vfmadd": "01",
    "vpmaddwd": "03",
    "winograd": "03",
    "vpmaddubsw": "03",
    "vpadd": "0123",
    "vpand": "0123",
    "shift": "12",
    "vcvtph2ps": "2*23",
    "vpmovsxbw": "3*12",
    "load": "ab",
    "broadcast": "ab",
    "prefetch": "abc",
}
_ZEN_4 = {
    "vfmadd": "2*01",
    "vpdpwssd": "2*01",
    "vpdpbusd": "2*01",
    "vdpbf16ps": "2*01",
    "vpmaddwd": "2*03",
    "vpmaddubsw": "2*03",
    "vpadd": "2*0123",
    "vpand": "2*0123",
    "shift": "2*23",
    "vcvtph2ps": "2*12+2*23",
    "vpmovsxbw": "2*12",
    "vcvtdq2ps": "2*23",
    "vmulps": "2*01",
    "load": "2*ab",
    "broadcast": "ab",
    "prefetch": "abc",
}
_ICE_LAKE = {
    "vfmadd": "05",
    "vpdpwssd": "05",
    "vpdpbusd": "05",
    "vpand": "05",
    "shift": "0",
    "vcvtph2ps": "05",
    "vpmovsxbw": "5",
    "vcvtdq2ps": "05",
    "vmulps": "05",
    "load": "23",
    "broadcast": "23",
    "prefetch": "23",
}

# What LLVM 19 has wrong, and instructions with the right times in its model.
_MOVE = r"vmov(aps|dqa\d*)\s+%(?P<from>[yz]mm\d+), %(?P<to>[yz]mm\d+)$"
_ZERO = r"\t%\g<to>, %\g<to>, %\g<to>"
_LOAD = r"v(mov[ua]ps|movdq[ua]\d*|broadcastss|pbroadcastd)\s+(?=[-\w]*\()"
_BROADCAST = r"v(broadcastss|pbroadcastd)\s+(?=[-\w]*\()"
_ZEN_4_CORRECTIONS = {
    _BROADCAST: "vmovups\t",  # no shuffle: the load makes it
    r"vpmovsxbw\s+%ymm": "vpbroadcastd\t%xmm",  # 2 cycles
    r"vpmovsxbw\s+(?=[-\w]*\()": "vpbroadcastd\t",  # 1.5 cycles
    r"vdpbf16ps": "vfmadd231ps",  # 3 cycles
    r"vpdp(wssd|busd)": "vfmadd231ps",  # 2 cycles
    r"vps[lr]l[dw]\s+\$\w+,": "vcvtdq2ps\t",  # half a cycle
}
_SKYLAKE_SP_CORRECTIONS = {
    _MOVE: "vpxord" + _ZERO,
    _LOAD: "vmovntdqa\t",  # also a port of arithmetic
    r"vpadd[dw]": "vpandd",  # of 512 bits port 1 adds none
}
_ICE_LAKE_CORRECTIONS = {
    _MOVE: "vpxord" + _ZERO,  # renamed, it takes no port, as a zero does not
    _LOAD: "vmovntdqa\t",  # also a port of arithmetic
    r"vfn?madd\d+ps": "vpdpwssd",  # 1 cycle, as on laptops: servers have a second unit, at port 5
    r"vmulps": "vpandd",
}

PROCESSORS = {  # by LLVM's names
    "haswell": Processor("Haswell", ("AVX2",), _HASWELL, {_MOVE: "vpxor" + _ZERO}),
    "skylake": Processor("Skylake", ("AVX2",), _SKYLAKE, {_MOVE: "vpxor" + _ZERO}),
    "skylake-avx512": Processor(
        "Skylake-SP", ("AVX-512 core",), _SKYLAKE_SP, _SKYLAKE_SP_CORRECTIONS
    ),
    "alderlake": Processor("Alder Lake", ("AVX2", "AVX-VNNI"), _ALDER_LAKE),
    "znver3": Processor("Zen 3", ("AVX2",), _ZEN_3),
    "znver4": Processor(
        "Zen 4", ("AVX-512 core", "AVX-512", "AVX-512 BF16"), _ZEN_4, _ZEN_4_CORRECTIONS
    ),
    "icelake-server": Processor("Ice Lake", ("AVX-512",), _ICE_LAKE, _ICE_LAKE_CORRECTIONS),
}


def _rows(kind: str) -> str:
    return rf"void all_rows<{kind}, true>"


_FP32, _BF16, _FP16 = (_rows(rf"WithFloats<{name}>") for name in ("F32", "Bf16", "F16"))
_INT4 = r"void int4_rows<false, true>"


def _byte_kernels(name: str) -> Iterator[Kernel]:
    """Of int8_tokens.inl, which two files compile."""
    few, many = r"void int4_few_tokens<false>", r"micro_kernel_bytes\("
    scaled = "12 vcvtdq2ps, 12 vfmadd"
    yield Kernel(
        name,
        "int8, 8 × 1",
        _rows("WithInt8"),
        "8 vpdpbusd, 8 vpand, 8 vcvtdq2ps, 8 vfmadd, 9 load, 8 prefetch",
    )
    yield Kernel(
        name,
        "int8, 4 × 4",
        _rows("WithInt8"),
        "16 vpdpbusd, 4 vpand, 16 vcvtdq2ps, 16 vfmadd, 8 load, 4 prefetch",
    )
    yield Kernel(
        name, "int4, 32 × 1", few, "32 vpdpbusd, 32 vpand, 16 shift, 16 load, 16 broadcast"
    )
    yield Kernel(
        name, "int4, 32 × 4", few, "128 vpdpbusd, 32 vpand, 16 shift, 16 load, 64 broadcast"
    )
    yield Kernel(
        name,
        "int8, packed, 32 × 6",
        many,
        f"192 vpdpbusd, {scaled}, 32 load, 96 broadcast",
        inner=24,
    )
    yield Kernel(
        name,
        "int4, packed, 32 × 6",
        many,
        f"192 vpdpbusd, {scaled}, 12 vmulps, 34 load, 96 broadcast",
        inner=24,
    )


_KERNELS = (
    Kernel("AVX2", "fp32, 8 × 1", _FP32, "16 vfmadd, 18 load, 8 prefetch"),
    Kernel("AVX2", "fp32, 3 × 4", _FP32, "24 vfmadd, 14 load, 3 prefetch"),
    Kernel("AVX2", "bf16, 8 × 1", _BF16, "32 vfmadd, 16 shift, 16 vpand, 20 load, 8 prefetch"),
    Kernel("AVX2", "bf16, 3 × 4", _BF16, "48 vfmadd, 6 shift, 6 vpand, 22 load, 3 prefetch"),
    Kernel("AVX2", "fp16, 8 × 1", _FP16, "32 vfmadd, 32 vcvtph2ps, 36 load, 8 prefetch"),
    Kernel("AVX2", "fp16, 3 × 4", _FP16, "48 vfmadd, 12 vcvtph2ps, 28 load, 3 prefetch"),
    Kernel(
        "AVX2",
        "int8, 8 × 1",
        _rows("WithInt16"),
        "32 vpmaddwd, 32 vpadd, 32 vpmovsxbw, 36 load, 8 prefetch",
    ),
    Kernel(
        "AVX2",
        "int8, 3 × 4",
        _rows("WithInt16"),
        "48 vpmaddwd, 48 vpadd, 12 vpmovsxbw, 28 load, 3 prefetch",
    ),
    Kernel(
        "AVX2",
        "int4, 16 × 1",
        _INT4,
        "32 vpmaddubsw, 32 vpadd, 32 vpand, 16 shift, 16 load, 16 broadcast",
    ),
    Kernel(
        "AVX2",
        "int4, 16 × 2",
        _INT4,
        "64 vpmaddubsw, 64 vpadd, 32 vpand, 16 shift, 16 load, 32 broadcast",
    ),
    Kernel("AVX2", "floats, packed, 16 × 6", r"micro_kernel\(", "48 vfmadd, 8 load, 24 broadcast"),
    Kernel(
        "AVX2",
        "int8, packed, 16 × 4",
        r"micro_kernel_int16\(",
        "8 winograd, 24 vpadd, 4 load, 8 broadcast",
    ),
    Kernel(
        "AVX2",
        "int4, packed, 16 × 6",
        r"micro_kernel_int4\(",
        "12 vpmaddubsw, 12 vpadd, 2 load, 6 broadcast",
    ),
    Kernel("AVX-512", "fp32, 8 × 1", _FP32, "8 vfmadd, 9 load, 8 prefetch"),
    Kernel("AVX-512", "fp32, 6 × 4", _FP32, "24 vfmadd, 10 load, 6 prefetch"),
    Kernel("AVX-512", "bf16, 8 × 1", _BF16, "16 vfmadd, 8 shift, 8 vpand, 10 load, 8 prefetch"),
    Kernel("AVX-512", "bf16, 6 × 4", _BF16, "48 vfmadd, 6 shift, 6 vpand, 14 load, 6 prefetch"),
    Kernel("AVX-512", "fp16, 8 × 1", _FP16, "16 vfmadd, 16 vcvtph2ps, 18 load, 8 prefetch"),
    Kernel("AVX-512", "fp16, 6 × 4", _FP16, "48 vfmadd, 12 vcvtph2ps, 20 load, 6 prefetch"),
    Kernel(
        "AVX-512",
        "int8 by int16, 8 × 1",
        _rows("WithInt16"),
        "16 vpdpwssd, 16 vpmovsxbw, 18 load, 8 prefetch",
    ),
    Kernel(
        "AVX-512",
        "int8 by int16, 4 × 4",
        _rows("WithInt16"),
        "32 vpdpwssd, 8 vpmovsxbw, 16 load, 4 prefetch",
    ),
    Kernel(
        "AVX-512", "floats, packed, 32 × 12", r"micro_kernel\(", "96 vfmadd, 8 load, 48 broadcast"
    ),
    Kernel(
        "AVX-512",
        "int8 by int16, packed, 32 × 12",
        r"micro_kernel_int16\(",
        "48 vpdpwssd, 4 load, 24 broadcast",
    ),
    *_byte_kernels("AVX-512"),
    Kernel("AVX-512 BF16", "bf16, 8 × 1", r"long bf16_tiles<8, 3>", "8 vdpbf16ps, 9 load"),
    Kernel("AVX-512 BF16", "bf16, 8 × 3", r"long bf16_tiles<8, 3>", "24 vdpbf16ps, 11 load"),
    Kernel("AVX-512 BF16", "bf16, 6 × 4", r"long bf16_tiles<6, 4>", "24 vdpbf16ps, 10 load"),
    Kernel("AVX-512 BF16", "bf16, 4 × 6", r"long bf16_tiles<4, 6>", "24 vdpbf16ps, 10 load"),
    Kernel(
        "AVX-512 BF16",
        "bf16, packed, 32 × 12",
        r"micro_kernel_bf16\(",
        "96 vdpbf16ps, 8 load, 48 broadcast",
    ),
    *_byte_kernels("AVX-512 BF16"),
)


def _floats_like(like: str, name: str) -> Iterator[Kernel]:
    """The kernels of floats that a set has in common with another."""
    alike = (
        one for one in _KERNELS if one.instructions == like and "vfmadd" in one.work.split(",")[0]
    )
    return (replace(one, instructions=name) for one in alike)


_INT16 = _rows("WithInt16")
_AVX512_CORE = (
    ("int8, 8 × 1", _INT16, "16 vpmaddwd, 16 vpadd, 16 vpmovsxbw, 18 load, 8 prefetch"),
    ("int8, 4 × 4", _INT16, "32 vpmaddwd, 32 vpadd, 8 vpmovsxbw, 16 load, 4 prefetch"),
    (
        "int4, 16 × 1",
        _INT4,
        "16 vpmaddubsw, 16 vpadd, 16 vpand, 8 shift, 8 load, 16 broadcast",
    ),
    (
        "int4, 16 × 4",
        _INT4,
        "64 vpmaddubsw, 64 vpadd, 16 vpand, 8 shift, 8 load, 64 broadcast",
    ),
    (
        "int8, packed, 32 × 12",
        r"micro_kernel_int16\(",
        "48 vpmaddwd, 48 vpadd, 4 load, 24 broadcast",
    ),
    (
        "int4, packed, 32 × 6",
        r"micro_kernel_int4\(",
        "12 vpmaddubsw, 12 vpadd, 2 load, 6 broadcast",
    ),
)
_AVX_VNNI = (
    ("int8 by int16, 8 × 1", _INT16, "32 vpdpwssd, 32 vpmovsxbw, 36 load, 8 prefetch"),
    ("int8 by int16, 3 × 4", _INT16, "48 vpdpwssd, 12 vpmovsxbw, 28 load, 3 prefetch"),
    (
        "int8, 8 × 1",
        _rows("WithInt8"),
        "16 vpdpbusd, 16 vpand, 8 vcvtdq2ps, 8 vfmadd, 18 load, 8 prefetch",
    ),
    (
        "int8, 2 × 4",
        _rows("WithInt8"),
        "16 vpdpbusd, 4 vpand, 8 vcvtdq2ps, 8 vfmadd, 12 load, 2 prefetch",
    ),
    ("int4, 16 × 1", _INT4, "32 vpdpbusd, 32 vpand, 16 shift, 16 load, 16 broadcast"),
    ("int4, 16 × 2", _INT4, "64 vpdpbusd, 32 vpand, 16 shift, 16 load, 32 broadcast"),
    (
        "int8 by int16, packed, 16 × 6",
        r"micro_kernel_int16\(",
        "24 vpdpwssd, 4 load, 12 broadcast",
    ),
)
_AVX_VNNI_PACKED = (
    (
        "int8, packed, 16 × 6",
        "192 vpdpbusd, 12 vcvtdq2ps, 12 vfmadd, 32 load, 96 broadcast",
    ),
    (
        "int4, packed, 16 × 6",
        "192 vpdpbusd, 12 vcvtdq2ps, 12 vfmadd, 12 vmulps, 34 load, 96 broadcast",
    ),
)
KERNELS = (
    *_KERNELS,
    *_floats_like("AVX-512", "AVX-512 core"),
    *(Kernel("AVX-512 core", *one) for one in _AVX512_CORE),
    *_floats_like("AVX2", "AVX-VNNI"),
    *(Kernel("AVX-VNNI", *one) for one in _AVX_VNNI),
    *(
        Kernel("AVX-VNNI", tile, r"micro_kernel_bytes\(", work, inner=24)
        for tile, work in _AVX_VNNI_PACKED
    ),
)


@dataclass(frozen=True, slots=True)
class TileLoop:
    """A loop of AMX, whose instructions LLVM has no times of: those of a pass that load, multiply, store."""

    name: str
    function: str
    multiply: str
    loads: int
    products: int
    stores: int


TILE_LOOPS = (
    TileLoop("AMX bf16, packed, 32 × 32", r"void multiply_by<Bf16", "tdpbf16ps", 4, 4, 0),
    TileLoop("AMX int8, packed, 32 × 16", r"void multiply_by<I8", "tdpb[su]", 4, 4, 0),
    TileLoop("AMX bf16, 32 × 32", r"Streams<Bf16", "tdpbf16ps", 4, 4, 0),
    TileLoop("AMX int8, 32 × 16", r"Streams<I8", "tdpb[su]", 4, 4, 0),
    TileLoop("AMX int4, 32 × 32", r"void multiply_int4_square<1>", "tdpb[su]", 4, 4, 4),
    TileLoop("AMX int4, 16 × 16", r"void multiply_int4<16, 1>", "tdpb[su]", 8, 4, 4),
)
