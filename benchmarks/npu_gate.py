"""One machine with Ascend cards, one command: does the model obey its laws there, is it precise, do the
guide's commands work, how fast is it and how near the cards' limits.

    scripts/npu-gate                          everything on one card, with models that need no download
    scripts/npu-gate -w 4 --model MODEL       the guide's commands with yours, or a cut of it, on four cards
    scripts/npu-gate --dry-run                the same steps on the CPU, behind the operators' names; no times

Needs torch, torch_npu, numpy, safetensors, tokenizers and transformers; nothing is installed, nothing is
downloaded. Writes one JSON file: please send it, and what `gyrfalcon doctor --bundle` writes. It holds no
prompts and no weights. Exit code 1 when a check does not hold.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bounded_command import commit, run_for

from gyrfalcon.checkpoint.manifest import has_manifest
from gyrfalcon.device.lookup import kind_of

KIND = "npu"
BUILD = Path("build")
STEPS = ("laws", "cut", "precision", "mmlu", "speed", "random_weights")
STARTED = time.monotonic()
EMULATED_FLOAT32 = "GYRFALCON_EMULATED_FLOAT32"
CASES = 36
GUIDE = "32,64,128,256,512,1024"  # lengths of the guide's cases, in and out


@dataclass(frozen=True)
class Plan:
    """What is run: on cards, or small and on the CPU."""

    emulated: bool
    ranks: int
    model: str
    dtype: str  # of the laws' models
    shape: str  # of the model with random weights
    lengths: tuple[int, ...]  # of its cases
    speed_options: tuple[str, ...]
    exam_options: tuple[str, ...]
    precision_options: tuple[str, ...]
    minutes: float
    told: list[str] = field(default_factory=list)  # what the operators say that they chose

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Plan":
        common = {"ranks": args.w, "model": args.model, "minutes": args.minutes}
        if args.dry_run:
            return cls(
                emulated=True,
                dtype="fp32",
                shape="tiny",
                lengths=(4, 6),
                speed_options=("--in", "2,3,4,5,6,7", "--out", "2,3,4,5,6,7", "--repeats", "1"),
                exam_options=("--limit", "1"),
                precision_options=("--decode-steps", "4"),
                **common,
            )
        return cls(
            emulated=False,
            dtype="bf16",
            shape="7b",
            lengths=tuple(map(int, GUIDE.split(","))),
            speed_options=("--in", GUIDE, "--out", GUIDE, "--repeats", "1"),
            exam_options=(),
            precision_options=(),
            **common,
        )

    @property
    def seconds_left(self) -> float:
        """Before no further step is started."""
        return 60 * self.minutes - (time.monotonic() - STARTED)


def main() -> int:
    """Runs the steps; 1 when one did not hold."""
    args = _arguments()
    if not kind_of(KIND).count():
        got, do = kind_of(KIND).lacking()
        do = do.replace("use `device=cpu`", "add --dry-run")
        print(f"npu-gate: error: wanted an Ascend card, got {got}; {do}", file=sys.stderr)
        return 2
    plan = Plan.of(args)
    _listen(plan.told)
    document: dict[str, Any] = {"format": "gyrfalcon-npu-gate", "version": 1, **_facts(plan)}
    steps = {name: step for name, step in _steps().items() if args.only in (None, name)}
    for name, step in steps.items():
        document[name] = _found(name, step, plan)
        document["chosen"] = list(dict.fromkeys(plan.told))
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    found = {name: document[name] for name in steps}
    print("\n".join(_table(document, found)))
    print(f"written to {args.json}")
    return int(any(one.get("passed") is False for one in found.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/npu-gate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument(
        "-w", type=int, default=1, metavar="N", help="ranks, a card each (default 1)"
    )
    parser.add_argument(
        "--model", default="nestling", help="of the guide's commands (default: nestling)"
    )
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="start no step after this many minutes"
    )
    parser.add_argument("--only", choices=STEPS, metavar="STEP", help=f"one of {', '.join(STEPS)}")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    name = "npu-gate-dry-run.json" if args.dry_run else "npu-gate.json"
    args.json = args.json or BUILD / name
    if args.dry_run:
        os.environ[EMULATED_FLOAT32] = "1"  # before the emulation is imported
    return args


def _steps() -> dict[str, Callable[[Plan], dict[str, Any]]]:
    """The steps by name, in their order."""
    import npu_checks

    commands = {name: partial(_command, name) for name in ("precision", "mmlu", "speed")}
    return {
        "laws": npu_checks.laws,
        "cut": _cut_and_verify,
        **commands,
        "random_weights": npu_checks.random_weights,
    }


def _found(name: str, step: Callable[[Plan], dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """A step's findings; an error is one, and the other steps still have something to tell."""
    if plan.seconds_left <= 0:
        return {"skipped": f"{plan.minutes:g} minutes are over"}
    print(f"npu-gate: {name}", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        found = step(plan)
    except Exception as error:
        found = {"passed": False, "error": f"{type(error).__name__}: {error}"}
    if not plan.emulated:
        found["seconds"] = round(time.monotonic() - start, 1)
    return found


def _cut_and_verify(plan: Plan) -> dict[str, Any]:
    """The guide's first command, which needs no card, and the checksums of what it wrote; of a model that
    is a cut, the checksums.
    """
    if has_manifest(Path(plan.model)):
        code, output = _gyrfalcon(plan, "verify", plan.model)
        return {"passed": code == 0, "said": _last(output)}
    BUILD.mkdir(exist_ok=True)  # a cut of 40b is 80 GB: more than many a /tmp has
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        cut = str(Path(folder, "cut"))
        code, output = _gyrfalcon(plan, "cut", plan.model, cut, "-w", str(plan.ranks))
        if code == 0:
            code, output = _gyrfalcon(plan, "verify", cut)
    return {"passed": code == 0, "said": _last(output)}


def _command(name: str, plan: Plan) -> dict[str, Any]:
    """One of the guide's commands; what it found, as its own result has it."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        words = [name, plan.model, "--device", KIND, "-w", str(plan.ranks)]
        if name == "speed":
            words += ["-f", f"{folder}/speed.csv", "--json", str(result), *plan.speed_options]
        elif name == "mmlu":
            words += ["-d", "nestling", "-o", folder, "--json", str(result)]
            words += plan.exam_options
        else:
            words += ["--json", str(result), *plan.precision_options]
        code, output = _gyrfalcon(plan, *words)
        found: dict[str, Any] = {"passed": code == 0, "command": words, "said": _last(output)}
        if result.exists():
            found["result"] = json.loads(result.read_text("utf-8"))
        if name == "speed" and "result" in found:
            found["passed"] &= len(found["result"]["result"]["rows"]) == CASES
    return found


def _gyrfalcon(plan: Plan, *words: str) -> tuple[int | None, str]:
    command = [sys.executable, "-m", "gyrfalcon", *words]
    return run_for(command, max(1.0, plan.seconds_left), with_errors=True)


def _last(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "nothing"


def _listen(told: list[str]) -> None:
    """Notes what the operators say about how they compute."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    log = logging.getLogger("gyrfalcon.ops.npu")
    log.setLevel(logging.INFO)
    log.addHandler(Notes())


def _facts(plan: Plan) -> dict[str, Any]:
    """Device, versions, commit, time."""
    kind = kind_of(KIND)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "commit": commit(),
        "device": f"{kind.name} (emulated)" if plan.emulated else kind.at(0).model,
        "devices": kind.count(),
        "toolkit": kind.toolkit(),
        "torch": torch.__version__,
        "dry_run": plan.emulated,
    }


def _table(document: dict[str, Any], steps: dict[str, dict[str, Any]]) -> Sequence[str]:
    """What a reader wants to see first."""
    lines = [f"{document['device']}, torch {document['torch']}, {document['commit']}"]
    lines += [f"chosen: {text}" for text in document["chosen"]]
    for name, found in steps.items():
        word = "skipped" if "skipped" in found else "holds" if found["passed"] else "FAILS"
        said = found.get("skipped") or found.get("error") or found.get("said") or ""
        lines.append(f"{name:<15} {word} {said}".rstrip())
    return lines


if __name__ == "__main__":
    sys.exit(main())
