"""One GPU, one command: are the kernels right, does the model obey its laws, how fast is it, and how
near the card's limits.

    scripts/gpu-gate [--json FILE]                 everything, at most 9 minutes on one H100 or H200
    scripts/gpu-gate --full-sweep int8             the guide's 36 cases token by token
    scripts/gpu-gate --dry-run                     every step on the CPU, tiny, Triton interpreted, and the
                                                   card's own plan at full size, launches noted, not run

Needs torch, triton, numpy, safetensors, transformers and pytest; nothing is installed, nothing is
downloaded. Where gemlite is installed, its products are timed beside ours. What does not fit the card
is named as skipped. Exit code 1 when a check does not hold.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

PRECISIONS = ("bf16", "int8", "fp8", "int4")
TESTS = Path(__file__).parent.parent / "tests"


@dataclass(frozen=True)
class Plan:
    """What is run: on a card, or small and on the CPU."""

    device: torch.device
    dtype: torch.dtype
    shapes: tuple[str, ...]
    precisions: tuple[str, ...]
    timed: tuple[str, ...]  # precisions of the speed rows; none in the interpreter
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    lengths: tuple[int, ...]  # of the guide's sweep, in and out
    steps: int  # of each decode measurement
    rounds: int  # of which the median counts
    variants: tuple[str, ...]
    exam_questions: int  # of each subject of nestling's exam; none in the interpreter
    law_prompts: tuple[int, ...]  # lengths of the prompts that the laws are tried on
    law_tokens: int
    kernel_tests: tuple[str, ...]  # arguments of pytest
    kernel_test_seconds: float  # after which they are ended
    minutes: float

    @classmethod
    def of(cls, dry_run: bool, minutes: float) -> "Plan":
        if dry_run:
            return cls(
                device=torch.device("cpu"),
                dtype=torch.float32,
                shapes=("tiny",),
                precisions=PRECISIONS,
                timed=(),
                batches=(1, 2),
                contexts=(16, 48),
                prompts=(16, 32),
                lengths=(16, 32),
                steps=1,
                rounds=1,
                variants=("40b", "rw-1b"),
                exam_questions=0,
                law_prompts=(3, 6),
                law_tokens=2,
                kernel_tests=(str(TESTS / "ops/test_triton_norm.py"),),
                kernel_test_seconds=300,
                minutes=minutes,
            )
        return cls(
            device=torch.device("cuda", 0),
            dtype=torch.bfloat16,
            shapes=("40b", "7b"),
            precisions=PRECISIONS,
            timed=PRECISIONS,
            batches=(1, 8, 16, 64),
            contexts=(128, 1024, 2048),
            prompts=(32, 64, 128, 256, 512, 1024, 2048),
            lengths=(32, 64, 128, 256, 512, 1024),
            steps=32,
            rounds=5,
            variants=("rw-1b", "rw-7b", "7b", "40b", "180B", "11B"),
            exam_questions=30,
            law_prompts=(5, 33),
            law_tokens=16,
            kernel_tests=tuple(map(str, sorted(TESTS.glob("ops/test_triton_*.py")))),
            kernel_test_seconds=240,
            minutes=minutes,
        )


def main() -> int:
    """Runs the steps; 1 when one did not hold."""
    args = parse()
    if not args.dry_run and not torch.cuda.is_available():
        print(
            "gpu-gate: error: wanted a CUDA or ROCm device, got none; add --dry-run",
            file=sys.stderr,
        )
        return 2
    if args.dry_run:
        os.environ["GYRFALCON_OPS"] = "triton"
        import triton_interpreter

        triton_interpreter.install()
    plan = Plan.of(args.dry_run, args.minutes)
    document: dict[str, Any] = {"format": "gyrfalcon-gpu-gate", "version": 1, **facts(plan, args)}
    for name, step in steps(plan, args).items():
        if plan_is_spent(plan):
            document[name] = {"skipped": f"{plan.minutes:g} minutes are over"}
            continue
        start = time.monotonic()
        print(f"gpu-gate: {name}", file=sys.stderr, flush=True)
        try:
            document[name] = step(plan)
        except Exception as error:  # the other steps still have something to tell
            document[name] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
            if args.debug:
                raise
        document[name]["seconds"] = round(time.monotonic() - start, 1)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    from gpu_table import table

    print(table(document))
    print(f"written to {args.json}")
    return int(
        any(found.get("passed") is False for found in document.values() if isinstance(found, dict))
    )


STARTED = time.monotonic()


def plan_is_spent(plan: Plan) -> bool:
    return time.monotonic() - STARTED > plan.minutes * 60


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-gate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--full-sweep", choices=PRECISIONS, metavar="PRECISION")
    parser.add_argument("--shape", default="40b", help="of the full sweep: 40b or 7b")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="start no step after this many minutes"
    )
    parser.add_argument("--debug", action="store_true", help="stop at the first error")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.json = args.json or Path("benchmarks/results") / f"gpu-gate-{_place(args.dry_run)}.json"
    return args


def _place(dry_run: bool) -> str:
    if dry_run or not torch.cuda.is_available():
        return "dry-run"
    return torch.cuda.get_device_name(0).replace(" ", "-").lower()


def steps(plan: Plan, args: argparse.Namespace) -> dict[str, Callable[[Plan], dict[str, Any]]]:
    """The steps by name, in their order."""
    import gpu_checks
    import gpu_gemlite
    import gpu_speed

    if args.full_sweep:
        shape = "tiny" if args.dry_run else args.shape
        return {
            "limits": gpu_speed.limits,
            "full_sweep": lambda plan: gpu_speed.full_sweep(plan, shape, args.full_sweep),
        }
    import gpu_peers

    return {  # speed before the kernel tests, which compile hundreds of kernels
        **(_without_a_card(Plan.of(False, plan.minutes)) if args.dry_run else {}),
        "limits": gpu_speed.limits,
        "layers": gpu_checks.layers,
        **{
            f"speed {shape} {precision}": partial(gpu_speed.speed, shape=shape, precision=precision)
            for shape in plan.shapes
            for precision in plan.timed
        },
        "nestling": gpu_checks.nestling,
        "laws": gpu_checks.laws,
        "peers": gpu_peers.peers,
        "gemlite": gpu_gemlite.beside_gemlite,
        "kernels": kernel_tests,
    }


def _without_a_card(plan: Plan) -> dict[str, Callable[[Plan], dict[str, Any]]]:
    """What the card's own plan compiles and launches, and its steps on a card that computes nothing."""
    import gpu_counts

    return {
        "counts": lambda _: gpu_counts.counts(plan),
        **{
            f"walk {shape} {precision}": partial(_walk, shape=shape, precision=precision)
            for shape in plan.shapes
            for precision in plan.timed
        },
    }


def _walk(plan: Plan, shape: str, precision: str) -> dict[str, Any]:
    """A speed row of the card's plan, whatever the plan that runs."""
    from gpu_stubs import walk

    return walk(Plan.of(False, plan.minutes), shape, precision)


def kernel_tests(plan: Plan) -> dict[str, Any]:
    """(1) Every kernel against its definition, on the device."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plan.kernel_tests]
    seconds = min(plan.kernel_test_seconds, 60 * plan.minutes - (time.monotonic() - STARTED))
    code, output = run_for(command, seconds)
    if code is None:
        return {"passed": False, "error": f"the kernel tests did not end within {seconds:.0f} s"}
    lines = [line for line in output.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"passed": code == 0, "summary": lines[-1] if lines else "", "failed": failed}


def run_for(
    command: list[str], seconds: float, with_errors: bool = False
) -> tuple[int | None, str]:
    """Runs a command for at most this many seconds: its exit code and standard output, with_errors
    standard error as well. No exit code when it had to be killed, with every process it started.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if with_errors else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, output


def commit() -> str:
    """The commit of these sources; "unknown" without git or outside a repository."""
    try:
        git = ["git", "-C", str(TESTS), "describe", "--always", "--dirty"]
        code, output = run_for(git, seconds=10)
    except OSError:
        return "unknown"
    return output.strip() if code == 0 else "unknown"


def facts(plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Device, versions, commit, time."""
    import triton

    on_card = plan.device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "commit": commit(),
        "device": torch.cuda.get_device_name(0) if on_card else "CPU, Triton's interpreter",
        "device_memory_bytes": torch.cuda.get_device_properties(0).total_memory
        if on_card
        else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "dry_run": args.dry_run,
    }


if __name__ == "__main__":
    sys.exit(main())
