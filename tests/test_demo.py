"""`gyrfalcon demo` as a user and as a script see it: what it ends with, and when it fails."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gyrfalcon.cli import main
from gyrfalcon.commands import demo

RESULTS: dict[str, dict[str, Any]] = {
    "generate": {"text": " sailed."},
    "speed": {
        "averages": {"cases": 1, "time_per_token_ms": 5.0},
        "rows": [{"decode_percent_of_limit": 40.0}],
    },
    "mmlu": {"accuracy": 0.73, "total": 680, "interval": [0.70, 0.76]},
    "precision": {
        "passed": True,
        "figures": {"prefill": [{"name": "cosine", "value": 0.9999}]},
    },
}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Lets each step leave a result without running; the steps named end with an exit code of 1."""

    def play(*failing: str, **changed: dict[str, Any]) -> Path:
        results = {name: {**result, **changed.get(name, {})} for name, result in RESULTS.items()}

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
            name = command[3]
            path = next((tmp_path / path for path in demo.RESULTS if name in path), None)
            if path is not None and name not in failing:
                path.parent.mkdir(parents=True, exist_ok=True)
                result = results[name]
                path.write_text(json.dumps(result if name == "generate" else {"result": result}))
            return subprocess.CompletedProcess(command, int(name in failing))

        monkeypatch.setattr(subprocess, "run", run)
        return tmp_path

    return play


def test_it_ends_with_a_summary_and_the_reports_path(
    played: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = played()
    assert main(["demo", "-o", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "failed: nothing" in out
    assert "text       The old captain looked at the sea, and sailed." in out
    assert "speed      5.00 ms/token, 40.0 % of the memory bandwidth" in out
    assert "exam       73.0 % of 680 questions (70.0-76.0)" in out
    assert "precision  cosine prefill 0.999900; the gate holds" in out
    assert f"report     {folder}/report/report.html" in out


def test_an_exam_under_60_percent_is_a_failure(
    played: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = played(mmlu={"accuracy": 0.599})
    assert main(["demo", "-o", str(folder)]) == 1
    assert "wanted an exam of 60 % or more, got 59.9 %" in capfd.readouterr().err


@pytest.mark.parametrize("step", ["cut", "verify", *RESULTS, "report"])
def test_a_step_that_fails_is_a_failure_and_the_others_are_still_run(
    step: str, played: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = played(step)
    assert main(["demo", "-o", str(folder)]) == 1
    out, err = capfd.readouterr()
    assert f"failed: {step}" in out
    assert f"got {step} failing" in err
    assert out.count("$ gyrfalcon") == 7


def test_cases_for_which_memory_ran_out_leave_the_others_to_tell_of(
    played: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = played(speed={"averages": {"cases": 0, "oom": 1}, "rows": [{"status": "oom"}]})
    assert main(["demo", "-o", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "speed      " not in out
    assert "exam       " in out


def test_an_earlier_demos_results_do_not_count(played: Callable[..., Path]) -> None:
    assert main(["demo", "-o", str(played())]) == 0
    assert main(["demo", "-o", str(played("mmlu"))]) == 1


@pytest.mark.slow
def test_the_whole_chain_on_nestling(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path), "--json", "-"]) == 0
    out, err = capfd.readouterr()
    summary = json.loads(out)
    assert summary["failed"] == []
    assert len(summary["generate"]["text"].split()) > 10
    assert summary["mmlu"]["accuracy"] >= 0.6
    assert summary["mmlu"]["total"] == 17 * 40
    assert set(summary["mmlu"]["categories"]) == {"STEM", "humanities", "social sciences", "other"}
    assert summary["precision"]["passed"]
    assert all(row["decode_percent_of_limit"] > 0 for row in summary["speed"]["rows"])
    assert "$ gyrfalcon verify" in err
    report = Path(summary["report"])
    for text in (report.read_text("utf-8"), report.with_suffix(".md").read_text("utf-8")):
        assert "MMLU" in text
        assert "humanities" in text.lower()
