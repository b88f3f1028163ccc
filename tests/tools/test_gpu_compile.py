"""Kernels that are compiled ahead of the gate's rows, for a card that is not here: those that are launched,
into the cache where launches look.
"""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_compile
import pytest
from gpu_compile import (
    Target,
    compilations,
    compile_ahead,
    compile_kernels,
    noted_kernels,
    one_at_a_time,
    use_driver_of,
)

pytest.importorskip("triton", reason="the gate's modules need Triton")

CARD = Target("NVIDIA H200", "cuda", "90", 32)
WORDS = (CARD.model, CARD.backend, CARD.architecture, str(CARD.warp_size))
# Speed rows of a few kernels.
FEW = {"shapes": ("7b",), "timed": ("int8",), "batches": (1,), "contexts": (128,), "prompts": (32,)}


def compiling(tmp_path: Path, *command: str) -> Any:
    """What a process says whose kernels are not interpreted, as JSON."""
    paths = os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    done = subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def called(name: str) -> tuple[str, ...]:
    """The command that prints what a function of this module gives."""
    return "-c", f"import json, test_gpu_compile as t; print(json.dumps(t.{name}()))"


def names_of_speed_rows() -> dict[str, int]:
    """In a process that compiles: how many kernels of each name are wanted."""
    kernels = gpu_compile.kernels_of("speed", CARD)
    return dict(Counter(json.loads(one)["name"].rpartition(".")[2] for one in kernels))


def test_the_kernels_that_are_compiled_are_those_that_the_rows_launch(tmp_path: Path) -> None:
    """Counted a second time by the types, constants and divisibility of what launches are given."""
    import gpu_counts

    with gpu_counts.noted_launches() as noted:
        gpu_compile.walk_speed(CARD.model)
    launched = Counter(json.loads(key)[0] for key in noted)
    assert compiling(tmp_path, *called("names_of_speed_rows")) == launched


def launched_after_compiling() -> dict[str, Any]:
    """In a process that compiles: kernels compiled ahead, and then what launches, by Triton's own way to a
    kernel, find in its cache.
    """
    with noted_kernels(CARD) as kernels:
        walk_few()
    ahead = compile_kernels(list(kernels.items()))
    for kernel in kernels.values():
        kernel.device_caches.clear()  # what this process itself remembers
    launch_without_running()
    with compilations() as from_cache:
        walk_few()
    return {"kernels": len(kernels), **ahead, "launches": from_cache}


def launch_without_running() -> None:
    """Launches only have their kernel compiled, or find it."""
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run
    JITFunction.run = lambda self, *given, **named: launch(
        self, *given, **{**named, "warmup": True}
    )


def walk_few() -> None:
    from gpu_plan import Plan
    from gpu_speed import timed_steps
    from gpu_stubs import walked

    plan = replace(Plan.of(dry_run=False), **FEW)  # type: ignore[arg-type]
    for rows in timed_steps(plan).values():
        walked(plan, rows, CARD.model)


@pytest.mark.slow
def test_a_launch_finds_in_the_cache_what_was_compiled_ahead(tmp_path: Path) -> None:
    found = compiling(tmp_path, *called("launched_after_compiling"))
    assert found["compiled"] == found["kernels"] > 10
    assert (found["from_cache"], found["failed"]) == (0, [])
    assert found["launches"] == [True] * found["kernels"]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["laws", "nestling", "tuner"])
def test_a_process_compiles_its_share_of_what_engines_launch(tmp_path: Path, step: str) -> None:
    command = [gpu_compile.__file__, step, *WORDS, "--share", "0", "40"]
    found = compiling(tmp_path, *command)
    assert found["kernels"] > 40
    assert (found["compiled"], found["failed"]) == (-(-found["kernels"] // 40), [])


def compiled_by_two_threads() -> dict[str, int]:
    """In a process that compiles: how often, when two threads launch the same new kernel at once, in turn and
    not.
    """
    import torch
    from gpu_counts import META
    from gpu_stubs import stubs

    from gyrfalcon.ops.triton import linear

    use_driver_of(CARD)
    launch_without_running()
    found = {}
    for name, turns, dtype in (
        ("in turn", one_at_a_time, torch.bfloat16),
        ("at once", nullcontext, torch.float16),
    ):
        x, weight = (torch.empty(rows, 128, dtype=dtype, device=META) for rows in (1, 64))
        both = threading.Barrier(2)

        def work(both: threading.Barrier = both, x: Any = x, weight: Any = weight) -> None:
            both.wait()
            linear.linear(x, weight)

        with stubs(CARD.model), compilations() as compiled, turns(), ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(work) for _ in range(2)]:
                done.result()
        found[name] = len(compiled)
    return found


def test_two_threads_that_launch_the_same_kernel_compile_it_once(tmp_path: Path) -> None:
    assert compiling(tmp_path, *called("compiled_by_two_threads")) == {"in turn": 1, "at once": 2}


def test_a_pool_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "here", lambda: CARD)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    found = compile_ahead("speed", seconds=0.1)
    assert (found["processes"], found["compiled"]) == (2, 0)
    assert found["ended"] == ["code None: "]
    assert found["passed"]  # rows compile what is missing


def test_a_process_that_breaks_off_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "here", lambda: replace(CARD, architecture="none"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    found = compile_ahead("speed", seconds=300)
    assert found["summary"].startswith("0 of 0 kernels in ")
    assert len(found["ended"]) == 1
    assert found["ended"][0].startswith("code 1: ")
    assert len(found["ended"][0]) > len("code 1: ")


def test_a_kernel_that_cannot_be_compiled_is_named() -> None:
    class Broken:
        def preload(self, description: str) -> None:
            raise ValueError("no such instruction")

    kernels = [('{"name": "gyrfalcon.broken"}', Broken())]
    assert compile_kernels(kernels) == {
        "compiled": 0,
        "from_cache": 0,
        "failed": ["gyrfalcon.broken: ValueError"],
    }
