"""Kernels that begin while the one before them ends: their assembly waits before it reads or writes what
others do, on every path, and without that has nothing of it. Whether a card gives the same bits,
benchmarks/gpu_early.py asks.
"""

import re
from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from compile_kernels import FILES, Job, compile_ptx, compilers, jobs

from gyrfalcon.device.cuda import Cuda

early = pytest.importorskip("gyrfalcon.ops.triton.early", reason="needs Triton")

WAIT, TRIGGER, PREFETCH = (
    "griddepcontrol.wait",
    "griddepcontrol.launch_dependents",
    "prefetch.global",
)
# The kernels of a decoded layer, in the variants whose beginnings differ.
KERNELS = (
    "sum and norms 40b bf16 8 parts",
    "sum and norms 180B bf16 4 parts",
    "norms 7b bf16",
    "product whole bf16 16 tokens gelu",
    "product whole bf16 16 tokens rows end within a tile of two part",
    "product int8 bf16 16 tokens of two part",
    "product fp8 bf16 16 tokens gelu",
    "product int4 bf16 16 tokens gelu",
    "product int4-128 bf16 16 tokens of two part",
    "sum of 4 parts of a product bf16 bias gelu",
    "rotary place 40b bf16 7 parts",
    "rotary place rw bf16",
    "attention decode 40b bf16 split",
    "attention decode rw bf16 split",
    "attention merge 64 splits of 64 bf16",
)
LABEL = re.compile(r"^(\$\w+):")
BRANCH = re.compile(r"^(@!?%p\d+ )?bra(?:\.uni)? +(\$\w+);")
TOUCHED = re.compile(r"\b(ld|st|red|atom)\S*\.global|\bcp\.async\.(ca|cg|bulk)")


def faults(ptx: str) -> set[str]:
    """What is read or written before the wait, and returns without one, on any path."""
    lines = [line.strip() for line in ptx[ptx.index("{") :].splitlines()]
    labels = {label[1]: place for place, line in enumerate(lines) if (label := LABEL.match(line))}
    found, seen, paths = set(), set(), [0]
    while paths:
        place = paths.pop()
        while place < len(lines) and place not in seen:
            seen.add(place)
            line = lines[place]
            place += 1
            if WAIT in line:
                break
            if TOUCHED.search(line):
                found.add(line)
            if re.search(r"\bret;", line):
                found.add("returns without a wait")
            if branch := BRANCH.match(line):
                paths.append(labels[branch[2]])
                if branch[1] is None:
                    break
    return found


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch, compilers() as pool:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield pool


def job_of(name: str, target: str) -> Job:
    [job] = [one for one in jobs(FILES) if (one.name, one.target) == (name, target)]
    return job


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_begins_early_waits_on_every_path(name: str, pool: Executor) -> None:
    ptx = pool.submit(compile_ptx, job_of(name, "sm_90"), True).result()
    assert faults(ptx) == set()
    assert ptx.count(WAIT) == ptx.count(TRIGGER) == 1
    assert ptx.index(WAIT) < ptx.index(TRIGGER)
    assert (PREFETCH in ptx) == name.startswith("product")
    if PREFETCH in ptx:
        assert ptx.rindex(PREFETCH) < ptx.index(WAIT)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", KERNELS[3:5] + KERNELS[10:11])
def test_others_have_nothing_of_it(name: str, target: str, pool: Executor) -> None:
    ptx = pool.submit(compile_ptx, job_of(name, target), False).result()
    assert not {word for word in ("griddepcontrol", PREFETCH) if word in ptx}
    assert "returns without a wait" in faults(ptx)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("griddepcontrol.wait;\nld.global.b32 %r1;\nret;", set()),
        ("@%p1 ld.global.b32 %r1;\ngriddepcontrol.wait;\nret;", {"@%p1 ld.global.b32 %r1;"}),
        ("prefetch.global.L2 [%rd1];\ngriddepcontrol.wait;\nret;", set()),
        ("@%p1 bra $L1;\ngriddepcontrol.wait;\n$L1:\nret;", {"returns without a wait"}),
        ("bra.uni $L1;\n$L2:\nret;\n$L1:\ngriddepcontrol.wait;\nbra $L2;", set()),
        (
            "@%p1 bra $L1;\n$L1:\ncp.async.cg.shared.global [%r1];\ngriddepcontrol.wait;\nret;",
            {"cp.async.cg.shared.global [%r1];"},
        ),
    ],
)
def test_a_path_without_a_wait_is_found(lines: str, found: set[str]) -> None:
    assert faults("{\n" + lines + "\n}") == found


@pytest.mark.parametrize(
    ("capability", "said", "runs_ptx", "expected"),
    [
        ((9, 0), "1", True, True),
        ((10, 0), "1", True, True),
        ((8, 9), "1", True, False),
        ((9, 0), "0", True, False),
        ((9, 0), None, True, False),
        ((9, 4), "1", False, False),  # one of AMD's
    ],
)
def test_it_is_tried_where_the_environment_says_so_on_cards_that_have_it(
    capability: tuple[int, int],
    said: str | None,
    runs_ptx: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(Cuda, "runs_ptx", runs_ptx)
    monkeypatch.delenv("GYRFALCON_GPU_PDL", raising=False)
    if said is not None:
        monkeypatch.setenv("GYRFALCON_GPU_PDL", said)
    assert Cuda.at(7).launches_early is expected
    assert early.early_launch(torch.device("cpu")) == {"EARLY": False}
