"""`gyrfalcon demo` as a user and as a script see it: what it ends with, and when it fails."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any, TextIO

import pytest
from pages import blocks, masked, pattern_of

from gyrfalcon.cli import demo_run
from gyrfalcon.cli.main import main

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
    """Lets each step leave a result without running; the steps named fail."""
    folder = tmp_path / "demo"

    def play(*failing: str, **changed: dict[str, Any]) -> Path:
        results = {name: {**result, **changed.get(name, {})} for name, result in RESULTS.items()}

        def succeeds(words: list[str], out: TextIO) -> bool:
            print("$ gyrfalcon", *words, file=out)
            name = words[0]
            path = next((folder / path for path in demo_run.RESULTS if name in path), None)
            if path is not None and name not in failing:
                path.parent.mkdir(parents=True, exist_ok=True)
                result = results[name]
                path.write_text(json.dumps(result if name == "generate" else {"result": result}))
            if name == "report" and name not in failing:
                (folder / "report").mkdir()
                (folder / "report" / "report.html").touch()
            return name not in failing

        monkeypatch.setattr(demo_run, "_succeeds", succeeds)
        return folder

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


@pytest.mark.parametrize("step", [*RESULTS, "report"])
def test_a_step_that_fails_is_a_failure_and_the_others_are_still_run(
    step: str, played: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = played(step)
    assert main(["demo", "-o", str(folder)]) == 1
    out, err = capfd.readouterr()
    assert f"failed: {step}" in out
    assert f"got {step} failing" in err
    assert out.count("$ gyrfalcon") == 7
    assert ("report     " in out) is (step != "report")


@pytest.mark.parametrize(("step", "num_run"), [("cut", 1), ("verify", 2)])
def test_without_a_cut_there_is_nothing_to_run_on(
    step: str, num_run: int, played: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "-o", str(played(step))]) == 1
    out = capfd.readouterr().out
    assert out.count("$ gyrfalcon") == num_run
    assert "in full" not in out


def test_a_model_that_computes_no_numbers_is_told_so(
    played: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    figures = {"prefill": [{"name": "cosine", "value": None}]}
    folder = played("precision", precision={"passed": False, "figures": figures})
    (folder / "precision.json").parent.mkdir(exist_ok=True)
    summary = {"failed": ["precision"], "seconds": 1.0, "report": None, "precision": None}
    summary |= {"generate": None, "speed": None, "mmlu": None}
    lines = list(
        demo_run._lines({**summary, "precision": {"passed": False, "figures": figures}}, folder)
    )
    assert "precision  cosine prefill NaN; THE GATE DOES NOT HOLD" in lines


def test_only_an_empty_folder_or_an_earlier_demos_is_written_to(
    played: Callable[..., Path], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    played()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "speed.json").write_text("mine")
    assert main(["demo", "-o", str(mine)]) == 2
    assert "wanted an empty folder, or an earlier demo's" in capfd.readouterr().err
    assert (mine / "speed.json").read_text() == "mine"
    assert main(["demo", "-o", str(mine / "speed.json")]) == 2
    assert "wanted a folder for -o" in capfd.readouterr().err


def test_a_folder_called_nestling_is_not_taken_for_the_model(
    played: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nestling").mkdir()
    assert main(["demo"]) == 2
    assert "wanted no folder nestling here" in capfd.readouterr().err


@pytest.mark.slow
def test_a_demo_that_is_ended_takes_its_step_along(tmp_path: Path) -> None:
    """And what is left does not stand in the way of the next."""
    command = [sys.executable, "-m", "gyrfalcon", "demo", "-o", str(tmp_path / "demo")]
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        while b"$ gyrfalcon speed" not in output.read_bytes():
            assert process.poll() is None, output.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        while _is_there(process.pid):
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_demo_that_is_ended_while_a_step_starts_takes_it_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(*_: object, **__: object) -> subprocess.Popen[bytes]:
        started.append(start_process(["sleep", "60"]))
        signal.raise_signal(signal.SIGTERM)
        return started[0]

    start_process = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(SystemExit, match="143"):
        main(["demo", "-o", str(tmp_path / "demo")])
    [step] = started
    code = step.poll()
    step.kill()
    assert code == -signal.SIGTERM


def _is_there(group: int) -> bool:
    """Whether any process of the group is still running."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


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


def succeeds_here(words: list[str], out: TextIO) -> bool:
    """A step in this process, which has imported all that a step needs, and measures limits briefly."""
    print(f"\n$ gyrfalcon {shlex.join(words)}", file=out, flush=True)
    return main(words) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("brief_limits")
def test_the_whole_chain_on_nestling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Steps as processes are those of the demo that is ended above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_run, "_succeeds", succeeds_here)
    assert main(["demo", "--json", "demo.json"]) == 0
    out, err = capfd.readouterr()
    [shown] = [block for block in blocks("README.md", "console") if "-m demo" in block]
    shown = re.sub("(?<=at the sea, and ).*", "…", shown.partition("\n")[2])  # which text may vary
    assert re.search(pattern_of(masked(shown)) + r"\Z", masked(err + out))
    summary = json.loads(Path("demo.json").read_text("utf-8"))
    assert summary["failed"] == []
    assert len(summary["generate"]["text"].split()) > 10
    assert summary["mmlu"]["accuracy"] >= 0.6
    assert summary["mmlu"]["total"] == 17 * 128
    assert set(summary["mmlu"]["categories"]) == {"STEM", "humanities", "social sciences", "other"}
    assert summary["precision"]["passed"]
    assert all(row["decode_percent_of_limit"] > 0 for row in summary["speed"]["rows"])
    assert "$ gyrfalcon verify" in err + out
    report = Path(summary["report"])
    for text in (report.read_text("utf-8"), report.with_suffix(".md").read_text("utf-8")):
        assert "nestling's exam" in unescape(text)
        assert "humanities" in text.lower()
