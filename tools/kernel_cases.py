"""Cases: the variants of a kernel that `tools/compile_kernels.py` compiles without a GPU."""

from dataclasses import dataclass, field
from typing import Any

from kernel_limits import Stream

NVIDIA, AMD = frozenset({"sm_80", "sm_90"}), frozenset({"gfx942", "gfx90a"})
TARGETS = NVIDIA | AMD


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel with one set of types and constants, as a model in production launches it."""

    name: str  # "attention decode 40b bf16"
    kernel: Any  # what triton.jit returned
    signature: dict[str, str]  # argument → "*bf16", "*i64", "i32", "fp32"; in the kernel's order
    constants: dict[str, Any]  # constexpr arguments
    warps: int
    stages: int
    expects: frozenset[str]  # of {"mma"}: matrix instructions that the assembly has to have
    targets: frozenset[str] = TARGETS
    aligned: frozenset[str] = frozenset()  # integers divisible by 16; pointers always are
    stream: Stream | None = None  # the weights of a linear with matrix instructions
    # Constants that are others on Ascend; None for what is never launched there.
    ascend: dict[str, Any] | None = field(default_factory=dict)

    @property
    def is_twin(self) -> bool:
        """Whether it stands in for one with NVIDIA's assembly."""
        return self.constants.get("PTX") is False
