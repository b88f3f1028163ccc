"""The steps of the gate by name, in their order, and what the device is that they run on."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from typing import Any

import gpu_checks
import gpu_counts
import gpu_early
import gpu_gemlite
import gpu_peers
import gpu_speed
import gpu_stubs
import gpu_tuner
import torch
import triton
from bounded_command import commit, run_for
from gpu_compile import compilations, compile_ahead
from gpu_plan import Plan
from gpu_worker import CannotStart, Loaded, Rows, Skipped

from gyrfalcon.device.lookup import device_of

Step = Callable[[Plan], Rows]


def load_steps(options: Namespace) -> Loaded:
    """What the process that finds rows serves; CannotStart without a device."""
    if options.dry_run:
        os.environ["GYRFALCON_OPS"] = "triton"
    elif not torch.cuda.is_available():
        raise CannotStart("wanted a CUDA or ROCm device, got none; add --dry-run")
    plan = Plan.of(options.dry_run)
    each = steps(plan, options)
    return Loaded(
        facts=facts(plan),
        deadlines={name: plan.deadline(name) for name in each},
        steps={name: partial(_counting, step, plan) for name, step in each.items()},
        is_usable=partial(_is_usable, plan),
    )


def _counting(step: Step, plan: Plan) -> Rows:
    """Rows that also say how many kernels they had to compile: none that were compiled ahead."""
    return {name: partial(_counted, row) for name, row in step(plan).items()}


def _counted(row: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with compilations() as from_cache:
        found = row()
    compiled = from_cache.count(False)
    return {**found, "compiled": compiled} if compiled else found


def _is_usable(plan: Plan) -> bool:
    """After some errors a card refuses whatever the process asks for."""
    try:
        device_of(plan.device).synchronise()
    except Exception:
        return False
    return True


def steps(plan: Plan, options: Namespace) -> dict[str, Step]:
    """Speed before the kernel tests, which compile hundreds of kernels; for a dry run what the card's own
    plan compiles and launches, too.
    """
    if options.full_sweep:
        shape = "tiny" if options.dry_run else options.shape
        sweep = partial(gpu_speed.full_sweep, shape=shape, precision=options.full_sweep)
        return {"limits": gpu_speed.limits, "full_sweep": sweep}
    return {
        **(_without_a_card() if options.dry_run else {}),
        "compile speed": partial(_compile_ahead, "speed"),
        "limits": gpu_speed.limits,
        "layers": gpu_checks.layers,
        **gpu_speed.timed_steps(plan),
        "compile laws": partial(_compile_ahead, "laws"),
        "laws": gpu_checks.laws,
        "early": gpu_early.early_launches,
        "compile nestling": partial(_compile_ahead, "nestling"),
        "nestling": gpu_checks.nestling,
        "tests": kernel_tests,
        "peers": gpu_peers.peers,
        "gemlite": gpu_gemlite.beside_gemlite,
        "compile tuner": partial(_compile_ahead, "tuner"),
        "tuner": gpu_tuner.tuner,
    }


def _without_a_card() -> dict[str, Step]:
    """What the card's own plan compiles and launches, and its speed on a card that computes nothing."""
    card = Plan.of(dry_run=False)
    return {
        "counts": lambda _: {"all": partial(gpu_counts.counts, card)},
        **{
            f"walk {name.removeprefix('speed ')}": partial(_walk, card, rows)
            for name, rows in gpu_speed.timed_steps(card).items()
        },
    }


def _walk(card: Plan, rows: Step, plan: Plan) -> Rows:
    """Of the card's plan, whatever the plan that runs."""
    return {"all": partial(gpu_stubs.walk, card, rows)}


def _compile_ahead(step: str, plan: Plan) -> Rows:
    """What a step launches, by all cores at once; a launch that is the first would compile it by one."""
    return {"kernels": partial(_compiled, step, plan)}


def _compiled(step: str, plan: Plan) -> dict[str, Any]:
    if plan.device.type == "cpu":
        raise Skipped("nothing is compiled in the interpreter")
    return compile_ahead(step, plan.compile_seconds)


def kernel_tests(plan: Plan) -> Rows:
    """(1) Every kernel against its definition, on the device."""
    return {"all": partial(_pytest, plan)}


def _pytest(plan: Plan) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plan.kernel_tests]
    if plan.test_processes and find_spec("xdist"):
        command += ["-n", str(plan.test_processes)]
    seconds = plan.deadline("tests") - 5
    code, output = run_for(command, seconds)
    lines = [line for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if code is None:
        return {"passed": False, "error": f"not over after {seconds:.0f} s: {last}"}
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"passed": code == 0, "summary": last, "failed": failed}


def facts(plan: Plan) -> dict[str, Any]:
    """Device, versions, commit, time."""
    on_card = plan.device.type == "cuda"
    card = torch.cuda.get_device_properties(0) if on_card else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": "CPU, Triton's interpreter" if card is None else card.name,
        "device_memory_bytes": None if card is None else card.total_memory,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
    }
