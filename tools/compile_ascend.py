"""Takes every kernel as far towards an Ascend 910B3 as its open compiler goes, without an NPU.

    scripts/ascend-compile              # writes docs/ascend-kernels.md
    scripts/ascend-compile --check      # compares with it; exit code 1 when something differs

Run by that script, in whose environment `triton` is triton-ascend. Each kernel becomes
Linalg, then HIVM: memory is planned for the unified buffer (UB), L1 and L0C, and what does not fit is
an error, as for those of `ascend_refused.py`, which show that it would be noticed. The last step,
machine code, needs hivmc of CANN, which is not open; a stand-in takes its place. What passes here may
still be slow, or fail there.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile_kernels import TOOLS, cases_of, differences
from kernel_cases import Case

DEVICE = "Ascend910B3"
ATTEMPTS = 8  # ascendnpu-ir 1.2.0 fails at random, more often than once in six times
MEMORIES = {"ub": "UB", "cbuf": "L1", "cc": "L0C"}  # name in HIVM → in Ascend's documents
PAGE = TOOLS.parent / "docs" / "ascend-kernels.md"
FILES = sorted(TOOLS.glob("kernel_cases_*.py"))
REFUSED = TOOLS / "ascend_refused.py"
OPTIONS = (
    f"--target={DEVICE}",
    "--enable-auto-multi-buffer=True",
    "--enable-auto-bind-sub-block=True",
    "--enable-hfusion-compile=true",
    "--enable-hivm-compile=true",
    "--enable-triton-kernel-compile=true",
    "--enable-memory-display",
)
STAND_IN = """#!/bin/sh
[ "$1" = --version ] && echo "hivmc 1.2.0" && exit
while [ $# -gt 0 ]; do
    [ "$1" != -o ] || : >"$2"
    shift
done
"""


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a case: KiB of each memory, or what went wrong."""

    name: str
    kib: dict[str, float]
    fault: str | None

    @property
    def is_too_large(self) -> bool:
        """Whether it was refused because a memory does not suffice."""
        return self.fault is not None and "overflow, requires" in self.fault


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles the cases; the exit code is 1 when one fails, or one that does not fit is not refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with docs/, write nothing")
    parser.add_argument(
        "--only", default="", help="cases with these words in their name; writes nothing"
    )
    parser.add_argument(
        "files", type=Path, nargs="*", help="files that define CASES; writes nothing (default: all)"
    )
    options = parser.parse_args(arguments)
    cases = distinct(
        case
        for file in options.files or FILES
        for case in cases_of(file)
        if options.only in case.name
    )
    with compiler():
        results = [shown(compile_case(case)) for case in cases]
        refused = [] if options.files else [shown(refuse_case(case)) for case in cases_of(REFUSED)]
    faults = [f"{one.name}: {one.fault}" for one in results if one.fault is not None]
    faults += [
        f"{one.name}: {one.fault or 'not refused'}" for one in refused if not one.is_too_large
    ]
    if not options.files and not options.only:
        page = as_page(results, refused)
        if options.check:
            faults += differences({PAGE: page})
        elif not faults:
            PAGE.write_text(page, "utf-8")
    print("\n".join(faults))
    print(f"{len(results)} kernels, {len(refused)} that do not fit, {len(faults)} faults")
    return 1 if faults or not results else 0


@contextmanager
def compiler() -> Iterator[None]:
    """A cache of its own, and what stands in for hivmc."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/cache"
        stand_in = Path(folder, "hivmc")
        stand_in.write_text(STAND_IN, "utf-8")
        stand_in.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        yield


def distinct(cases: Iterable[Case]) -> list[Case]:
    """One case for each variant that an NPU can have: it lacks fp8, and warps and assembly are a GPU's."""
    variants: dict[object, Case] = {}
    for case in cases:
        is_of_gpus = case.ascend is None or case.constants.get("PTX")
        if not is_of_gpus and case.constants.get("KIND") != "fp8":
            constants = case.constants | (case.ascend or {})
            key = (case.kernel.__name__, str(case.signature), str(sorted(constants.items())))
            variants.setdefault(key, case)
    return list(variants.values())


def shown(result: Result) -> Result:
    """Prints a result as soon as it is known."""
    print(row(result), file=sys.stderr, flush=True)
    return result


def row(result: Result) -> str:
    """A row of the table."""
    kib = (f"{result.kib[name]:.0f}" if name in result.kib else "" for name in MEMORIES)
    return f"| {result.name} | {' | '.join(kib)} |"


def as_page(results: Sequence[Result], refused: Sequence[Result]) -> str:
    """The table for people."""
    version = importlib.metadata.version
    return "\n".join(
        [
            "# What Triton's kernels take of an Ascend 910B3",
            "",
            "Written by `scripts/ascend-compile`, which needs no NPU, with"
            f" triton-ascend {version('triton-ascend')} and ascendnpu-ir {version('ascendnpu-ir')}:",
            "KiB of the unified buffer (UB, a core has 192), of L1 (512) and of L0C (128) that the compiler"
            " plans for a kernel.",
            "Machine code is made by a part of CANN that is not open: no kernel has been taken that far, none"
            " has run on a card.",
            "",
            f"| kernel | {' | '.join(f'{name} KiB' for name in MEMORIES.values())} |",
            f"|---|{'---|' * len(MEMORIES)}",
            *map(row, results),
            "",
            "Refused, as they have to be, for they do not fit:",
            "",
            *(f"- {one.name}: {one.fault}" for one in refused),
            "",
        ]
    )


def compile_case(case: Case) -> Result:
    """Compiles one case to HIVM; one plan that is found suffices."""
    for _ in range(ATTEMPTS):
        result = _attempt(case)
        if result.fault is None:
            break
    return result


def refuse_case(case: Case) -> Result:
    """The same for a case that does not fit: one refusal that says so suffices."""
    for _ in range(ATTEMPTS):
        result = _attempt(case)
        if result.is_too_large:
            break
    return result


def _attempt(case: Case) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        try:
            to_hivm(to_linalg(case), Path(folder))
        except subprocess.CalledProcessError as error:
            return Result(case.name, {}, _reason(_text(error.stderr)))
        except Exception as error:  # of any of Triton's kinds
            return Result(case.name, {}, _reason(f"{type(error).__name__}: {error}"))
        return Result(case.name, memory_kib(Path(folder)), None)


def to_linalg(case: Case) -> str:
    """Triton's part: Python to Linalg."""
    from triton._C.libtriton import ir
    from triton.backends.ascend import compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource

    target = GPUTarget("npu", DEVICE, 0)
    backend = compiler.AscendBackend(target)
    options = backend.parse_options({})
    constants = case.constants | (case.ascend or {})
    source = ASTSource(fn=case.kernel, signature=case.signature, constants=constants)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(), backend.get_module_map()
    module = source.make_ir(options, functions, modules, context)
    metadata: dict[str, Any] = vars(options) | {"target": target, "hash": case.name}
    module = compiler.make_ttir(module, metadata, options)
    linalg: str = compiler.ttir_to_linalg(module, metadata, options, named_ops=True)
    return re.sub(r', mix_mode = "[a-z]*"', "", linalg)  # an attribute that this bishengir lacks


def to_hivm(linalg: str, folder: Path) -> None:
    """Bishengir's part: Linalg to HIVM, memory planned; writes what it planned into the folder."""
    spec = importlib.util.find_spec("ascendnpuir")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).parent / "bin" / "bishengir-compile"
    source = folder / "kernel.mlir"
    source.write_text(linalg, "utf-8")
    command = [str(program), source.name, *OPTIONS, "-o", "kernel.o"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)


def memory_kib(folder: Path) -> dict[str, float]:
    """The peak use of each memory, from the plans of the vector and cube cores."""
    ends: dict[str, float] = {}
    for plan in folder.glob("memory_info_ai*.json"):
        for record in json.loads(plan.read_text("utf-8"))["Record"]:
            for one in record["memory_info_array"]:
                place = re.search(r"address_space<(\w+)>", one["buffer"])
                end_bits = max(one["offset"]) * 8 + one["extent"]
                name = place[1] if place else "?"
                ends[name] = max(ends.get(name, 0), end_bits / 8 / 1024)
    return ends


def _text(output: bytes | str | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""


def _reason(text: str) -> str:
    """What went wrong, short enough for a table; memory overflow says most."""
    full = re.search(r"\w+ overflow, requires \d+ bits while \d+ bits available", text)
    errors = [line.rpartition("error:")[2] for line in text.splitlines() if "error:" in line]
    message = full[0] if full else errors[-1] if errors else text
    return " ".join(message.split()).replace("|", "/")[-160:]


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted functions cannot be compiled
    sys.exit(main())
