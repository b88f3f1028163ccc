"""Predicts how fast the inner loops of the native product kernels run on processors that are not at hand.

    python tools/native_loops.py        two minutes; prints the table of docs/performance.md

Each instruction set's file is compiled to assembly with the build's own flags. A kernel's loop is the one
with as many multiplications as a pass of it has (native_loop_cases.py), and llvm-mca says how many cycles a
pass takes on a processor, as LLVM models it: without caches, branches or what goes wrong between them. Beside
it stands what the execution ports allow for the instructions that a pass cannot do without.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from native_loop_cases import (
    FILES,
    KERNELS,
    PROCESSORS,
    TILE_LOOPS,
    Kernel,
    Processor,
    TileLoop,
)
from native_loop_misses import MISSES

from gyrfalcon.native.library import SOURCES

MCA, COMPILER = "llvm-mca-19", "c++"
COMPILED_BY = "12"  # major version of GCC, whose loops the recorded results are of
LIMIT = 1.1  # times what the ports allow
VEX = r"\{vex\} "  # before AVX-VNNI's instructions: how they are encoded
PASSES = (100, 500)  # of a loop, simulated: the difference leaves out its beginning


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of a pass, in the order in which they are written."""

    instructions: tuple[str, ...]
    frame: bool  # whether %rbp points to the stack

    @property
    def stack_accesses(self) -> int:
        register = r"\(%r(sp|bp)\b" if self.frame else r"\(%rsp\b"
        return sum(re.search(register, one) is not None for one in self.instructions)

    def count(self, mnemonic: str) -> int:
        pattern = rf"(?:{VEX})?{mnemonic}"
        return sum(re.match(pattern, one) is not None for one in self.instructions)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of a kernel on a processor: cycles of a pass."""

    kernel: Kernel
    processor: str
    cycles: float
    limit: float
    stack_accesses: int

    @property
    def slow(self) -> bool:
        return self.cycles > LIMIT * self.limit


def missing() -> str | None:
    """What this machine lacks for it."""
    for program in (MCA, COMPILER, "cmake", "c++filt"):
        if shutil.which(program) is None:
            return f"{program} on the path"
    version = _output([COMPILER, "-dumpversion"]).strip().split(".")[0]
    return None if version == COMPILED_BY else f"GCC {COMPILED_BY} as c++, got {version}"


def predictions(assemblies: dict[str, str]) -> list[Prediction]:
    """Of every kernel on every processor that runs it."""
    functions = {name: functions_of(text) for name, text in assemblies.items()}
    found = []
    for name, processor in PROCESSORS.items():
        kernels = [one for one in KERNELS if one.instructions in processor.instructions]
        loops = [pass_of(kernel, functions[FILES[kernel.instructions]]) for kernel in kernels]
        for kernel, loop, cycles in zip(kernels, loops, mca_cycles(name, loops), strict=True):
            limit = processor.least_cycles(kernel.needs)
            found.append(Prediction(kernel, name, cycles, limit, loop.stack_accesses))
    return found


def tile_loops(assembly: str) -> list[TileLoop]:
    """Those of AMX's file, as they are."""
    functions = functions_of(assembly)
    return [_as_compiled(one, functions) for one in TILE_LOOPS]


def compiled(folder: Path) -> dict[str, str]:
    """The assembly of the instruction sets' files, with the flags of a build of the package."""
    configure = ["cmake", "-S", SOURCES, "-B", folder, "-DCMAKE_BUILD_TYPE=Release"]
    _output([*map(str, configure), "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"])
    commands = json.loads((folder / "compile_commands.json").read_text("utf-8"))
    by_stem = {Path(one["file"]).stem: shlex.split(one["command"]) for one in commands}
    return {name: _assembly(by_stem[name], folder) for name in (*FILES.values(), "amx")}


def _assembly(command: Sequence[str], folder: Path) -> str:
    output = command.index("-o") + 1
    words = [*command[: output - 1], *command[output + 1 :], "-S", "-o", "-"]
    return _output(["c++filt"], _output(words, folder=folder))


def _output(words: Sequence[str], text: str | None = None, folder: Path | None = None) -> str:
    run = subprocess.run(words, input=text, cwd=folder, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{shlex.join(words)}\n{run.stderr[-4000:]}")
    return run.stdout


# ---- loops of an assembly ----


@dataclass(slots=True)
class _Function:
    instructions: list[str]
    labels: dict[str, int]

    def loops(self) -> Iterator[range]:
        """Places from a label up to a jump back to it."""
        for place, instruction in enumerate(self.instructions):
            jump = re.match(r"j\w+\s+(\.L\w+)$", instruction)
            if jump and self.labels.get(jump[1], place + 1) <= place:
                yield range(self.labels[jump[1]], place + 1)

    @property
    def frame(self) -> bool:
        return any(re.match(r"movq\s+%rsp, %rbp", one) for one in self.instructions)


def functions_of(assembly: str) -> dict[str, _Function]:
    """Those of an assembly, by their names without the namespaces that all of them are in."""
    found: dict[str, _Function] = {}
    current = _Function([], {})
    for line in assembly.replace("(anonymous namespace)::", "").splitlines():
        if label := re.match(r"(\.L\w+):", line):
            current.labels[label[1]] = len(current.instructions)
        elif function := re.match(r"([^\s.#].*):$", line):
            current = found.setdefault(function[1].replace("gyrfalcon::", ""), _Function([], {}))
        elif instruction := re.match(rf"\t((?:{VEX})?[a-z].*)", line):
            current.instructions.append(instruction[1].split("#")[0].strip())
    return found


def pass_of(kernel: Kernel, functions: dict[str, _Function]) -> Loop:
    """A pass of a kernel's loop: of several the one with the fewest instructions."""
    find = _nested if kernel.inner else _plain
    found = [loop for one in _matching(kernel.function, functions) for loop in find(kernel, one)]
    return _shortest(found, f"{kernel.name}: {kernel.products} × {kernel.multiply}")


def _matching(pattern: str, functions: dict[str, _Function]) -> Iterator[_Function]:
    return (function for name, function in functions.items() if re.match(pattern, name))


def _shortest(loops: Sequence[Loop], wanted: str) -> Loop:
    if not loops:
        raise RuntimeError(f"no loop of {wanted}")
    return min(loops, key=lambda loop: len(loop.instructions))


def _as_compiled(wanted: TileLoop, functions: dict[str, _Function]) -> TileLoop:
    loops = [
        loop
        for function in _matching(wanted.function, functions)
        for loop in (_loop(function, places) for places in function.loops())
        if loop.count(wanted.multiply) == wanted.products
    ]
    found = _shortest(loops, wanted.name)
    return replace(wanted, loads=found.count("tileloadd"), stores=found.count("tilestored"))


def _plain(kernel: Kernel, function: _Function) -> Iterator[Loop]:
    for places in function.loops():
        loop = _loop(function, places)
        streamed = loop.count("prefetch") >= kernel.needs.get(
            "prefetch", 0
        )  # or it is the end of a row
        if loop.count(kernel.multiply) == kernel.products and streamed:
            yield loop


def _nested(kernel: Kernel, function: _Function) -> Iterator[Loop]:
    """Loops around one that is repeated until a pass has all products, and that scale as this kernel does."""
    loops = list(function.loops())
    for inner in loops:
        around = [one for one in loops if one.start < inner.start and inner.stop < one.stop]
        if _loop(function, inner).count(kernel.multiply) != kernel.inner or not around:
            continue
        outer = min(around, key=len)
        before, after = range(outer.start, inner.start), range(inner.stop, outer.stop)
        alone = sum(_loop(function, part).count(kernel.multiply) for part in (before, after))
        times = (kernel.products - alone) // kernel.inner
        loop = _loop(function, [*before, *[*inner] * times, *after])
        scales = loop.count("vmulps") == kernel.needs.get("vmulps", 0)
        if loop.count(kernel.multiply) == kernel.products and scales:
            yield loop


def _loop(function: _Function, places: Iterable[int]) -> Loop:
    return Loop(tuple(function.instructions[i] for i in places), function.frame)


# ---- llvm-mca ----


def mca_cycles(name: str, loops: Sequence[Loop]) -> list[float]:
    """Cycles of a pass of each loop on a processor, in the long run."""
    text = "\n".join(
        f"# LLVM-MCA-BEGIN {number}\n{corrected(loop, PROCESSORS[name])}\n# LLVM-MCA-END"
        for number, loop in enumerate(loops)
    )
    short, long = (_total_cycles(name, text, passes) for passes in PASSES)
    (first, last) = PASSES
    return [(b - a) / (last - first) for a, b in zip(short, long, strict=True)]


def corrected(loop: Loop, processor: Processor) -> str:
    """With the instructions that LLVM has wrong replaced, and jumps to nowhere in particular."""
    text = "\n".join(re.sub(r"\.L\w+", "elsewhere", one) for one in loop.instructions)
    for wrong, instead in processor.corrections.items():
        text = re.sub(rf"^(?:{wrong})", instead, text, flags=re.MULTILINE)
    return text


def _total_cycles(name: str, text: str, passes: int) -> list[int]:
    words = [MCA, "-mtriple=x86_64-linux-gnu", f"-mcpu={name}", f"-iterations={passes}", "--json"]
    regions = json.loads(_output(words, text))["CodeRegions"]
    return [region["SummaryView"]["TotalCycles"] for region in regions]


# ---- the table ----


def as_text(found: Sequence[Prediction], amx: str) -> str:
    """What the page has."""
    return "\n\n".join([_as_table(found), _reasons(), _as_tile_table(tile_loops(amx))])


def _reasons() -> str:
    names: dict[str, list[str]] = {}
    for name, miss in MISSES.items():
        names.setdefault(miss.reason, []).append(name)
    return "\n".join(f"- {'; '.join(kernels)}: **{reason}**" for reason, kernels in names.items())


def _as_table(found: Sequence[Prediction]) -> str:
    """A row for each kernel, a column for each processor."""
    cells = {(one.kernel.name, one.processor): _cell(one) for one in found}
    labels = [processor.label for processor in PROCESSORS.values()]
    rows = [f"| kernel | {' | '.join(labels)} |", f"|---|{'---|' * len(labels)}"]
    for kernel in KERNELS:
        row = (cells.get((kernel.name, name), "–") for name in PROCESSORS)
        rows.append(f"| {kernel.name} | {' | '.join(row)} |")
    return "\n".join(rows)


def _cell(one: Prediction) -> str:
    each = 1000 / one.kernel.multiply_adds
    marks = ("†" if one.slow else "") + ("‡" if one.stack_accesses else "")
    return f"{one.cycles * each:.1f} / {one.limit * each:.1f} {marks}".strip()


def _as_tile_table(found: Sequence[TileLoop]) -> str:
    """A row for each loop of AMX."""
    rows = (f"| {one.name} | {one.loads} | {one.products} | {one.stores} |" for one in found)
    return "\n".join(
        ["| kernel | tile loads | products | tile stores |", "|---|---|---|---|", *rows]
    )


def main() -> int:
    """Prints the table; 1 where something is missing."""
    if (lacking := missing()) is not None:
        print(f"native_loops: error: wanted {lacking}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        assemblies = compiled(Path(folder))
    print(as_text(predictions(assemblies), assemblies["amx"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
