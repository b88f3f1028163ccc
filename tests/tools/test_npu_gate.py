"""The gate for Ascend cards where there is none: its plan, its table, and that it says so."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the gate's modules are those of gpu-gate, which needs Triton")

import npu_checks
import npu_gate
from checkpoints import VARIANTS, make_checkpoint
from npu_gate import Plan

from gyrfalcon.cli.main import main

REPOSITORY = Path(__file__).parents[2]


def plan(*words: str, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(sys, "argv", ["npu-gate", *words])
    return Plan.of(npu_gate._arguments())


def test_on_a_card_the_guide_s_cases_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan("-w", "4", "--model", "cut", monkeypatch=monkeypatch)
    assert (found.ranks, found.model, found.dtype, found.emulated) == (4, "cut", "bf16", False)
    assert len(found.lengths) ** 2 == npu_gate.CASES
    assert found.dtype in npu_checks.LIMITS


def test_a_dry_run_has_as_many_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(npu_gate.EMULATED_FLOAT32, "0")  # to be restored
    found = plan("--dry-run", monkeypatch=monkeypatch)
    options = dict(zip(found.speed_options[::2], found.speed_options[1::2], strict=True))
    cases = [options[name].split(",") for name in ("--in", "--out")]
    assert len(cases[0]) * len(cases[1]) == npu_gate.CASES
    assert found.emulated
    assert os.environ[npu_gate.EMULATED_FLOAT32] == "1"


def test_the_laws_are_tried_on_every_variant() -> None:
    assert set(npu_checks.VARIANTS) == set(VARIANTS)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            {"passed": True, "said": "6 files, no faults"},
            "cut             holds 6 files, no faults",
        ),
        ({"passed": False, "error": "RuntimeError: no"}, "cut             FAILS RuntimeError: no"),
        ({"skipped": "9 minutes are over"}, "cut             skipped 9 minutes are over"),
    ],
)
def test_the_table_says_what_came_of_a_step(found: dict[str, Any], line: str) -> None:
    document = {"device": "a card", "torch": "2.7.1", "commit": "abc", "chosen": ["tnd"]}
    lines = npu_gate._table(document, {"cut": found})
    assert lines == ["a card, torch 2.7.1, abc", "chosen: tnd", line]


def test_a_step_that_fails_leaves_the_others_something_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(plan: Plan) -> dict[str, Any]:
        raise RuntimeError("no")

    here = plan(monkeypatch=monkeypatch)
    found = npu_gate._found("laws", fails, here)
    assert (found["passed"], found["error"]) == (False, "RuntimeError: no")
    over = plan("--minutes", "0", monkeypatch=monkeypatch)
    assert npu_gate._found("laws", fails, over) == {"skipped": "0 minutes are over"}


def test_a_checkpoint_is_cut_below_build_and_a_cut_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, ...]] = []

    def run(plan: Plan, *words: str) -> tuple[int, str]:
        made.append(words)
        return main([*words]), "the last line"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(npu_gate, "_gyrfalcon", run)
    model = str(make_checkpoint(tmp_path / "model", "7b"))
    here = plan("--model", model, monkeypatch=monkeypatch)
    assert npu_gate._cut_and_verify(here) == {"passed": True, "said": "the last line"}
    [(_, _, temporary, *_), _] = made
    assert temporary.startswith("build/")
    assert not [*Path("build").iterdir()]
    made.clear()
    assert main(["cut", model, "a-cut", "-w", "1"]) == 0
    here = plan("--model", "a-cut", monkeypatch=monkeypatch)
    assert npu_gate._cut_and_verify(here)["passed"]
    assert made == [("verify", "a-cut")]


@pytest.mark.skipif(find_spec("torch_npu") is not None, reason="torch_npu is installed")
def test_without_a_card_it_says_so() -> None:
    done = subprocess.run(
        [REPOSITORY / "scripts" / "npu-gate"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("npu-gate: error: wanted an Ascend card, got no torch_npu; ")


@pytest.mark.slow
def test_a_dry_run_on_the_cpu_goes_through_a_step(tmp_path: Path) -> None:
    """All of them take a minute: scripts/ascend-check gate-laws and the like."""
    file = tmp_path / "gate.json"
    words = ["--dry-run", "--only", "random_weights", "--json", str(file)]
    done = subprocess.run(
        [REPOSITORY / "scripts" / "npu-gate", *words],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text("utf-8"))
    assert document["device"] == "npu (emulated)"
    assert document["random_weights"] == {"passed": True, "shape": "tiny", "cases": 4}
    assert any(text.startswith("attention of 4 heads of 64 over 2") for text in document["chosen"])
