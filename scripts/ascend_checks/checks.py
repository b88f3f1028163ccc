"""The checks for an Ascend NPU that need none: shapes, numbers, kernels."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serve_checks.environment import clean_environ
from serve_checks.report import NotRun, Report

from ascend_checks.environments import (
    ROOT,
    VERSIONS,
    AscendEnvironment,
    ascend_environment,
    source_path,
)
from ascend_checks.operators import used_operators

TESTS = ROOT / "tests" / "npu"
SABOTAGE = "tests/npu/test_npu_sabotage.py"
SCHEMAS = TESTS / "schemas"
GATE_STEPS = ("laws", "cut", "precision", "mmlu", "speed", "random_weights")  # npu_gate's
SHOWN = 3  # of the cases that failed
UNFIT = {"2.7.1": {"npu_scatter_pa_kv_cache"}}  # it has no cache_mode there, so it is never called
ATTENTION, ALIBI = "GYRFALCON_NPU_ATTENTION", "GYRFALCON_NPU_ALIBI"
# How a card may answer what is asked of it at start, and operators that another version lacks.
WAYS: Mapping[str, tuple[Mapping[str, str], Sequence[str]]] = {
    "CANN from 8.3 on": ({ATTENTION: "tnd", ALIBI: "pse"}, ()),
    "older CANN": ({ATTENTION: "bsh", ALIBI: "plain"}, ()),
    "plain attention": ({ATTENTION: "plain", ALIBI: "plain"}, ()),
    "older torch_npu": (
        {ATTENTION: "bsh", ALIBI: "plain"},
        ("npu_scatter_pa_kv_cache", "npu_apply_rotary_pos_emb"),
    ),
}


@dataclass(frozen=True, slots=True)
class Context:
    """What a check is given."""

    folder: Path  # empty, removed after the check
    environments: Path  # where virtual environments are kept
    end: float  # of time.monotonic(), after which nothing may run

    def call(
        self, command: Sequence[str], environ: Mapping[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        """A program's end, whatever its exit code; RuntimeError when time is over."""
        process = subprocess.Popen(
            command,
            env=dict(environ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=max(1.0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{command[0]} did not end in time; raise --minutes") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and all that it started
            process.wait()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


@dataclass(frozen=True, slots=True)
class Check:
    """A check; `run` notes in the report what holds, and raises NotRun where something cannot be had."""

    summary: str
    run: Callable[[Context, Report], None]


def shapes(version: str, context: Context, report: Report) -> None:
    """Every variant through the real schemas, each way that a card may answer or torch_npu may lack."""
    place = ascend_environment(version, context.environments)
    answers = {title: _fake_path(place, way, context) for title, way in WAYS.items()}
    for title, found in answers.items():
        if isinstance(found, str):
            report.claim(f"{title}: it runs", False, found)
        else:
            report.versions |= found["versions"]
            _claim_cases(title, found["cases"], report)
    found = answers[next(iter(WAYS))]
    if isinstance(found, str):
        return
    called = {
        name for one in answers.values() if not isinstance(one, str) for name in one["called"]
    }
    lacking = set(found["lacking"])
    report.figure("operators called", sorted(called))
    report.figure("operators that this torch_npu lacks", sorted(lacking))
    left = used_operators() - called - lacking - UNFIT.get(version, set())
    report.claim("every operator that ops/npu names was called", not left, ", ".join(sorted(left)))
    stored = (SCHEMAS / f"{version}.txt").read_text("utf-8").splitlines()
    others = sorted(set(stored) - set(found["schemas"]))
    report.claim(f"tests/npu has the schemas of {version}", not others, "; ".join(others))


def _fake_path(
    place: AscendEnvironment, way: tuple[Mapping[str, str], Sequence[str]], context: Context
) -> dict[str, Any] | str:
    """What a run of fake_path found; why it did not, when it failed."""
    variables, without = way
    command = [place.python, "-m", "ascend_checks.fake_path", "--without", *without]
    done = context.call(command, place.environ | dict(variables))
    if done.returncode:
        return done.stderr.strip()[-400:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _claim_cases(title: str, cases: Sequence[Mapping[str, Any]], report: Report) -> None:
    failed = [case for case in cases if "error" in case]
    refused = {case["refused"] for case in cases if "refused" in case}
    seen = [f"{case['model']} {case['quant']}: {case['error']}" for case in failed[:SHOWN]]
    text = f"{title}: {len(cases)} models take each step"
    report.claim(text, bool(cases) and not failed, "; ".join(seen))
    _claim_graphs(title, cases, report)
    if refused:
        report.figure(f"{title}: refused", sorted(refused))


def _claim_graphs(title: str, cases: Sequence[Mapping[str, Any]], report: Report) -> None:
    """Decoding is captured, but for attention by its definition."""
    reasons = {case["no graph"] for case in cases if case.get("no graph")}
    others = sorted(reason for reason in reasons if "by its definition" not in reason)
    captured = sum(case.get("no graph") == "" for case in cases)
    report.claim(f"{title}: {captured} decode in a graph", not others, "; ".join(others)[:400])


def numbers(context: Context, report: Report) -> None:
    """Kernels of ours on the CPU behind the operators' names and schemas, against transformers; with this
    torch, and with the one of the oldest torch_npu.
    """
    tests = sorted(str(path.relative_to(ROOT)) for path in TESTS.glob("test_*.py"))
    older = ascend_environment(VERSIONS[0], context.environments)
    for environ in (own_environ(), own_environ() | older.torch_alone(context.folder / "torch")):
        _claim_tests(environ, [test for test in tests if test != SABOTAGE], context, report)


def sabotage(context: Context, report: Report) -> None:
    """Faults planted in our operators, one at a time, each of which its test has to see."""
    _claim_tests(own_environ(), [SABOTAGE], context, report)


def _claim_tests(
    environ: Mapping[str, str], tests: Sequence[str], context: Context, report: Report
) -> None:
    python = [sys.executable]
    version = context.call([*python, "-c", "import torch; print(torch.__version__)"], environ)
    done = context.call([*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], environ)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr[-300:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    text = f"torch {version.stdout.strip()}: {' '.join(tests)}"
    report.claim(text, done.returncode == 0, "; ".join([*failed, lines[-1]]))


def guide(context: Context, report: Report) -> None:
    """The guide's three command lines on four ranks, with `--device npu` and CPU kernels behind it."""
    cut, csv, exam = (str(context.folder / name) for name in ("cut", "speed.csv", "exam"))
    on_cards = ["--", "--device", "npu"]
    commands = (
        ["cut", "-h", "nestling", "-n", cut, "-w", "4"],
        ["speed", "-n", cut, "-f", csv, "-w", "4", *on_cards, "--in", "32", "--out", "4"],
        ["mmlu", "-n", cut, "-d", "nestling", "-w", "4", *on_cards, "--limit", "1", "-o", exam],
    )
    environ = own_environ() | {"VIRTUAL_ENV": str(_shims(context.folder / "environment"))}
    environ["PYTHONPATH"] = f"{TESTS / 'site'}:{environ['PYTHONPATH']}"
    for words in commands:
        done = context.call(["bash", str(ROOT / "run.sh"), "-m", *words], environ)
        last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
        report.claim(f"run.sh -m {words[0]} -w 4", done.returncode == 0, " ".join(last))
    results = [Path(csv).with_suffix(".json"), Path(exam) / "mmlu.json"]
    for path in results:
        said = path.read_text("utf-8") if path.exists() else ""
        report.claim(f"{path.name} says npu (emulated)", '"npu (emulated)"' in said)


def gate(step: str, context: Context, report: Report) -> None:
    """A step of the gate for a first card, small and on the CPU."""
    file = context.folder / "gate.json"
    command = [str(ROOT / "scripts" / "npu-gate"), "--dry-run", "--only", step, "--json", str(file)]
    done = context.call(command, own_environ() | {"PYTHON": sys.executable})
    found = json.loads(file.read_text("utf-8")).get(step, {}) if file.exists() else {}
    said = found.get("error") or found.get("said") or ""
    report.claim(f"its step {step} holds", found.get("passed") is True, said)
    report.claim("scripts/npu-gate --dry-run ends well", done.returncode == 0)


def own_environ() -> dict[str, str]:
    """Variables under which this Python runs the source of this folder."""
    return clean_environ() | source_path()


def _shims(folder: Path) -> Path:
    """An environment for run.sh that is this Python's: it sets up none."""
    (folder / "bin").mkdir(parents=True)
    for name, words in (("python", '"$@"'), ("gyrfalcon", '-m gyrfalcon "$@"')):
        script = folder / "bin" / name
        script.write_text(f"#!/bin/sh\nexec {sys.executable} {words}\n", "utf-8")
        script.chmod(0o755)
    return folder


def kernels(context: Context, report: Report) -> None:
    """Triton's kernels to HIVM, with the memory they take; and one that does not fit."""
    command = [str(ROOT / "scripts" / "ascend-compile"), "--check"]
    environ = os.environ | {
        "PYTHON": sys.executable,
        "GYRFALCON_ASCEND": str(context.environments / "triton-ascend"),
    }
    done = context.call(command, environ)
    if done.returncode == 77:
        raise NotRun(done.stderr.strip().splitlines()[-1])
    lines = done.stdout.splitlines()
    report.claim(
        "every kernel compiles as docs/ascend-kernels.md says", done.returncode == 0, lines[-1]
    )
    for fault in filter(None, lines[:-1]):
        report.claim("a kernel", False, fault)


CHECKS: Mapping[str, Check] = {
    **{
        f"shapes-{version}": Check(
            f"every variant on the schemas of torch_npu {version}", partial(shapes, version)
        )
        for version in VERSIONS
    },
    "numbers": Check("tests/npu: CPU kernels behind the operators' names, two torches", numbers),
    "sabotage": Check("each fault planted in our operators turns its test red", sabotage),
    "guide": Check("the guide's commands on four ranks, behind the operators' names", guide),
    **{
        f"gate-{step}": Check(
            f"scripts/npu-gate --dry-run, on the CPU: its step {step}", partial(gate, step)
        )
        for step in GATE_STEPS
    },
    "kernels": Check("Triton's kernels to HIVM for an Ascend 910B3", kernels),
}
