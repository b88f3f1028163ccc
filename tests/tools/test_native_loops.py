"""The native kernels' inner loops take hardly longer than the ports allow, but for those that are listed."""

from pathlib import Path

import native_loops
import pytest
from native_loop_cases import KERNELS, PROCESSORS, TILE_LOOPS, Kernel, Processor
from native_loop_misses import MISSES
from native_loops import Prediction, functions_of, pass_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"

LOOPS = """
void gyrfalcon::(anonymous namespace)::double_loop(float const*, long):
\tmovq\t%rsp, %rbp
.L2:
\tvmovups\t(%rax), %zmm1
.L3:
\tvpdpbusd\t4(%rax){1to16}, %zmm1, %zmm2
\tvpdpbusd\t8(%rax){1to16}, %zmm1, %zmm3
\tjne\t.L3
\tvmovaps\t%zmm2, -64(%rbp)
\tvfmadd231ps\t%zmm2, %zmm3, %zmm4
\tja\t.L2
\tjmp\t.L9
"""


@pytest.fixture(scope="module")
def assemblies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if (lacking := native_loops.missing()) is not None:
        pytest.skip(f"needs {lacking}")
    return native_loops.compiled(tmp_path_factory.mktemp("assembly"))


@pytest.fixture(scope="module")
def predictions(assemblies: dict[str, str]) -> list[Prediction]:
    return native_loops.predictions(assemblies)


def loops(function: str, work: str, inner: int = 0) -> native_loops.Loop:
    return pass_of(Kernel("AVX-512", "a tile", function, work, inner), functions_of(LOOPS))


@pytest.mark.slow
def test_no_loop_is_slower_than_ports_allow_but_those_that_are_known(
    predictions: list[Prediction],
) -> None:
    slow = {(one.kernel.name, one.processor) for one in predictions if one.slow}
    known = {(name, processor) for name, miss in MISSES.items() for processor in miss.slow_on}
    assert slow - known == set(), "too slow"
    assert known - slow == set(), "as fast as it should be: take it off MISSES"


@pytest.mark.slow
def test_no_loop_accesses_the_stack_but_those_that_are_known(
    predictions: list[Prediction],
) -> None:
    found = {one.kernel.name for one in predictions if one.stack_accesses}
    assert found == {name for name, miss in MISSES.items() if miss.stack}


@pytest.mark.slow
def test_a_tile_loop_loads_no_more_tiles_than_were_counted(assemblies: dict[str, str]) -> None:
    assert native_loops.tile_loops(assemblies["amx"]) == list(TILE_LOOPS)


@pytest.mark.slow
def test_the_page_has_what_the_tool_prints(
    assemblies: dict[str, str], predictions: list[Prediction]
) -> None:
    assert native_loops.as_text(predictions, assemblies["amx"]) in PAGE.read_text("utf-8")


def test_every_known_miss_is_of_a_loop_on_a_processor_that_runs_it() -> None:
    kernels = {kernel.name: kernel for kernel in KERNELS}
    for name, miss in MISSES.items():
        assert miss.slow_on or miss.stack
        for processor in miss.slow_on:
            assert kernels[name].instructions in PROCESSORS[processor].instructions


def test_a_loop_is_found_by_its_products() -> None:
    assert loops("void double", "2 vpdpbusd").instructions[-1] == "jne\t.L3"
    with pytest.raises(RuntimeError, match="no loop"):
        loops("void double", "3 vpdpbusd")
    with pytest.raises(RuntimeError, match="no loop"):
        loops("void other", "2 vpdpbusd")


def test_a_loop_in_a_loop_is_repeated_until_all_products_are_there() -> None:
    found = loops("void double", "6 vpdpbusd", inner=2)
    assert found.count("vpdpbusd") == 6
    assert [found.count(name) for name in ("vmovups", "vfmadd", "jne", "ja")] == [1, 1, 3, 1]


def test_accesses_to_the_stack_are_noticed() -> None:
    assert loops("void double", "2 vpdpbusd").stack_accesses == 0
    assert loops("void double", "4 vpdpbusd", inner=2).stack_accesses == 1


def test_ports_that_only_some_instructions_can_use_are_the_limit() -> None:
    processor = Processor("", (), {"vfmadd": "01", "shift": "0", "vpand": "015", "load": "2*23"})
    assert processor.least_cycles({"vfmadd": 4}) == 2
    assert processor.least_cycles({"vfmadd": 4, "shift": 6}) == 6
    assert processor.least_cycles({"vfmadd": 4, "shift": 2, "vpand": 6}) == 4
    assert processor.least_cycles({"vfmadd": 4, "load": 3}) == 3


def test_an_instruction_that_llvm_has_wrong_is_replaced() -> None:
    loop = native_loops.Loop(("vdpbf16ps\t%zmm1, %zmm2, %zmm3", "jne\t.L3"), frame=False)
    text = native_loops.corrected(loop, PROCESSORS["znver4"])
    assert text.splitlines() == ["vfmadd231ps\t%zmm1, %zmm2, %zmm3", "jne\telsewhere"]
