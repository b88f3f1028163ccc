"""Every kernel compiles for every GPU, and what the compiler says of them is what docs/ say.

Processes of their own compile: kernels that the interpreter has taken cannot be compiled.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import fields, replace
from pathlib import Path

import pytest
from compile_ascend import PAGE as ASCEND_PAGE
from compile_ascend import REFUSED, distinct, memory_kib
from compile_ascend import Result as AscendResult
from compile_kernels import (
    FILES,
    PAGE,
    TABLE,
    Job,
    as_json,
    cases_of,
    compile_job,
    compilers,
    differences,
    digest,
    jobs,
)
from kernel_cases import Case
from kernel_digest import digest_of
from kernel_limits import CARDS, Stream
from kernel_loops import main_loop
from kernel_page import as_page
from kernel_usage import TARGETS, Result, Streaming, Usage, judge

pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")

NONE: frozenset[str] = frozenset()
TOOL = Path(__file__).resolve().parents[2] / "tools" / "compile_kernels.py"

CASES = """
import triton
import triton.language as tl
from kernel_cases import TARGETS, Case


@triton.jit
def add(x, y, size, TILE: tl.constexpr):
    places = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(y + places, tl.load(x + places, mask=places < size) + 1, mask=places < size)


@triton.jit
def multiply(a, b, c, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(c + places, tl.dot(tl.load(a + places), tl.load(b + places)))


def product(name, dtype, size, *targets):
    signature = {"a": f"*{dtype}", "b": f"*{dtype}", "c": "*fp32"}
    wanted = frozenset({"mma"})
    return Case(name, multiply, signature, {"SIZE": size}, 4, 1, wanted, frozenset(targets))


ADD = {"x": "*fp16", "y": "*fp16", "size": "i32"}, {"TILE": 1024}, 4, 1
"""


def compile_cases(folder: Path, cases: str) -> subprocess.CompletedProcess[str]:
    file = folder / "cases.py"
    file.write_text(f"{CASES}\nCASES = [{cases}]\n", "utf-8")
    return run(str(file))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    """Processes that compile, shared by the tests of this file: each spends seconds on its imports."""
    with pytest.MonkeyPatch.context() as patch, compilers() as pool:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield pool


STORED = json.loads(TABLE.read_text("utf-8"))


def documented() -> list[Result]:
    """What docs/kernels.json says."""
    found = []
    for row in STORED["kernels"]:
        taken = {field.name: row[field.name] for field in fields(Usage)}
        if taken["streaming"] is not None:
            taken["streaming"] = Streaming(**taken["streaming"])
        found.append(Result(row["case"], row["target"], Usage(**taken), ()))
    return found


def test_the_documents_are_of_these_kernels() -> None:
    assert STORED["digest"] == digest(), (
        "kernels or their cases have changed: run python tools/compile_kernels.py"
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_compile_as_the_documents_say(
    file: Path, target: str, request: pytest.FixtureRequest
) -> None:
    """Minutes of compiling, whose result depends on nothing that the digest does not cover."""
    if STORED["digest"] == digest() and not request.config.getoption("--compile-kernels"):
        pytest.skip("same kernels as in docs/kernels.json; --compile-kernels compiles them anyway")
    pool: Executor = request.getfixturevalue("pool")
    wanted = [job for job in jobs([file]) if job.target == target]
    names = {job.name for job in wanted}
    said = [one for one in documented() if one.target == target and one.name in names]
    assert wanted
    assert list(pool.map(compile_job, wanted)) == said


def test_the_documents_have_every_kernel_and_no_other() -> None:
    def named(found: list[Job] | list[Result]) -> list[tuple[str, str]]:
        return [(one.name, one.target) for one in found]

    assert named(documented()) == named(jobs(FILES))
    assert TABLE.read_text("utf-8") == as_json(documented())
    assert PAGE.read_text("utf-8") == as_page(STORED["triton"], documented())


def test_the_page_for_ascend_has_every_kernel_that_it_can_have() -> None:
    """What the compiler says of them needs an environment of its own: scripts/ascend-compile."""
    page = ASCEND_PAGE.read_text("utf-8")
    names = [case.name for case in distinct(case for file in FILES for case in cases_of(file))]
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")] == [
        "| kernel",
        *(f"| {name}" for name in names),
    ]
    for case in cases_of(REFUSED):
        assert f"- {case.name}: ub overflow, requires " in page


@pytest.mark.parametrize(
    ("fault", "too_large"),
    [
        ("ub overflow, requires 1703936 bits while 1572864 bits available", True),
        ("operations cannot be fused", False),
        (None, False),
    ],
)
def test_only_a_memory_that_does_not_suffice_refuses_a_kernel(
    fault: str | None, too_large: bool
) -> None:
    assert AscendResult("any", {}, fault).is_too_large is too_large


KERNEL = """
@triton.jit
def add(x, SIZE: tl.constexpr):
    \"\"\"Adds.\"\"\"
    tl.store(x, 1)  # one
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""Adds."""', '"""Adds one."""', True),
        ("# one", "# a one", True),
        ("x, 1", "x, 2", False),
        ("jit", "jit(noinline=True)", False),
        ("    tl.store", "    if SIZE:\n        tl.store", False),
        ("@triton.jit", "def host():\n    return 1\n\n\n@triton.jit", True),
    ],
)
def test_the_digest_covers_what_is_compiled_alone(
    old: str, new: str, same: bool, tmp_path: Path
) -> None:
    file = tmp_path / "kernel.py"
    file.write_text(KERNEL, "utf-8")
    before = digest_of("3", [], [], tmp_path)
    file.write_text(KERNEL.replace(old, new), "utf-8")
    assert (digest_of("3", [], [], tmp_path) == before) is same


@pytest.mark.parametrize(
    "change",
    [
        lambda case: replace(case, warps=8),
        lambda case: replace(case, stages=1),
        lambda case: replace(case, constants=case.constants | {"HEAD_DIM": 1}),
        lambda case: replace(case, signature=case.signature | {"q": "*fp32"}),
    ],
)
def test_the_digest_covers_what_a_case_asks_for(change: Callable[[Case], Case]) -> None:
    case = cases_of(FILES[0])[0]
    assert digest_of("3", [], [change(case)]) != digest_of("3", [], [case])
    assert digest_of("4", [], [case]) != digest_of("3", [], [case])


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is printed of a good kernel and of four with faults, in one run."""
    cases = """
        Case("good", add, *ADD, frozenset()),
        product("square", "bf16", 64, *TARGETS),
        product("wide", "bf16", 256, "gfx942", "sm_90"),
        Case("slow", add, *ADD, frozenset({"mma"})),
        product("eight bits", "fp8e4nv", 64, "sm_80", "sm_90"),
    """
    done = compile_cases(tmp_path_factory.mktemp("cases"), cases)
    assert done.returncode == 1, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_good_kernel_passes(faulty: str, tmp_path: Path) -> None:
    assert "good on " not in faulty
    assert "square on " not in faulty
    alone = compile_cases(tmp_path, 'Case("good", add, *ADD, frozenset())')
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert f"{len(TARGETS)} compiled kernels, 0 faults" in alone.stdout


@pytest.mark.slow
def test_a_kernel_that_spills_is_caught(faulty: str) -> None:
    wide = [line for line in faulty.splitlines() if line.startswith("wide on ")]
    for target in ("gfx942", "sm_90"):
        assert sum(f"wide on {target}: " in line for line in wide) == 2
    assert sum("its registers do not suffice" in line for line in wide) == 2
    assert sum("bytes of shared memory, " in line for line in wide) == 2


@pytest.mark.slow
def test_a_kernel_without_its_matrix_instructions_is_caught(faulty: str) -> None:
    slow = [line for line in faulty.splitlines() if line.startswith("slow on ")]
    assert len(slow) == sum("no matrix instruction" in line for line in slow) == len(TARGETS)


@pytest.mark.slow
def test_fp8_is_refused_where_the_hardware_has_none(faulty: str) -> None:
    assert "eight bits on sm_80: cannot be compiled: " in faulty
    assert "fp8e4nv not supported in this architecture" in faulty
    assert "eight bits on sm_90" not in faulty


@pytest.mark.parametrize(
    ("usage", "faults"),
    [
        (Usage(64, 48 * 1024, 0, 4), ()),
        (Usage(255, 48 * 1024, 16, 4), ("16 bytes of stack: its registers do not suffice",)),
        (Usage(64, 64 * 1024 + 1, 0, 4), ("65537 bytes of shared memory, 65536 fit",)),
        (Usage(64, 0, 0, 0), (r"no matrix instruction (\bv_mfma_) in its assembly",)),
    ],
)
def test_a_compiled_kernel_is_judged(usage: Usage, faults: tuple[str, ...]) -> None:
    case = Case("any", None, {}, {}, 4, 1, frozenset({"mma"}))
    assert judge(case, "gfx942", usage) == faults


LOOP = """
.L_x_1:
        /*0100*/                   I2F.S8 R4, R5 ;
        /*0110*/              @!P0 LDGSTS.E.128 [R2], [R4.64] ;
        /*0120*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0130*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0140*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0150*/                   BRA `(.L_x_2) ;
"""


def test_instructions_of_the_main_loop_are_counted_by_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two products of 16 × 8 × 16 with 16 tokens take 256 weights, 8 of each lane."""
    monkeypatch.setattr("kernel_loops.sass", lambda cubin: LOOP)
    loop = main_loop("cuda", {"cubin": b""}, tokens=16)
    assert loop is not None
    assert (loop.instructions, loop.slow_conversions, loop.weights) == (5, 1, 8)
    assert main_loop("hip", {"amdgcn": "no loop"}, 16) is None


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
@pytest.mark.parametrize(("ptx", "faulty"), [(True, True), (False, False)])
def test_a_linear_that_is_slower_than_the_memory_fails_with_assembly_alone(
    kind: str, ptx: bool, faulty: bool
) -> None:
    case = Case(
        "any", None, {}, {"PTX": ptx}, 4, 1, NONE, stream=Stream(kind, "bf16", 16, 16384, 4)
    )
    slow = Usage(64, 0, 0, 4, Streaming(8.0, 16.0, 1, 1_000_000, keeps_up=False))
    faults = judge(case, "sm_90", slow)
    assert [fault.partition(" ")[2][:8] for fault in faults] == (
        ["weights ", "slow con", "MB in fl"] if faulty else []
    )


def test_the_limits_are_those_of_the_cards() -> None:
    needed = {kind: CARDS["sm_90"].least_weights(kind) for kind in ("int4", "int8", "fp8")}
    assert needed == {"int4": 45, "int8": 45, "fp8": 40}
    assert CARDS["sm_90"].least_bytes == pytest.approx(4.5e6, rel=0.01)
    assert CARDS["gfx942"].least_weights("int8") == pytest.approx(10.8, abs=0.05)
    assert CARDS["sm_80"].least_weights("none") == pytest.approx(8.7, abs=0.05)


def test_bytes_in_flight_are_those_of_the_programs_that_fit() -> None:
    stream, card = Stream("int8", "bf16", 16, 8192, 3), CARDS["sm_90"]
    assert stream.bytes_in_flight(card, 80, 53248, 128, 5) == 132 * 3 * 4 * 8192
    assert stream.bytes_in_flight(card, 80, 110 << 10, 128, 5) == 132 * 2 * 4 * 8192
    assert stream.bytes_in_flight(card, 255, 53248, 256, 5) == 132 * 1 * 4 * 8192


def test_a_changed_table_is_shown_line_by_line(tmp_path: Path) -> None:
    table = tmp_path / "kernels.md"
    assert differences({table: "a\n"}) == ["kernels.md: now a"]
    table.write_text("a\nb\n", "utf-8")
    assert differences({table: "a\nb\n"}) == []
    assert differences({table: "a\nc\n"}) == ["kernels.md: no longer b", "kernels.md: now c"]


def test_an_npu_gets_each_variant_once_and_neither_fp8_nor_assembly() -> None:
    def case(name: str, warps: int, ascend: dict[str, int], **constants: object) -> Case:
        return Case(
            name,
            test_a_good_kernel_passes,
            {"x": "*bf16"},
            {"TILE": 64} | constants,
            warps,
            1,
            NONE,
            ascend=ascend,
        )

    first, twin = case("first", 4, {}), case("twin", 8, {})
    smaller = case("smaller", 4, {"TILE": 32})
    fp8 = case("fp8", 4, {}, KIND="fp8", PTX=False)
    assembly, plain = (case(name, 4, {}, PTX=name == "assembly") for name in ("assembly", "plain"))
    found = distinct([first, twin, smaller, fp8, assembly, plain])
    assert found == [first, smaller, plain]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_types_are_listed_in_the_kernels_order(file: Path) -> None:
    """Ascend's compiler takes them by place, not by name."""
    for case in cases_of(file):
        arguments = [name for name in case.kernel.arg_names if name in case.signature]
        wanted = [case.signature[name] for name in arguments]
        assert list(case.signature.values()) == wanted, case.name


def test_memory_is_what_is_used_at_once(tmp_path: Path) -> None:
    def buffer(space: str, offsets: list[int], bits: int) -> dict[str, object]:
        name = f"memref<8xf32, #hivm.address_space<{space}>>"
        return {"buffer": name, "offset": offsets, "extent": bits}

    plans = {
        "memory_info_aiv.json": [buffer("ub", [0, 4096], 8 * 1024), buffer("ub", [1024], 8 * 1024)],
        "memory_info_aic.json": [buffer("cbuf", [0], 8 * 2048)],
    }
    for name, buffers in plans.items():
        document = {"Record": [{"memory_info_array": buffers}]}
        (tmp_path / name).write_text(json.dumps(document), "utf-8")
    assert memory_kib(tmp_path) == {"ub": 5.0, "cbuf": 2.0}
