"""Quantised weights as words of 16 bits, packed at load (`Quantised.as_words`), and what widens them for
the matrix units.

A word holds the weights of two or four columns, at places J = 0, 1, …. A register has two words, so one
instruction of bf16x2 or f16x2 widens two weights. No integer is converted: the smallest numbers of a
floating-point type, subnormal ones and the first normal ones, are the multiples 0, 1, 2, … of the
smallest by their bits. So bits alone are a number, which one fma brings to size and rids of its offset.

NVIDIA's cards get that as assembly; sm_80 has bf16x2's fma, but not its add, sub and mul. Everywhere
else, interpreter included, `_plain` computes the same in float32. Both are exact.
"""

import triton
import triton.language as tl

INTEGER_UNIT = tl.constexpr(2.0**-9)  # what an integer 1 is widened to: float16 reaches no further


def _assembly(*lines: str) -> str:
    return " ".join(("{ .reg .b32 t, u, v, a, b;", *lines, "}"))


def _fma(number: str, factor: int, summand: int) -> str:
    """t × factor + summand, each given by the bits of one half."""
    a, b = (f"{half << 16 | half:#010x}" for half in (factor, summand))
    return f"mov.b32 a, {a}; mov.b32 b, {b}; fma.rn.{number} $0, t, a, b;"


def _int4(number: str, factors: tuple[int, int], offset: int) -> tuple[str, ...]:
    """For each place: its four bits, in the lower or upper half of a byte, which the factor equals out."""
    byte = ("mov.b32 t, $1;", "shr.b32 t, $1, 8;")
    halves = tuple(zip(("0x000F000F", "0x00F000F0"), factors, strict=True))
    return tuple(
        _assembly(at, f"and.b32 t, t, {mask};", _fma(number, factor, offset))
        for at in byte
        for mask, factor in halves
    )


def _int8(number: str, factor: int, offset: int) -> tuple[str, ...]:
    """For each place: its byte."""
    bytes_ = ("and.b32 t, $1, 0x00FF00FF;", "prmt.b32 t, $1, 0, 0x4341;")
    return tuple(_assembly(byte, _fma(number, factor, offset)) for byte in bytes_)


# fp8's exponents, moved as they are, are too small by 2¹²⁰ and 2⁸; the summand is -0.
_FP8_BF16 = (
    _assembly("and.b32 t, $1, 0x87F087F0;", _fma("bf16x2", 0x7B80, 0x8000)),
    _assembly(
        "shl.b32 t, $1, 4; shr.b32 u, $1, 4;",
        "and.b32 u, u, 0x07000700;",
        "lop3.b32 t, t, 0x80F080F0, u, 0xea;",  # (t & mask) | u
        _fma("bf16x2", 0x7B80, 0x8000),
    ),
)
_FP8_FP16 = (
    _assembly(
        "and.b32 u, $1, 0x80008000;",
        "shl.b32 t, $1, 3;",
        "lop3.b32 t, t, 0x3F803F80, u, 0xea;",
        _fma("f16x2", 0x5C00, 0x8000),
    ),
    _assembly(
        "shl.b32 t, $1, 4; shl.b32 u, $1, 7; shr.b32 v, $1, 1;",
        "and.b32 t, t, 0x80008000;",
        "lop3.b32 u, u, 0x07800780, t, 0xea;",
        "lop3.b32 t, v, 0x38003800, u, 0xea;",
        _fma("f16x2", 0x5C00, 0x8000),
    ),
)

# The places of int4, of int8, of fp8. Factors are 2¹²⁴, 2¹²⁰, 2¹⁵ and 2¹¹, offsets -8 and -128 units.
_BF16 = tl.constexpr(
    (
        *_int4("bf16x2", (0x7D80, 0x7B80), 0xBC80),
        *_int8("bf16x2", 0x7D80, 0xBE80),
        *_FP8_BF16,
    )
)
_FP16 = tl.constexpr(
    (
        *_int4("f16x2", (0x7800, 0x6800), 0xA400),
        *_int8("f16x2", 0x7800, 0xB400),
        *_FP8_FP16,
    )
)


@triton.jit
def widen(words, J: tl.constexpr, KIND: tl.constexpr, dtype: tl.constexpr, PTX: tl.constexpr):
    """The weights at place J of int16 words in dtype, without their scales; int4's and int8's are integers
    times INTEGER_UNIT.
    """
    place: tl.constexpr = J + (0 if KIND == "int4" else 4 if KIND == "int8" else 6)
    if PTX and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            _BF16[place], "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    elif PTX and dtype == tl.float16:
        return tl.inline_asm_elementwise(
            _FP16[place], "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        return _narrow(_plain(words.to(tl.int32), J, KIND), dtype)


@triton.jit
def _plain(words, J: tl.constexpr, KIND: tl.constexpr):
    """The same in float32, from words in int32. Bits behind those of 2²³ are a number, too."""
    if KIND == "fp8":
        second = ((words << 4) & 0x80F0) | ((words >> 4) & 0x0700)
        bits = words & 0x87F0 if J == 0 else second
        return (bits << 16).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2¹²⁰
    else:
        BITS: tl.constexpr = 4 if KIND == "int4" else 8
        UNIT: tl.constexpr = 2.0**-9 / (1 << BITS * J)
        OFFSET: tl.constexpr = (1 << 23) * UNIT + (1 << BITS - 1) * 2.0**-9
        mantissa = words & (((1 << BITS) - 1) << BITS * J)
        return (mantissa | 0x4B000000).to(tl.float32, bitcast=True) * UNIT - OFFSET


@triton.jit
def _narrow(values, dtype: tl.constexpr):
    """float32 of at most 8 significant bits → dtype: exact, so that bfloat16 is the upper half."""
    if dtype == tl.bfloat16:
        upper = (values.to(tl.int32, bitcast=True) >> 16).to(tl.int16)
        return upper.to(tl.bfloat16, bitcast=True)
    return values.to(dtype)
