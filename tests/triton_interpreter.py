"""Triton's kernels on a machine without a GPU: its interpreter, made exact for bfloat16 and strict about
memory.

Import this module before anything that imports triton: its decorator reads TRITON_INTERPRET once for each
function, those of its own library first.
As it comes, the interpreter keeps bfloat16 as uint16 and computes with those integers, cuts float32 off
where it should round it to bfloat16, and reads and writes anywhere.
"""

import os
from importlib.util import find_spec
from threading import RLock
from types import SimpleNamespace
from typing import Any

import numpy as np
import ptx
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu" and find_spec("triton") is not None

if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"


def install() -> None:
    """Lets kernels run on the CPU where there is no GPU; does nothing without Triton."""
    if not INTERPRETED:
        return
    _check_the_library()
    _round_as_torch()
    _multiply_bfloat16()
    _run_assembly()
    _refuse_bfloat16_arithmetic()
    _refuse_foreign_memory()
    _take_turns()


def _check_the_library() -> None:
    """Triton's own functions are interpreted, too: a kernel that calls a compiled one fails."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(tl.cdiv, InterpretedFunction):
        raise RuntimeError(
            "wanted triton_interpreter imported before triton, got after; import it first"
        )


def _take_turns() -> None:
    """One launch at a time: the interpreter keeps where it is in globals, and ranks may be threads."""
    from triton.runtime.interpreter import GridExecutor

    launch, turn = GridExecutor.__call__, RLock()

    def one_at_a_time(self: Any, *arguments: Any, **named: Any) -> Any:
        with turn:
            return launch(self, *arguments, **named)

    GridExecutor.__call__ = one_at_a_time


def _round_as_torch() -> None:
    """Conversions between floating-point types as torch's: to the nearest, ties to even."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    types = {
        tl.float32: (np.float32, torch.float32),
        tl.float16: (np.float16, torch.float16),
        tl.bfloat16: (np.uint16, torch.bfloat16),
        tl.float8e4nv: (np.uint8, torch.float8_e4m3fn),
        tl.float8e5: (np.uint8, torch.float8_e5m2),
    }
    cast, convert = InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp

    def between(source: Any, target: Any) -> Any:
        _, from_type = types[source.dtype.scalar]
        bits, to_type = types[target.scalar]
        # 0-d stays 0-d.
        tensor = torch.from_numpy(np.array(source.data)).view(from_type).to(to_type)
        plain = tensor if bits in (np.float32, np.float16) else tensor.view(_bits(to_type))
        return TensorHandle(plain.numpy().view(bits), target.scalar)

    def known(source: Any, target: Any) -> bool:
        return source.dtype.scalar in types and target.scalar in types

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        return between(source, target) if known(source, target) else cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if known(source, target):
            return between(source, target)
        return convert(self, source, target, rounding)

    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp


def _bits(dtype: torch.dtype) -> torch.dtype:
    return torch.uint16 if dtype.itemsize == 2 else torch.uint8


def _multiply_bfloat16() -> None:
    """Matrix products of bfloat16 with sums in float32, as matrix units compute them."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    multiply = InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot


def _run_assembly() -> None:
    """NVIDIA's assembly for two 16-bit numbers at a time, neighbours in a row."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_inline_asm(
        self: Any, assembly: str, constraints: str, values: Any, types: Any, pure: bool, pack: int
    ) -> Any:
        (words,) = values
        assert (constraints, words.data.dtype.itemsize, pack) == ("=r,r", 2, 2)
        registers = np.ascontiguousarray(words.data).view(np.uint32)
        scalar = types[0].scalar
        kind = np.float16 if scalar.is_fp16() else np.uint16
        found = TensorHandle(ptx.run(assembly, registers).view(kind), scalar)
        return SimpleNamespace(get_result=lambda place: found)

    InterpreterBuilder.create_inline_asm = create_inline_asm


def _refuse_bfloat16_arithmetic() -> None:
    """What would compute with a bfloat16's bits as if they were an integer raises instead."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    def strict(function: Any) -> Any:
        def checked(self: Any, *operands: Any) -> Any:
            for operand in operands:
                if hasattr(operand, "dtype") and operand.dtype.scalar == tl.bfloat16:
                    raise TypeError("wanted float32, got arithmetic on bfloat16; widen it first")
            return function(self, *operands)

        return checked

    for name in ("binary_op", "unary_op", "create_fma"):
        setattr(InterpreterBuilder, name, strict(getattr(InterpreterBuilder, name)))


def _refuse_foreign_memory() -> None:
    """Loads and stores outside the tensors of a launch raise instead of reading anything there is."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    intervals = np.empty((0, 2), dtype=np.uint64)  # [tensors, first byte and end], disjoint, sorted
    prepare, load, store = (
        GridExecutor._init_args_hst,
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )

    def remember(self: Any, arguments: Any, named: Any) -> Any:
        nonlocal intervals
        hosted, hosted_named = prepare(self, arguments, named)
        tensors = [x for x in (*hosted, *hosted_named.values()) if isinstance(x, Tensor)]
        intervals = _merged([_extent(x) for x in tensors if x.numel()])
        return hosted, hosted_named

    def check(pointers: Any, mask: Any) -> None:
        data, used = np.broadcast_arrays(pointers.data, mask.data.astype(bool))
        addresses = data[used].astype(np.uint64)
        if not addresses.size:
            return
        place = np.searchsorted(intervals[:, 0], addresses, side="right") - 1
        if (place < 0).any() or (addresses >= intervals[np.maximum(place, 0), 1]).any():
            raise IndexError("wanted an address inside the launch's tensors, got one outside")

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    GridExecutor._init_args_hst = remember
    InterpreterBuilder.create_masked_load = masked_load
    InterpreterBuilder.create_masked_store = masked_store


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The bytes from a tensor's first element to behind its last."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _merged(extents: list[tuple[int, int]]) -> Any:
    """Extents that overlap become one: uint64 [intervals, 2], sorted."""
    merged: list[list[int]] = []
    for first, end in sorted(extents):
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([first, end])
    return np.array(merged, dtype=np.uint64).reshape(-1, 2)
