"""What a few instructions of PTX do with 32-bit registers, in numpy: enough for the assembly in our
kernels, written after NVIDIA's manual and independent of it.
"""

import re
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Register = NDArray[np.uint32]
HALVES = {"bf16x2": torch.bfloat16, "f16x2": torch.float16}


def run(assembly: str, argument: Register) -> Register:
    """Register $0 after instructions that read $1."""
    body = assembly.strip().removeprefix("{").removesuffix("}")
    registers: dict[str, Register] = {"$1": argument}
    for statement in filter(None, map(str.strip, body.split(";"))):
        name, _, operands = statement.partition(" ")
        if name == ".reg":
            continue
        target, *sources = (one.strip() for one in operands.split(","))
        values = [_value(source, registers, argument) for source in sources]
        registers[target] = _computed(name, values)
    return registers["$0"]


def _value(source: str, registers: dict[str, Register], like: Register) -> Register:
    if re.fullmatch(r"0x[0-9A-Fa-f]+|\d+", source):
        return np.full_like(like, int(source, 0))
    return registers[source]


def _computed(name: str, values: list[Register]) -> Register:
    if name.startswith("fma.rn."):
        return _fma(values, HALVES[name.removeprefix("fma.rn.")])
    operations: dict[str, Callable[..., Register]] = {
        "mov.b32": lambda a: a,
        "and.b32": lambda a, b: a & b,
        "shl.b32": lambda a, b: a << b,
        "shr.b32": lambda a, b: a >> b,
        "lop3.b32": _lop3,
        "prmt.b32": _prmt,
    }
    return operations[name](*values)


def _lop3(a: Register, b: Register, c: Register, table: Register) -> Register:
    """Each bit of the table is the result for one combination of bits of a, b and c."""
    found = np.zeros_like(a)
    for row in range(8):
        chosen = [
            value if row >> place & 1 else ~value for place, value in ((2, a), (1, b), (0, c))
        ]
        if int(table.flat[0]) >> row & 1:
            found |= chosen[0] & chosen[1] & chosen[2]
    return found


def _prmt(a: Register, b: Register, selector: Register) -> Register:
    """Four bytes of the eight of a and b, each chosen by four bits, without the one for signs."""
    found = np.zeros_like(a)
    for place in range(4):
        which = int(selector.flat[0]) >> 4 * place & 15
        assert which < 8
        source = a if which < 4 else b
        found |= (source >> np.uint32(8 * (which % 4)) & np.uint32(255)) << np.uint32(8 * place)
    return found


def _fma(values: list[Register], dtype: torch.dtype) -> Register:
    """Of both halves, subnormal numbers included, rounded once. float64 holds what we multiply exactly."""
    a, b, c = (
        torch.from_numpy(np.ascontiguousarray(value).view(np.uint16).view(np.int16))
        .view(dtype)
        .double()
        for value in values
    )
    rounded = (a * b + c).to(dtype).view(torch.int16).numpy()
    return rounded.view(np.uint16).view(np.uint32).reshape(values[0].shape)
