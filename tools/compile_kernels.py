"""Compiles every kernel for every GPU it has to run on, without a GPU, and judges what came out.

    python tools/compile_kernels.py            # writes docs/kernels.json and docs/kernels.md
    python tools/compile_kernels.py --check    # compares with them; exit code 1 when something differs

Wanted of each: registers that suffice (nothing spilled to memory), shared memory that fits, and matrix
instructions where the case says so; of linears that they read weights as fast as the memory does
(`kernel_limits.py`). The cases are in `tools/kernel_cases_*.py`.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kernel_cases import Case
from kernel_digest import digest_of
from kernel_loops import main_loop
from kernel_page import as_page
from kernel_usage import TARGETS, Result, Target, Usage, judge, streaming_of

TOOLS = Path(__file__).resolve().parent
TABLE = TOOLS.parent / "docs" / "kernels.json"
PAGE = TABLE.with_suffix(".md")
FILES = sorted(TOOLS.glob("kernel_cases_*.py"))
PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Job:
    """One case for one target; cases travel to other processes by their file and index."""

    file: Path
    place: int
    name: str
    target: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles, judges, then writes or compares the table; the exit code is 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with docs/, write nothing")
    parser.add_argument("--only", default="", help="cases with these words in their name; no table")
    parser.add_argument(
        "files", type=Path, nargs="*", help="files that define CASES; no table (default: all)"
    )
    options = parser.parse_args(arguments)
    results = compile_all(jobs(options.files or FILES, options.only))
    faults = [f"{one.name} on {one.target}: {fault}" for one in results for fault in one.faults]
    texts = {TABLE: as_json(results), PAGE: as_page(_version(), results)}
    if options.files or options.only:
        print(as_page(_version(), results))
    elif options.check:
        faults += differences(texts)
    else:
        for path, text in texts.items():
            path.write_text(text, "utf-8")
    for fault in faults:
        print(fault)
    print(f"{len(results)} compiled kernels, {len(faults)} faults")
    return 1 if faults or not results else 0


def jobs(files: Sequence[Path], words: str = "") -> list[Job]:
    """Every case of every file for each of its targets; duplicate names are a bug."""
    found = [
        Job(file, place, case.name, target)
        for file in files
        for place, case in enumerate(cases_of(file))
        for target in sorted(case.targets)
        if words in case.name
    ]
    named = [(job.name, job.target) for job in found]
    twice = sorted({name for name, target in named if named.count((name, target)) > 1})
    assert not twice, f"wanted a name of its own for each case, got twice: {', '.join(twice)}"
    return found


def cases_of(file: Path) -> list[Case]:
    """The CASES of a Python file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # Triton looks up a kernel's globals here
    spec.loader.exec_module(module)
    cases: list[Case] = module.CASES
    return cases


def compile_all(wanted: Sequence[Job]) -> list[Result]:
    """Compiles in processes of their own."""
    with compilers() as pool:
        return list(pool.map(compile_job, wanted, chunksize=4))


@contextmanager
def compilers() -> Iterator[ProcessPoolExecutor]:
    """A pool of compiling processes with a temporary cache."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(PROCESSES, context, _cache_in, (cache,)) as pool,
    ):
        yield pool


def _cache_in(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder


def compile_job(job: Job) -> Result:
    """Compiles one case for one target; a failure of the compiler is a fault of the case."""
    case = cases_of(job.file)[job.place]
    try:
        usage = compile_case(case, job.target)
    except Exception as error:  # of any of Triton's, LLVM's or ptxas's kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        return Result(job.name, job.target, None, (f"cannot be compiled: {reason[-300:]}",))
    return Result(job.name, job.target, usage, judge(case, job.target, usage))


def compile_case(case: Case, name: str) -> Usage:
    """The resources that a case uses on a target."""
    target, found = TARGETS[name], compiled(case, name)
    usage = usage_of(found, target)
    if case.stream is None:
        return usage
    loop = main_loop(target.backend, found.asm, case.stream.tokens)
    return (
        usage if loop is None else replace(usage, streaming=streaming_of(case, name, usage, loop))
    )


def compile_ptx(job: Job, early: bool) -> str:
    """The assembly of one case for one of NVIDIA's cards, launched early or not."""
    case = cases_of(job.file)[job.place]
    case = replace(case, constants=case.constants | {"EARLY": early})
    return str(compiled(case, job.target).asm["ptx"])


def compiled(case: Case, name: str) -> Any:
    """What Triton makes of a case on a target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = TARGETS[name]
    names: list[str] = case.kernel.arg_names
    source = ASTSource(
        fn=case.kernel,
        signature={one: case.signature.get(one, "constexpr") for one in names},
        constexprs=case.constants,
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, one in enumerate(names)
            if one in case.aligned or case.signature.get(one, "").startswith("*")
        },
    )
    return triton.compile(
        source,
        target=GPUTarget(target.backend, target.architecture, target.warp_size),
        options={"num_warps": case.warps, "num_stages": case.stages},
    )


def usage_of(compiled: Any, target: Target) -> Usage:
    """Registers and memory as the binary (CUDA) or the assembly (HIP) states them."""
    if target.backend == "cuda":
        assembly = compiled.asm["ptx"]
        stated = _resources(compiled.asm["cubin"])
        registers, stack = _number(r"REG:(\d+)", stated), _number(r"STACK:(\d+)", stated)
    else:
        assembly = compiled.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s+(\d+)", assembly)
        stack = _number(r"\.private_segment_fixed_size:\s+(\d+)", assembly)
        stack += 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    matrix = len(re.findall(target.matrix, assembly))
    return Usage(registers, compiled.metadata.shared, stack, matrix)


def _resources(cubin: bytes) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, f"wanted {pattern} in what the compiler wrote, got none"
    return int(match[1])


def as_json(results: Sequence[Result]) -> str:
    """The table for programs: one line for each compiled kernel."""
    lines = [
        json.dumps({"case": one.name, "target": one.target} | asdict(one.usage))
        for one in results
        if one.usage is not None
    ]
    joined = ",\n  ".join(lines)
    head = f'"triton": "{_version()}", "digest": "{digest()}"'
    return f'{{{head}, "kernels": [\n  {joined}\n]}}\n'


def digest() -> str:
    """Of the kernels and cases as they are now."""
    return digest_of(
        _version(), TARGETS.values(), [one for file in FILES for one in cases_of(file)]
    )


def _version() -> str:
    import triton

    return str(triton.__version__)


def differences(texts: dict[Path, str]) -> list[str]:
    """What the files say and the compiler no longer does, and the reverse."""
    return [
        f"{path.name}: {sign} {line}"
        for path, text in texts.items()
        for sign, line in _changed(path.read_text("utf-8") if path.exists() else "", text)
    ]


def _changed(old: str, new: str) -> list[tuple[str, str]]:
    before, after = old.splitlines(), new.splitlines()
    return [("no longer", line) for line in before if line not in after] + [
        ("now", line) for line in after if line not in before
    ]


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted functions cannot be compiled
    sys.exit(main())
