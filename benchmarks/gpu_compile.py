"""Compiles what the gate will launch on a card, beside it: into Triton's own cache, where launches look.

A process walks the card's plan on a stand-in for the card (`gpu_stubs`), under a driver that names the card
and never asks it. So Triton itself says what it would compile for each launch, and by which key. Of that the
process compiles its share; a pool of them shares all.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any
from unittest import mock

from bounded_command import run_for

MOST_PROCESSES = 14
SPARE_CORES = 2  # for the gate and its rows


@dataclass(frozen=True)
class Target:
    """The card that is compiled for: its name, as tiles are looked up by it, and what Triton knows of it."""

    model: str
    backend: str
    architecture: str
    warp_size: int

    @classmethod
    def here(cls) -> "Target":
        """The card of this process."""
        import torch
        from triton.runtime import driver

        found = driver.active.get_current_target()
        name = torch.cuda.get_device_name(0)
        return cls(name, found.backend, str(found.arch), found.warp_size)


def compile_ahead(step: str, seconds: float) -> dict[str, Any]:
    """Compiles the kernels of a step for the card that is here, in a pool, for at most this long."""
    target = Target.here()
    start = time.monotonic()
    cores = os.cpu_count() or 1
    count = max(1, min(MOST_PROCESSES, cores - SPARE_CORES))
    with ThreadPoolExecutor(count) as pool:
        done = list(
            pool.map(lambda index: _share(step, target, index, count, seconds), range(count))
        )
    shares = [share for share in done if not isinstance(share, str)]
    failed = sorted(set().union(*(share["failed"] for share in shares)))
    kernels = max((share["kernels"] for share in shares), default=0)
    compiled, from_cache = (sum(share[of] for share in shares) for of in ("compiled", "from_cache"))
    took = time.monotonic() - start
    return {
        "passed": not failed,
        "summary": f"{compiled + from_cache} of {kernels} kernels in {took:.0f} s",
        "kernels": kernels,
        "compiled": compiled,
        "from_cache": from_cache,
        "failed": failed,
        "processes": count,
        "ended": sorted({share for share in done if isinstance(share, str)}),
    }


def _share(
    step: str, target: Target, index: int, count: int, seconds: float
) -> dict[str, Any] | str:
    """What one process says; its last line when it did not end in time, or with an error."""
    words = [step, target.model, target.backend, target.architecture, str(target.warp_size)]
    command = [sys.executable, __file__, *words, "--share", str(index), str(count)]
    code, output = run_for(command, seconds, with_errors=True)
    last = (output.strip().splitlines() or [""])[-1]
    return dict(json.loads(last)) if code == 0 else f"code {code}: {last}"


def main(arguments: Sequence[str] | None = None) -> int:
    """One process of the pool: compiles its share, and says what it did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=WALKS)
    for name in ("model", "backend", "architecture"):
        parser.add_argument(name)
    parser.add_argument("warp_size", type=int)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("INDEX", "COUNT"))
    args = parser.parse_args(arguments)
    target = Target(args.model, args.backend, args.architecture, args.warp_size)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # its memory and its time are the rows'
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted functions cannot be compiled
    kernels = kernels_of(args.step, target)
    index, count = args.share
    said = compile_kernels(list(kernels.items())[index::count])
    print(json.dumps({"kernels": len(kernels), **said}))
    return 0


def kernels_of(step: str, target: Target) -> dict[str, Any]:
    """What a step of the card's plan launches: Triton's description of each compiled kernel → the kernel."""
    with noted_kernels(target) as noted:
        WALKS[step](target.model)
    return noted


def walk_speed(model: str) -> None:
    """Launches what the speed rows launch, on a stand-in for a card of that name."""
    from gpu_plan import Plan
    from gpu_speed import timed_steps
    from gpu_stubs import walked

    plan = Plan.of(dry_run=False)
    for rows in timed_steps(plan).values():
        walked(plan, rows, model)


def walk_laws(model: str) -> None:
    """The same for the laws."""
    import gpu_stub_engines
    from gpu_plan import Plan

    gpu_stub_engines.walk_laws(Plan.of(dry_run=False), model)


def walk_exam(model: str) -> None:
    """The same for nestling's exam."""
    import gpu_stub_engines
    from gpu_plan import Plan

    gpu_stub_engines.walk_exam(Plan.of(dry_run=False), model)


def walk_tuner(model: str) -> None:
    """The same for the tuner."""
    import gpu_stub_engines
    from gpu_plan import Plan

    gpu_stub_engines.walk_tuner(Plan.of(dry_run=False), model)


WALKS: Mapping[str, Callable[[str], None]] = {
    "speed": walk_speed,
    "laws": walk_laws,
    "nestling": walk_exam,
    "tuner": walk_tuner,
}


@contextmanager
def noted_kernels(target: Target) -> Iterator[dict[str, Any]]:
    """Launches are noted as Triton would compile them for the target, and nothing is compiled or run."""
    from triton import knobs

    noted: dict[str, Any] = {}

    def note(*, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:
        noted.setdefault(compile["specialization_data"], fn.jit_function)
        return True  # enough was done

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    use_driver_of(target)
    try:
        yield noted
    finally:
        knobs.runtime.jit_cache_hook = before


def use_driver_of(target: Target) -> None:
    """Triton takes the target for the card of this process, which has none."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    driver.set_active(
        _Driver(GPUTarget(target.backend, _number(target.architecture), target.warp_size))
    )


def _number(architecture: str) -> int | str:
    """90 of NVIDIA's, gfx942 of AMD's."""
    return int(architecture) if architecture.isdecimal() else architecture


@dataclass(frozen=True)
class _Driver:
    target: Any

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_kernels(kernels: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Compiles each unless Triton's cache has it; how many, and which cannot be."""
    failed = []
    with compilations() as found:
        for description, kernel in kernels:
            try:
                kernel.preload(description)
            except Exception as error:  # of any of Triton's, LLVM's or ptxas's kinds
                failed.append(f"{json.loads(description)['name']}: {type(error).__name__}")
    return {"compiled": found.count(False), "from_cache": found.count(True), "failed": failed}


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Threads compile one kernel at a time, and none that another has compiled meanwhile."""
    from triton.runtime.jit import JITFunction

    turn, compile_kernel = RLock(), JITFunction._do_compile

    def in_turn(kernel: Any, key: str, signature: Any, device: int, *rest: Any) -> Any:
        with turn:
            compiled = kernel.device_caches[device][0].get(key)
            return compiled or compile_kernel(kernel, key, signature, device, *rest)

    with mock.patch.object(JITFunction, "_do_compile", in_turn):
        yield


@contextmanager
def compilations() -> Iterator[list[bool]]:
    """One for each kernel that Triton needs meanwhile: whether its cache has it."""
    from triton import knobs

    found: list[bool] = []

    def listen(*, cache_hit: bool, **_: Any) -> None:
        found.append(cache_hit)

    before, knobs.compilation.listener = knobs.compilation.listener, listen
    try:
        yield found
    finally:
        knobs.compilation.listener = before


if __name__ == "__main__":
    sys.exit(main())
