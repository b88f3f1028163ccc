"""The loop in which a compiled kernel spends its time: how many instructions it issues for a weight, and
whether slow conversions are among them.

Read from the disassembly: loops are branches backwards. Matrix instructions tell how many weights a turn
takes, however often the compiler unrolled it; the main loop has the fewest instructions for each.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WARP, WAVE = 32, 64  # lanes
# Of 32-bit integers and floating-point numbers to each other; F2FP packs two and is fast.
SLOW = re.compile(r"(I2F|F2F|F2I|I2I)\b")
MMA = {"HMMA.16816": 16 * 8 * 16, "HMMA.1688": 16 * 8 * 8}  # multiply-adds of a warp
WGMMA = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)")  # of four warps
MFMA = re.compile(r"v_mfma_f32_(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True, slots=True)
class Loop:
    """The main loop of a kernel whose tile has `tokens` tokens: what a lane does in one turn."""

    instructions: int  # that take issue slots of the vector units
    slow_conversions: int
    weights: float

    @property
    def instructions_per_weight(self) -> float:
        return self.instructions / self.weights


def main_loop(backend: str, compiled: dict[str, object], tokens: int) -> Loop | None:
    """Of what Triton compiled for "cuda" or "hip"; None without matrix instructions in a loop."""
    if backend == "cuda":
        loops = list(_loops(sass(compiled["cubin"]), _SASS))
        return _densest(loops, tokens, WARP, _sass_multiply_adds, lambda name: True)
    loops = list(_loops(str(compiled["amdgcn"]), _GCN))
    # Scalar instructions, memory and branches have issue slots of their own.
    return _densest(loops, tokens, WAVE, _gcn_multiply_adds, lambda name: name.startswith("v_"))


def sass(cubin: object) -> str:
    """The machine code of a kernel for NVIDIA's cards, as text."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    assert isinstance(cubin, bytes)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True, slots=True)
class _Syntax:
    """How an assembly is written: lines that are labels and instructions, and what jumps to a label."""

    label: re.Pattern[str]
    instruction: re.Pattern[str]
    jump: re.Pattern[str]


_SASS = _Syntax(
    re.compile(r"\s*(\.L_\w+):"),
    re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);"),
    re.compile(r"BRA\b.*`\((\.L_\w+)\)"),
)
_GCN = _Syntax(
    re.compile(r"(\.LBB\w+):"),
    re.compile(r"\s+([a-z]\w+[^;]*)"),
    re.compile(r"s_c?branch\w*\s+(\.LBB\w+)"),
)


def _loops(text: str, syntax: _Syntax) -> Iterator[list[str]]:
    """The instructions of each, from the label that a later branch goes back to."""
    found: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := syntax.label.match(line):
            labels[label[1]] = len(found)
        elif one := syntax.instruction.match(line):
            found.append(one[1].strip())
    for place, instruction in enumerate(found):
        jump = syntax.jump.match(instruction)
        if jump and labels.get(jump[1], place + 1) < place:
            yield found[labels[jump[1]] : place + 1]


def _densest(
    loops: Sequence[Sequence[str]],
    tokens: int,
    lanes: int,
    multiply_adds: Callable[[str], int],
    counts: Callable[[str], bool],
) -> Loop | None:
    found = [
        Loop(
            instructions=sum(map(counts, loop)),
            slow_conversions=sum(SLOW.match(one) is not None for one in loop),
            weights=sum(map(multiply_adds, loop)) / tokens / lanes,
        )
        for loop in loops
        if any(map(multiply_adds, loop))
    ]
    return min(found, key=lambda loop: loop.instructions_per_weight, default=None)


def _sass_multiply_adds(instruction: str) -> int:
    if size := WGMMA.match(instruction):
        return int(size[1]) * int(size[2]) * int(size[3]) // 4
    return next((number for name, number in MMA.items() if instruction.startswith(name)), 0)


def _gcn_multiply_adds(instruction: str) -> int:
    size = MFMA.match(instruction)
    return int(size[1]) * int(size[2]) * int(size[3]) if size else 0
