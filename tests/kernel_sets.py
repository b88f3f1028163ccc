"""The instruction sets of the native kernels that this processor has, and what their tests multiply."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gyrfalcon.native.library import library
from gyrfalcon.quant import Weight, dequantise, quantise

_found = library()
SETS = [] if _found is None else _found.gf_available().decode().split()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def use(name: str, activations: str = "auto") -> Iterator[None]:
    """An instruction set, on two threads, with int8 weights multiplied with such activations."""
    from gyrfalcon.ops import native

    assert native.LIBRARY.gf_choose(name.encode()) == 0
    native.use_activations(activations)
    native.use_threads(2)
    try:
        yield
    finally:
        native.use_threads(torch.get_num_threads())
        native.use_activations("auto")
        native.LIBRARY.gf_choose(SETS[0].encode())


def _activations(name: str, wanted: str) -> str:
    from gyrfalcon.ops import native

    with use(name, wanted):
        return native.activations()


def int8_sets() -> list[str]:
    """The sets that multiply int8 weights with int8 activations when told so."""
    return [name for name in SETS if _can_int8() and _activations(name, "int8") == "int8"]


def _can_int8() -> bool:
    assert _found is not None
    able = _found.gf_use_activations(8) == 0
    _found.gf_use_activations(0)
    return able


def _variants() -> list[tuple[str, str]]:
    """Each set with the activations that it takes by itself, the last of int8_sets with others, too."""
    each = [(name, _activations(name, "auto")) for name in SETS]
    for name in int8_sets()[-1:]:
        each.append((name, {"int8": "int16", "int16": "int8"}[_activations(name, "auto")]))
    return each


VARIANTS = _variants()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored_as(kind: str, weight: Tensor) -> tuple[Weight, Tensor]:
    """A weight as the kernels read it, and the float32 matrix that this stands for."""
    if kind.startswith("int"):
        rounded = quantise(weight, kind)
        return rounded, dequantise(rounded, torch.float32)
    return weight.to(DTYPES[kind]), weight.to(DTYPES[kind]).float()
